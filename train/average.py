"""The weighted mean of two checkpoints of one training: `python -m train.average A B --share 0.7 --out C`.

Between a model and what a longer training made of it there are weights that are better than both on unseen images
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). Knows tensors and files; nothing about what they do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.checkpoints import CONFIG, WEIGHTS, locate

from .cli import run_main


def average(first: str, second: str, share: float, out: Path) -> Path:
    """Writes (1 - share) * first + share * second, with the first one's config. Raises Blip2rtError."""
    if not 0 <= share <= 1:
        raise OptionError(f"share is {share}, not from 0 to 1")
    folders = [locate(source) for source in (first, second)]
    for source, folder in zip((first, second), folders, strict=True):
        if not (folder / WEIGHTS).is_file():
            raise OptionError(f"{source} holds no {WEIGHTS}: give two checkpoints of this project")
    ours, theirs = (load_file(folder / WEIGHTS) for folder in folders)
    shapes, others = ({name: tuple(t.shape) for name, t in state.items()} for state in (ours, theirs))
    if shapes != others:
        names = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
        raise Blip2rtError(f"{first} and {second} are of different models: {', '.join(names[:3])}")
    out.mkdir(parents=True, exist_ok=True)
    mean = {name: ((1 - share) * ours[name].float() + share * theirs[name].float()) for name in ours}
    save_file({name: tensor.to(ours[name].dtype).contiguous() for name, tensor in mean.items()}, out / WEIGHTS)
    (out / CONFIG).write_bytes((folders[0] / CONFIG).read_bytes())
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", help="checkpoint, or the folder of a training")
    parser.add_argument("second", help="the same")
    parser.add_argument("--share", type=float, default=0.5, help="of the second one [0.5]")
    parser.add_argument("--out", type=Path, required=True, help="folder of the mean")
    args = parser.parse_args(argv)
    return run_main(lambda: print(average(args.first, args.second, args.share, args.out)))


if __name__ == "__main__":
    raise SystemExit(main())
