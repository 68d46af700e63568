"""`blip2rt serve` on Ray Serve: `serve run blip2rt.integrations.ray_serve:app`.

Each replica is a whole server, with all routes and its own batching; Ray Serve starts, balances and replaces replicas.
BLIP2RT_SERVE holds the flags of `blip2rt serve` (but --host and --port), and --model, --threads and --replicas MIN MAX:

    BLIP2RT_SERVE="--model /bundle --threads 4 --replicas 2 8" serve run blip2rt.integrations.ray_serve:app
"""

from __future__ import annotations

import asyncio
import os
import shlex
from argparse import Namespace
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from ..command_line import Parser, nonempty, whole
from ..serve import cli
from .ray_cluster import import_ray

if TYPE_CHECKING:
    from ..serve.service import Service

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

VARIABLE = "BLIP2RT_SERVE"
_QUEUED_PER_REPLICA = 8  # requests per replica above which another replica starts


def parse(flags: str) -> Namespace:
    """Parse the flags. Raises UsageError."""
    parser = Parser(prog=VARIABLE, description="Flags of a replica.")
    cli.add_options(parser)
    parser.add_argument("--model", type=nonempty, metavar="BUNDLE", help="a bundle's folder (default: nano)")
    parser.add_argument("--threads", type=whole(1, 1024), default=1, metavar="N", help="processors of a replica")
    about = "fewest and most replicas"
    parser.add_argument(
        "--replicas", type=whole(1, 10_000), nargs=2, default=[1, 1], metavar=("MIN", "MAX"), help=about
    )
    return parser.parse_args(shlex.split(flags))


class ReplicaApp:
    """The server's ASGI application, which loads the model at startup and ends requests at shutdown."""

    def __init__(self, args: Namespace) -> None:
        from ..serve.app import make_app
        from ..serve.inference import open_model
        from ..serve.service import Service

        settings = cli.settings_from(args)
        self._service: Service = Service(open_model(args.model, settings, threads=args.threads), settings)
        self._app = make_app(self._service)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        try:
            await self._service.load()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.to_thread(self._service.close)
        await send({"type": "lifespan.shutdown.complete"})


def build(flags: str) -> Any:
    """Return an application of Ray Serve. Raises OptionError and UsageError for wrong flags."""
    import_ray()
    from ray import serve

    args = parse(flags)
    settings = cli.settings_from(args)
    least, most = sorted(args.replicas)

    def app() -> ReplicaApp:
        return ReplicaApp(args)

    deployment = serve.deployment(
        name="blip2rt",
        ray_actor_options={"num_cpus": args.threads},
        max_ongoing_requests=settings.limits.connections,  # the server queues and rejects by itself
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": _QUEUED_PER_REPLICA,
        },
        graceful_shutdown_timeout_s=settings.queue.drain_seconds,
    )
    return deployment(serve.ingress(app)()).bind()


def __getattr__(name: str) -> Any:
    """`app`, built when `serve run` asks for it."""
    if name == "app":
        return build(os.environ.get(VARIABLE, ""))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
