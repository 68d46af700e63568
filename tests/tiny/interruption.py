"""`python -m tests.tiny.interruption kill|full COMMAND COUNT SEED`: a command dies at any moment, or meets a full disk.

COMMAND: export, convert, train or bench, on tiny models. A process imports and prepares everything once, and forks for
each run. kill: SIGKILL after a random part of the time that the command takes; every second one while files take their
place. full: files may have so many bytes, and where root may mount one, the disk. What was there before, or what is
new, is whole afterwards, and nothing else is left once the command has run to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

from blip2rt import bundle
from blip2rt.bench import cli as bench
from blip2rt.bundle import atomic
from blip2rt.modeling.checkpoints import list_checkpoints, load_model
from export import cli as export
from export import convert
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import training as tiny_training
from tests.tiny.bundle import tiny_bundle
from tests.tiny.trace_cache import cached_traces
from train import stage1

MOMENT = 0.03  # seconds, in which what is written takes its place


@dataclass
class Run:
    """A command in a process of its own. signals: a byte for each step that brings a file or folder to its place."""

    process: int
    signals: int
    said: Path
    begun: float = field(default_factory=time.monotonic)

    def writing(self, seconds: float) -> bool:
        """Wait until a file takes its place. False: that did not happen."""
        return bool(select.select([self.signals], [], [], seconds)[0]) and os.read(self.signals, 1) == b"w"

    def ended(self) -> int:
        """The exit code, or what signal ended it as a negative number."""
        _, status = os.waitpid(self.process, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # what it has started
        os.close(self.signals)
        return os.waitstatus_to_exitcode(status)


def start(command: Command, folder: Path, before: Callable[[], object] = lambda: None) -> Run:
    """Fork, call `before`, and run the command's main()."""
    said = folder / "said.txt"
    signals, tell = os.pipe()
    process = os.fork()
    if process:
        os.close(tell)
        return Run(process, signals, said)
    code = 99
    try:
        os.setsid()
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for owner, name in ((atomic.AtomicFolder, "finish"), (atomic, "_sync_names"), (atomic.os, "replace")):
            telling(owner, name, tell)
        before()
        code = command.main(command.arguments())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def telling(owner: Any, name: str, tell: int) -> None:
    """Let a function say that it is called, before it does anything."""
    original = getattr(owner, name)

    def told(*arguments: Any, **named: Any) -> Any:
        os.write(tell, b"w")
        return original(*arguments, **named)

    setattr(owner, name, told)


@dataclass
class Command:
    """What is run and checked; `out` is what it writes."""

    folder: Path
    main: Callable[[list[str]], int]
    out: Path
    runs: int = 0  # whose names differ

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def check(self) -> None:
        """Raise AssertionError where what is there is neither old nor new."""
        raise NotImplementedError

    def begin(self) -> None:
        """Before each run."""

    def check_end(self) -> None:
        """After a run that came to its end."""
        self.check()
        assert not hidden(self.out.parent), hidden(self.out.parent)


