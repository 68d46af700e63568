"""Image -> pixels. Knows Pillow, numpy and the core, but no model: the manifest's ImageSpec describes the result.

Accepted images:
- a path (str or os.PathLike), the bytes of a file or an open binary file, in one of FORMATS, recognised by content
- a PIL image
- an array, or an object with `__array__`: (H, W), (H, W, C) or (C, H, W) of C = 1, 3 or 4 channels, uint8 in 0..255,
  float in 0..1, or bool. Channels are RGB(A), or BGR(A) with color="bgr"; if both layouts fit, they come last. An array
  of four axes is a batch of images (blip2rt.arguments).

EXIF orientation is applied, transparent parts are put on white, 16-bit grey (and Pillow's "I", read as 0..65535) is
scaled to 8 bits, "F" is read as 0..1. Of an animation the first frame counts (of an open PIL image, its current one).

Files are untrusted. Only the header is read before the size is checked: more than `max_pixels` pixels, or a side of
more than MAX_SIDE, is an ImageError and takes no memory. A JPEG that can be decoded line by line is shrunk by 2, 4 or 8
instead, with a warning in the log. Files that would take long to decode for their size are rejected: many scans or
parts, PPMs of text, BMPs of run lengths. So are pipes and devices, before they can block.

Scaled decoding (`scaled`, off by default) lets the JPEG decoder shrink a large photograph by 2, 4 or 8, to at least
twice the target size: several times faster, and within a mean difference of SCALED_TOLERANCE. It does not affect other
formats or decoded images.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias, Union, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from .bundle.manifest import ImageSpec
from .errors import ImageError, OptionError, is_whole
from .install_hints import pip_install
from .native import fork_safe_lock
from .pixels.modes import from_array, to_rgb, upright
from .pixels.resizing import resize as resize
from .untrusted.image_format import HEAD, MAX_PARTS, decodes_by_line, format_of, slow_to_decode, too_many

if TYPE_CHECKING:
    from numpy.typing import NDArray


class HasArray(Protocol):
    """A tensor of another library."""

    def __array__(self) -> NDArray[np.generic]: ...


ImageLike: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], Image.Image, "NDArray[np.generic]", HasArray
]
"""What an image may be: a path, the bytes of a file, an open file, a PIL image or an array."""

ACCEPTED = "a path, the bytes of an image file, an open file, a PIL image or an array"
COLORS = ("rgb", "bgr")  # channel orders of an array
SCALED_TOLERANCE = 4.0  # of 255, the mean over an image: 12-megapixel photographs come to 0.2, random tiles to 3.2
PILLOW_MAX_PIXELS = 178_956_970  # Pillow's limit
MAX_PIXELS = 50_000_000  # default limit of an image file
MAX_SIDE = 65_535  # pixels of an image file's width or height
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF")  # Pillow uses no other plugins
_SCALES = (2, 4, 8)  # the JPEG decoder's
_MARGIN = 2  # scaled decoding keeps this many times the target size, for the filter
_log = logging.getLogger("blip2rt")
_open_lock = fork_safe_lock()  # warnings.catch_warnings is not thread-safe


@dataclass(frozen=True)
class ImageSettings:
    """How images are read; see model.load. Raises OptionError."""

    scaled_jpeg: bool = False
    max_pixels: int = MAX_PIXELS
    color: str = "rgb"

    def __post_init__(self) -> None:
        faults = []
        if not isinstance(self.scaled_jpeg, bool):
            faults.append(f"scaled_jpeg is {self.scaled_jpeg!r}: give True or False")
        if not is_whole(self.max_pixels, 1, PILLOW_MAX_PIXELS):
            faults.append(f"max_pixels is {self.max_pixels!r}: give a number of pixels from 1 to {PILLOW_MAX_PIXELS:,}")
        if self.color not in COLORS:
            faults.append(f"color is {self.color!r}: give 'rgb', or 'bgr' where arrays come from OpenCV")
        if faults:
            raise OptionError("; ".join(faults))


def to_pixels(images: Sequence[ImageLike], spec: ImageSpec, *, scaled: bool = False) -> NDArray[np.float32]:
    """Images -> pixels (B, 3, height, width) float32. Raises ImageError."""
    if not images:
        return np.zeros((0, 3, spec.height, spec.width), np.float32)
    return normalize(np.stack([prepare(image, spec, scaled=scaled) for image in images]), spec)


def prepare(
    image: ImageLike, spec: ImageSpec, *, scaled: bool = False, max_pixels: int = MAX_PIXELS, color: str = "rgb"
) -> NDArray[np.uint8]:
    """Image -> RGB (height, width, 3) uint8, resized by the spec's filter, aspect ratio ignored. Raises ImageError."""
    min_side = _MARGIN * max(spec.width, spec.height) if scaled else None  # the larger: EXIF may rotate the image
    rgb = load_rgb(image, min_side, max_pixels, color)
    try:
        return resize(rgb, (spec.width, spec.height), spec.resample)
    except MemoryError:
        raise ImageError(f"not enough memory for an image of {rgb.width} x {rgb.height}: scale it down first") from None


