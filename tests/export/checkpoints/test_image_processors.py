"""Hugging Face's image processors: our pixels equal those of transformers, or the setting is rejected in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from blip2rt.bundle import ImageSpec
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels
from blip2rt.modeling.preprocessing import with_preprocessing
from blip2rt.modeling.vision import VisionConfig
from tests.seeds import new_seed

SIZE = 28
CONFIG = VisionConfig(height=SIZE, width=SIZE, mean=(9.0, 9.0, 9.0), std=(9.0, 9.0, 9.0), resample="box")
SQUARE = {"height": SIZE, "width": SIZE}
BLIP, CLIP, VIT = (f"{name}ImageProcessor" for name in ("Blip", "CLIP", "ViT"))
BLIP_SQUARE, CLIP_SQUARE, VIT_SQUARE = ({"image_processor_type": name, "size": SQUARE} for name in (BLIP, CLIP, VIT))

SAME: dict[str, dict[str, Any]] = {  # accepted, with transformers' pixels
    "blip": {**BLIP_SQUARE},
    "no type": {"size": SQUARE},
    "an old name": {"feature_extractor_type": "BlipFeatureExtractor", "size": SQUARE},
    "size as a number": {"image_processor_type": BLIP, "size": SIZE},
    "lanczos": {**BLIP_SQUARE, "resample": 1, "image_mean": [0.1, 0.2, 0.3]},
    "a mean for all colours": {**BLIP_SQUARE, "image_mean": 0.4, "image_std": 0.3},
    "no normalization": {**BLIP_SQUARE, "do_normalize": False},
    "no rescaling": {**BLIP_SQUARE, "do_rescale": False, "image_mean": [120.0, 110, 100], "image_std": [60.0, 50, 40]},
    "another factor": {**VIT_SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "neither": {**BLIP_SQUARE, "do_rescale": False, "do_normalize": False},
    "CLIP that does not crop": {**CLIP_SQUARE, "do_center_crop": False},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "CLIP without do_center_crop": ({**CLIP_SQUARE}, "do_center_crop is True"),
    "CLIP's size as a number": ({"image_processor_type": CLIP, "size": SIZE, "do_center_crop": False}, "proportions"),
    "cropping": ({**BLIP_SQUARE, "do_center_crop": True, "crop_size": {"height": 20, "width": 20}}, "do_center_crop"),
    "no resizing": ({**BLIP_SQUARE, "do_resize": False}, "do_resize is False"),
    "another size": ({"image_processor_type": BLIP, "size": 56}, "--image-size 56"),
    "a size that is no square": (
        {"image_processor_type": BLIP, "size": {"height": 56, "width": 70}},
        "size is 56 x 70.*set size to height 28 and width 28$",
    ),
    "another processor": ({"image_processor_type": "PixtralImageProcessor", "size": SQUARE}, "'PixtralImageProcessor'"),
    "two means": ({**BLIP_SQUARE, "image_mean": [0.5, 0.5]}, "image_mean is"),
    "resample of null": ({**BLIP_SQUARE, "resample": None}, "resample is null"),
    "a filter by name": ({**BLIP_SQUARE, "resample": "bicubic"}, r"resample is 'bicubic': set it to .*3 \(bicubic\)"),
    "a factor of 0": ({**BLIP_SQUARE, "rescale_factor": 0}, "rescale_factor is 0: set it to a number above 0"),
}


def write(folder: Path, data: dict[str, Any], inner: bool) -> None:
    name = "processor_config.json" if inner else "preprocessor_config.json"
    (folder / name).write_text(json.dumps({"image_processor": data} if inner else data))


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(new_seed())
    made = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((50, 31), (28, 28), (9, 70))]
    return [*made, Image.fromarray(rng.integers(0, 256, (40, 30), np.uint8)).convert("RGB")]


@pytest.mark.parametrize("kind", SAME)
def test_pixels_match_transformers(tmp_path: Path, kind: str) -> None:
    data = SAME[kind]
    write(tmp_path, data, inner=False)
    config = with_preprocessing(CONFIG, tmp_path)
    spec = ImageSpec(config.height, config.width, config.resample, config.mean, config.std)
    name = data.get("image_processor_type", BLIP).removesuffix("Fast")
    made = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    theirs = made.from_dict(dict(data))
    images = pictures()
    want = np.concatenate([theirs(each, return_tensors="np")["pixel_values"] for each in images])
    got = to_pixels(images, spec)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max(), config


@pytest.mark.parametrize("kind", REFUSED)
def test_unsupported_preprocessing_is_rejected(tmp_path: Path, kind: str) -> None:
    data, words = REFUSED[kind]
    write(tmp_path, data, inner=False)
    with pytest.raises(Blip2rtError, match=words) as error:
        with_preprocessing(CONFIG, tmp_path)
    assert "preprocessor_config.json" in str(error.value) and "\n" not in str(error.value)


def test_processor_config_overrides_preprocessor_config(tmp_path: Path) -> None:
    write(tmp_path, {**BLIP_SQUARE, "resample": 2}, inner=True)
    write(tmp_path, {**BLIP_SQUARE, "resample": 0}, inner=False)
    assert with_preprocessing(CONFIG, tmp_path).resample == "bilinear"
    (tmp_path / "processor_config.json").write_text('{"num_query_tokens": 32, "processor_class": "Blip2Processor"}')
    assert with_preprocessing(CONFIG, tmp_path).resample == "nearest"
    (tmp_path / "preprocessor_config.json").unlink()
    assert with_preprocessing(CONFIG, tmp_path) == CONFIG
