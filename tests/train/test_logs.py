"""Training logs: JSON lines, TensorBoard if installed."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

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
