"""Captioning and filtering (CapFilt), the paper's data recipe: `python -m train.prepare capfilt`.

A captioner writes captions for every image. A scorer ranks them together with the existing ones and with the nearest
captions of a pool. The best few stay, best first; questions are kept. The training that follows is not known here.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.text import clean_caption
from blip2rt.untrusted.image_format import HEAD, format_of

from .data.readers import IMAGES, read_data
from .data.samples import BadSamples, Dataset, Sample, error_text, repeat_answers, table_text, text_fault
from .data.shards import Shards, add_sample, expand_shards
from .data.transforms import read_image
from .evaluation.predictions import Predictions, require_writable, write_atomically
from .evaluation.predictors import Predictor, open_predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_POOL_BATCH = 256  # captions of the pool that are embedded together
CLIP = "clip:"


@dataclass(frozen=True)
class CapFiltSettings:
    """Where an image's candidate captions come from, and how many it keeps."""

    keep: int = 2
    own: int = 10  # captions that the captioner samples per image, besides its best one
    top_p: float = 0.9
    retrieved: int = 0  # nearest captions of the pool
    seed: int = 0


class Scorer(Protocol):
    """Embeds images and texts; the cosine says how well they match. Images are paths."""

    def images(self, paths: Sequence[Path]) -> Floats:
        """(B, Q, E), normalized."""

    def texts(self, texts: Sequence[str]) -> Floats:
        """(T, E), normalized."""


