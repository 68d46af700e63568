"""Give a bundle the pool that guides nano's captions.

    python recipes/nano/pool.py runs/nano/scored-2 --out runs/nano/pooled-2 --coco data/coco/captions-pool.txt \
        --data data/flickr8k/train.tsv --images data/flickr8k/images

Most captions of the pool are people's, of COCO's photographs that are not in the sets (CC BY 4.0). Captions of TSV are
not copied: the bundle writes three of each image, guided by what people wrote about the other half of the images.
--same takes the pool of an older bundle instead, which must embed texts alike.
"""

import argparse
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from presence import captions_of

import blip2rt
from blip2rt.bundle import MANIFEST, read
from blip2rt.bundle.writer import BundleWriter
from blip2rt.command_line import Parser, run_script, whole
from blip2rt.errors import OptionError
from blip2rt.matching.pool import build_pool, read_captions, read_pool
from blip2rt_train.progress import bar

POOL = "captions.pool"


def written(model: blip2rt.Model, groups: dict[str, list[str]], images: Path) -> Iterator[str]:
    """Yield captions that the model writes of the images in groups (image -> human captions)."""
    names = sorted(groups)
    halves = names[::2], names[1::2]
    with tempfile.TemporaryDirectory() as folder, bar(total=len(names), desc="captions", unit="image") as progress:
        for own, other in (halves, halves[::-1]):
            text, pool = Path(folder, "captions.txt"), Path(folder, "pool")
            text.write_text("\n".join(caption for name in other for caption in groups[name]), encoding="utf-8")
            build_pool(text, pool, model.matcher)
            for captions in model.caption_each((images / name for name in own), num_captions=3, pool=pool):
                yield from captions
                progress.update()


def pooled(args: argparse.Namespace) -> str:
    """Write the bundle and return a line about its pool."""
    if (args.out / MANIFEST).exists():
        raise OptionError(f"{args.out} already exists: give another folder")
    bundle, model = read(args.bundle), blip2rt.load(args.bundle)
    retrieval = bundle.manifest.retrieval
    if retrieval is None or bundle.manifest.files is None:
        raise OptionError(f"the bundle {args.bundle} cannot match images and texts: give one with a stage 1")
    with BundleWriter(args.out) as writer:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, writer.folder / name)
        put = _build if args.same is None else _take
        said = put(model, writer.folder / POOL, args)
        writer.finish(replace(bundle.manifest, retrieval=replace(retrieval, pool=POOL)))
    return f"{args.out}: {said}"


def _take(model: blip2rt.Model, pool: Path, args: argparse.Namespace) -> str:
    read_pool(args.same / POOL, model.matcher)  # refuses another model's
    shutil.copyfile(args.same / POOL, pool)
    return f"the pool of {args.same}"


def _build(model: blip2rt.Model, pool: Path, args: argparse.Namespace) -> str:
    human = read_captions(args.coco)
    random.Random(0).shuffle(human)
    own = [] if args.data is None else [*dict.fromkeys(written(model, captions_of(args.data), args.images))]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "captions.txt")
        text.write_text("\n".join([*human[: max(0, args.captions - len(own))], *own]), encoding="utf-8")
        count = build_pool(text, pool, model.matcher)
    return f"a pool of {count:,} captions, {len(own):,} of them its own"


if __name__ == "__main__":
    parser = Parser(prog="pool.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="bundle of both stages")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE2", help="bundle to write")
    parser.add_argument("--coco", type=Path, required=True, metavar="FILE", help="text file of human captions")
    parser.add_argument("--same", type=Path, metavar="BUNDLE3", help="take this bundle's pool (default: build one)")
    parser.add_argument("--data", type=Path, metavar="TSV", help="table of images to caption (default: none)")
    parser.add_argument("--images", type=Path, default=Path(), metavar="DIR", help="their folder")
    parser.add_argument("--captions", type=whole(1), default=97_000, metavar="N", help="in all (default: 97,000)")
    run_script(parser, lambda args: [pooled(args)])
