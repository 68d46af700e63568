"""A pool of Ray actors that survives the loss of its nodes: behind `caption`, `index` and `prepare capfilt` with --ray.

The driver hands out calls in order, at most a few per actor. If an actor or its node dies, its calls run again on
another. Actors that no node has room for wait; a node that joins later gets them. Knows neither images nor models.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import BackendError, Blip2rtError, OptionError, one_line
from ..install_hints import pip_install
from ..system import total_memory

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")
Pool = TypeVar("Pool", bound="ActorPool")

LOCAL = "local"
_MIN_STORE, _MAX_STORE = 100 << 20, 4 << 30  # bytes of the object store of a local cluster
_WINDOW = 4  # calls per actor whose results may wait for an earlier one
_MAX_LOSSES = 10  # in a row, and twice as many as all actors have calls
_PATIENCE_SECONDS = 30  # without any actor, before a line says so


def import_ray() -> Any:
    """Import Ray with its telemetry off. Raises OptionError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.path.isfile(os.path.expanduser("~/.ray/auth_token")):  # which `ray start` uses, but not Ray 2.60's `init`
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ModuleNotFoundError:
        raise OptionError(f"--ray needs Ray: {pip_install('ray')}") from None
    return ray


def connect(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one on this machine. Raises OptionError."""
    quiet = {"configure_logging": True, "logging_level": "ERROR", "log_to_driver": False}
    try:
        if address != LOCAL:
            ray.init(address=address, **quiet)
            return
        store = min(_MAX_STORE, max(_MIN_STORE, total_memory() // 16))
        ray.init(address=LOCAL, include_dashboard=False, object_store_memory=store, **quiet)
    except Exception as error:  # Ray raises many kinds
        fix = "give the address of a head node, `auto`, or `local` on a machine with free memory and processor time"
        raise OptionError(f"--ray {address!r} cannot be reached ({last_line(error)}): {fix}") from None


def last_line(error: Exception) -> str:
    """The last line of an error of Ray, whose others are a traceback."""
    lines = str(error).strip().splitlines()
    return one_line(lines[-1].strip()) if lines else type(error).__name__


def take_resources() -> None:
    """Limit this process to the processors and GPUs of its actor, if it is one.

    Call it before torch starts: without a GPU of its own, an actor must not find cuda:0.
    """
    context = import_ray().get_runtime_context()
    if context.get_actor_id() is None:
        return
    resources = context.get_assigned_resources()
    threads = str(max(1, int(resources.get("CPU", 1))))
    os.environ.update({"BLIP2RT_NUM_THREADS": threads, "OMP_NUM_THREADS": threads})
    if not resources.get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@dataclass(frozen=True)
class Workers:
    """The actors of a cluster: how many (None: as many as fit), and the processors and GPUs of each."""

    address: str
    count: int | None = None
    threads: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        """Raise OptionError for a number of GPUs that Ray cannot give."""
        if not (0.01 <= self.gpus < 1 or self.gpus == self.gpus // 1 >= 0):
            raise OptionError(f"--gpus is {self.gpus:g}: give a whole number, or a fraction from 0.01")


@dataclass(eq=False)
class Call(Generic[T]):
    """A call of an actor's method `run`. item: what it is for; arguments: None if there is nothing to do."""

    item: T
    arguments: tuple[Any, ...] | None
    result: Any = None
    sent: bool = False

    def __post_init__(self) -> None:
        self.done = self.arguments is None


class ActorPool:
    """Actors of one class, for a `with` block. Raises OptionError if the cluster cannot be reached.

    The class needs a method `start`, which returns its node's name, and a method `run`.
    """

    def __init__(self, workers: Workers, actor_class: type, arguments: tuple[Any, ...], queued: int) -> None:
        """arguments: of the class. queued: calls per actor, of which one runs."""
        self.ray = import_ray()
        connect(self.ray, workers.address)
        resources = {"num_cpus": workers.threads, "num_gpus": workers.gpus}
        self._class, self._arguments = self.ray.remote(**resources)(actor_class), arguments
        self._workers, self._queued = workers, queued
        self._nodes: dict[Any, str] = {}  # of each actor; "" until it has started
        self._running: dict[Any, tuple[Any, Call[Any] | None]] = {}  # by result: an actor, and its call or its start
        self._reported, self._losses = set[str](), 0  # nodes; actors lost since the last result

    def __enter__(self: Pool) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self.ray.shutdown()

    def map(self, calls: Iterable[Call[T]]) -> Iterator[Call[T]]:
        """Yield the calls in order, with their results. Raises BackendError, and the Blip2rtError of a call."""
        source, window = iter(calls), deque[Call[T]]()
        while True:
            window.extend(islice(source, max(0, _WINDOW * max(1, len(self._nodes)) - len(window))))
            if not window:
                return
            self._send(call for call in window if not call.sent and not call.done)
            if window[0].done:
                yield window.popleft()
            else:
                self._start_actors()
                self._receive()

    def _send(self, waiting: Iterable[Call[Any]]) -> None:
        """Send calls to the least busy actors, as long as these have room in their queues."""
        busy = Counter(actor for actor, _ in self._running.values())
        started = [actor for actor, node in self._nodes.items() if node]
        slots = [actor for load in range(self._queued) for actor in started if busy[actor] <= load]
        for actor, call in zip(slots, waiting, strict=False):
            call.sent = True
            self._running[actor.run.remote(*call.arguments or ())] = actor, call

    def _start_actors(self) -> None:
        """Start as many as the cluster has room for. If another job uses that room, some wait."""
        workers, there = self._workers, self.ray.cluster_resources()
        by_gpus = there.get("GPU", 0) / workers.gpus if workers.gpus else float("inf")
        fitting = max(1, int(min(there.get("CPU", 0) // workers.threads, by_gpus)))
        for _ in range((workers.count or fitting) - len(self._nodes)):
            actor = self._class.remote(*self._arguments)
            self._nodes[actor] = ""
            self._running[actor.start.remote()] = actor, None

    def _receive(self) -> None:
        """Wait for results, starts and losses."""
        ready, _ = self.ray.wait([*self._running], timeout=_PATIENCE_SECONDS)
        if not ready and not any(self._nodes.values()):
            needs = f"{self._workers.threads} CPUs" + f" and {self._workers.gpus:g} GPUs" * (self._workers.gpus > 0)
            self._report("", f"no worker has started in {_PATIENCE_SECONDS} s: each needs {needs} (see `ray status`)")
        for result in ready:
            actor, call = self._running.pop(result)
            try:
                found = self.ray.get(result)
            except self.ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, Blip2rtError):
                    raise error.cause from None
                raise BackendError(f"a worker failed: {last_line(error)}") from None
            except self.ray.exceptions.RayError as error:
                self._lose(actor, call, last_line(error))
                continue
            if call is None:
                self._nodes[actor] = found
            else:
                call.result, call.done, self._losses = found, True, 0

    def _lose(self, actor: Any, call: Call[Any] | None, reason: str) -> None:
        """Give up an actor, even one that is only out of reach, and let its calls wait again."""
        if call is not None:
            call.sent = False
        self._losses += 1
        if self._losses > _MAX_LOSSES + 2 * self._queued * len(self._nodes):
            raise BackendError(f"workers die one after another ({reason}): give each more memory, or see Ray's logs")
        if node := self._nodes.pop(actor, ""):
            self._report(node, f"a worker on node {node} died: its work runs again on another")
        elif call is None:
            self._report("start", "a worker died before it was ready: another one starts")

    def _report(self, node: str, line: str) -> None:
        """Print a line, once for each node."""
        if node not in self._reported:
            self._reported.add(node)
            logging.getLogger("blip2rt").warning(line)


def node_name(ray: Any) -> str:
    """The address and the id of this process's node."""
    return f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