class PredictorScorer:
    """Scores with a bundle or a stage-1 checkpoint; the best query counts."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def images(self, paths: Sequence[Path]) -> Floats:
        return self.predictor.embed_features(self.predictor.vision_features(paths))

    def texts(self, texts: Sequence[str]) -> Floats:
        return self.predictor.embed_text(texts)


class ClipScorer:
    """Scores with both towers of transformers' CLIPModel."""

    def __init__(self, source: str) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPModel

        from blip2rt.bundle.manifest import ImageSpec
        from blip2rt.modeling.sources import fetch

        try:
            path = fetch(source)
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

    def images(self, paths: Sequence[Path]) -> Floats:
        from blip2rt.image import to_pixels

        pixels = self.torch.from_numpy(to_pixels([str(path) for path in paths], self.image))
        return self._normalize(self.model.get_image_features(pixel_values=pixels.to(self.model.device)))[:, None]

    def texts(self, texts: Sequence[str]) -> Floats:
        length = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return self._normalize(self.model.get_text_features(**encoded.to(self.model.device)))

    def _normalize(self, features: Any) -> Floats:
        features = getattr(features, "pooler_output", features).detach().float()
        return (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()


def open_scorer(source: str, captioner: Predictor | None = None, precision: str | None = None) -> Scorer:
    """Open `clip:FOLDER`, `clip:HUB-ID`, a bundle or a checkpoint; "" is the captioner, if it can embed."""
    if source.startswith(CLIP):
        return ClipScorer(source.removeprefix(CLIP))
    if source:
        return PredictorScorer(open_predictor(source, None, precision))
    if captioner is None:
        raise OptionError("there is neither a scorer nor a captioner: give --scorer")
    return PredictorScorer(captioner)


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
        starts = tqdm(range(0, len(self.texts), _POOL_BATCH), desc="pool", unit="batch")
        self.embeds = np.concatenate([scorer.texts(self.texts[start : start + _POOL_BATCH]) for start in starts])

    def nearest(self, image: Floats, count: int) -> list[str]:
        """Return the `count` captions nearest to an image (Q, E), nearest first."""
        sim = (image @ self.embeds.T).max(0)
        best = np.argpartition(-sim, min(count, len(sim)) - 1)[:count]
        return [self.texts[i] for i in best[np.argsort(-sim[best], kind="stable")]]


class CapFilt:
    """Collects candidate captions of images and ranks them."""

    def __init__(
        self, captioner: Predictor | None, scorer: Scorer, pool: CaptionPool | None, settings: CapFiltSettings
    ) -> None:
        self.captioner, self.scorer, self.pool, self.settings = captioner, scorer, pool, settings

    def captions(self, paths: Sequence[Path], existing: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the captions that each image keeps, best first. existing: the captions that each has."""
        embeds, generated = self.scorer.images(paths), self._generate(paths)
        kept = []
        for image, texts, written in zip(embeds, existing, generated, strict=True):
            found = self.pool.nearest(image, self.settings.retrieved) if self.pool is not None else []
            kept.append(self._rank(image, distinct([*texts, *written, *found])))
        return kept

    def _generate(self, paths: Sequence[Path]) -> list[list[str]]:
        """Return the captioner's best caption of each image, followed by `own` sampled ones."""
        if self.captioner is None:
            return [[] for _ in paths]
        rounds = [self.captioner.caption(paths)]
        for number in range(self.settings.own):
            seed = self.settings.seed + number
            sampling = {"num_beams": 1, "do_sample": True, "top_k": 0, "top_p": self.settings.top_p, "seed": seed}
            rounds.append(self.captioner.caption(paths, **sampling))  # type: ignore[arg-type]
        return [list(texts) for texts in zip(*rounds, strict=True)]

    def _rank(self, image: Floats, texts: list[str]) -> list[str]:
        if not texts:
            return []
        sim = (image @ self.scorer.texts(texts).T).max(0)
        return [texts[i] for i in np.argsort(-sim, kind="stable")[: self.settings.keep]]


def distinct(texts: Iterable[str]) -> list[str]:
    """Drop unusable and duplicate texts, whatever their spelling; the first spelling stays."""
    found = {clean_caption(text): text for text in reversed(list(texts)) if text_fault(text) is None}
    return list(reversed(found.values()))


@dataclass(frozen=True)
class FilterOptions:
    """How a data set is processed. record: everything the captions depend on; batch: images per call."""

    record: dict[str, Any]
    batch: int
    bad: BadSamples


def filter_dataset(data: Dataset, capfilt: CapFilt, done: Predictions, options: FilterOptions) -> Dataset:
    """Replace the captions of a data set by the kept ones, and drop images without any.

    done: captions by image from earlier calls, which are reused and extended.
    """
    groups, samples = data.by_image(), list[Sample]()
    todo = [image for image, path in enumerate(data.paths) if str(path) not in done.found]
    with tqdm(total=len(groups), initial=len(groups) - len(todo), unit="img") as bar:
        for start in range(0, len(todo), options.batch):
            chunk = todo[start : start + options.batch]
            images = [image for image in chunk if _is_readable(data.paths[image], options.bad)]
            paths = [data.paths[image] for image in images]
            existing = [[sample.text for sample in groups[image] if not sample.prompt] for image in images]
            done.add(map(str, paths), capfilt.captions(paths, existing) if images else [])
            bar.update(len(chunk))
    for image, path in enumerate(data.paths):
        samples += [Sample(image, text) for text in done.found.get(str(path), [])]
        samples += [sample for sample in groups[image] if sample.prompt and str(path) in done.found]
    return Dataset(data.paths, samples).with_texts()


def _is_readable(path: Path, bad: BadSamples) -> bool:
    try:
        read_image(path)
    except (OSError, ValueError) as error:
        bad.add(str(path), error_text(error))
        return False
    return True


def read_images(data: str, images: str, bad: BadSamples) -> Dataset:
    """Read a list of images and texts, or every image of a folder, with or without a .txt beside it."""
    folder = Path(data)
    if not folder.is_dir():
        return read_data(data, images, bad)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not paths:
        raise Blip2rtError(f"--data {data!r} has no image: give another folder")
    samples = [
        Sample(image, line.strip())
        for image, texts in enumerate(path.with_suffix(".txt") for path in paths)
        if texts.is_file()
        for line in texts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if text_fault(line) is None
    ]
    return Dataset(paths, samples)


def filter_list(data: str, images: str, out: Path, capfilt: CapFilt, options: FilterOptions) -> int:
    """Write the table `out` and return its number of images. `out`.partial.jsonl lets a killed run resume."""
    require_writable(out)
    partial = Path(f"{out}.partial.jsonl")
    filtered = filter_dataset(
        read_images(data, images, options.bad), capfilt, Predictions(partial, options.record), options
    )
    if not filtered.samples:
        raise Blip2rtError(f"no image of {data!r} got a caption: give a captioner or a pool")
    root = Path(data) if Path(data).is_dir() else Path(images)
    names = [str(path.relative_to(root)) for path in filtered.paths]
    samples = repeat_answers(filtered.samples)
    write_atomically(out, table_text((names[each.image], each.text, each.prompt) for each in samples))
    partial.unlink()
    return len(filtered.paths)


def filter_shards(pattern: str, out: Path, cache: Path, capfilt: CapFilt, options: FilterOptions) -> int:
    """Write a shard of the same name for each shard and return their number of images; existing ones are skipped."""
    out.mkdir(parents=True, exist_ok=True)
    images = 0
    for shard in expand_shards(pattern):
        final = out / shard.name
        if final.exists():
            continue
        with tempfile.TemporaryDirectory(dir=out, prefix=".images-") as folder:
            data = _unpack(shard, Path(folder), cache, options.bad)
            filtered = filter_dataset(data, capfilt, Predictions(None, options.record), options)
            partial = final.with_suffix(".partial")
            with tarfile.open(partial, "w") as tar:
                for path, group in zip(filtered.paths, filtered.by_image(), strict=True):
                    add_sample(tar, path.stem, path, path.read_bytes(), group)
            partial.rename(final)
        images += len(filtered.paths)
    return images


def _unpack(shard: Path, folder: Path, cache: Path, bad: BadSamples) -> Dataset:
    """Extract the readable images of a shard, with their texts."""
    source = Shards(str(shard), cache, bad)
    paths, samples = list[Path](), list[Sample]()
    for number in range(sum(source.counts)):
        try:
            content, texts = source.read(number)
            read_image(content)
        except (OSError, ValueError) as error:
            bad.add(source.name(number), error_text(error))
            continue
        path = folder / f"{number:09d}.{format_of(content[:HEAD]).lower()}"
        path.write_bytes(content)
        samples += [Sample(len(paths), text.text, text.prompt, text.weight) for text in texts]
        paths.append(path)
    return Dataset(paths, samples)
