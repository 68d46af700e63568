"""Finetune BLIP-2 on a folder of photographs, export it, caption with it. Needs pip install -e '.[train,export]'.

    python examples/finetune.py my-photos --start Salesforce/blip2-opt-2.7b --out my-bundle [--steps 200 ...]

my-photos has photo.jpg with photo.txt, one caption a line. Other options are passed to the training (blip2rt-train
stage2 --help); --dry-run checks everything and trains nothing.
"""

import argparse
from pathlib import Path

import blip2rt
from blip2rt_export import cli as export
from blip2rt_train import stage2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--start", required=True, help="a checkpoint: ours, Hugging Face's, or LAVIS'")
    parser.add_argument("--run", default="runs/finetune", help="checkpoints and metrics (default: runs/finetune)")
    parser.add_argument("--out", default="my-bundle", help="the bundle (default: my-bundle)")
    args, more = parser.parse_known_args()
    table = ["--train-table", str(args.photos), "--start", args.start, "--out", args.run]
    code = stage2.main(["--recipe", "finetune/captions", *table, *more])
    if code or "--dry-run" in more:
        raise SystemExit(code)
    if code := export.main(["--checkpoint", args.run, "--out", args.out]):
        raise SystemExit(code)
    photo = next(path for path in sorted(args.photos.iterdir()) if path.suffix != ".txt")
    print(f"{photo}: {blip2rt.load(args.out).caption(photo)}")


if __name__ == "__main__":
    main()
