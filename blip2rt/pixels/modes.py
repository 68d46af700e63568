"""Modes and arrays -> upright 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ACCEPTED_ARRAYS = "(H, W), (H, W, 3) or (H, W, 4), uint8 in 0..255, float in 0..1, or bool"
STRIP_PIXELS = 1 << 17  # pixels to convert at a time
_ORIENTATION = 0x0112
_CHANNELS = (1, 3, 4)


def upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  # broken EXIF data leave the pixels readable
        return image
    if orientation not in range(2, 9):
        return image
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode -> 8-bit RGB. Alpha and 16 bits are converted some rows at a time, to save memory."""
    if min(image.size) == 0:
        raise ImageError(f"{name} has no pixels: {image.width} x {image.height}")
    if not _has_alpha(image) and not image.mode.startswith("I") and image.mode != "F":
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb, rows = Image.new("RGB", image.size), max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box)
        rgb.paste(_over_white(strip) if _has_alpha(strip) else _to_eight_bits(strip, name).convert("RGB"), box)
    return rgb


def _over_white(image: Image.Image) -> Image.Image:
    """A mode with alpha -> RGB."""
    image = image.convert("LA") if image.mode == "La" else image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _has_alpha(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"):
        return True
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    )


def _to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Modes I;16 and I (0..65535) and F (0..1) -> L."""
    values = np.asarray(image)
    top, low, high = (1.0 if image.mode == "F" else 65535.0), values.min(), values.max()
    if not (low >= 0 and high <= top):  # also catches NaN
        raise ImageError(
            f"{name} of mode {image.mode} has values from {low:g} to {high:g}, not 0 to {top:g}: convert it to 8 bits"
        )
    return Image.fromarray(np.rint(values * np.float32(255 / top)).astype(np.uint8))


def from_array(array: NDArray[np.generic], color: str) -> Image.Image:
    """An accepted array -> PIL image of mode L, RGB or RGBA."""
    what = f"an array of dtype {array.dtype} and shape {array.shape}"
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"{what} is not an image: give {ACCEPTED_ARRAYS}")
    if array.size == 0:
        raise ImageError(f"{what} has no pixels: give {ACCEPTED_ARRAYS}")
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ImageError(f"{what} has values from {low:g} to {high:g}: give {ACCEPTED_ARRAYS}")
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8:
        raise ImageError(f"{what} is not an image: give {ACCEPTED_ARRAYS}{_conversion(array.dtype)}")
    if color == "bgr" and array.ndim == 3:
        array = array[:, :, [2, 1, 0, 3][: array.shape[2]]]
    return Image.fromarray(np.ascontiguousarray(array))


def _conversion(dtype: np.dtype[Any]) -> str:
    """How to convert an array of integers, for a message. A camera's uint16 may have 10, 12 or 16 bits."""
    if dtype == np.uint16:
        return ", as in (array >> 8).astype('uint8') from 16 bits, or >> 4 from 12"
    return ", as in array.astype('uint8')" if dtype.kind in "iu" else ""
