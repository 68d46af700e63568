"""Average the weights of checkpoints: `blip2rt-train average A B [C ...] --out D`.

The mean of a model and its longer-trained version, or of the last checkpoints of a noisy training, is often better on
unseen images than each (Izmailov et al. 2018; Wortsman et al. 2022).
"""

from __future__ import annotations

from ..cli import run_command, run_main

if __name__ == "__main__":  # before the imports, so that a missing package is reported in one line
    raise SystemExit(run_command("average"))


from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blip2rt.command_line import Parser, nonempty, path
from blip2rt.errors import Blip2rtError, OptionError, boundary
from blip2rt.modeling.sources import CONFIG, WEIGHTS, locate

if TYPE_CHECKING:
    import torch


def average(checkpoints: Sequence[str], out: Path) -> Path:
    """Write the mean of every tensor, with the first checkpoint's config. Raise Blip2rtError."""
    folders = [locate(source) for source in checkpoints]
    for source, folder in zip(checkpoints, folders, strict=True):
        if not (folder / WEIGHTS).is_file():
            raise OptionError(f"{source} has no {WEIGHTS}: give checkpoints of this project")
    from safetensors.torch import save_file  # imported after the first checks: takes seconds

    mean = _tensors(folders[0])
    dtypes = {name: tensor.dtype for name, tensor in mean.items()}
    mean = {name: tensor.double() / len(checkpoints) for name, tensor in mean.items()}
    for source, folder in zip(checkpoints[1:], folders[1:], strict=True):
        state = _tensors(folder)
        mismatched = [
            n for n in mean.keys() | state.keys() if n not in mean or n not in state or mean[n].shape != state[n].shape
        ]
        if mismatched:
            names = ", ".join(sorted(mismatched)[:3])
            raise Blip2rtError(f"{checkpoints[0]} and {source} are of different models ({names}): give others")
        for name, tensor in mean.items():
            tensor.add_(state[name].double(), alpha=1 / len(checkpoints))
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.to(dtypes[name]) for name, tensor in mean.items()}, out / WEIGHTS)
    (out / CONFIG).write_bytes((folders[0] / CONFIG).read_bytes())
    return out


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    with boundary(f"{folder / WEIGHTS} cannot be read, give a complete checkpoint"):
        return load_file(folder / WEIGHTS)


def _parser() -> Parser:
    renamed = {"--checkpoint": "", "--ckpt": "", "--model": ""}
    parser = Parser(description=(__doc__ or "").splitlines()[0], renamed=renamed)
    about = "checkpoints, or folders of trainings (their newest)"
    parser.add_argument("checkpoints", nargs="+", type=nonempty, metavar="CKPT", help=about)
    parser.add_argument("--out", type=path, required=True, metavar="FOLDER", help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: print(average(**vars(_parser().parse_args(argv)))))
