"""Write a photograph's caption beneath it: python examples/picture.py docs/photo.jpg docs/images/caption.png

This command made the picture in README.md.
"""

import sys

from PIL import Image, ImageDraw, ImageFont

import blip2rt

BAR = 44  # pixels for the caption


def main(photo: str, out: str) -> None:
    image = Image.open(photo).convert("RGB")
    picture = Image.new("RGB", (image.width, image.height + BAR), "white")
    picture.paste(image)
    font = ImageFont.load_default(size=22)
    middle = (image.width / 2, image.height + BAR / 2)
    ImageDraw.Draw(picture).text(middle, blip2rt.caption(photo), "black", font, anchor="mm")
    picture.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
