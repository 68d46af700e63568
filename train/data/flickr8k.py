"""Convert Flickr8k's own text files to tables of images and captions.

`Flickr8k.token.txt` has a line `IMAGE#NUMBER<TAB>CAPTION` for each caption, and `Flickr_8k.PARTImages.txt` an image
name per line.
"""

from pathlib import Path

from blip2rt.errors import Blip2rtError

PARTS = ("train", "dev", "test")
CAPTIONS = "Flickr8k.token.txt"
_URL = "https://github.com/jbrownlee/Datasets/releases/tag/Flickr8k"


def part_file(part: str) -> str:
    """Return the file that lists the images of a part."""
    return f"Flickr_8k.{part}Images.txt"


def write_tables(source: Path, images: Path, out: Path) -> list[str]:
    """Write train.tsv, dev.tsv and test.tsv in the order of the parts' files; return a line about each.

    Raise Blip2rtError, with nothing written, if files or photographs are missing.
    """
    files = [CAPTIONS, *map(part_file, PARTS)]
    missing = [name for name in files if not (source / name).is_file()]
    if missing:
        raise Blip2rtError(f"{source} has no {', '.join(missing)}: unpack Flickr8k_text.zip there ({_URL})")
    captions = _captions(source / CAPTIONS)
    parts = {part: _names(source / part_file(part)) for part in PARTS}
    _require_images(images, [name for names in parts.values() for name in names])
    out.mkdir(parents=True, exist_ok=True)
    summary = []
    for part, names in parts.items():
        rows = [row for name in names for row in captions.get(name, [])]
        partial = out / f".{part}.tsv.partial"
        partial.write_bytes(b"image\tcaption\n" + b"".join(rows))
        partial.rename(out / f"{part}.tsv")
        without = sum(name not in captions for name in names)
        note = f", {without} images without captions are skipped" if without else ""
        summary.append(f"{out / part}.tsv: {len(names) - without} images, {len(rows)} captions{note}")
    return summary


def _captions(path: Path) -> dict[bytes, list[bytes]]:
    """Return each image's rows `IMAGE<TAB>CAPTION<NEWLINE>`, in the file's order."""
    found: dict[bytes, list[bytes]] = {}
    for line in _lines(path):
        image, _, caption = line.partition(b"\t")
        name = image.partition(b"#")[0]
        found.setdefault(name, []).append(name + b"\t" + caption + b"\n")
    return found


def _names(path: Path) -> list[bytes]:
    return [name for name in (line.strip() for line in _lines(path)) if name]


def _lines(path: Path) -> list[bytes]:
    """Return lines without newlines; a carriage return before one stays."""
    lines = path.read_bytes().split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _require_images(images: Path, names: list[bytes]) -> None:
    there = {path.name for path in images.iterdir()} if images.is_dir() else set()
    missing = [name for name in (raw.decode(errors="replace") for raw in names) if name not in there]
    if missing:
        raise Blip2rtError(
            f"{len(missing)} of {len(names)} photographs are not in {images}, such as {missing[0]}: "
            f"unpack Flickr8k_Dataset.zip there ({_URL})"
        )
