"""Image to pixels, by pytest-benchmark: `make micro-image`, or `python -m pytest benchmarks/micro_image.py`.

Nothing asserts a time. The photographs are 12 megapixels (some 3): a picture of smooth colours and some noise.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2rt.bench.cli import picture
from blip2rt.bundle.manifest import ImageSpec
from blip2rt.image import normalize, prepare, resize, to_pixels

SPEC = ImageSpec(224, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def large(tmp_path_factory: Any) -> bytes:
    path: Path = picture(tmp_path_factory.mktemp("images") / "large.jpg", 4000, 3000)
    return path.read_bytes()


@pytest.mark.parametrize("scaled", [False, True], ids=["exact", "scaled"])
def test_jpeg_of_12_megapixels(benchmark: Any, large: bytes, scaled: bool) -> None:
    pixels = benchmark(to_pixels, [large], SPEC, scaled=scaled)
    assert pixels.shape == (1, 3, 224, 224)


@pytest.mark.parametrize("width", [2000, 4000])
@pytest.mark.parametrize("way", ["ours", "pillow"])
def test_resize(benchmark: Any, large: bytes, width: int, way: str) -> None:
    picture = Image.open(io.BytesIO(large)).resize((width, width * 3 // 4))
    if way == "ours":
        benchmark(resize, picture, (224, 224), "bicubic")
    else:
        benchmark(picture.resize, (224, 224), Image.Resampling.BICUBIC)


def test_resize_an_array_of_12_megapixels(benchmark: Any, large: bytes) -> None:
    rgb = np.asarray(Image.effect_noise((4000, 3000), 40).convert("RGB"))
    assert benchmark(prepare, rgb, SPEC).shape == (224, 224, 3)


def test_normalize_a_batch_of_8(benchmark: Any) -> None:
    rgb = np.random.default_rng().integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    assert benchmark(normalize, rgb, SPEC).shape == (8, 3, 224, 224)