def normalize(rgb: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """RGB (B, H, W, 3) uint8 -> pixels (B, 3, H, W) float32: / 255, - mean, / std."""
    pixels = np.ascontiguousarray(rgb.transpose(0, 3, 1, 2), dtype=np.float32)
    pixels *= np.float32(1 / 255)
    pixels -= np.array(spec.mean, np.float32)[:, None, None]
    pixels /= np.array(spec.std, np.float32)[:, None, None]
    return pixels


def load_rgb(
    image: ImageLike, min_side: int | None = None, max_pixels: int = MAX_PIXELS, color: str = "rgb"
) -> Image.Image:
    """Any accepted image -> a PIL image of mode RGB, upright. Raises ImageError.

    min_side: decode a JPEG file smaller, but no side below this; None decodes the full size.
    max_pixels: maximum width times height of a file. color: channel order of an array, one of COLORS.
    """
    with contextlib.ExitStack() as files:
        opened, name = _opened(image, files, min_side, max_pixels, color)
        return _decode(opened, name)


def _opened(
    image: ImageLike, files: contextlib.ExitStack, min_side: int | None, max_pixels: int, color: str
) -> tuple[Image.Image, str]:
    """Any accepted image -> a PIL image that may not be decoded yet, and its name for errors."""
    if isinstance(image, Image.Image):
        return image, f"the PIL image ({image.mode}, {image.width} x {image.height})"
    if isinstance(image, str | os.PathLike):
        name, stream = repr(os.fspath(image)), _open_file(image, files)
        return files.enter_context(_open(stream, name, min_side, max_pixels)), name
    if hasattr(image, "read"):
        image = _contents(cast("IO[bytes]", image))
    if isinstance(image, bytes | bytearray) or (isinstance(image, memoryview) and image.ndim == 1):
        if len(image) == 0:
            raise ImageError("the image is empty: 0 bytes")
        name, data = f"the image of {len(image):,} bytes", io.BytesIO(bytes(image))
        return files.enter_context(_open(data, name, min_side, max_pixels)), name
    if isinstance(image, memoryview) or hasattr(image, "__array__"):
        array = _array(image)
        return from_array(array, color), "the array"
    if image is None:
        raise ImageError("the image is None: the camera gave no frame, or OpenCV could not read the file")
    raise ImageError(f"cannot take an image of type {type(image).__name__}: give {ACCEPTED}")


def _contents(file: IO[bytes]) -> bytes:
    """The contents of an open file, from its start if it can seek. Raises ImageError."""
    try:
        with contextlib.suppress(AttributeError, OSError):  # a pipe
            file.seek(0)
        data = file.read()
    except (OSError, ValueError) as error:  # closed, or write-only
        raise ImageError(f"cannot read the open file: {error}") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(f"the open file gives {type(data).__name__}, not bytes: open it with mode 'rb'")
    return bytes(data)


def _array(image: HasArray | memoryview) -> NDArray[np.generic]:
    """A tensor of any library as an array. Raises ImageError."""
    try:
        return np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:  # on a GPU, or with gradients
        reason = " ".join(str(error).split())
        raise ImageError(f"cannot take the {type(image).__name__} as an array: {reason}") from None


def _open_file(path: str | os.PathLike[str], files: contextlib.ExitStack) -> IO[bytes]:
    file, name = Path(path), repr(os.fspath(path))
    if os.fspath(path).startswith(("http://", "https://")):
        raise ImageError(f"{name} is a web address: download the image first")
    try:
        if file.is_dir():
            raise ImageError(f"{name} is a directory: give the images in it, as in {file}/*.jpg")
        if not file.exists():
            raise ImageError(f"no such file: {name}")
        stream = files.enter_context(open(file, "rb", opener=_open_nonblocking))  # noqa: SIM115
        status = os.fstat(stream.fileno())
    except (OSError, ValueError) as error:  # permission, name too long, a null character in the name...
        raise ImageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name} is a pipe or a device: give a file, or pipe the image to -")
    if status.st_size == 0:
        raise ImageError(f"{name} is empty: 0 bytes")
    return stream


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a pipe without waiting for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow has."""
    plugin = importlib.util.find_spec("PIL.AvifImagePlugin")  # from Pillow 11.3 on
    return FORMATS if plugin is not None else tuple(name for name in FORMATS if name != "AVIF")


def _read_header(stream: IO[bytes], name: str) -> Image.Image:
    """Do what Image.open does, but open a JPEG without importing the plugins of other formats."""
    kind = format_of(stream.read(HEAD))
    if slow := slow_to_decode(stream, kind):
        raise ImageError(f"{name} {slow}")
    stream.seek(0)
    if kind == "JPEG":
        from PIL.JpegImagePlugin import JpegImageFile

        with contextlib.suppress(Exception):  # Image.open says what is wrong
            image = JpegImageFile(stream)
            if image.width * image.height <= PILLOW_MAX_PIXELS:
                return image
        stream.seek(0)
    opened = Image.open(stream, formats=_heif_formats(name) if kind == "HEIF" else _formats())
    if slow := too_many(len(opened.tile), "strips or tiles", MAX_PARTS):
        raise ImageError(f"{name} {slow}")
    return opened


def _heif_formats(name: str) -> tuple[str, ...]:
    """Import the HEIC package, and return the formats to try then."""
    for package in ("pi_heif", "pillow_heif"):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(package).register_heif_opener()
            return ("HEIF",)
    raise ImageError(f"{name} is HEIC, which needs another package: {pip_install('heic')}")


def _open(stream: IO[bytes], name: str, min_side: int | None, max_pixels: int) -> Image.Image:
    """Read the header only, and check the size in it. min_side, max_pixels: those of load_rgb."""
    try:
        with _open_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large but below the limit; broken metadata
            image = _read_header(stream, name)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(f"{name} has more than {limit:,} pixels: scale it down first") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image: give one of {', '.join(_formats())}") from None
    except MemoryError:
        raise ImageError(f"not enough memory to open {name}: scale it down first") from None
    except Exception as error:  # noqa: BLE001  # plugins raise anything on a broken header
        raise ImageError(f"{name} is damaged: {error or type(error).__name__}") from None
    size = f"{name} has {image.width} x {image.height} pixels"
    if max(image.size) > MAX_SIDE:
        image.close()
        raise ImageError(f"{size}, more than {MAX_SIDE:,} a side: scale it down first")
    many = image.width * image.height > max_pixels
    if not many or decodes_by_line(stream):
        _shrink(image, min_side, max_pixels)
    if image.width * image.height > max_pixels:
        image.close()
        fix = "scale it down first, or raise the limit (--max-pixels N, load(max_pixels=N))"
        raise ImageError(f"{size}, more than {max_pixels:,}: {fix}")
    if many:
        _log.warning("%s, more than %s: decoded as %s x %s", size, f"{max_pixels:,}", *image.size)
    return image


def _shrink(image: Image.Image, min_side: int | None, max_pixels: int) -> None:
    """Let the decoder shrink a JPEG: to at least min_side if that is given, and to max_pixels if possible."""
    width, height = image.size
    fits = [scale for scale in (1, *_SCALES) if -(-width // scale) * -(-height // scale) <= max_pixels]
    scale = fits[0] if fits else _SCALES[-1]
    sides = (min(side // scale, side if min_side is None else min_side) for side in image.size)
    image.draft(None, (max(1, next(sides)), max(1, next(sides))))  # None keeps its mode


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Decode an image, rotate it upright, convert it to RGB. Raises ImageError."""
    try:
        image.load()
        return to_rgb(upright(image), name)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"not enough memory for {name}, {image.width} x {image.height}: scale it down first") from None
    except Exception as error:  # noqa: BLE001  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error...
        raise ImageError(f"{name} is damaged: {error or type(error).__name__}") from None
