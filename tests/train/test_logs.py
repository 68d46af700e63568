"""What a training writes: JSON lines always, TensorBoard where it is installed, wandb where it is asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from blip2rt.errors import Blip2rtError
from train.loop.logs import Log

LINE = {"step": 10, "loss": 2.5, "samples_per_second": 33.33, "waiting_for_data": 0.024}
FAKE = '''
"""Records what it is told."""
import json
told = []

class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data

class Run:
    def define_metric(self, name, step_metric):
        told.append(("metric", name, step_metric))
    def log(self, values):
        told.append(("log", {k: v.data if isinstance(v, Table) else v for k, v in values.items()}))
    def finish(self):
        told.append(("finish",))

def init(**given):
    told.append(("init", given))
    return Run()
'''


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_log_writes_lines_samples_and_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path, True, 20)
    with log.running(0) as bar:
        log.write(LINE)
        log.samples(10, {"1.jpg": "a dog"})
        bar.update(10)
        bar.set_postfix(loss="2.5", **log.speed)
        bar.refresh()
    assert lines(tmp_path) == [LINE, {"step": 10, "samples": {"1.jpg": "a dog"}}]
    shown = capfd.readouterr().err
    assert "samples/s=33.3" in shown and "waiting=2%" in shown and "10/20 [00:00<" in shown
    log.plot()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with Log(tmp_path, True, 20).running(5):  # goes on from before
        assert lines(tmp_path) == []


def test_plot_shows_dev_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: dict[str, list[float]] = {}
    original = Axes.plot

    def plot(self: Axes, *points: Any, **style: Any) -> Any:
        drawn[style["label"]] = list(points[1])
        return original(self, *points, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    log = Log(tmp_path, True, 20)
    for step, loss in ((10, 2.5), (20, 2.0)):
        log.write({"step": step, "loss": loss})
        log.write({"step": step, "dev_loss": loss + 1, "dev_t2i_r@1": 30 + step, "dev_query_cosine": 0.5})
    log.plot()
    assert drawn == {"loss": [2.5, 2.0], "dev_loss": [3.5, 3.0], "dev_t2i_r@1": [40, 50]}


def test_other_processes_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path, False, 20, "absent")
    with log.running(0) as bar:
        log.write(LINE)
        log.samples(10, {"1.jpg": "a dog"})
        bar.update()
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""


def test_tensorboard_has_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, True, 20)
    with log.running(0):
        log.write(LINE)
        log.write({"step": 10, "dev_loss": 3.25})
        log.samples(10, {"1.jpg": "a dog on grass"})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 2.5)]
    assert [event.value for event in events.Scalars("dev/loss")] == [3.25]
    [text] = events.Tensors("samples/1.jpg/text_summary")
    assert b"a dog on grass" in text.tensor_proto.string_val[0]


def test_wandb_has_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in that records what it is told; a training that goes on goes on with its run."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    out = tmp_path / "out"
    out.mkdir()
    with Log(out, True, 20, "blip2", {"lr": 0.1}).running(0):
        pass
    log = Log(out, True, 20, "blip2", {"lr": 0.1})
    with pytest.raises(KeyboardInterrupt), log.running(0):
        log.write({**LINE, "dev_loss": 3.0})
        log.samples(10, {"1.jpg": "a dog"})
        raise KeyboardInterrupt
    import wandb

    told: list[Any] = wandb.told
    first, again = (each[1] for each in told if each[0] == "init")
    assert first["id"] == again["id"] and first["resume"] == "allow" and first["project"] == "blip2"
    assert first["config"]["lr"] == 0.1 and first["dir"] == str(out)
    logged = [each[1] for each in told if each[0] == "log"]
    assert logged[0] == {**LINE, "dev/loss": 3.0} and logged[1] == {"step": 10, "samples": [[10, "1.jpg", "a dog"]]}
    assert ("metric", "*", "step") in told and told.count(("finish",)) == 2
    monkeypatch.delitem(sys.modules, "wandb")


def test_missing_wandb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Blip2rtError, match="wandb is 'mine' and not installed: pip install wandb"):
        Log(tmp_path, True, 20, "mine")
