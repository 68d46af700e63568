"""The image encoder as the graph `vision`: pixels (B,3,h,w) -> vision_features (B,N,C), batch norms folded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from blip2rt.bundle import PIXELS, VISION_FEATURES, ImageSpec
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels

from . import trace

BATCH = 3  # photographs of a calibration batch
_MAX_IMAGES, _MIN_IMAGES = 128, 8  # of a folder to calibrate on
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def vision_graph(encoder: torch.nn.Module, image: ImageSpec) -> trace.GraphSpec:
    """The graph `vision`, before tracing."""
    example = {PIXELS: torch.zeros(2, 3, image.height, image.width)}
    return trace.GraphSpec("vision", encoder, example, [VISION_FEATURES], {PIXELS: {0: "B"}})


def photographs(folder: Path) -> list[Path]:
    """List up to 128 images of a folder, evenly spaced in the order of their names."""
    if not folder.is_dir():
        raise Blip2rtError(f"--calibration {folder} is not a folder: give one with a hundred or more photographs")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(files) < _MIN_IMAGES:
        raise Blip2rtError(f"--calibration {folder} has {len(files)} images: give {_MIN_IMAGES}, better a hundred")
    count = min(len(files), _MAX_IMAGES)
    return [files[i * len(files) // count] for i in range(count)]


def pixel_batches(files: Sequence[Path], image: ImageSpec) -> Iterator[dict[str, np.ndarray]]:
    """Read files as full batches of pixels (BATCH,3,h,w), in the same way as the runtime."""
    for end in range(BATCH, len(files) + 1, BATCH):
        yield {PIXELS: to_pixels(list(files[end - BATCH : end]), image)}
