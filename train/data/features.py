"""Frozen vision features, computed once and cached on disk: (views, images, N, C) float16, memory-mapped.

View 0 is the image as the runtime sees it; the others are random resized crops, every second one mirrored.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from blip2rt.bundle.atomic import write_file
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.sources import resolve
from blip2rt.modeling.vision import VisionConfig, VisionEncoder

from ..loop.trainer import autocast_dtype
from ..progress import bar
from .samples import BadSamples, Dataset, error_text
from .transforms import read_image, to_pixels

_BATCH = 16


class _Views(TorchDataset[tuple[torch.Tensor, str]]):
    """Pixels of one view of every image and its fault; a faulty image has zeros."""

    def __init__(self, paths: list[Path], config: VisionConfig, view: int) -> None:
        self.paths, self.config, self.view = paths, config, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        try:
            return to_pixels(augment(read_image(self.paths[index]), self.view, index), self.config), ""
        except (OSError, ValueError) as error:
            return torch.zeros(3, self.config.height, self.config.width), error_text(error)


def augment(image: Image.Image, view: int, index: int) -> Image.Image:
    """Return view 0, the image; view 1, mirrored; or a random resized crop (area 0.5 to 1), mirrored if the view is
    odd.
    """
    if view >= 2:
        rng = np.random.default_rng((view, index))
        area, ratio = rng.uniform(0.5, 1.0), np.exp(rng.uniform(-0.2, 0.2))
        width = min(1.0, (area * ratio) ** 0.5) * image.width
        height = min(1.0, (area / ratio) ** 0.5) * image.height
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        right, bottom = max(round(left + width), round(left) + 1), max(round(top + height), round(top) + 1)
        image = image.crop((round(left), round(top), right, bottom))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view % 2 else image


class FeatureSource:
    """vision_features of images by index: from the cache of a frozen encoder, or from `encoder` at every call."""

    def __init__(
        self, paths: list[Path], config: VisionConfig, cache: str, views: int = 1, encoder: VisionEncoder | None = None
    ) -> None:
        """cache: a folder; views: augmented views of every image in it."""
        self._encoder = encoder
        self._rows = list(range(len(paths)))  # of the remaining images, by index
        if encoder is None:
            self._cache, self.unreadable = cached_features(paths, config, cache, views)
        else:
            self._pixels = _Views(paths, config, 0)
            self.unreadable = {i: fault for i in self._rows if (fault := self._pixels[i][1])}  # index -> fault

    def drop_unreadable_images(self) -> None:
        """Renumber the images without the unreadable ones."""
        self._rows = [row for row in self._rows if row not in self.unreadable]

    def get(self, images: list[int], views: list[int] | None = None) -> torch.Tensor:
        """Return (B, N, C) float32 of one view per image, by default view 0; `encoder` supports no other."""
        drawn, images = views or [0] * len(images), [self._rows[image] for image in images]
        if self._encoder is None:
            rows = np.stack([self._cache[view][image] for view, image in zip(drawn, images, strict=True)])
            return torch.from_numpy(rows).float()
        assert not any(drawn), "only the cache has other views"
        device = next(self._encoder.parameters()).device
        with torch.no_grad():
            features: torch.Tensor = self._encoder(torch.stack([self._pixels[i][0] for i in images]).to(device))
        return features.float()


def open_features(
    data: Dataset,
    config: VisionConfig,
    cache: str,
    bad: BadSamples,
    views: int = 1,
    encoder: VisionEncoder | None = None,
) -> tuple[Dataset, FeatureSource]:
    """Open the features of a data set. Unreadable images are counted in `bad` and left out of both results."""
    source = FeatureSource(data.paths, config, cache, views, encoder)
    for image, fault in source.unreadable.items():
        bad.add(str(data.paths[image]), fault)
    if source.unreadable:
        source.drop_unreadable_images()
        data = data.without(source.unreadable.keys())
    if not data.samples:
        raise Blip2rtError("no image can be read: give others")
    return data, source


def draw_views(views: int, count: int, seed: tuple[int, int]) -> np.ndarray:
    """Draw a view for each of `count` images, (count)."""
    return np.random.default_rng(seed).integers(0, views, count)


def cache_key(paths: list[Path], config: VisionConfig) -> str:
    """Return a hash of what features depend on: the encoder, its weights, and names, sizes and times of the images."""
    text = json.dumps([config.__dict__, _weights(config), [_written(path) for path in paths]], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights(config: VisionConfig) -> list[tuple[str, int, int]]:
    """Return the files of an encoder's weights; none if a library provides them."""
    kind, _, name = config.source.partition(":")
    source = config.weights or (name if kind == "hf" else "")
    place = Path(resolve(source)) if source else Path()
    files = sorted(place.iterdir()) if source and place.is_dir() else [place]
    return [_written(file) for file in files if file.is_file()]


def _written(file: Path) -> tuple[str, int, int]:
    """Return a file's name, size and modification time."""
    found = file.stat()
    return file.name, found.st_size, found.st_mtime_ns


def cached_features(
    paths: list[Path], config: VisionConfig, folder: str | Path, views: int = 1
) -> tuple[list[np.ndarray], dict[int, str]]:
    """Return one memory-mapped (images, N, C) float16 array per view, after computing the views missing in `folder`;
    and {index: fault} of the images without features."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    key = cache_key(paths, config)
    files = [folder / f"{key}-view{view}.npy" for view in range(views)]
    faults = folder / f"{key}-unreadable.json"
    missing = [view for view, file in enumerate(files) if not file.exists()]
    if missing:
        encoder = cast(Any, VisionEncoder(config)).to(memory_format=torch.channels_last)
        for view in missing:
            found = _compute(encoder, paths, config, view, files[view])
            if found:
                known = json.loads(faults.read_text()) if faults.is_file() else {}
                write_file(faults, json.dumps(known | found).encode())
    known = json.loads(faults.read_text()) if faults.is_file() else {}
    return [np.load(file, mmap_mode="r") for file in files], {int(i): str(fault) for i, fault in known.items()}


@torch.no_grad()
def _compute(encoder: VisionEncoder, paths: list[Path], config: VisionConfig, view: int, file: Path) -> dict[str, str]:
    """Compute one view's file, renamed when complete. Return the faults of images, by index."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder.to(device)
    dtype = autocast_dtype("auto")  # bf16 takes seven times as long where the hardware lacks it
    partial, shape = file.with_suffix(".partial"), (len(paths), config.positions, config.features)
    out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    done, found = 0, dict[str, str]()
    with bar(total=len(paths), desc=f"features, view {view}", unit="img") as shown:
        for pixels, faults in DataLoader(_Views(paths, config, view), _BATCH):
            found |= {str(done + i): fault for i, fault in enumerate(faults) if fault}
            pixels = pixels.to(device, memory_format=torch.channels_last)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                features = encoder(pixels)
            out[done : done + len(pixels)] = features.float().cpu().numpy()
            done += len(pixels)
            shown.update(len(pixels))
    out.flush()
    partial.rename(file)
    return found
