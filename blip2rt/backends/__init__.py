"""Backends run a bundle's graphs: ort (ONNX Runtime), core, auto (the faster of these two) and trt (TensorRT).

To add a backend called NAME:

1. Write `blip2rt/backends/NAME.py` (or a folder of that name) with a class `Backend` derived from `Backend` below, its
   `devices`, and `batches` if it can decode several callers' requests in one batch. Its constructor takes the bundle,
   and other keywords with defaults; `create` reads the signature and rejects other keywords. Add a new keyword to
   `load`, too. Backends are found by file name: load, the CLI, the server and the gallery ask this package.
2. Write `_run`, which runs one graph, and `generate`, `begin` and `chat`, which run the language model. If the core's
   loop is to run graphs of another engine, derive from `ort.Backend` and open its sessions, as `trt/backend.py` does.
3. Add NAME to `kTargets` of `engines/bundle/value_faults.cpp`, and a target to `export/targets.py`: a bundle runs on
   the backend that it was exported for.
4. Compare it with ort, token for token, as `tests/trt/test_backend.py` does: `pytest tests/runtime/test_backends.py
   tests/NAME`. The former checks the interface of every backend.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from ..bundle import Bundle
from ..bundle import names as graph_names
from ..errors import BackendError, OptionError
from ..native import Sequences, Token

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..batching import Batcher
    from ..native import GenerationOptions, Prompts

    Floats: TypeAlias = NDArray[np.float32]
    Ints: TypeAlias = NDArray[np.int64]

DEFAULT = "auto"
CLOSED = "this model is closed: load it again"  # what a closed backend says

OnToken: TypeAlias = Callable[[int, int, int], object]  # gets each Token; returns False to end the call


class Generation(ABC):
    """A running generation. One thread steps it at a time. Raises BackendError."""

    stepped = False  # whether a step was taken: a question whose answer was never begun was not asked

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether every text has ended."""

    @abstractmethod
    def step(self) -> list[Token]:
        """Compute one token for every running text. Return the tokens that no later step changes.

        With beams, those are the tokens on which all beams agree; if several beams are returned, there are none.
        """

    @abstractmethod
    def results(self) -> Sequences:
        """The texts; before it is done, what exists of them."""

    @abstractmethod
    def cut(self, image: int, tokens: int) -> bool:
        """Whether max_time ended a text of `tokens` tokens. Call it when the generation is done."""

    @abstractmethod
    def close(self) -> None:
        """End the generation. Its results are what exists by then."""


class ChatSession(ABC):
    """A conversation about one image. One thread uses it at a time. Raises BackendError."""

    @abstractmethod
    def ask(self, prompt: list[int], options: GenerationOptions) -> Generation:
        """Begin the answer to [image][conversation so far][prompt]. End the previous answer if it still runs."""


class ReplaySession(ChatSession):
    """A conversation whose history is read again with every question."""

    def __init__(self, begin: Callable[..., Generation], prefix_embeds: Floats) -> None:
        """begin: the backend's. prefix_embeds (1, Q, D)"""
        self._begin, self._prefix_embeds = begin, prefix_embeds.copy()
        self._history: list[int] = []
        self._last: tuple[Generation, list[int]] | None = None

    def ask(self, prompt: list[int], options: GenerationOptions) -> Generation:
        history = list(self._history)
        if self._last is not None:
            generation, question = self._last
            generation.close()
            if generation.stepped:  # otherwise the question was never read
                history += question + generation.results()[0][0][0]
        generation = self._begin(self._prefix_embeds, [history + prompt], options)
        self._history, self._last = history, (generation, prompt + options.forced_prefix)
        return generation


