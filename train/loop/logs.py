"""Training logs: metrics.jsonl, the progress bar, loss.png, and TensorBoard if installed."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2rt.bundle.atomic import write_file
from blip2rt.errors import Blip2rtError

from ..progress import bar

if TYPE_CHECKING:
    from tqdm import tqdm

METRICS = "metrics.jsonl"
_WINDOW = 10  # lines of a running mean
_SCHEDULED = ("lr", "temperature")  # which do not scatter, and get no running mean
_PANELS = {  # of loss.png: the measures of each
    "losses": ("loss", "itc", "itm", "itg", "dev_loss"),
    "dev, in per cent": ("dev_i2t_r@1", "dev_t2i_r@1", "dev_cider"),
    "temperature": ("temperature",),
    "query cosine, accuracy": ("query_cosine", "dev_query_cosine", "itm_accuracy", "dev_itm_accuracy"),
    "learning rate, gradient norm": ("lr", "gradient_norm"),
    "images per second": ("images_per_second",),
}


class Log:
    """The log of one process; only the main process writes."""

    def __init__(self, out: Path, main: bool, steps: int) -> None:
        """steps: total steps of the training."""
        self.out, self.main, self.steps = out, main, steps
        self.speed: dict[str, str] = {}  # from the last line, for the progress bar
        self._writers: list[Any] = []

    @contextlib.contextmanager
    def running(self, step: int) -> Iterator[tqdm[Any]]:
        """Show the progress bar from `step` on and open every log; drop the lines of steps that will be repeated."""
        if self.main:
            self._drop_after(step)
            self._writers = list(_tensorboard(self.out, step))
        name = self.out.name
        try:
            with bar(total=self.steps, initial=step, unit="step", desc=name, disable=not self.main) as shown:
                yield shown
        finally:
            for writer in self._writers:
                writer.close()
            self._writers = []

    def write(self, line: dict[str, float]) -> None:
        """Write one line of metrics, which holds its step."""
        if "images_per_second" in line:
            waiting = 100 * line["waiting_for_data"]
            self.speed = {"images/s": f"{line['images_per_second']:.3g}", "waiting": f"{waiting:.0f}%"}
        self._append(line)
        for writer in self._writers:
            writer.numbers(line)

    def samples(self, step: int, texts: dict[str, str]) -> None:
        """Write the model's texts for sample images at `step`, by image name."""
        self._append({"step": step, "samples": texts})
        for writer in self._writers:
            writer.texts(step, texts)

    def _append(self, line: dict[str, Any]) -> None:
        if self.main:
            try:
                with (self.out / METRICS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:  # on a full disk, it names no file
                raise Blip2rtError(f"{self.out / METRICS} cannot be written: {error.strerror}") from error

    def _drop_after(self, step: int) -> None:
        path = self.out / METRICS
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_file(path, "".join(line + "\n" for line in lines).encode())

    def plot(self) -> None:
        """Draw loss.png."""
        if self.main and (self.out / METRICS).exists():  # the first checkpoint may precede the first line
            plot_losses(self.out)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # truncated line of a killed run


class _TensorBoard:
    """Event files in out/tensorboard."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def numbers(self, line: dict[str, float]) -> None:
        for name, value in line.items():
            if name != "step":
                self.writer.add_scalar(name.replace("dev_", "dev/"), value, int(line["step"]))

    def texts(self, step: int, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            self.writer.add_text(f"samples/{name}", text, step)

    def close(self) -> None:
        self.writer.close()


def _tensorboard(out: Path, step: int) -> Iterator[_TensorBoard]:
    with contextlib.suppress(ImportError):  # tensorboard is optional
        from torch.utils.tensorboard import SummaryWriter

        yield _TensorBoard(SummaryWriter(str(out / "tensorboard"), purge_step=step))


def plot_losses(out: Path) -> None:
    """Draw loss.png from metrics.jsonl: every line faintly, its running mean on top, and dev's measures as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 8))
    for axis, (title, names) in zip(axes.flat, _PANELS.items(), strict=True):
        for number, name in enumerate(names):
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                steps, values = zip(*points, strict=True)
                dev, color = name.startswith("dev_"), f"C{number}"
                scatters = not dev and name not in _SCHEDULED
                if scatters:
                    axis.plot(steps, values, color=color, linewidth=0.5, alpha=0.4, label="_all")
                shown = _running_mean(values) if scatters else values
                axis.plot(steps, shown, color=color, linewidth=1, marker="." if dev else "", label=name)
                axis.legend()
        axis.set_title(title)
        axis.set_xlabel("step")
    axes.flat[4].set_yscale("log")  # rates and norms
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    pyplot.close(figure)
    write_file(out / "loss.png", drawn.getbuffer())


def _running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and up to 9 before it."""
    parts = [values[max(0, end - _WINDOW) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in parts]
