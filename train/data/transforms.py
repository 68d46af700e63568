"""Images to pixels (paper section 3.4): random resized crop and mirror image in training, a plain resize in evaluation.

Knows image files and their form, nothing about texts or models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from blip2rt.errors import ImageError
from blip2rt.image import load_rgb
from blip2rt.modeling.vision import VisionConfig

Transform = Callable[[Image.Image], torch.Tensor]
_MOST = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # pixels, beyond which Pillow refuses an image by itself


def read_image(source: bytes | Path) -> Image.Image:
    """An RGB image from a file or its bytes, as the runtime reads it: upright, of every format that it knows.

    Raise ValueError where it is none.
    """
    try:
        return load_rgb(source, max_pixels=_MOST)
    except ImageError as error:
        raise ValueError(str(error)) from error


def eval_transform(config: VisionConfig) -> Transform:
    """Resized to the encoder's size as a whole, as the runtime does: (3, h, w) float32."""
    return _transform(config, [])


def train_transform(config: VisionConfig, area: float = 0.5) -> Transform:
    """A crop of `area` to all of the image, in half of all cases mirrored: (3, h, w) float32; draws from torch."""
    from torchvision.transforms import v2

    size = (config.height, config.width)
    crop = v2.RandomResizedCrop(size, scale=(area, 1.0), interpolation=_interpolation(config), antialias=True)
    return _transform(config, [crop, v2.RandomHorizontalFlip()])


def _transform(config: VisionConfig, first: list[torch.nn.Module]) -> Transform:
    from torchvision.transforms import v2

    size = (config.height, config.width)
    made: Transform = v2.Compose(
        [
            *(first or [v2.Resize(size, interpolation=_interpolation(config), antialias=True)]),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config.mean, config.std),
        ]
    )
    return made


def _interpolation(config: VisionConfig) -> object:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(config.resample)
