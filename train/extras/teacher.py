"""The larger encoder of a distillation: its features of every view of the images, computed once and cached on disk.

Knows the teacher and image files, nothing about the encoder that learns.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.sources import fetch
from blip2rt.modeling.vision import VisionConfig, freeze

from ..data.features import cache_key, to_pixels
from ..data.transforms import read_image
from ..loop.parallel import here
from ..loop.trainer import autocast_dtype
from ..recipe import option
from ..settings import COLOURS, POSITIVE, missing

BATCH = 16  # images that go through an encoder together


@dataclass(frozen=True)
class TeacherSettings:
    """Teacher."""

    teacher: str = option(
        "", "the larger encoder: a folder or hub id of transformers' CLIP, SigLIP, DINOv2 or ViT", metavar="SOURCE"
    )
    teacher_size: int = option(224, "height and width of the pixels that it reads", check=POSITIVE)
    teacher_mean: tuple[float, ...] = option(
        (0.48145466, 0.4578275, 0.40821073), "mean of these pixels of each colour", check=COLOURS
    )
    teacher_std: tuple[float, ...] = option(
        (0.26862954, 0.26130258, 0.27577711), "standard deviation of these pixels of each colour", check=COLOURS
    )

    def faults(self) -> list[str]:
        return [] if self.teacher else [missing("teacher")]


class Teacher(nn.Module):
    """A vision transformer behind one signature: its last layer but one's positions, and the image."""

    def __init__(self, source: str) -> None:
        import transformers

        super().__init__()
        try:
            config = transformers.AutoConfig.from_pretrained(fetch(source), trust_remote_code=False)
            kind = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
            model = kind.from_pretrained(fetch(source), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise Blip2rtError(
                f"teacher {source} cannot be loaded ({str(error).splitlines()[0]}): give a folder or a hub id"
            ) from error
        self.model = freeze(getattr(model, "vision_model", model) if hasattr(model, "text_model") else model)

    def forward(self, pixels: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, 3, h, w) -> (b, side * side, C), averaged over its own grid, and (b, E)."""
        output = self.model(pixel_values=pixels, output_hidden_states=True)
        states = getattr(output, "hidden_states", None)
        image = getattr(output, "image_embeds", getattr(output, "pooler_output", None))
        if states is None or image is None:
            kind = type(self.model).__name__
            raise Blip2rtError(
                f"the teacher, a {kind}, has no features of the image: give CLIP, SigLIP, DINOv2 or ViTModel"
            )
        features = states[-2].float()
        own = math.isqrt(features.shape[1])
        grid = features[:, features.shape[1] - own**2 :].transpose(1, 2).unflatten(2, (own, own))
        return F.interpolate(grid, (side, side), mode="area").flatten(2).transpose(1, 2), image.float()


def mixed_view(paths: list[Path], view: int, index: int) -> Image.Image:
    """The image as view 0; random crops of it as the others.

    All of every second view, and a quarter of the rest, are mixed with a crop of another image: laid over each other or
    side by side.
    """
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
    """A crop of 0.4 of the area or more, at the size of the whole, mirrored or not."""
    area, ratio = rng.uniform(0.4, 1.0), np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = min(image.width, max(1, round((area * ratio * image.width * image.height) ** 0.5)))
    height = min(image.height, max(1, round((area / ratio * image.width * image.height) ** 0.5)))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    cropped = image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped


class Targets:
    """The teacher's features of every view of the images, computed once: memory-mapped, view after view."""

    def __init__(self, paths: list[Path], teacher: TeacherSettings, cache: str, side: int, views: int) -> None:
        """cache: a folder; side: of the student's square grid of positions."""
        self.paths = paths
        size, (m, s) = teacher.teacher_size, (teacher.teacher_mean, teacher.teacher_std)
        config = VisionConfig(f"hf:{teacher.teacher}", height=size, width=size, positions=side * side,
                              mean=(m[0], m[1], m[2]), std=(s[0], s[1], s[2]))  # fmt: skip
        folder = Path(cache)
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(f"distill {cache_key(paths, config)}".encode()).hexdigest()[:16]
        stems = [folder / f"{key}-view{view}" for view in range(views)]
        missing = [view for view, stem in enumerate(stems) if not _image_file(stem).is_file()]
        if missing and here().main:
            self._compute(Teacher(teacher.teacher), config, side, {view: stems[view] for view in missing})
        here().wait()
        self.positions = [np.load(_positions_file(stem), mmap_mode="r") for stem in stems]
        self.image = [np.load(_image_file(stem), mmap_mode="r") for stem in stems]

    def where(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """The view and the index of rows view * images + index."""
        return [divmod(int(row), len(self.paths)) for row in rows]

    def rows(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Its features of such rows: of positions (b, N, C) and of the image (b, E), float32."""
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
            for start in tqdm(range(0, count, BATCH), desc=f"teacher, view {view}", unit="batch"):
                some = range(start, min(start + BATCH, count))
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
