"""Runs an application on a socket until it is told to end: the model loads while the server already answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn

from ..errors import OptionError
from ..model import Model
from .app import make
from .logs import LOG, set_up
from .protocol import protocol
from .service import Service
from .settings import Settings

_AFTER_CUT = 5  # seconds for those who are cut to be told
KEEP_ALIVE = 20  # seconds that an idle connection stays open


def serve(model: Model, settings: Settings) -> int:
    """Serve a model until SIGTERM or Ctrl-C; return the exit code. Requests under way are finished first."""
    service, limits = Service(model, settings), settings.limits
    listener = _listen(settings.host, settings.port)
    set_up()
    if not settings.loopback and not settings.access.keys:
        LOG.warning("whoever reaches this server may call it: --api-key lets in who knows a key")
    config = uvicorn.Config(
        make(service), settings.host, settings.port, lifespan="off", access_log=False, log_config=None,
        server_header=False, ws="none", timeout_keep_alive=KEEP_ALIVE, backlog=1024,
        http=protocol(limits.body_seconds / 3, limits.connections),
        timeout_graceful_shutdown=math.ceil(settings.queue.drain) + _AFTER_CUT,
    )  # fmt: skip
    server = _Server(config, service)
    try:
        asyncio.run(_run(server, service, listener))
    finally:
        service.close()
        listener.close()
    if server.failure is not None:
        raise server.failure
    return server.code


async def _run(server: _Server, service: Service, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    if service.loading:  # in a thread that cannot be told to end, and that Python would wait for
        logging.shutdown()
        os._exit(server.code)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OptionError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        reason = (error.strerror or str(error)).lower().partition(" (while")[0]
        raise OptionError(
            f"cannot listen at {host}, port {port}: {reason}; choose others by --host and --port"
        ) from None


class _Server(uvicorn.Server):
    """uvicorn's, with signals that end it with an exit code of our own, and a model that loads beside it."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.told: signal.Signals | None = None
        self.failure: BaseException | None = None

    @property
    def code(self) -> int:
        """The process' exit code."""
        return 130 if self.told == signal.SIGINT else 0

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            LOG.info(f"http://{host}:{port}", extra={"fields": {"model": self._service.name}})
            self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            await self._service.load()
        except Exception as error:
            self.failure, self.should_exit = error, True

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._service.ending = True
        LOG.info("ending", extra={"fields": {"requests": len(self.server_state.tasks)}})
        asyncio.get_running_loop().call_later(self._service.settings.queue.drain, self._service.cut)
        await super().shutdown(sockets=sockets)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the server; the second one does so at once."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, ValueError):  # Windows; not the main thread
                loop.add_signal_handler(each, self._end, each)
        yield

    def _end(self, told: signal.Signals) -> None:
        self.force_exit = self.should_exit and told is signal.SIGINT
        self.should_exit, self.told = True, self.told or told
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it tells of each request that it cuts
