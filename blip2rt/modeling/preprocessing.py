"""Hugging Face's image processors as our preprocessing.

An image is resized to one size with a Pillow filter, then scaled and normalised; processors that do anything else are
rejected. transformers' own class fills in the values that the JSON lacks or sets to null.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip2rt.errors import Blip2rtError, boundary

from .sources import read_json
from .vision import VisionConfig

Colours = tuple[float, float, float]  # red, green, blue
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
_PLAIN = ("Blip", "CLIP", "ChineseCLIP", "ViT", "DeiT", "Siglip", "Bit")  # processors with no other steps
_DEFAULT = "BlipImageProcessor"


def with_preprocessing(config: VisionConfig, folder: Path) -> VisionConfig:
    """`config` with the settings of the folder's image processor, if it has one. Raises Blip2rtError."""
    found = find_processor(folder)
    return config if found is None else _read(config, *found)


def find_processor(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The settings of a folder's image processor and their file, if there are any. Raises Blip2rtError."""
    for name, inner in (("processor_config.json", True), ("preprocessor_config.json", False)):
        file = folder / name
        data = _object(file) if file.is_file() else {}
        if inner and not data.keys() & {"image_processor", "image_mean", "image_processor_type"}:  # something else's
            continue
        data = data.get("image_processor", data)
        if data:
            return data, file
    return None


def _object(file: Path) -> dict[str, Any]:
    """Read a processor's file. Raises Blip2rtError."""
    with boundary(f"{file} is damaged"):
        data = read_json(file)
        if not isinstance(data, dict) or not isinstance(data.get("image_processor", data), dict):
            raise ValueError("it is not an object of settings")
        return data


def _read(config: VisionConfig, data: dict[str, Any], file: Path) -> VisionConfig:
    processor = _processor(data, file)
    faults = _step_faults(processor)
    size = _sides(getattr(processor, "size", None))
    if not faults and size != (config.height, config.width):
        faults.append(_size_fault(size, getattr(processor, "size", None), config))
    resample = getattr(processor, "resample", None)
    number = int(resample) if isinstance(resample, int) else -1
    if not 0 <= number < len(FILTERS):  # null and names stop transformers, too
        shown = "null" if resample is None else repr(resample)
        faults.append(f"resample is {shown}: set it to {', '.join(f'{i} ({n})' for i, n in enumerate(FILTERS))}")
        number = 0
    mean, std = _normalization(processor, faults)
    if faults:
        raise Blip2rtError(f"{file}: {'; '.join(faults)}")
    return replace(config, mean=mean, std=std, resample=FILTERS[number])


def _processor(data: dict[str, Any], file: Path) -> Any:
    """transformers' processor of a section, BLIP's by default. Raises Blip2rtError."""
    import transformers

    kind = data.get("image_processor_type") or data.get("feature_extractor_type") or _DEFAULT
    kind = str(kind).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    plain = [f"{name}ImageProcessor" for name in _PLAIN]
    if kind not in plain:
        raise Blip2rtError(f"{file}: image_processor_type is {kind!r}: supported are {', '.join(plain)}")
    made = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)  # transformers 4 has one of each
    try:
        return made.from_dict(dict(data))
    except Exception as error:  # noqa: BLE001  # ValueError, TypeError and what validation raises
        reason = " ".join(str(error).split())[:200]
        raise Blip2rtError(f"{file}: {kind} does not take these values ({reason}): save the processor again") from error


def _step_faults(processor: Any) -> list[str]:
    """Steps other than resizing, scaling and normalising."""
    faults = []
    size = _sides(getattr(processor, "size", None))
    if not getattr(processor, "do_resize", True):
        faults.append("do_resize is False, and images of every size are taken: set it")
    if getattr(processor, "do_center_crop", None) and (size is None or _sides(processor.crop_size) != size):
        faults.append("do_center_crop is True, and images are shown whole: unset it, and set size to height and width")
    if getattr(processor, "do_pad", None) and (size is None or _sides(getattr(processor, "pad_size", None)) != size):
        faults.append("do_pad is True, and images fill the whole size: unset it")
    if size is None and not faults:
        shown = {name: side for name, side in _items(getattr(processor, "size", None)) if side}
        faults.append(f"size is {shown}, which keeps an image's proportions: set it to height and width")
    return faults


def _items(size: Any) -> list[tuple[str, Any]]:
    if size is None:
        return []
    return list(size.items()) if hasattr(size, "items") else list(vars(size).items())


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width, if a size has exactly these."""
    given = {name: side for name, side in _items(size) if side}
    return (int(given["height"]), int(given["width"])) if given.keys() == {"height", "width"} else None


def _size_fault(size: tuple[int, int] | None, given: Any, config: VisionConfig) -> str:
    assert size is not None, "other sizes are faults of a step"
    ours = f"{config.height} x {config.width}"
    fix = f"set size to height {config.height} and width {config.width}"
    if size[0] == size[1]:
        fix += f", and give --image-size {size[0]} for that size"
    return f"size is {size[0]} x {size[1]}, but config.json has images of {ours}: {fix}"


def _normalization(processor: Any, faults: list[str]) -> tuple[Colours, Colours]:
    """mean and std for colours from 0 to 1, whatever the processor's scale."""
    given = getattr(processor, "rescale_factor", None)
    given = 1 / 255 if given is None else given
    if not isinstance(given, int | float) or not math.isfinite(given) or given <= 0:
        faults.append(f"rescale_factor is {given!r}: set it to a number above 0, such as {1 / 255:.6g} (1 / 255)")
        given = 1.0
    scale = given if getattr(processor, "do_rescale", True) else 1.0
    mean: Any = 0.0
    std: Any = 1.0
    if getattr(processor, "do_normalize", True):
        mean, std = processor.image_mean, processor.image_std
    factor = 1.0 if abs(scale * 255 - 1) < 1e-9 else scale * 255
    found = []
    for name, values in (("image_mean", mean), ("image_std", std)):
        colours = _colours(values)
        if colours is None or (name == "image_std" and min(colours) <= 0):
            faults.append(f"{name} is {values!r}: give a number or three" + " above 0" * (name == "image_std"))
            colours = (1.0, 1.0, 1.0)
        first, second, third = (value / factor for value in colours)
        found.append((first, second, third))
    return found[0], found[1]


def _colours(values: Any) -> Colours | None:
    """One number for all colours, or one each."""
    if isinstance(values, int | float) and not isinstance(values, bool):
        values = [values] * 3
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 3:
        return None
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in values):
        return None
    first, second, third = map(float, values)
    return first, second, third
