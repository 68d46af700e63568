"""Interrupted trainings: signals, the folder lock, nodes without a shared folder, changed shards."""

import os
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.checkpoint import list_checkpoints
from blip2rt_train import stage1
from blip2rt_train.data import shards
from blip2rt_train.loop import run_folder
from blip2rt_train.loop.signals import StopSignals
from blip2rt_train.loop.trainer import Trainer
from tests.train.shard_files import write_shard

from ..tiny.training import tiny_settings
from .processes import end_together, start_together, train_together

pytestmark = [
    pytest.mark.long(20, "trainings as processes, interrupted by signals"),
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals and locks"),
]


def shard_of(name: str, count: int, image: bytes = b"image") -> dict[str, bytes]:
    return {f"{name}{i}.{kind}": content for i in range(count) for kind, content in (("jpg", image), ("txt", b"a dog"))}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*tiny_settings(tmp_path_factory.mktemp("parts")), "--dev_table", "", "--dropout", "0.1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_prints_the_resume_command(
    settings: list[str],
    tmp_path: Path,
    number: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, original = [*settings, "--out", str(tmp_path / "a run")], Trainer._step
    before = signal.getsignal(number)

    def signalled(self: Trainer, step: int, backward: Any) -> dict[str, float]:
        if step == 1:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # `timeout` and torchrun send it twice
        return original(self, step, backward)

    monkeypatch.setattr(Trainer, "_step", signalled)
    assert stage1.main(arguments) == 128 + number
    monkeypatch.undo()
    [logs] = [line for line in capsys.readouterr().err.splitlines() if "resume: " in line]
    assert "step-000002" in logs and signal.Signals(number).name in logs
    assert shlex.split(logs.partition("resume: ")[2]) == ["blip2rt-train", *arguments]
    assert [path.name for path in list_checkpoints(tmp_path / "a run")] == ["step-000002"]
    assert signal.getsignal(number) == before
    if number == signal.SIGTERM:  # once is enough
        assert stage1.main(arguments) == 0 == stage1.main([*settings, "--out", str(tmp_path / "whole")])
        ended, whole = (load_file(tmp_path / name / "step-000006" / "model.safetensors") for name in ("a run", "whole"))
        assert [name for name in whole if not torch.equal(whole[name], ended[name])] == []


def test_second_ctrl_c_interrupts_immediately(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    signals = StopSignals()
    with pytest.raises(KeyboardInterrupt), signals.handled():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert "ending after this step; press Ctrl-C again to end at once" in capfd.readouterr().err
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 5)
        os.kill(os.getpid(), signal.SIGINT)


def test_folder_lock_ends_with_its_process(tmp_path: Path) -> None:
    told, tell = os.pipe()
    other = os.fork()
    if not other:
        with run_folder.lock_folder(tmp_path):
            os.write(tell, b"mine")
            time.sleep(60)
        os._exit(0)
    try:
        assert os.read(told, 4) == b"mine"
        refused = pytest.raises(Blip2rtError, match=f"in use by another training .process {other} on")
        with refused, run_folder.lock_folder(tmp_path):
            pass
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    with run_folder.lock_folder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / run_folder.LOCK).read_text()


def test_nodes_without_a_shared_folder_stop_together(settings: list[str], tmp_path: Path) -> None:
    arguments = [*settings, "--out", str(tmp_path / "node{rank}")]
    running, logs = start_together("blip2rt_train.stage1", [*arguments, "--steps", "5000"], tmp_path)
    metrics, until = tmp_path / "node0" / "metrics.jsonl", time.monotonic() + 600
    while not metrics.exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(running[1].pid, signal.SIGTERM)  # one of them alone
    end_together(running, logs, 143)
    [kept] = list_checkpoints(tmp_path / "node0")[-1:]
    assert not list_checkpoints(tmp_path / "node1")
    step = int(kept.name.removeprefix("step-"))
    for text in train_together("blip2rt_train.stage1", [*arguments, "--steps", str(step + 1)], tmp_path, code=2):
        assert "the newest checkpoints in " in text and "share it among the nodes" in text


def test_missing_and_changed_shards_are_named(tmp_path: Path) -> None:
    data, out = tmp_path / "shards", tmp_path / "out"
    out.mkdir()
    for name in "abc":
        write_shard(data / f"{name}.tar", shard_of(name, 3))

    def sources() -> list[Any]:
        return [shards.Shards(str(data), tmp_path / "cache")]

    shards.check_shards(sources(), out, began=False)
    shards.check_shards(sources(), out, began=True)
    (data / "a.tar").unlink()
    write_shard(data / "b.tar", shard_of("b", 3, b"another image"))
    shutil.copy(data / "c.tar", data / "d.tar")
    with pytest.raises(Blip2rtError, match=r"a\.tar is gone, .*b\.tar has changed, .*d\.tar is new: restore"):
        shards.check_shards(sources(), out, began=True)
    opened = sources()[0]
    (data / "b.tar").unlink()
    write_shard(data / "c.tar", {"c.jpg": b"image", "c.txt": b"a cat"})
    for number, words in ((0, r"b\.tar is gone"), (3, r"c\.tar has changed since")):
        with pytest.raises(Blip2rtError, match=words):
            opened.read(number)
