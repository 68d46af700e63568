"""Captioning and filtering (CapFilt), the paper's data recipe: `python -m train.prepare capfilt`.

A captioner writes captions of every image. A scorer ranks them beside the given ones, and beside the nearest ones of a
pool of texts without images. The best few are kept, best first; questions stay as they are. Knows predictors and
scorers, nothing about how captions are learned.
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
from blip2rt.untrusted.image_format import HEAD, kind_of

from .data.readers import IMAGES, read_data
from .data.samples import BadSamples, Dataset, Sample, repeat_answers, text_fault
from .data.shards import Shards, add_sample, expand_shards
from .data.transforms import read_image
from .evaluation.predictions import Predictions, require_writable, write_whole
from .evaluation.predictors import Predictor, open_predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_TEXTS = 256  # texts of the pool that are embedded together
CLIP = "clip:"


@dataclass(frozen=True)
class CapFiltSettings:
    """Which captions an image may get, and how many it keeps."""

    keep: int = 2
    own: int = 10  # captions that the captioner draws of an image; 0: its best one alone
    top_p: float = 0.9
    retrieved: int = 0  # captions of the pool, the nearest ones
    seed: int = 0


class Scorer(Protocol):
    """Puts images and texts into one space, where the cosine says how well they fit. Images are paths."""

    def images(self, paths: Sequence[Path]) -> Floats:
        """(B, Q, E), of length 1."""

    def texts(self, texts: Sequence[str]) -> Floats:
        """(T, E), of length 1."""


class PredictorScorer:
    """A scorer of a bundle or a checkpoint of stage 1: the best query counts."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def images(self, paths: Sequence[Path]) -> Floats:
        return self.predictor.embed_features(self.predictor.vision_features(paths))

    def texts(self, texts: Sequence[str]) -> Floats:
        return self.predictor.embed_text(texts)


