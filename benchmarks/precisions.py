"""What each precision costs: the table of size, speed, features and CIDEr, a bundle a row.

    python -m benchmarks.precisions --ckpt runs/nano/stage2 --calib photographs/ --data dev.tsv --images images/ \
        --limit 200 --out docs/precisions.md

Each row is an export of its own with one group's precision changed from fp32, and the whole in each precision. CIDEr is
by `train.metrics`, greedy; the time is of one warm caption, the median of several.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import blip2rt
from blip2rt.bundle import Bundle, read
from blip2rt.errors import Blip2rtError
from export import assemble, choices, targets
from export.progress import Progress
from train.data import Dataset, read_table
from train.metrics import caption_metrics

GROUPS = ("vision", "qformer", "llm")
_HEAD = ("precision", "size MB", "ms a caption", "cosine of vision", "cosine of logits", "same tokens", "CIDEr")
_TIMED = 10  # captions


def rows(calibrated: bool) -> list[dict[str, str]]:
    """Precisions of each export, fp32 first."""
    plain = dict.fromkeys(GROUPS, "fp32")
    found = [plain]
    for group in GROUPS:
        wanted = [each for each in targets.ORT.precisions[group] if each not in ("fp32", "int8")]
        found += [{**plain, group: each} for each in wanted if calibrated or each != "int8-static"]
    return [*found, *(dict.fromkeys(GROUPS, each) for each in ("fp16", "int8-dynamic", "int8w", "int4"))]


def name(precision: dict[str, str]) -> str:
    values = set(precision.values())
    if len(values) == 1:
        return f"all {values.pop()}"
    return ", ".join(f"{group} {each}" for group, each in precision.items() if each != "fp32")


def measure(bundle: Bundle, data: Dataset) -> tuple[str, ...]:
    """The cells of a row after its name."""
    model = blip2rt.load(bundle.path)
    captions = list(model.caption_each(data.paths, num_beams=1))
    scores, _ = caption_metrics([[sample.text for sample in group] for group in data.by_image()], captions)
    spent = []
    for path in (data.paths * _TIMED)[:_TIMED]:
        start = time.perf_counter()
        model.caption(path, num_beams=1)
        spent.append(1000 * (time.perf_counter() - start))
    checks = {check.component: check for check in bundle.manifest.verification}
    vision, llm = checks["vision"], checks["llm"]
    return (
        f"{bundle.size / 1e6:.1f}",
        f"{statistics.median(spent):.0f}",
        f"{vision.cosine:.5f}",
        f"{llm.cosine:.5f}",
        f"{llm.agreement or 0:.0%}",
        f"{scores['cider']:.1f}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="a checkpoint that generates")
    parser.add_argument("--data", required=True, help="TSV of image, caption")
    parser.add_argument("--images", help="folder of the images [images/ beside the table]")
    parser.add_argument("--calib", type=Path, help="photographs to calibrate on; without: no int8-static")
    parser.add_argument("--limit", type=int, default=200, help="first N images only (default: 200)")
    parser.add_argument("--out", type=Path, help="file to write the table to (default: stdout only)")
    args = parser.parse_args()
    data = read_table(args.data, args.images or str(Path(args.data).parent / "images"))
    data = Dataset(data.paths[: args.limit], [sample for sample in data.samples if sample.image < args.limit])
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    with tempfile.TemporaryDirectory() as folder:
        for number, precision in enumerate(rows(args.calib is not None)):
            out = Path(folder) / str(number)
            options = choices.Options(ckpt=args.ckpt, out=out, precision=precision, calib=args.calib)
            try:
                assemble.export(options, Progress())
                cells = measure(read(out), data)
            except Blip2rtError as error:  # a combination that this model does not have, or that deviates too far
                cells = (str(error), *[""] * (len(_HEAD) - 2))
            lines.append("| " + " | ".join((name(precision), *cells)) + " |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
