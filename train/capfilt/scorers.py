"""What ranks captions: a bundle, a stage-1 checkpoint or CLIP; and a pool of captions that an image retrieves from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from blip2rt.errors import Blip2rtError, CapabilityError, OptionError
from blip2rt.image import ImageLike, prepare, to_pixels

from ..data.samples import BadSamples, text_fault
from ..evaluation.predictors import Predictor, open_predictor
from ..progress import bar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rgb = NDArray[np.uint8]

_POOL_BATCH = 256  # captions of the pool that are embedded together
CLIP = "clip:"


class PredictorScorer:
    """Embeds with a bundle or a stage-1 checkpoint; the cosine with the best query says how well a text matches."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def prepare(self, image: ImageLike) -> Rgb:
        """RGB (height, width, 3), resized for the scorer."""
        return self.predictor.prepare(image)

    def images(self, prepared: Sequence[Rgb], vision_features: Floats | None = None) -> Floats:
        """(B, Q, E), normalized. vision_features: of these images, where the captioner's encoder is the scorer's."""
        features = self.predictor.vision_features(prepared) if vision_features is None else vision_features
        return self.predictor.embed_features(features)

    def texts(self, texts: Sequence[str]) -> Floats:
        """(T, E), normalized."""
        return self.predictor.embed_text(texts)


class ClipScorer:
    """Embeds with both towers of transformers' CLIPModel, with the methods of PredictorScorer."""

    def __init__(self, source: str) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPModel

        from blip2rt.bundle.manifest import ImageSpec
        from blip2rt.modeling.sources import fetch, without_progress_bar

        try:
            path = fetch(source)
            with without_progress_bar():
                self.model: Any = CLIPModel.from_pretrained(path, trust_remote_code=False).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            fix = "give a folder or hub id of a CLIPModel"
            raise Blip2rtError(f"scorer {source} is not a CLIP model ({reason}): {fix}") from error
        self.torch, size = torch, self.model.config.vision_config.image_size
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        self.image = ImageSpec(size, size, "bicubic", mean, std)

    def prepare(self, image: ImageLike) -> Rgb:
        return prepare(image, self.image)

    def images(self, prepared: Sequence[Rgb], vision_features: Floats | None = None) -> Floats:
        pixels = self.torch.from_numpy(to_pixels(prepared, self.image))
        return self._normalize(self.model.get_image_features(pixel_values=pixels.to(self.model.device)))[:, None]

    def texts(self, texts: Sequence[str]) -> Floats:
        length = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return self._normalize(self.model.get_text_features(**encoded.to(self.model.device)))

    def _normalize(self, features: Any) -> Floats:
        features = getattr(features, "pooler_output", features).detach().float()
        return (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()


Scorer: TypeAlias = "PredictorScorer | ClipScorer"


def open_scorer(source: str, captioner: Predictor | None = None, precision: str | None = None) -> Scorer:
    """Open `clip:FOLDER`, `clip:HUB-ID`, a bundle or a checkpoint; "" is the captioner, if it can embed."""
    if source.startswith(CLIP):
        return ClipScorer(source.removeprefix(CLIP))
    if not source and captioner is None:
        raise OptionError("there is neither a scorer nor a captioner: give --scorer")
    scorer = PredictorScorer(open_predictor(source, None, precision) if source else captioner)  # type: ignore[arg-type]
    try:
        scorer.texts(["a photo"])
    except CapabilityError as error:  # now, not after the first captions
        fix = f"give a bundle, a stage-1 checkpoint or {CLIP}FOLDER as --scorer"
        raise OptionError(f"--scorer {source or 'is the captioner, which'} cannot rank captions: {fix}") from error
    return scorer


class CaptionPool:
    """Captions without images, searchable by image."""

    def __init__(self, file: Path, scorer: Scorer, bad: BadSamples) -> None:
        """file: one caption per line."""
        if not file.is_file():
            raise Blip2rtError(f"--pool {str(file)!r} does not exist: give a file with one caption per line")
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        self.texts: list[str] = []
        for number, line in enumerate(lines, 1):
            fault = text_fault(line)
            if fault is None:
                self.texts.append(line.strip())
            else:
                bad.add(f"{file}, line {number}", fault)
        if not self.texts:
            raise Blip2rtError(f"--pool {str(file)!r} has no caption: give a file with one caption per line")
        starts = bar(range(0, len(self.texts), _POOL_BATCH), desc="pool", unit="batch")
        self.embeds = np.concatenate([scorer.texts(self.texts[start : start + _POOL_BATCH]) for start in starts])

    def nearest(self, image: Floats, count: int) -> dict[str, float]:
        """Return the `count` captions nearest to an image (Q, E) with their cosines, nearest first."""
        sim = (image @ self.embeds.T).max(0)
        best = np.argpartition(-sim, min(count, len(sim)) - 1)[:count]
        return {self.texts[i]: float(sim[i]) for i in best[np.argsort(-sim[best], kind="stable")]}
