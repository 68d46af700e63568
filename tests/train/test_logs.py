"""Training logs: JSON lines, TensorBoard if installed, wandb on request."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("torch")

from blip2rt.errors import Blip2rtError
from blip2rt_train.loop.logs import Log

LINE = {"step": 10, "loss": 2.5, "images_per_second": 33.33, "waiting_for_data": 0.024}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long(2, "a whole training")
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
    assert "images/s=33.3" in shown and "waiting=2%" in shown and "10/20 [00:00<" in shown
    log.plot()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')  # of a killed run
    for step, left in ((10, 2), (5, 0)):  # the lines of steps that will be repeated are dropped
        with Log(tmp_path, True, 20).running(step):
            assert len(lines(tmp_path)) == left


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
    """A resumed training continues its run."""
    wandb = MagicMock(__spec__=ModuleSpec("wandb", None, origin="wandb.py"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with Log(tmp_path, True, 20, "blip2", {"lr": 0.1}).running(0):
        pass
    log = Log(tmp_path, True, 20, "blip2", {"lr": 0.1})
    with pytest.raises(KeyboardInterrupt), log.running(0):
        log.write({**LINE, "dev_loss": 3.0})
        log.samples(10, {"1.jpg": "a dog"})
        raise KeyboardInterrupt
    first, again = (each.kwargs for each in wandb.init.call_args_list)
    assert first["id"] == again["id"] and first["resume"] == "allow" and first["project"] == "blip2"
    assert first["config"]["lr"] == 0.1 and first["dir"] == str(tmp_path)
    run, table = wandb.init.return_value, wandb.Table
    numbers, texts = (each.args[0] for each in run.log.call_args_list)
    assert numbers == {**LINE, "dev/loss": 3.0} and texts == {"step": 10, "samples": table.return_value}
    table.assert_called_once_with(columns=["step", "image", "text"], data=[[10, "1.jpg", "a dog"]])
    run.define_metric.assert_called_with("*", step_metric="step")
    assert run.finish.call_count == 2


def test_missing_wandb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Blip2rtError, match="wandb is 'mine' and not installed: pip install wandb"):
        Log(tmp_path, True, 20, "mine")