class ClipScorer:
    """A scorer of transformers' CLIP, image and text tower."""

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
            raise Blip2rtError(
                f"scorer {source} is no CLIP ({reason}): give a folder or hub id of CLIPModel"
            ) from error
        self.torch, size = torch, self.model.config.vision_config.image_size
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        self.image = ImageSpec(size, size, "bicubic", mean, std)

    def images(self, paths: Sequence[Path]) -> Floats:
        from blip2rt.image import to_pixels

        pixels = self.torch.from_numpy(to_pixels([str(path) for path in paths], self.image))
        return self._unit(self.model.get_image_features(pixel_values=pixels.to(self.model.device)))[:, None]

    def texts(self, texts: Sequence[str]) -> Floats:
        most = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        return self._unit(self.model.get_text_features(**encoded.to(self.model.device)))

    def _unit(self, features: Any) -> Floats:
        features = getattr(features, "pooler_output", features).detach().float()
        return (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()


def open_scorer(source: str, captioner: Predictor | None = None, precision: str | None = None) -> Scorer:
    """`clip:FOLDER` or `clip:HUB-ID`, a bundle or a checkpoint; "": what writes the captions, if that can embed."""
    if source.startswith(CLIP):
        return ClipScorer(source.removeprefix(CLIP))
    if not source and captioner is None:
        raise OptionError("there is neither a scorer nor a captioner: give --scorer")
    return PredictorScorer(
        captioner if not source and captioner is not None else open_predictor(source, None, precision)
    )


class CaptionPool:
    """Captions without images. Knows which are nearest to an image."""

    def __init__(self, file: Path, scorer: Scorer, bad: BadSamples) -> None:
        """file: one caption a line."""
        if not file.is_file():
            raise Blip2rtError(f"--pool {str(file)!r} does not exist: give a file of one caption a line")
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        self.texts: list[str] = []
        for number, line in enumerate(lines, 1):
            fault = text_fault(line)
            if fault is None:
                self.texts.append(line.strip())
            else:
                bad.add(f"{file}, line {number}", fault)
        if not self.texts:
            raise Blip2rtError(f"--pool {str(file)!r} has no caption: give a file of one caption a line")
        starts = tqdm(range(0, len(self.texts), _TEXTS), desc="pool", unit="batch")
        self.embeds = np.concatenate([scorer.texts(self.texts[start : start + _TEXTS]) for start in starts])

    def nearest(self, image: Floats, count: int) -> list[str]:
        """The `count` texts nearest to an image (Q, E), nearest first."""
        sim = (image @ self.embeds.T).max(0)
        few = np.argpartition(-sim, min(count, len(sim)) - 1)[:count]
        return [self.texts[i] for i in few[np.argsort(-sim[few], kind="stable")]]


class CapFilt:
    """Captions of images from all that may give some, ranked."""

    def __init__(
        self, captioner: Predictor | None, scorer: Scorer, pool: CaptionPool | None, wanted: CapFiltSettings
    ) -> None:
        self.captioner, self.scorer, self.pool, self.wanted = captioner, scorer, pool, wanted

    def captions(self, paths: Sequence[Path], given: Sequence[Sequence[str]]) -> list[list[str]]:
        """The kept captions of each image, best first. given: the captions that each has."""
        embeds = self.scorer.images(paths)
        own = self._own(paths)
        kept = []
        for image, before, written in zip(embeds, given, own, strict=True):
            found = self.pool.nearest(image, self.wanted.retrieved) if self.pool is not None else []
            kept.append(self._ranked(image, distinct([*before, *written, *found])))
        return kept

    def _own(self, paths: Sequence[Path]) -> list[list[str]]:
        """What the captioner says of each image: its best caption, then `own` drawn ones."""
        if self.captioner is None:
            return [[] for _ in paths]
        rounds = [self.captioner.caption(paths)]
        for number in range(self.wanted.own):
            seed = self.wanted.seed + number
            drawn = {"num_beams": 1, "do_sample": True, "top_k": 0, "top_p": self.wanted.top_p, "seed": seed}
            rounds.append(self.captioner.caption(paths, **drawn))  # type: ignore[arg-type]
        return [list(texts) for texts in zip(*rounds, strict=True)]

    def _ranked(self, image: Floats, texts: list[str]) -> list[str]:
        if not texts:
            return []
        sim = (image @ self.scorer.texts(texts).T).max(0)
        return [texts[i] for i in np.argsort(-sim, kind="stable")[: self.wanted.keep]]


def distinct(texts: Iterable[str]) -> list[str]:
    """The usable texts, each once however it is written; the first spelling counts."""
    found = {clean_caption(text): text for text in reversed(list(texts)) if text_fault(text) is None}
    return list(reversed(found.values()))


@dataclass(frozen=True)
class FilterOptions:
    """How a data set is worked through. of: everything that captions depend on; batch: images that go together."""

    of: dict[str, Any]
    batch: int
    bad: BadSamples


def filtered(data: Dataset, capfilt: CapFilt, kept: Predictions, work: FilterOptions) -> Dataset:
    """The data set with the kept captions in the place of its own. Images without any are left out.

    kept: what is done, by image, from which the next run goes on.
    """
    groups, samples = data.by_image(), list[Sample]()
    todo = [image for image, path in enumerate(data.paths) if str(path) not in kept.found]
    with tqdm(total=len(groups), initial=len(groups) - len(todo), unit="img") as bar:
        for start in range(0, len(todo), work.batch):
            images = _readable(todo[start : start + work.batch], data, work.bad)
            paths = [data.paths[image] for image in images]
            given = [[sample.text for sample in groups[image] if not sample.prompt] for image in images]
            kept.add(map(str, paths), capfilt.captions(paths, given) if images else [])
            bar.update(len(todo[start : start + work.batch]))
    for image, path in enumerate(data.paths):
        samples += [Sample(image, text) for text in kept.found.get(str(path), [])]
        samples += [sample for sample in groups[image] if sample.prompt and str(path) in kept.found]
    return Dataset(data.paths, samples).without(set(range(len(groups))) - {sample.image for sample in samples})


def _readable(images: Sequence[int], data: Dataset, bad: BadSamples) -> list[int]:
    found = []
    for image in images:
        try:
            read_image(data.paths[image])
            found.append(image)
        except (OSError, ValueError) as error:
            bad.add(str(data.paths[image]), " ".join(str(error).split()) or type(error).__name__)
    return found


def listed(data: str, images: str, bad: BadSamples) -> Dataset:
    """Any list of images and texts; of a folder every image, with or without a .txt beside it."""
    folder = Path(data)
    if not folder.is_dir():
        return read_data(data, images, bad)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not paths:
        raise Blip2rtError(f"--data {data!r} has no image: give another folder")
    beside = ((image, path.with_suffix(".txt")) for image, path in enumerate(paths))
    samples = [
        Sample(image, line.strip())
        for image, texts in beside
        if texts.is_file()
        for line in texts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if text_fault(line) is None
    ]
    return Dataset(paths, samples)


def write_table(data: Dataset, root: Path, out: Path) -> None:
    """image, caption or answer, question: an image's best caption first; images by their place in the folder `root`."""
    rows = [
        (str(data.paths[each.image].relative_to(root)), " ".join(each.text.split()), " ".join(each.prompt.split()))
        for each in repeat_answers(data.samples)
    ]
    write_whole(out, "image\tcaption\tprompt\n" + "".join("\t".join(row) + "\n" for row in rows))


def filter_list(data: str, images: str, out: Path, capfilt: CapFilt, work: FilterOptions) -> int:
    """Write the table `out`; return its images. A killed run goes on from what lies beside it."""
    require_writable(out)
    read = listed(data, images, work.bad)
    partial = Path(f"{out}.partial.jsonl")
    done = filtered(read, capfilt, Predictions(partial, work.of), work)
    if not done.samples:
        raise Blip2rtError(f"no image of {data!r} got a caption: give a captioner or a pool")
    write_table(done, Path(data) if Path(data).is_dir() else Path(images), out)
    partial.unlink()
    return len(done.paths)


def filter_shards(pattern: str, out: Path, cache: Path, capfilt: CapFilt, work: FilterOptions) -> int:
    """Write a shard of the same name for each shard; return their images. Shards that are there already are skipped."""
    out.mkdir(parents=True, exist_ok=True)
    images = 0
    for shard in expand_shards(pattern):
        whole = out / shard.name
        if whole.exists():
            continue
        with tempfile.TemporaryDirectory(dir=out, prefix=".images-") as folder:
            data = _unpacked(shard, Path(folder), cache, work.bad)
            done = filtered(data, capfilt, Predictions(None, work.of), work)
            partial = whole.with_suffix(".partial")
            with tarfile.open(partial, "w") as tar:
                for path, group in zip(done.paths, done.by_image(), strict=True):
                    add_sample(tar, path.stem, path, path.read_bytes(), group)
            partial.rename(whole)
        images += len(done.paths)
    return images


def _unpacked(shard: Path, folder: Path, cache: Path, bad: BadSamples) -> Dataset:
    """The images of a shard as files, with their texts."""
    source = Shards(str(shard), cache, bad)
    paths, samples = list[Path](), list[Sample]()
    for number in range(sum(source.counts)):
        try:
            content, texts = source.read(number)
            read_image(content)
        except (OSError, ValueError) as error:
            bad.add(source.name(number), " ".join(str(error).split()) or type(error).__name__)
            continue
        path = folder / f"{number:09d}.{kind_of(content[:HEAD]).lower()}"
        path.write_bytes(content)
        samples += [Sample(len(paths), text.text, text.prompt, text.weight) for text in texts]
        paths.append(path)
    return Dataset(paths, samples)
