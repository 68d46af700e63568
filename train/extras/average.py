"""The weighted mean of checkpoints of one training: `blip2rt-train average A B [C ...] --weights 0.3 0.7 --out D`.

Between a model and what a longer training made of it, and among the last checkpoints of a noisy one, are weights
that are better on unseen images than each (Izmailov et al. 2018; Wortsman et al. 2022). Knows tensors and files.
"""

from __future__ import annotations

from ..cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("average"))


from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from blip2rt.command_line import Parser, nonempty, path
from blip2rt.errors import Blip2rtError, OptionError, boundary
from blip2rt.modeling.checkpoints import CONFIG, WEIGHTS, locate, read_config

_ALIKE = ("stage", "qformer_bits", "qformer_block")  # fields of Blip2Config, beyond the shapes of tensors


def average(sources: Sequence[str], weights: Sequence[float] | None, out: Path) -> Path:
    """Write the mean of every tensor, weighted by `weights` over their sum (None: all alike), with the first one's
    config. Raise Blip2rtError."""
    weights = [1.0] * len(sources) if weights is None else weights
    if len(weights) != len(sources) or min(weights) < 0 or not sum(weights) > 0:
        raise OptionError(
            f"weights are {list(weights)}: give {len(sources)} numbers, none below 0, one for each checkpoint"
        )
    folders = [locate(source) for source in sources]
    for source, folder in zip(sources, folders, strict=True):
        if not (folder / WEIGHTS).is_file():
            raise OptionError(f"{source} holds no {WEIGHTS}: give checkpoints of this project")
    configs = [read_config(source) for source in sources]
    for field in _ALIKE:
        values = [getattr(config, field) for config in configs]
        for source, value in zip(sources, values, strict=True):
            if value != values[0]:
                raise OptionError(f"{field} is {values[0]} in {sources[0]} and {value} in {source}, "
                                  "and the mean would be neither's: give checkpoints that have it alike")  # fmt: skip
    mean = _tensors(folders[0])
    dtypes = {name: tensor.dtype for name, tensor in mean.items()}
    mean = {name: tensor.double() * (weights[0] / sum(weights)) for name, tensor in mean.items()}
    for source, folder, weight in zip(sources[1:], folders[1:], weights[1:], strict=True):
        state = _tensors(folder)
        other = [
            n for n in mean.keys() | state.keys() if n not in mean or n not in state or mean[n].shape != state[n].shape
        ]
        if other:
            raise Blip2rtError(f"{sources[0]} and {source} are of different models: {', '.join(sorted(other)[:3])}")
        for name, tensor in mean.items():
            tensor.add_(state[name].double(), alpha=weight / sum(weights))
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.to(dtypes[name]) for name, tensor in mean.items()}, out / WEIGHTS)
    (out / CONFIG).write_bytes((folders[0] / CONFIG).read_bytes())
    return out


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    with boundary(f"{folder / WEIGHTS} cannot be read, name a whole checkpoint"):
        return load_file(folder / WEIGHTS)


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0],
                    renamed={"--checkpoint": "", "--ckpt": "", "--model": ""})  # fmt: skip
    parser.add_argument("checkpoints", nargs="+", type=nonempty, metavar="CKPT",
                        help="checkpoints, or folders of trainings (their newest)")  # fmt: skip
    parser.add_argument("--out", type=path, required=True, metavar="FOLDER", help="folder of the mean")
    parser.add_argument("--weights", nargs="*", type=float, metavar="X", help="one for each (default: all alike)")
    return parser


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = _parser().parse_args(argv)
        print(average(args.checkpoints, args.weights, args.out))

    return run_main(work)
