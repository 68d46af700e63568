"""Frozen vision features, computed once and cached on disk: (views, images, N, C) float16, memory-mapped.

View 0 is the image as the runtime sees it; the others are random resized crops, every second one mirrored. Knows the
encoder and image files; nothing about captions.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from blip2rt.modeling.vision import VisionConfig, VisionEncoder

from .transforms import read_image

_BATCH = 16


class _Views(TorchDataset[torch.Tensor]):
    """Pixels of one view of every image."""

    def __init__(self, paths: list[Path], config: VisionConfig, view: int) -> None:
        self.paths, self.config, self.view = paths, config, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return to_pixels(augment(read_image(self.paths[index]), self.view, index), self.config)


def augment(image: Image.Image, view: int, index: int) -> Image.Image:
    """The image as view 0, mirrored as view 1, then random resized crops (area 0.5 to 1), every second one mirrored."""
    if view >= 2:
        rng = np.random.default_rng((view, index))
        area, ratio = rng.uniform(0.5, 1.0), np.exp(rng.uniform(-0.2, 0.2))
        width = min(1.0, (area * ratio) ** 0.5) * image.width
        height = min(1.0, (area / ratio) ** 0.5) * image.height
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        image = image.crop((round(left), round(top), round(left + width), round(top + height)))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view % 2 else image


def to_pixels(image: Image.Image, config: VisionConfig) -> torch.Tensor:
    """(3, h, w) float32, as blip2rt.image makes them."""
    resized = image.resize((config.width, config.height), Image.Resampling[config.resample.upper()])
    values = torch.from_numpy(np.asarray(resized, dtype=np.uint8).copy()).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
    return (values - mean) / std


class FeatureSource:
    """vision_features of images by index: from the cache of a frozen encoder, or from `encoder` at every call."""

    def __init__(
        self, paths: list[Path], config: VisionConfig, cache: str, views: int = 1, encoder: VisionEncoder | None = None
    ) -> None:
        """cache: a folder; views: augmented views of every image in it."""
        self._encoder = encoder
        if encoder is None:
            self._cache = cached_features(paths, config, cache, views)
        else:
            self._pixels = _Views(paths, config, 0)

    def get(self, images: list[int], views: list[int] | None = None) -> torch.Tensor:
        """(B, N, C) float32 of one view of each image; view 0 by default, the only one that an encoder is asked for."""
        drawn = views or [0] * len(images)
        if self._encoder is None:
            rows = np.stack([self._cache[view][image] for view, image in zip(drawn, images, strict=True)])
            return torch.from_numpy(rows).float()
        assert not any(drawn), "other views are the cache's"
        device = next(self._encoder.parameters()).device
        with torch.no_grad():
            features: torch.Tensor = self._encoder(torch.stack([self._pixels[i] for i in images]).to(device))
        return features.float()


def draw_views(views: int, count: int, seed: tuple[int, int]) -> np.ndarray:
    """A view for each of `count` images, (count)."""
    return np.random.default_rng(seed).integers(0, views, count)


def cache_key(paths: list[Path], config: VisionConfig) -> str:
    text = json.dumps([config.__dict__, [[path.name, path.stat().st_size] for path in paths]], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached_features(paths: list[Path], config: VisionConfig, folder: str | Path, views: int = 1) -> list[np.ndarray]:
    """One memory-mapped (images, N, C) float16 array a view; compute views that are not in `folder` first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    key = cache_key(paths, config)
    files = [folder / f"{key}-view{view}.npy" for view in range(views)]
    missing = [view for view, file in enumerate(files) if not file.exists()]
    if missing:
        encoder = VisionEncoder(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for view in missing:
            _compute(encoder, paths, config, view, files[view])
    return [np.load(file, mmap_mode="r") for file in files]


@torch.no_grad()
def _compute(encoder: VisionEncoder, paths: list[Path], config: VisionConfig, view: int, file: Path) -> None:
    """Fill one view's file; it gets its name when it is whole."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder.to(device)
    partial = file.with_suffix(".partial")
    shape = (len(paths), config.positions, config.features)
    out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    loader = DataLoader(_Views(paths, config, view), _BATCH)
    with tqdm(total=len(paths), desc=f"features, view {view}", unit="img") as bar:
        done = 0
        for pixels in loader:
            pixels = pixels.to(device, memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16):
                features = encoder(pixels)
            out[done : done + len(pixels)] = features.float().cpu().numpy()
            done += len(pixels)
            bar.update(len(pixels))
    out.flush()
    partial.rename(file)
