"""Backends run a bundle's graphs: ort (ONNX Runtime) and trt (TensorRT).

To add a backend called NAME:

1. Write `blip2rt/backends/NAME.py` (or a folder of that name) with a class `Backend` derived from `Backend` below, its
   `devices`, and `batches` if it can decode several callers' requests in one batch. Its constructor takes the bundle,
   and other keywords with defaults; `create` reads the signature and rejects other keywords. Add a new keyword to
   `load`, too. Backends are found by file name: load, the CLI, the server and the gallery ask this package.
2. Write `_run`, which runs one graph, and `generate`, `begin`, `chat` and `vocabulary`, which run the language model.
   The core has the searches: `SearchBatch` takes logits and returns the next tokens.
3. Add NAME to `bundle.names.TARGETS`, and a target to `export/targets.py`: a bundle runs on the backend that it was
   exported for.
4. Compare it with ort, token for token, as `tests/trt/test_backend.py` does: `pytest tests/runtime/test_backends.py
   tests/NAME`. The former checks the interface of every backend.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from .. import bundle as contract
from ..bundle import Bundle
from ..errors import BackendError, CapabilityError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]
    Ints: TypeAlias = NDArray[np.int64]

DEFAULT = "ort"
CLOSED = "this model is closed: load it again"  # what a closed backend says

Token: TypeAlias = tuple[int, int, int]  # number of the image, number of the draw, token id
OnToken: TypeAlias = Callable[[int, int, int], object]  # is told each Token; False ends the call
Sequences: TypeAlias = list[list[tuple[list[int], float]]]  # for each image its best: new token ids, score


@contextlib.contextmanager
def named_failure() -> Iterator[None]:
    """Give the core's errors their name."""
    try:
        yield
    except MemoryError:
        raise BackendError("generation failed: out of memory: ask for fewer tokens, beams or images") from None
    except RuntimeError as error:
        raise BackendError(f"generation failed: {error}") from error


