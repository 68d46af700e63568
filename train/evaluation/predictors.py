"""The model under evaluation: a bundle in the runtime, or a checkpoint of any format in PyTorch.

Both have the methods of blip2rt.Model that an evaluation needs; images are paths.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from blip2rt import backends
from blip2rt.bundle import MANIFEST, Bundle, read
from blip2rt.bundle.location import locate
from blip2rt.errors import Blip2rtError
from blip2rt.install_hints import pip_install
from blip2rt.model import Model

from .predictions import Sampling as Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from blip2rt.modeling.sources import ExternalParts

    from .torch_predictor import TorchPredictor

    Floats = NDArray[np.float32]

Predictor: TypeAlias = "BundlePredictor | TorchPredictor"


def open_predictor(
    source: str | None, parts: ExternalParts | None = None, precision: str | None = None, prompt: str | None = None
) -> Predictor:
    """Open a bundle, or a checkpoint of ours, Hugging Face's or LAVIS'; None is the embedded bundle.

    parts: what LAVIS' files leave out. precision: of a checkpoint, fp32, bf16 or fp16; None: fp32 on CPUs, else bf16.
    prompt: replaces the model's own, for questions if it contains {}, otherwise for captions. Raise Blip2rtError.
    """
    if source is None or (Path(source) / MANIFEST).is_file():
        return _bundle(source, prompt)
    try:
        from .torch_predictor import TorchPredictor
    except ModuleNotFoundError as error:
        fix = f"{error.name} is not installed: {pip_install('train')}"
        raise Blip2rtError(f"{source} is not a bundle, and for checkpoints {fix}") from error
    return TorchPredictor(source, parts, precision, prompt)


class BundlePredictor(Model):
    """A bundle in the runtime."""

    @classmethod
    def of(cls, bundle: Bundle) -> BundlePredictor:
        """Run it by the default backend, as its users do."""
        return cls(bundle, backends.create(backends.DEFAULT, bundle))

    def caption_candidates(self, vision_features: Floats, sampling: Sampling, first_image: int) -> list[list[str]]:
        """Return the best caption of each image (B, N, C), that of `caption`, followed by sampled ones.

        first_image: number of the first image in the random streams. Beams and samples share prefill and steps.
        """
        pipeline, tasks = self.pipeline, [self.pipeline.task()]
        if sampling.count:
            drawn: dict[str, Any] = {"num_captions": sampling.count, "num_beams": 1, "do_sample": True, "top_k": 0}
            tasks.append(pipeline.task(**drawn, top_p=sampling.top_p, seed=sampling.seed))
        prefix_embeds, language = self.caption_prefix(vision_features), pipeline.language  # (B, Q, D)
        prompts = [language.encode(tasks[0].prompt)] * len(prefix_embeds)
        started = [(task, task.settings.changed(first_image=first_image)) for task in reversed(tasks)]  # longest first
        options = [task.guided(settings, [vision_features]) for task, settings in started]
        found = pipeline.backend.generate_rounds(prefix_embeds, prompts, options)
        rounds = [
            language.scored(texts, task.settings, True) for texts, task in zip(reversed(found), tasks, strict=True)
        ]
        return [[str(text) for found in texts for text in found] for texts in zip(*rounds, strict=True)]


def _bundle(source: str | None, prompt: str | None) -> Predictor:
    bundle = read(locate(source))
    if prompt is not None:
        prompts = {**bundle.manifest.prompts, "ask" if "{}" in prompt else "caption": prompt}
        bundle = replace(bundle, manifest=replace(bundle.manifest, prompts=prompts))
    return BundlePredictor.of(bundle)
