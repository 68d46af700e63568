"""A checkpoint of ours, Hugging Face's or LAVIS' in PyTorch, as a train.evaluation.predictors.Predictor.

Images and texts are prepared as in the runtime: blip2rt.image, the tokenizers' templates, cleaned captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from blip2rt.bundle.manifest import ImageSpec
from blip2rt.errors import CapabilityError
from blip2rt.image import ImageLike, prepare, to_pixels
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.sources import NO_PARTS, ExternalParts
from blip2rt.results import MatchWeights

from ..loop.parallel import this_process
from ..loop.trainer import PRECISIONS
from .generation import Generator, qformer_tokens
from .predictions import Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rgb = NDArray[np.uint8]


class TorchPredictor:
    """See train.evaluation.predictors.open_predictor."""

    def __init__(self, source: str, parts: ExternalParts | None, precision: str | None, prompt: str | None) -> None:
        self.source, checkpoint = source, Checkpoint(source, parts or NO_PARTS)
        if prompt is not None and checkpoint.config.llm is not None:
            llm = checkpoint.config.llm
            llm = replace(llm, ask_prompt=prompt) if "{}" in prompt else replace(llm, caption_prompt=prompt)
            checkpoint = checkpoint.with_config(replace(checkpoint.config, llm=llm))
        self.device = this_process().device
        self.dtype = PRECISIONS[precision or ("fp32" if self.device.type == "cpu" else "bf16")]
        self.checkpoint, self.model = checkpoint, checkpoint.load()
        for part in (self.model.vision, getattr(self.model, "llm", None)):
            if isinstance(part, nn.Module):
                part.to(self.dtype)
        self.model.to(self.device)
        config = self.model.config.vision
        self.image = ImageSpec(config.height, config.width, config.resample, config.mean, config.std)

    @torch.no_grad()
    def caption(self, images: Sequence[Path], **options: Any) -> list[str]:
        """See blip2rt.Model.caption."""
        with self._autocast():
            return self._generator.captions(self._features(images), **options)

    @torch.no_grad()
    def caption_candidates(self, vision_features: Floats, sampling: Sampling, first_image: int) -> list[list[str]]:
        """See BundlePredictor.caption_candidates; beams and lengths are those of an exported bundle."""
        rounds: list[dict[str, Any]] = [{"num_beams": 3}]
        if sampling.count:
            drawn = {"num_return_sequences": sampling.count, "do_sample": True, "top_k": 0, "top_p": sampling.top_p}
            rounds.append({**drawn, "seed": sampling.seed + first_image})
        lengths = {"min_new_tokens": 1, "max_new_tokens": 30}
        with self._autocast():
            return self._generator.candidates(self._tensor(vision_features), [each | lengths for each in rounds])

    def prepare(self, image: ImageLike) -> Rgb:
        """RGB (height, width, 3) uint8, resized for the encoder."""
        return prepare(image, self.image)

    @torch.no_grad()
    def ask(self, images: Sequence[Path], questions: Sequence[str], **options: Any) -> list[str]:
        """See blip2rt.Model.ask; images and questions are paired."""
        with self._autocast():
            return self._generator.answers(self._features(images), questions, **options)

    @torch.no_grad()
    def vision_features(self, images: Sequence[Path] | Sequence[Rgb]) -> Floats:
        """Images -> (B, N, C) float32."""
        return self._features(images).cpu().numpy()

    @torch.no_grad()
    def embed_features(self, vision_features: Floats) -> Floats:
        """(B, N, C) -> (B, Q, E) float32."""
        self._need(1, "embed images")
        with self._autocast():
            query_output = self.model.query_output(self._tensor(vision_features))
            return self.model.image_embeds(query_output).float().cpu().numpy()

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Floats:
        """Texts -> (B, E) float32."""
        self._need(1, "embed texts")
        with self._autocast():
            return self.model.text_embeds(*self._tokens(texts)).float().cpu().numpy()

    @torch.no_grad()
    def itm_logits(self, vision_features: Floats, texts: Sequence[str]) -> Floats:
        """(B, N, C) and B texts -> (B, 2) float32."""
        self._need(1, "match")
        with self._autocast():
            return self.model.itm_logits(self._tensor(vision_features), *self._tokens(texts)).float().cpu().numpy()

    @property
    def match_weights(self) -> MatchWeights:
        """See blip2rt.Model.match_weights: a checkpoint that matches has no language model."""
        return MatchWeights(self.model.temperature.item(), self.model.config.itm_weight)

    def likelihoods(self, vision_features: Floats, texts: Sequence[str]) -> NDArray[np.float64]:
        """See blip2rt.Model.likelihoods."""
        raise CapabilityError(f"{self.source!r} has one stage only: give a bundle of both for likelihoods")

    def _features(self, images: Sequence[Path] | Sequence[Rgb]) -> torch.Tensor:
        """Return (B, N, C) float32; repeated images are encoded once."""
        names = [image if isinstance(image, Path) else id(image) for image in images]
        unique: dict[Any, Any] = dict(zip(names, images, strict=True))
        pixels = torch.from_numpy(to_pixels(list(unique.values()), self.image))
        features = self.model.vision_features(pixels.to(self.device, self.dtype))
        return features[[list(unique).index(name) for name in names]].float()

    def _tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token_ids, text_mask (B, L) for the Q-Former."""
        token_ids, text_mask = qformer_tokens(self.model.config, self.checkpoint.bert.tokenizer, texts)
        return token_ids.to(self.device), text_mask.to(self.device)

    def _tensor(self, values: Floats) -> torch.Tensor:
        return torch.tensor(values).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _need(self, stage: int, what: str) -> None:
        have = self.model.config.stage
        if have != stage:
            kind = "Blip2ForImageTextRetrieval" if stage == 1 else "Blip2ForConditionalGeneration"
            raise CapabilityError(
                f"checkpoint {self.source!r} of stage {have} cannot {what}: give one of stage {stage}, or {kind}"
            )

    @cached_property
    def _generator(self) -> Generator:
        self._need(2, "generate")
        assert self.checkpoint.language_model is not None
        return Generator(self.model, self.checkpoint.language_model, self.checkpoint.bert)