class Generation(ABC):
    """A generation under way. One thread steps it at a time. Raises BackendError."""

    stepped = False  # whether a step was taken: a question whose answer was never begun was not asked

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether every text has ended."""

    @abstractmethod
    def step(self) -> list[Token]:
        """Compute one token more for every running text. Return those that are settled; with beams none is."""

    @abstractmethod
    def results(self) -> Sequences:
        """The texts; before it is done, what there is."""

    @abstractmethod
    def cut(self, image: int, tokens: int) -> bool:
        """Whether max_time ended a text of so many tokens, once all was stepped to its end."""


class Chat(ABC):
    """A conversation about one image. One thread uses it at a time. Raises BackendError."""

    @abstractmethod
    def ask(self, prompt: list[int], options: Mapping[str, Any]) -> Generation:
        """Begin the answer to [image][all that was said][prompt]. End the answer before, where it still runs."""


class Backend(ABC):
    """What runs a bundle. Graphs load at first use; every method may be called from any thread."""

    devices: ClassVar[tuple[str, ...]]  # what it runs on, for load(device=)
    batches: ClassVar[bool] = False  # whether it has a `batcher`, for load(batching=)

    @abstractmethod
    def _run(self, component: str, output: str, feeds: Mapping[str, NDArray[Any]]) -> Floats:
        """Run the graph of a component on arrays by input name. Return one output. Raises BackendError."""

    @abstractmethod
    def generate(
        self,
        prefix_embeds: Floats,
        prompts: Sequence[list[int]],
        options: Mapping[str, Any],
        on_token: OnToken | None = None,
    ) -> Sequences:
        """prefix_embeds (B, Q, D), B prompts -> Sequences. The options are those of engines/search/options.h."""

    @abstractmethod
    def begin(self, prefix_embeds: Floats, prompts: Sequence[list[int]], options: Mapping[str, Any]) -> Generation:
        """Begin what `generate` does. The caller steps it."""

    @abstractmethod
    def chat(self, prefix_embeds: Floats, max_rows: int, capacity: int) -> Chat:
        """prefix_embeds (1, Q, D), most beams of an answer, positions in all -> a conversation about one image."""

    @abstractmethod
    def vocabulary(self, tokens: list[bytes]) -> Any:
        """The text of every token -> the option `vocabulary`, which goes with the option `stop_strings`."""

    def likelihoods(
        self,
        prefix_embeds: Floats,
        prompts: Sequence[list[int]],
        images: Sequence[int],
        texts: Sequence[list[int]],
    ) -> NDArray[np.float64]:
        """prefix_embeds (B, Q, D), B prompts, T texts, the image of each -> log p(text | image, prompt) (T)"""
        raise CapabilityError(
            "this backend does not tell how likely a text is, which the bundle's Match.score asks for: run it by the "
            "backend ort, or write 0 as the manifest's retrieval.likelihood_weight"
        )

    def batcher(self, rows: int, positions: int, read: int, kept_bytes: int) -> Any:
        """What decodes the requests of all threads together: a Batcher of the core, see blip2rt/_native.pyi."""
        raise BackendError("this backend decodes each call by itself: load without batching")

    def preload(self, *components: str) -> None:  # noqa: B027  # a backend may leave it
        """Begin to load graphs that will soon be needed. Return at once, and never fail."""

    def close(self) -> None:  # noqa: B027  # a backend may leave it
        """Give back what is held. What is called afterwards raises BackendError; closing again does nothing."""

    def vision(self, pixels: Floats) -> Floats:
        """pixels (B, 3, H, W) -> vision_features (B, N, C)"""
        return self._run(contract.VISION, contract.VISION_FEATURES, {contract.PIXELS: pixels})

    def prefix_embeds(self, vision_features: Floats, question: tuple[Ints, Ints] | None = None) -> Floats:
        """vision_features (B, N, C) -> prefix_embeds (B, Q, D)

        question: token_ids, text_mask (B, L), for a Q-Former that reads it, and for no other.
        """
        feeds: dict[str, NDArray[Any]] = {contract.VISION_FEATURES: vision_features}
        if question is not None:
            feeds[contract.TOKEN_IDS], feeds[contract.TEXT_MASK] = question
        return self._run(contract.QFORMER, contract.PREFIX_EMBEDS, feeds)

    def image_embeds(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> image_embeds (B, Q, E), rows of unit length"""
        feeds = {contract.VISION_FEATURES: vision_features}
        return self._run(contract.IMAGE_EMBED, contract.IMAGE_EMBEDS, feeds)

    def text_embeds(self, token_ids: Ints, text_mask: Ints) -> Floats:
        """token_ids, text_mask (B, L) -> text_embeds (B, E), of unit length"""
        feeds = {contract.TOKEN_IDS: token_ids, contract.TEXT_MASK: text_mask}
        return self._run(contract.TEXT_EMBED, contract.TEXT_EMBEDS, feeds)

    def itm_logits(self, vision_features: Floats, token_ids: Ints, text_mask: Ints) -> Floats:
        """vision_features (B, N, C), token_ids, text_mask (B, L) -> itm_logits (B, 2)"""
        feeds: dict[str, NDArray[Any]] = {
            contract.VISION_FEATURES: vision_features,
            contract.TOKEN_IDS: token_ids,
            contract.TEXT_MASK: text_mask,
        }
        return self._run(contract.ITM, contract.ITM_LOGITS, feeds)


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
    if bundle.manifest.target != name:
        raise BackendError(
            f"{bundle.path} was exported for {bundle.manifest.target}, which the backend {name} cannot run: choose the "
            f"backend {bundle.manifest.target}, or export it with blip2rt-export --target {name}"
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
    return f"{keyword} are the backend {' and '.join(owners)}'s: leave them out, or give backend={owners[0]!r}"
