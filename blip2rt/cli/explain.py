"""`blip2rt explain`: heat maps of where an image shows the words of its caption."""

from __future__ import annotations

import argparse
import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..bundle.atomic import write_file
from ..errors import OptionError, one_line, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..model import Model

SIDE = 384  # pixels of a tile's longer side
_COLUMNS = 4
_HOT, _DARK = (255, 150, 0), 0.35  # colour of the largest value, and brightness of the image below it


def explain(model: Model, args: argparse.Namespace) -> str:
    """Write the picture that the arguments describe. Return the caption and the file. Raises OptionError."""
    out = args.out or Path(("image" if args.image == "-" else Path(args.image).stem) + "-explained.png")
    if out.suffix.lower() != ".png":
        raise OptionError(f"--out is {str(out)!r}: give a name that ends in .png")
    if os.path.lexists(out) and not args.overwrite:
        raise OptionError(f"{str(out)!r} exists: give another --out, or --overwrite")
    from . import _image

    image = model.prepare(_image(args.image))
    maps = model.attention(image, args.text)
    text = " ".join(word for word, _ in maps)
    if args.word is not None:
        maps = [each for each in maps if _plain(each[0]) == _plain(args.word)][:1]
        if not maps:
            raise OptionError(f"the caption {text!r} lacks the word {args.word!r}: choose one of its, or give --text")
    png = io.BytesIO()
    sheet([tile(image, heat, word) for word, heat in maps]).save(png, "PNG")
    try:
        write_file(out, png.getvalue(), follow=False)
    except OSError as error:
        raise OptionError(f"cannot write {str(out)!r}: {error.strerror or error}") from error
    return f"{one_line(text)}\t{printable(str(out))}"


def _plain(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))


def tile(image: NDArray[np.uint8], heat: NDArray[np.float32], word: str) -> Image.Image:
    """RGB (height, width, 3), map (rows, columns) -> the image with the map's largest values bright and the word."""
    height, width = (round(side * SIDE / max(image.shape[:2])) for side in image.shape[:2])
    size = width, height
    span = max(float(heat.max() - heat.min()), 1e-9)
    scaled = Image.fromarray(((heat - heat.min()) / span * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    dark = picture.point(lambda value: value * _DARK)
    bright = Image.blend(picture, Image.new("RGB", size, _HOT), 0.4)
    drawn = Image.composite(bright, dark, scaled)
    ImageDraw.Draw(drawn).text((8, 6), printable(word), fill="white", stroke_width=2, stroke_fill="black", font_size=20)
    return drawn


def sheet(tiles: list[Image.Image]) -> Image.Image:
    """Tiles of one size -> one image with _COLUMNS in a row."""
    width, height = tiles[0].size
    columns = min(len(tiles), _COLUMNS)
    joined = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height))
    for i, each in enumerate(tiles):
        joined.paste(each, (i % columns * width, i // columns * height))
    return joined