def hidden(folder: Path) -> list[str]:
    """What runs have left, but for single files, which the next writer of the file takes."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") and path.suffix != ".part")


class Export(Command):
    """One bundle after the other at the same place, each of another name."""

    def arguments(self) -> list[str]:
        precision = "vision=fp32,qformer=fp32,llm=fp32"
        return ["--checkpoint", str(self.folder / "hf"), "--out", str(self.out), "--overwrite", "--precision",
                precision, "--name", f"n{self.runs}"]  # fmt: skip

    def begin(self) -> None:
        self.names = {bundle.read(self.out).manifest.name if self.out.exists() else "", f"n{self.runs}"}

    def check(self) -> None:
        if not self.out.exists():
            assert "" in self.names
            return
        assert bundle.verify(self.out).manifest.name in self.names


class Convert(Command):
    """A folder of Hugging Face's, whole or not there."""

    whole: dict[str, bytes] | None = None

    def arguments(self) -> list[str]:
        return [str(self.folder / "hf"), "--to", "hf", "--out", str(self.out)]

    def begin(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def check(self) -> None:
        if self.out.exists():
            found = {path.name: path.read_bytes() for path in self.out.iterdir() if path.name != atomic.MARKER}
            self.whole = self.whole or found
            assert found == self.whole

    def check_end(self) -> None:
        super().check_end()
        assert self.out.exists()


class Train(Command):
    """Checkpoints, from which the next run goes on; when all steps are done, it begins anew."""

    steps = 6
    last: dict[str, torch.Tensor] | None = None

    def arguments(self) -> list[str]:
        settings = json.loads((self.folder / "settings.json").read_text())
        return [*settings, "--out", str(self.out), "--save-every", "1", "--keep", "2", "--steps", str(self.steps)]

    def begin(self) -> None:
        if self.out.exists() and [path.name for path in list_checkpoints(self.out)][-1:] == [f"step-{self.steps:06d}"]:
            shutil.rmtree(self.out)
            shutil.rmtree(self.folder / "features", ignore_errors=True)

    def check(self) -> None:
        for found in list_checkpoints(self.out) if self.out.exists() else ():
            assert json.loads((found / "trainer.json").read_text())["step"] == int(found.name[5:])
            assert load_file(found / "optimizer.safetensors")
            load_model(found, vision=False)
        for name in ("metrics.jsonl",):
            lines = (self.out / name).read_text().splitlines() if (self.out / name).exists() else []
            assert all(json.loads(line) for line in lines[:-1])  # of the last one a half may be there
        if (self.out / "loss.png").exists():
            assert b"IEND" in (self.out / "loss.png").read_bytes()[-12:]

    def check_end(self) -> None:
        super().check_end()
        assert not hidden(self.out), hidden(self.out)
        weights = load_file(list_checkpoints(self.out)[-1] / "model.safetensors")
        self.last = self.last or weights
        assert all(torch.equal(weights[name], tensor) for name, tensor in self.last.items())


class Bench(Command):
    """Files of a report, each of which there was one before."""

    flags = ("json", "markdown", "plot")
    result: Any = None

    def file(self, flag: str) -> Path:
        return self.out / {"json": "r.json", "markdown": "r.md", "plot": "r.png"}[flag]

    def arguments(self) -> list[str]:
        written = [word for flag in self.flags for word in (f"--{flag}", str(self.file(flag)))]
        return ["--model", str(self.folder / "tiny"), "--repeat", "1", "--new-tokens", "1", "--threads", "1", *written]

    def begin(self) -> None:
        self.out.mkdir(exist_ok=True)
        for flag in self.flags:
            self.file(flag).write_text("old")

    def check(self) -> None:
        texts = {flag: self.file(flag).read_bytes() for flag in self.flags}
        assert texts["json"] == b"old" or "stages" in json.loads(texts["json"])
        assert texts["markdown"] == b"old" or texts["markdown"].endswith(b"\n")
        assert texts["plot"] == b"old" or b"IEND" in texts["plot"][-12:]

    def check_end(self) -> None:
        self.check()
        assert all(self.file(flag).read_bytes() != b"old" for flag in self.flags)
        self.result = self.result or json.loads(self.file("json").read_text())


COMMANDS: dict[str, tuple[type[Command], Callable[[list[str]], int]]] = {
    "export": (Export, export.main), "convert": (Convert, convert.main), "train": (Train, stage1.main),
    "bench": (Bench, bench.main),
}  # fmt: skip


def prepare(name: str, folder: Path, seed: int) -> Command:
    """Make what the command reads."""
    torch.manual_seed(seed)
    random.seed(seed)
    kind, main = COMMANDS[name]
    (folder / "place").mkdir(parents=True)
    if name in ("export", "convert"):
        tiny_blip2.generative(folder / "hf", tiny_blip2.TEXT_CONFIGS["llama"]())
    elif name == "train":
        torch.save(timm.create_model("test_efficientnet").state_dict(), folder / "vision.pth")
        settings = [*tiny_training.tiny_settings(folder), "--vision_weights", str(folder / "vision.pth")]
        (folder / "settings.json").write_text(json.dumps(settings))
    else:
        tiny_bundle(folder / "tiny", seed)
    return kind(folder, main, folder / "place" / "out")


def to_the_end(command: Command) -> float:
    """Run it without an accident; return the seconds that it took."""
    command.begin()
    run = start(command, command.folder)
    code = run.ended()
    assert code == 0, run.said.read_text()[-3000:]
    command.check_end()
    return time.monotonic() - run.begun


def kill(command: Command, count: int, rng: random.Random) -> str:
    """Return what happened."""
    took = to_the_end(command)
    if isinstance(command, Bench):  # measured once; what follows is about its files
        result = command.result
        bench.collect.collect = lambda plan: result
        took = to_the_end(command)
    killed = early = 0
    for number in range(count):
        command.runs += 1
        command.begin()
        run = start(command, command.folder)
        if number % 2 == 0:
            time.sleep(rng.uniform(0, took))
        else:
            for _ in range(rng.choice([1, 1, 2, 3, 5])):
                if not run.writing(60):
                    break
            time.sleep(rng.uniform(0, MOMENT) if rng.random() < 0.7 else 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process, signal.SIGKILL)
        code = run.ended()
        assert code in (0, -signal.SIGKILL), (code, run.said.read_text()[-2000:])
        killed, early = killed + (code != 0), early + (code == 0)
        command.check()
    command.runs += 1
    to_the_end(command)
    return f"{killed} killed, {early} had ended, {took:.1f} s a run"


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A disk of so many bytes at `place`. Yield False where none can be had."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def full(command: Command, count: int, rng: random.Random) -> str:
    """Return what happened."""
    to_the_end(command)
    place = command.out.parent
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    largest = max(path.stat().st_size for path in place.rglob("*") if path.is_file())
    refused = 0
    for number in range(count):
        command.runs += 1
        command.begin()
        if isinstance(command, Train):
            shutil.rmtree(command.out, ignore_errors=True)
        limit = rng.randrange(100, largest if number % 2 == 0 else size)
        with contextlib.ExitStack() as stack:
            limited: Callable[[], object] = lambda: None  # noqa: E731
            on_disk = False
            if number % 2:
                kept = place.with_name("kept")
                shutil.copytree(place, kept)
                used = sum(path.stat().st_size + 8192 for path in kept.rglob("*"))
                on_disk = stack.enter_context(small_disk(place, used + limit))
                if on_disk:
                    shutil.copytree(kept, place, dirs_exist_ok=True)
                shutil.rmtree(kept)
            if not on_disk:
                limit = min(limit, largest - 1)
                limited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731, B023
            run = start(command, command.folder.parent, limited)
            code = run.ended()
            said = run.said.read_text().replace("\r", "\n")
            errors = [line for line in said.splitlines() if ": error: " in line]
            assert code in (0, 2), (limit, on_disk, code, said[-3000:])
            assert code == 0 or (len(errors) == 1 and "Traceback" not in said), (limit, on_disk, said[-3000:])
            assert code == 0 or any(word in errors[0] for word in ("space", "too large")), errors
            command.check()
            assert not hidden(place), hidden(place)
            refused += code == 2
    return f"{refused} of {count} met a full disk"


def main(what: str, name: str, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="blip2rt-ended-") as folder, cached_traces(Path(folder)):
        command = prepare(name, Path(folder) / "work", seed)
        if name == "export":  # graphs are traced here, and every fork knows them
            command.begin()
            assert command.main(command.arguments()) == 0
        told = {"kill": kill, "full": full}[what](command, count, random.Random(seed))
        print(f"{name}, seed {seed}: {told}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
