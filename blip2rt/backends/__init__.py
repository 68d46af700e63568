"""Engines that run a bundle's graphs. One module a backend, found by its name; each has a class `Backend`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .. import bundle as contract
from ..bundle import Bundle
from ..errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

    Sequences = list[list[tuple[list[int], float]]]


class Graphs:
    """What a backend's graphs give for arrays, whichever engine runs them."""

    def _run(self, component: str, output: str, feeds: dict[str, Any]) -> Floats:
        raise NotImplementedError

    def vision(self, pixels: Floats) -> Floats:
        return self._run(contract.VISION, contract.VISION_FEATURES, {contract.PIXELS: pixels})

    def prefix_embeds(self, vision_features: Floats, question: tuple[Ints, Ints] | None = None) -> Floats:
        feeds: dict[str, Any] = {contract.VISION_FEATURES: vision_features}
        if question is not None:
            feeds[contract.TOKEN_IDS], feeds[contract.TEXT_MASK] = question
        return self._run(contract.QFORMER, contract.PREFIX_EMBEDS, feeds)

    def image_embeds(self, vision_features: Floats) -> Floats:
        feeds = {contract.VISION_FEATURES: vision_features}
        return self._run(contract.IMAGE_EMBED, contract.IMAGE_EMBEDS, feeds)

    def text_embeds(self, token_ids: Ints, text_mask: Ints) -> Floats:
        feeds = {contract.TOKEN_IDS: token_ids, contract.TEXT_MASK: text_mask}
        return self._run(contract.TEXT_EMBED, contract.TEXT_EMBEDS, feeds)

    def itm_logits(self, vision_features: Floats, token_ids: Ints, text_mask: Ints) -> Floats:
        feeds = {
            contract.VISION_FEATURES: vision_features,
            contract.TOKEN_IDS: token_ids,
            contract.TEXT_MASK: text_mask,
        }
        return self._run(contract.ITM, contract.ITM_LOGITS, feeds)


class GenerationLike(Protocol):
    """A generation under way; one thread steps it at a time. Raises BackendError."""

    @property
    def done(self) -> bool: ...

    def step(self) -> list[tuple[int, int, int]]:
        """One token more for every running text: (image, draw, token id) of each that is settled."""

    def results(self) -> Sequences:
        """Before it is done, what there is."""


class ChatLike(Protocol):
    """A conversation whose cache stays; one thread uses it at a time."""

    def ask(self, prompt: list[int], options: dict[str, Any]) -> GenerationLike:
        """The answer after [image][all that was said][prompt]; ends the one before where that is."""


class BackendLike(Protocol):
    """What the pipeline asks of a backend. Graphs load at first use; every method may be called from any thread."""

    def preload(self, *components: str) -> None:
        """Begins to load graphs that will soon be needed; returns at once, and never fails."""

    def vision(self, pixels: Floats) -> Floats:
        """pixels (B, 3, H, W) -> vision_features (B, N, C)"""

    def prefix_embeds(self, vision_features: Floats, question: tuple[Ints, Ints] | None = None) -> Floats:
        """vision_features (B, N, C) -> prefix_embeds (B, Q, D)

        question: token_ids, text_mask (B, L), for a Q-Former that reads it, and for no other.
        """

    def image_embeds(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> image_embeds (B, Q, E), rows of unit length"""

    def text_embeds(self, token_ids: Ints, text_mask: Ints) -> Floats:
        """token_ids, text_mask (B, L) -> text_embeds (B, E), of unit length"""

    def itm_logits(self, vision_features: Floats, token_ids: Ints, text_mask: Ints) -> Floats:
        """vision_features (B, N, C), token_ids, text_mask (B, L) -> itm_logits (B, 2)"""

    def generate(
        self,
        prefix_embeds: Floats,
        prompts: Sequence[list[int]],
        options: dict[str, Any],
        on_token: Callable[[int, int, int], object] | None = None,
    ) -> Sequences:
        """prefix_embeds (B, Q, D), B prompts -> for each image its best sequences: new token ids, score.

        Options: docs/design.md. on_token(image, draw, token id) sees every token that is settled; False ends the call.
        """

    def begin(self, prefix_embeds: Floats, prompts: Sequence[list[int]], options: dict[str, Any]) -> GenerationLike:
        """As generate, to be stepped by the caller."""

    def chat(self, prefix_embeds: Floats, max_rows: int, capacity: int) -> ChatLike:
        """A conversation about one image: prefix_embeds (1, Q, D), most beams of an answer, positions in all."""

    def vocabulary(self, tokens: list[bytes]) -> Any:
        """The option `vocabulary` that goes with the option `stop_strings`, of the text of every token."""


def names() -> list[str]:
    """Names of the backends that exist."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def create(
    name: str, bundle: Bundle, threads: int | None = None, device: str | None = None, engines: Any = None
) -> BackendLike:
    """The backend called `name`, ready to run `bundle` on `device`. Raises BackendError for an unknown name."""
    if name not in names():
        raise BackendError(f"no backend {name!r}: choose from {', '.join(names())}")
    if bundle.manifest.target != name:
        raise BackendError(
            f"{bundle.path} was exported for {bundle.manifest.target}, which the backend {name} cannot run: choose the "
            f"backend {bundle.manifest.target}, or export it with blip2rt-export --target {name}"
        )
    backend: BackendLike = importlib.import_module(f"{__name__}.{name}").Backend(bundle, threads, device, engines)
    return backend