class Backend(ABC):
    """Runs a bundle. Graphs load at first use. Any thread may call any method."""

    devices: ClassVar[tuple[str, ...]]  # what it runs on, for load(device=)
    target: ClassVar[str]  # of the bundles that it runs
    batches: ClassVar[bool] = False  # whether it takes the keyword `batching`, for load(batching=)
    batcher: Batcher | None = None  # decodes the calls of all threads together; None: each call decodes by itself

    @abstractmethod
    def _run(self, component: str, output: str, feeds: Mapping[str, NDArray[Any]]) -> Floats:
        """Run the graph of a component on arrays by input name. Return one output. Raises BackendError."""

    @abstractmethod
    def generate(
        self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions, on_token: OnToken | None = None
    ) -> Sequences:
        """prefix_embeds (B, Q, D), B prompts -> Sequences. engines/search/options.h documents the options."""

    def generate_rounds(
        self, prefix_embeds: Floats, prompts: Prompts, rounds: Sequence[GenerationOptions]
    ) -> list[Sequences]:
        """`generate` with each round's options; a backend may read the prompts once for all of them."""
        return [self.generate(prefix_embeds, prompts, options) for options in rounds]

    @abstractmethod
    def begin(self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions) -> Generation:
        """Begin what `generate` does. The caller steps it."""

    @abstractmethod
    def chat(self, prefix_embeds: Floats, max_rows: int, capacity: int) -> ChatSession:
        """prefix_embeds (1, Q, D), largest number of beams, positions in all -> a conversation about one image."""

    def preload(self, *components: str) -> None:  # noqa: B027  # a backend may leave it
        """Start loading graphs that will soon be needed. Return at once, and never fail."""

    def close(self) -> None:  # noqa: B027  # a backend may leave it
        """Free all memory. Later calls raise BackendError; closing again does nothing."""

    def vision(self, pixels: Floats) -> Floats:
        """pixels (B, 3, H, W) -> vision_features (B, N, C)"""
        return self._run(graph_names.VISION, graph_names.VISION_FEATURES, {graph_names.PIXELS: pixels})


def names() -> list[str]:
    """Names of the backends that exist."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> type[Backend]:
    """The class of the backend called `name`. Raises BackendError for an unknown name."""
    if name not in names():
        raise BackendError(f"no backend {name!r}: choose from {', '.join(names())}")
    backend: type[Backend] = importlib.import_module(f"{__name__}.{name}").Backend
    return backend


def create(name: str, bundle: Bundle, *, device: str | None = None, **keywords: Any) -> Backend:
    """The backend called `name`, ready to run `bundle`. A keyword that is None counts as not given.

    Raises BackendError for an unknown name and another target's bundle, OptionError for a device or a keyword that the
    backend does not have.
    """
    backend = get(name)
    if device is not None and device not in backend.devices:
        others = [other for other in names() if device in get(other).devices]
        instead = f"; {device} needs the backend {others[0]} and a bundle exported for it" if others else ""
        raise OptionError(f"device is {device!r}: the backend {name} runs on {', '.join(backend.devices)}{instead}")
    if bundle.manifest.target != backend.target:
        raise BackendError(
            f"{bundle.path} was exported for {bundle.manifest.target}, which the backend {name} cannot run: choose the "
            f"backend {bundle.manifest.target}, or export it with blip2rt-export --target {backend.target}"
        )
    given = {keyword: value for keyword, value in keywords.items() if value is not None}
    faults = [_foreign(keyword) for keyword in given if keyword not in _keywords(name)]
    if faults:
        raise OptionError("; ".join(faults))
    make: Any = backend
    created: Backend = make(bundle, **given)
    return created


def _keywords(name: str) -> list[str]:
    """The keyword-only parameters of a backend's constructor."""
    parameters = inspect.signature(get(name)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def _foreign(keyword: str) -> str:
    """The fault of a keyword that belongs to other backends."""
    owners = [name for name in names() if keyword in _keywords(name)]
    if not owners:
        return f"no backend takes {keyword}: leave it out"
    return f"{keyword} are the backend {' and '.join(owners)}'s: leave them out, or give backend={owners[-1]!r}"
