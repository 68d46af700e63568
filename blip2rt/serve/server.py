"""Run the application on a socket until a signal arrives. The model loads while the server already answers."""

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
from .app import make_app
from .logs import LOG, set_up_logging
from .middleware import MAX_HEAD_BYTES
from .service import Service
from .settings import Settings

_GRACE_SECONDS = 5  # after the drain, for aborted requests to receive their error
_BACKLOG = 1024


def serve(model: Model, settings: Settings) -> int:
    """Serve a model until SIGTERM or Ctrl-C, finish accepted requests, and return the exit status."""
    service = Service(model, settings)
    listener = _listen(settings.host, settings.port)
    set_up_logging()
    if not settings.loopback and not settings.access.api_keys:
        LOG.warning("anyone who reaches this server may call it: set --api-key to require a key")
    config = uvicorn.Config(
        make_app(service),
        settings.host,
        settings.port,
        http="h11",  # it limits the size of headers, and reads bodies after an offer to upgrade
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=math.ceil(settings.queue.drain_seconds) + _GRACE_SECONDS,
    )
    server = _Server(config, service)
    try:
        asyncio.run(_run(server, service, listener))
    finally:
        service.close()
        listener.close()
    if server.failure is not None:
        raise server.failure
    return server.exit_status


async def _run(server: _Server, service: Service, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    if service.loading:  # its thread cannot be stopped, and Python would wait for it
        logging.shutdown()
        os._exit(server.exit_status)


def _listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises OptionError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).lower().partition(" (while")[0]
        message = f"cannot listen on {host}, port {port}: {reason}; choose others with --host and --port"
        raise OptionError(message) from None


class _Server(uvicorn.Server):
    """uvicorn's server with our exit statuses, which loads the model after it starts to listen."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.received: signal.Signals | None = None
        self.failure: BaseException | None = None

    @property
    def exit_status(self) -> int:
        return 130 if self.received == signal.SIGINT else 0

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
        LOG.info("ending", extra={"fields": {"requests": len(self.server_state.tasks)}})
        asyncio.get_running_loop().call_later(self._service.settings.queue.drain_seconds, self._service.abort)
        await super().shutdown(sockets=sockets)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Shut down on SIGTERM and Ctrl-C; a second Ctrl-C exits immediately."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, ValueError):  # Windows; not the main thread
                loop.add_signal_handler(each, self._on_signal, each)
        yield

    def _on_signal(self, received: signal.Signals) -> None:
        self.force_exit = self.should_exit and received is signal.SIGINT
        again = self.received is not None
        self.received, self._service.ending = self.received or received, True  # /ready fails from now on
        if received is signal.SIGTERM and not again:
            asyncio.get_running_loop().call_later(self._service.settings.drain_delay, self._drain)
        else:
            self._drain()

    def _drain(self) -> None:
        self.should_exit = True
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it logs every request that it cancels
