"""A small image encoder learns to see as a larger one: `python -m train.extras.distill --recipe
recipes/nano/encoder.yaml`.

For bundles that the larger one does not fit. At every position the small encoder's features are led to the teacher's
there, and their mean to what the teacher says of the whole image; both see the same view, mixtures of two images among
them (Beyer et al. 2022). What it knew before, of things that these images do not show, it is held to on request: a
linear map of its features stays what `former` has there (after Li and Hoiem 2016). The trainings that follow name its
checkpoint as vision_weights. Knows images and encoders.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.blip2 import Blip2Config, Trained
from blip2rt.modeling.sources import fetch
from blip2rt.modeling.vision import VisionConfig, VisionEncoder, freeze, layer_numbers

from ..cli import run_main
from ..data.features import cache_key, to_pixels
from ..data.feed import bad_samples
from ..data.readers import read_data
from ..data.transforms import read_image
from ..loop.parallel import here
from ..loop.trainer import Losses, Trainer, autocast_dtype, vision_peaks
from ..settings import TrainSettings, option, parse, vision_config

_BATCH = 16
_KNOWN = 1000  # images whose targets say what is common to all
_KNOWN_TO_FORMER = 128  # the same, of a former encoder's features
_FAR = 8.0  # standard deviations: what is farther counts as so far
_SHARPNESS = 20.0  # of the likeness between images, in which cosines become shares


@dataclass(frozen=True)
class DistillSettings(TrainSettings):
    teacher: str = option("", "the larger encoder: a folder or hub id of transformers' CLIP, SigLIP, DINOv2 or ViT")
    teacher_size: int = option(224, "height and width of the pixels that it reads")
    teacher_mean: tuple[float, ...] = option((0.48145466, 0.4578275, 0.40821073), "per-channel mean of these pixels")
    teacher_std: tuple[float, ...] = option((0.26862954, 0.26130258, 0.27577711), "and their standard deviation")
    frozen_layers: int = option(0, "so many layers of the small encoder, and what is before them, stay as they are")
    cache_layers: bool = option(
        False, "what they make of every view, plain and mirrored, is computed once and kept in `features`, in 16 bits"
    )
    head_lr: float = option(2e-3, "peak learning rate of the maps from its features to the teacher's")
    former: str = option("", "weights of the small encoder whose features stay readable in its own; none: all may go")
    former_weight: float = option(1.0, "of the loss that sees to it")


@dataclass(frozen=True)
class Seen:
    """What the loss of one micro-batch is computed of."""

    hidden: torch.Tensor  # (b, ...): what the frozen layers make of (b, 3, h, w) pixels; these themselves without such
    positions: torch.Tensor  # (b, N, C) of the teacher
    image: torch.Tensor  # (b, E) of the teacher
    former: torch.Tensor | None  # (b, N, C): features of the former encoder


class Student(Trained):
    """The small encoder, and maps from its features to the teacher's, which nobody needs afterwards."""

    def __init__(self, config: Blip2Config, frozen_layers: int, widths: tuple[int, int], former: bool) -> None:
        super().__init__(config)
        self.frozen_layers = frozen_layers
        self.vision = VisionEncoder(config.vision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.positions_head = nn.Linear(config.vision.features, widths[0])
        self.image_head = nn.Linear(config.vision.features, widths[1])
        if former:
            self.former_head = nn.Linear(config.vision.features, config.vision.features)

    @torch.no_grad()
    def lower(self, pixels: torch.Tensor) -> torch.Tensor:
        """(b, 3, h, w) -> what the frozen layers make of it."""
        return self.vision.lower(_channels_last(pixels), self.frozen_layers)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What `lower` gives -> what the teacher may say of each position, (b, N, C), and of the image, (b, E); and the
        former encoder of each position, (b, N, C)."""
        features = self.vision.upper(_channels_last(hidden), self.frozen_layers)
        former = self.former_head(features) if hasattr(self, "former_head") else None
        return self.positions_head(features), self.image_head(features.mean(1)), former


def _channels_last(hidden: torch.Tensor) -> torch.Tensor:
    """A grid as convolutions like it; a sequence as it is."""
    return hidden.contiguous(memory_format=torch.channels_last) if hidden.dim() == 4 else hidden


class Former(nn.Module):
    """An encoder of the same kind, frozen: its features, every channel at mean 0 and deviation 1."""

    def __init__(self, encoder: VisionEncoder, layers: int, hidden: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, layers
        with torch.no_grad():
            features = torch.cat([encoder.upper(part, layers) for part in hidden])
        self.mean = nn.Buffer(features.mean((0, 1)))
        self.std = nn.Buffer(features.std((0, 1)) + 1e-4)

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(b, ...) of the frozen layers -> (b, N, C)."""
        features = self.encoder.upper(_channels_last(hidden), self.layers)
        return ((features - self.mean) / self.std).clamp(-_FAR, _FAR)


class Teacher(nn.Module):
    """A vision transformer behind one signature: its last but one layer's positions, and its word on the image."""

    def __init__(self, source: str) -> None:
        import transformers

        super().__init__()
        try:
            config = transformers.AutoConfig.from_pretrained(fetch(source), trust_remote_code=False)
            kind = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
            model = kind.from_pretrained(fetch(source), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise Blip2rtError(f"teacher {source} cannot be loaded: {str(error).splitlines()[0]}") from error
        self.model = freeze(getattr(model, "vision_model", model) if hasattr(model, "text_model") else model)

    def forward(self, pixels: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, 3, h, w) -> (b, side * side, C), averaged over its own grid, and (b, E)."""
        output = self.model(pixel_values=pixels, output_hidden_states=True)
        states = getattr(output, "hidden_states", None)
        image = getattr(output, "image_embeds", getattr(output, "pooler_output", None))
        if states is None or image is None:
            kind = type(self.model).__name__
            raise Blip2rtError(
                f"the teacher, a {kind}, says nothing of the image: give CLIP, SigLIP, DINOv2 or ViTModel"
            )
        features = states[-2].float()
        own = math.isqrt(features.shape[1])
        grid = features[:, features.shape[1] - own**2 :].transpose(1, 2).unflatten(2, (own, own))
        return F.interpolate(grid, (side, side), mode="area").flatten(2).transpose(1, 2), image.float()


def mixed_view(paths: list[Path], view: int, index: int) -> Image.Image:
    """View 0 is the image, the others are random crops of it. Of every second view all, and a quarter of the rest, are
    mixed with a crop of another image: laid over each other, or side by side."""
    image = read_image(paths[index])
    if view == 0:
        return image
    rng = np.random.default_rng(view * len(paths) + index)
    first = _crop(image, rng)
    if view % 2 and rng.random() >= 0.25:
        return first
    second = _crop(read_image(paths[int(rng.integers(len(paths)))]).resize(image.size), rng)
    share = rng.uniform(0.2, 0.8)
    if rng.random() < 0.5:
        return Image.blend(second, first, share)
    beside = rng.random() < 0.5
    left, top = (int(share * image.width), 0) if beside else (0, int(share * image.height))
    first.paste(second.crop((left, top, *image.size)), (left, top))
    return first


def view_pixels(paths: list[Path], where: Iterable[tuple[int, int]], config: VisionConfig) -> torch.Tensor:
    """(b, 3, h, w) of images by view and index."""
    return torch.stack([to_pixels(mixed_view(paths, view, index), config) for view, index in where])


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """0.4 of the area or more, at the size of the whole, mirrored or not."""
    area, ratio = rng.uniform(0.4, 1.0), np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = min(image.width, max(1, round((area * ratio * image.width * image.height) ** 0.5)))
    height = min(image.height, max(1, round((area / ratio * image.width * image.height) ** 0.5)))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    cropped = image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped


class Targets:
    """What the teacher says of every view of the images, computed once: memory-mapped, view after view."""

    def __init__(self, paths: list[Path], settings: DistillSettings, side: int, views: int) -> None:
        self.paths = paths
        size, (m, s) = settings.teacher_size, (settings.teacher_mean, settings.teacher_std)
        config = VisionConfig(f"hf:{settings.teacher}", height=size, width=size, positions=side * side,
                              mean=(m[0], m[1], m[2]), std=(s[0], s[1], s[2]))  # fmt: skip
        folder = Path(settings.features)
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(f"distill {cache_key(paths, config)}".encode()).hexdigest()[:16]
        stems = [folder / f"{key}-view{view}" for view in range(views)]
        missing = [view for view, stem in enumerate(stems) if not _image_file(stem).is_file()]
        if missing and here().main:
            self._compute(Teacher(settings.teacher), config, side, {view: stems[view] for view in missing})
        here().wait()
        self.positions = [np.load(_positions_file(stem), mmap_mode="r") for stem in stems]
        self.image = [np.load(_image_file(stem), mmap_mode="r") for stem in stems]

    def where(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """The view and the index of rows view * images + index."""
        return [divmod(int(row), len(self.paths)) for row in rows]

    def rows(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """What it says of such rows: (b, N, C) and (b, E), float32."""
        where = self.where(rows)
        of = ((array[v][i] for v, i in where) for array in (self.positions, self.image))
        positions, image = (torch.from_numpy(np.stack(list(found))).float() for found in of)
        return positions, image

    @torch.no_grad()
    def _compute(self, teacher: Teacher, config: VisionConfig, side: int, stems: dict[int, Path]) -> None:
        device, dtype = here().device, autocast_dtype("auto")
        teacher.to(device, dtype)
        count = len(self.paths)
        for view, stem in stems.items():
            positions, image = [], []
            for start in tqdm(range(0, count, _BATCH), desc=f"teacher, view {view}", unit="batch"):
                some = range(start, min(start + _BATCH, count))
                pixels = view_pixels(self.paths, ((view, index) for index in some), config)
                found = teacher(pixels.to(device, dtype), side)
                positions.append(found[0].half().cpu().numpy())
                image.append(found[1].half().cpu().numpy())
            np.save(_positions_file(stem), np.concatenate(positions))
            partial = stem.with_suffix(".partial.npy")
            np.save(partial, np.concatenate(image))
            partial.rename(_image_file(stem))  # the last of the two: then both are whole


def _positions_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}-positions.npy")


def _image_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}-image.npy")


class Hidden:
    """What the frozen layers make of every view of the images, plain and mirrored, computed once: memory-mapped."""

    def __init__(self, paths: list[Path], student: Student, settings: DistillSettings) -> None:
        key = _hidden_key(paths, student)
        names = [f"{key}-view{view}{end}.npy" for view in range(settings.views) for end in ("", "-mirrored")]
        files = [Path(settings.features, name) for name in names]
        if here().main:
            for number, file in enumerate(files):
                if not file.is_file():
                    _write_hidden(file, student, paths, *divmod(number, 2))
        here().wait()
        self._arrays = [np.load(file, mmap_mode="r") for file in files]

    def rows(self, where: list[tuple[int, int]], mirrored: np.ndarray) -> torch.Tensor:
        """Of images by view and index, float32."""
        found = [self._arrays[2 * view + int(m)][i] for (view, i), m in zip(where, mirrored, strict=True)]
        return torch.from_numpy(np.stack(found)).float()


def _hidden_key(paths: list[Path], student: Student) -> str:
    """Of the images and the frozen layers' values: any encoder that has these finds what another one left."""
    config = replace(student.config.vision, weights=None)
    key = hashlib.sha256(f"lower {student.frozen_layers} {cache_key(paths, config)}".encode())
    for name, number in layer_numbers(student.vision).items():
        if number <= student.frozen_layers:
            key.update(student.vision.get_parameter(name).detach().cpu().contiguous().numpy())
    return key.hexdigest()[:16]


@torch.no_grad()
def _write_hidden(file: Path, student: Student, paths: list[Path], view: int, mirrored: int) -> None:
    """It gets its name when it is whole."""
    partial, out = file.with_suffix(".partial"), None
    student.to(here().device)
    for start in tqdm(range(0, len(paths), _BATCH), desc=f"frozen layers, view {view}{', mirrored' * mirrored}"):
        some = range(start, min(start + _BATCH, len(paths)))
        pixels = view_pixels(paths, ((view, index) for index in some), student.config.vision)
        hidden = student.lower((pixels.flip(3) if mirrored else pixels).to(here().device)).half().cpu().numpy()
        if out is None:
            shape = (len(paths), *hidden.shape[1:])
            out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
        out[start : start + len(hidden)] = hidden
    assert out is not None
    out.flush()
    partial.rename(file)


class Distill:
    """Encoders, data and the loss of one step."""

    def __init__(self, settings: DistillSettings) -> None:
        self.settings = settings
        config = model_config(settings)
        self.side = math.isqrt(config.vision.positions)
        data = read_data(settings.train_table, settings.images, bad_samples(settings))
        self.targets = Targets(data.paths, settings, self.side, settings.views)
        known, image = self.targets.rows(np.arange(min(_KNOWN, len(data.paths))))
        self.mean, self.std = known.mean((0, 1)), known.std((0, 1)) + 1e-4
        self.common = F.normalize(image, dim=-1).mean(0)
        torch.manual_seed(settings.seed)
        self.model = Student(config, settings.frozen_layers, (known.shape[-1], image.shape[-1]), bool(settings.former))
        self.model.vision.unfreeze()
        for name, number in layer_numbers(self.model.vision).items():
            if settings.frozen_layers and number <= settings.frozen_layers:
                self.model.vision.get_parameter(name).requires_grad_(False)
        self.hidden = Hidden(data.paths, self.model, settings) if settings.cache_layers else None
        heads = ["positions_head", "image_head"] + ["former_head"] * bool(settings.former)
        peaks = vision_peaks(self.model.vision, settings) | dict.fromkeys(heads, settings.head_lr)
        self.former = self._former() if settings.former else None
        self.trainer = Trainer(self.model, settings, peaks)
        self.trainer.prepare([self.model.vision], frozen=[])
        if self.former:
            self.former.to(self.trainer.device)
        self.dev = None
        if settings.dev_table:
            unseen = read_data(settings.dev_table, settings.images, bad_samples(settings))
            self.dev = Targets(unseen.paths, settings, self.side, 1)

    def run(self) -> Path:
        return self.trainer.run(self._batches(), self._loss, self._evaluate if self.dev else None)

    def _former(self) -> Former:
        """The former encoder; the map to its features begins as if they were the student's. Raises OptionError where
        the student's frozen layers are not its own."""
        settings, student = self.settings, self.model
        config = replace(student.config.vision, weights=settings.former)
        encoder = VisionEncoder(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, number in layer_numbers(encoder).items():
            shared = settings.frozen_layers and number <= settings.frozen_layers
            if shared and not torch.equal(encoder.get_parameter(name), student.vision.get_parameter(name)):
                raise OptionError(f"former: {settings.former} has not the frozen_layers of {settings.vision_weights}")
        where = [(0, index) for index in range(min(_KNOWN_TO_FORMER, len(self.targets.paths)))]
        parts = (where[start : start + _BATCH] for start in range(0, len(where), _BATCH))
        hidden = (student.lower(view_pixels(self.targets.paths, part, config)) for part in parts)
        former = Former(encoder, settings.frozen_layers, hidden)
        with torch.no_grad():
            student.former_head.weight.copy_(torch.diag(1 / former.std))
            student.former_head.bias.copy_(-former.mean / former.std)
        return former

    def _batches(self) -> Iterator[tuple[int, list[Seen]]]:
        settings = self.settings
        total = settings.views * len(self.targets.paths)
        for step in range(self.trainer.step, settings.steps):
            rng = np.random.default_rng((settings.seed, step))
            rows = rng.choice(total, settings.batch_size, replace=total < settings.batch_size)
            mirrored = rng.random(settings.batch_size) < 0.5
            pairs = here().share(list(zip(rows, mirrored, strict=True)))
            each = len(pairs) // settings.accumulate
            parts = (pairs[i : i + each] for i in range(0, len(pairs), each))
            yield step, [self._seen(self.targets, *map(np.asarray, zip(*part, strict=True))) for part in parts]

    def _seen(self, targets: Targets, rows: np.ndarray, mirrored: np.ndarray) -> Seen:
        config, device = self.model.config.vision, self.trainer.device
        where, flip = targets.where(rows), torch.from_numpy(mirrored)
        if self.hidden is not None and targets is self.targets:
            hidden = self.hidden.rows(where, mirrored).to(device)
        else:
            pixels = view_pixels(targets.paths, where, config)
            pixels[flip] = pixels[flip].flip(3)
            hidden = self.model.lower(pixels.to(device))
        positions, image = targets.rows(rows)
        grid = positions.unflatten(1, (self.side, self.side))
        grid[flip] = grid[flip].flip(2)
        # A few dimensions of a transformer are far from the others in a few positions.
        positions = ((grid.flatten(1, 2) - self.mean) / self.std).clamp(-_FAR, _FAR)
        image = F.normalize(F.normalize(image, dim=-1) - self.common, dim=-1)
        former = self.former(hidden) if self.former else None
        return Seen(hidden, positions.to(device), image.to(device), former)

    def _loss(self, seen: Seen) -> Losses:
        positions, image, former = self.model(seen.hidden)
        image = F.normalize(image.float(), dim=-1)
        apart = F.mse_loss(positions.float(), seen.positions)
        angle = 1 - (image * seen.image).sum(-1).mean()
        alike, wanted = (_SHARPNESS * vectors @ seen.image.T for vectors in (image, seen.image))
        likeness = F.kl_div(alike.log_softmax(-1), wanted.softmax(-1), reduction="batchmean")
        losses = {"loss": apart + 2 * angle + likeness, "positions": apart, "image": angle, "likeness": likeness}
        if seen.former is not None:
            lost = F.mse_loss(former.float(), seen.former)
            turned = 1 - F.cosine_similarity(former.float().mean(1), seen.former.mean(1)).mean()
            losses["loss"] = losses["loss"] + self.settings.former_weight * (lost + 2 * turned)
            losses |= {"former": lost, "former_image": turned}
        return losses

    def _evaluate(self) -> dict[str, float]:
        """The same of unseen images, without likeness."""
        assert self.dev is not None
        count = len(self.dev.paths)
        names = ["positions", "image"] + ["former", "former_image"] * bool(self.former)
        sums = dict.fromkeys(names, 0.0)
        for start in range(0, count, _BATCH):
            rows = np.arange(start, min(start + _BATCH, count))
            losses = self._loss(self._seen(self.dev, rows, np.zeros(len(rows), bool)))
            sums = {name: value + float(losses[name]) * len(rows) for name, value in sums.items()}
        return {name: value / count for name, value in sums.items()}


_OF_STAGES = ("start", "train_data", "dry_run", "qformer_bits")


def model_config(settings: DistillSettings) -> Blip2Config:
    """The small encoder that the settings name, of whose checkpoint the weights will be. Raises OptionError."""
    strange = [name for name in _OF_STAGES if name in settings.given]
    if strange:
        raise OptionError(f"{', '.join(strange)}: of stage 1 and 2 alone; a distillation goes on from vision_weights")
    if settings.cache_layers and not settings.frozen_layers:
        raise OptionError("cache_layers keeps what frozen layers make of an image: give frozen_layers, 1 or more")
    if not settings.teacher:
        raise OptionError("missing: teacher; give it in the recipe or as --teacher VALUE")
    vision = vision_config(settings)
    if math.isqrt(vision.positions) ** 2 != vision.positions:
        raise OptionError(f"vision_source {settings.vision_source} has {vision.positions} positions, not a square grid")
    return Blip2Config(vision=vision, vision_trained=True, sources=settings.sources)


def main(argv: list[str] | None = None) -> int:
    def work() -> Any:
        return Distill(parse(DistillSettings, argv, __doc__ or "")).run()

    return run_main(lambda: print(work()))


if __name__ == "__main__":
    raise SystemExit(main())
