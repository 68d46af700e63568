"""Images to pixels (paper section 3.4): random resized crop and mirroring in training, a plain resize in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from blip2rt.errors import ImageError
from blip2rt.image import load_rgb
from blip2rt.modeling.vision import VisionConfig

Transform = Callable[[Image.Image], torch.Tensor]
_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # beyond which Pillow rejects an image itself


def read_image(source: bytes | Path) -> Image.Image:
    """Decode a file or its bytes to RGB as the runtime does, upright. Raise ValueError if that fails."""
    try:
        return load_rgb(source, max_pixels=_MAX_PIXELS)
    except ImageError as error:
        raise ValueError(str(error)) from error


def eval_transform(config: VisionConfig) -> Transform:
    """Resize the whole image to the encoder's size as the runtime does: (3, h, w) float32."""
    return _transform(config, [])


def train_transform(config: VisionConfig, area: float = 0.5) -> Transform:
    """Crop `area` to all of the image, mirrored half of the time: (3, h, w) float32; uses torch's random numbers."""
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
