"""The model under evaluation: a bundle in the runtime, or a checkpoint of any format in PyTorch.

Both have the methods of blip2rt.Model that an evaluation needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from blip2rt import backends
from blip2rt import bundle as contract
from blip2rt.errors import Blip2rtError
from blip2rt.install_hints import pip_install
from blip2rt.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from blip2rt.modeling.sources import ExternalParts
    from blip2rt.options import TextOptions
    from blip2rt.results import MatchWeights

    Floats = NDArray[np.float32]


class Predictor(Protocol):
    """The subset of blip2rt.Model that evaluations use; images are paths."""

    def caption(self, images: Sequence[Path], **options: Unpack[TextOptions]) -> Sequence[str]: ...

    def ask(
        self, images: Sequence[Path], questions: Sequence[str], **options: Unpack[TextOptions]
    ) -> Sequence[str]: ...

    def vision_features(self, images: Sequence[Path]) -> Floats: ...

    def embed_features(self, vision_features: Floats) -> Floats: ...

    def embed_text(self, texts: Sequence[str]) -> Floats: ...

    def itm_logits(self, vision_features: Floats, texts: Sequence[str]) -> Floats: ...

    @property
    def match_weights(self) -> MatchWeights: ...

    def likelihoods(self, vision_features: Floats, texts: Sequence[str]) -> NDArray[np.float64]: ...


def open_predictor(
    source: str | None, parts: ExternalParts | None = None, precision: str | None = None, prompt: str | None = None
) -> Predictor:
    """Open a bundle, or a checkpoint of ours, Hugging Face's or LAVIS'; None is the embedded bundle.

    parts: what LAVIS' files leave out. precision: of a checkpoint, fp32, bf16 or fp16; None: fp32 on CPUs, else bf16.
    prompt: replaces the model's own, for questions if it contains {}, otherwise for captions. Raise Blip2rtError.
    """
    if source is None or (Path(source) / contract.MANIFEST).is_file():
        return _bundle(source, prompt)
    try:
        from .torch_predictor import TorchPredictor
    except ModuleNotFoundError as error:
        fix = f"{error.name} is not installed: {pip_install('train')}"
        raise Blip2rtError(f"{source} is not a bundle, and for checkpoints {fix}") from error
    return TorchPredictor(source, parts, precision, prompt)


def _bundle(source: str | None, prompt: str | None) -> Predictor:
    bundle = contract.read(contract.embedded() if source is None else source)
    if prompt is not None:
        prompts = {**bundle.manifest.prompts, "ask" if "{}" in prompt else "caption": prompt}
        bundle = replace(bundle, manifest=replace(bundle.manifest, prompts=prompts))
    return Model(bundle, backends.create("ort", bundle))
