"""What a training tells: metrics.jsonl, the progress bar, TensorBoard where it is installed, loss.png.

Knows names and numbers, nothing about what they measure.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Log:
    """The log of one process; all but the main one are silent."""

    def __init__(self, out: Path, main: bool) -> None:
        self.out, self.main = out, main
        self._board: Any = None

    def start(self, steps: int, step: int) -> tqdm[Any]:
        """The progress bar from `step` on; lines of steps that will be run again go."""
        if self.main:
            self._drop_after(step)
            with contextlib.suppress(ImportError):  # an extra of torch, of which we ask nothing
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=step)
        return tqdm(total=steps, initial=step, unit="step", desc=self.out.name, disable=not self.main)

    def write(self, line: dict[str, float]) -> None:
        """One line of metrics, which holds its step."""
        if not self.main:
            return
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name.replace("dev_", "dev/"), value, int(line["step"]))

    def _drop_after(self, step: int) -> None:
        path = self.out / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            path.write_text("".join(line + "\n" for line in kept))

    def plot(self) -> None:
        """loss.png from metrics.jsonl."""
        if self.main and (self.out / "metrics.jsonl").exists():  # the first line may come after the first checkpoint
            plot_losses(self.out)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # half a line of a killed run


def plot_losses(out: Path) -> None:
    """loss.png from metrics.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if "loss" in line]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in ("loss", "itc", "itm", "itg"):
        if train and name in train[0]:
            axes.plot([line["step"] for line in train], [line[name] for line in train], label=name, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "loss.png", dpi=120)
    pyplot.close(figure)
