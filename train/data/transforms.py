"""Images to pixels (paper section 3.4): random resized crop and mirroring in training, a plain resize in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from blip2rt.errors import ImageError
from blip2rt.image import load_rgb

if TYPE_CHECKING:
    import torch

    from blip2rt.modeling.vision import VisionConfig

Transform = Callable[[Image.Image], "torch.Tensor"]
_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # beyond which Pillow rejects an image itself


def read_image(source: bytes | Path) -> Image.Image:
    """Decode a file or its bytes to RGB as the runtime does, upright. Raise ValueError if that fails."""
    try:
        return load_rgb(source, max_pixels=_MAX_PIXELS)
    except ImageError as error:
        raise ValueError(str(error)) from error


def to_pixels(image: Image.Image, config: VisionConfig) -> torch.Tensor:
    """Resize the whole image as blip2rt.image does: (3, h, w) float32."""
    import torch  # not above: train.prepare does without

    resized = image.resize((config.width, config.height), Image.Resampling[config.resample.upper()])
    values = torch.from_numpy(np.asarray(resized, dtype=np.uint8).copy()).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
    return (values - mean) / std


def eval_transform(config: VisionConfig) -> Transform:
    """Return `to_pixels` for a config."""
    return partial(to_pixels, config=config)


def train_transform(config: VisionConfig, area: float = 0.5) -> Transform:
    """Crop `area` to all of the image, mirrored half of the time: (3, h, w) float32; uses torch's random numbers."""
    import torch
    from torchvision.transforms import InterpolationMode, v2

    size, mode = (config.height, config.width), InterpolationMode(config.resample)
    transform: Transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(area, 1.0), interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config.mean, config.std),
        ]
    )
    return transform
