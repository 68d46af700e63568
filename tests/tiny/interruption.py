"""Kill commands at random moments, or fill the disk: `python -m tests.tiny.interruption kill|full COMMAND COUNT SEED`.

COMMAND: export, convert, train or bench, on tiny models. A process prepares everything once and forks for each run.
kill: SIGKILL after a random share of the command's duration, or (every second run) while output files are put in place.
full: limit the size of files or, if root may mount one, of the disk. Afterwards either the old or the new output must
be complete, and nothing else may be left after a run that finishes.
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
from blip2rt.modeling.checkpoint import Checkpoint, list_checkpoints
from export import cli as export
from export import convert
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import training as tiny_training
from tests.tiny.bundle import tiny_bundle
from tests.tiny.trace_cache import cached_traces
from train import stage1

COMMIT_SECONDS = 0.03  # roughly how long it takes to put output files in place


@dataclass
class Run:
    """A command in its own process. `commits` receives a byte before each step that puts a file or folder in place."""

    process: int
    commits: int
    log: Path
    started: float = field(default_factory=time.monotonic)

    def wait_for_commit(self, seconds: float) -> bool:
        """Wait until a file is about to be put in place. False: the time is over or the command has finished."""
        return bool(select.select([self.commits], [], [], seconds)[0]) and os.read(self.commits, 1) == b"w"

    def kill(self) -> None:
        """Kill the command and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)

    def wait(self) -> int:
        """Return the exit status, or the signal that killed it as a negative number."""
        _, status = os.waitpid(self.process, 0)
        self.kill()
        os.close(self.commits)
        return os.waitstatus_to_exitcode(status)


def start(command: Command, folder: Path, prepare: Callable[[], object] = lambda: None) -> Run:
    """Fork, call `prepare`, and run the command's main()."""
    path = folder / "log.txt"
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return Run(process, reader, path)
    code = 99
    try:
        os.setsid()
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for owner, name in ((atomic.AtomicFolder, "finish"), (atomic, "_sync_names"), (atomic.os, "replace")):
            notify_calls(owner, name, writer)
        prepare()
        code = command.main(command.arguments())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def notify_calls(owner: Any, name: str, writer: int) -> None:
    """Make a function write a byte before it runs."""
    original = getattr(owner, name)

    def notifying(*arguments: Any, **named: Any) -> Any:
        os.write(writer, b"w")
        return original(*arguments, **named)

    setattr(owner, name, notifying)


@dataclass
class Command:
    """A command under test and the checks of its output `out`."""

    folder: Path
    main: Callable[[list[str]], int]
    out: Path
    runs: int = 0

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def check(self) -> None:
        """Assert that the output is either the old or the new one."""
        raise NotImplementedError

    def before_run(self) -> None:
        """Prepare a run."""

    def check_finished(self) -> None:
        """Check the output of a run that has finished."""
        self.check()
        assert not hidden(self.out.parent), hidden(self.out.parent)


def hidden(folder: Path) -> list[str]:
    """List temporary files, except single ones, which the next writer of the same file reuses."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") and path.suffix != ".part")


class Export(Command):
    """Overwrites one bundle by another, each with its own name."""

    def arguments(self) -> list[str]:
        options = ["--overwrite", "--precision", "vision=fp32,qformer=fp32,llm=fp32", "--name", f"n{self.runs}"]
        return ["--checkpoint", str(self.folder / "hf"), "--out", str(self.out), *options]

    def before_run(self) -> None:
        self.names = {bundle.read(self.out).manifest.name if self.out.exists() else "", f"n{self.runs}"}

    def check(self) -> None:
        assert (bundle.verify(self.out).manifest.name if self.out.exists() else "") in self.names


class Convert(Command):
    """Writes a Hugging Face folder, which is complete or absent."""

    files: dict[str, bytes] | None = None

    def arguments(self) -> list[str]:
        return [str(self.folder / "hf"), "--to", "hf", "--out", str(self.out)]

    def before_run(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def check(self) -> None:
        if self.out.exists():
            files = {path.name: path.read_bytes() for path in self.out.iterdir() if path.name != atomic.MARKER}
            self.files = self.files or files
            assert files == self.files

    def check_finished(self) -> None:
        super().check_finished()
        assert self.out.exists()


class Train(Command):
    """Writes checkpoints, from which the next run resumes; starts from scratch when all steps are done."""

    steps = 6
    weights: dict[str, torch.Tensor] | None = None

    def arguments(self) -> list[str]:
        settings = json.loads((self.folder / "settings.json").read_text())
        return [*settings, "--out", str(self.out), "--save-every", "1", "--keep", "2", "--steps", str(self.steps)]

    def before_run(self) -> None:
        if self.out.exists() and [path.name for path in list_checkpoints(self.out)][-1:] == [f"step-{self.steps:06d}"]:
            shutil.rmtree(self.out)
            shutil.rmtree(self.folder / "features", ignore_errors=True)

    def check(self) -> None:
        for found in list_checkpoints(self.out) if self.out.exists() else ():
            assert json.loads((found / "trainer.json").read_text())["step"] == int(found.name[5:])
            assert load_file(found / "optimizer.safetensors")
            Checkpoint(found).load(vision=False)
        metrics, plot = self.out / "metrics.jsonl", self.out / "loss.png"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        assert all(json.loads(line) for line in lines[:-1])  # the last line may be incomplete
        assert not plot.exists() or b"IEND" in plot.read_bytes()[-12:]

    def check_finished(self) -> None:
        super().check_finished()
        assert not hidden(self.out), hidden(self.out)
        weights = load_file(list_checkpoints(self.out)[-1] / "model.safetensors")
        self.weights = self.weights or weights
        assert all(torch.equal(weights[name], tensor) for name, tensor in self.weights.items())


class Bench(Command):
    """Overwrites the files of a report."""

    files = {"json": "r.json", "markdown": "r.md", "plot": "r.png"}  # noqa: RUF012 - constant
    result: Any = None

    def arguments(self) -> list[str]:
        outputs = [word for flag, name in self.files.items() for word in (f"--{flag}", str(self.out / name))]
        return ["--model", str(self.folder / "tiny"), "--repeat", "1", "--new-tokens", "1", "--threads", "1", *outputs]

    def before_run(self) -> None:
        self.out.mkdir(exist_ok=True)
        for name in self.files.values():
            (self.out / name).write_text("old")

    def check(self) -> None:
        texts = {flag: (self.out / name).read_bytes() for flag, name in self.files.items()}
        assert texts["json"] == b"old" or "stages" in json.loads(texts["json"])
        assert texts["markdown"] == b"old" or texts["markdown"].endswith(b"\n")
        assert texts["plot"] == b"old" or b"IEND" in texts["plot"][-12:]

    def check_finished(self) -> None:
        self.check()
        assert all((self.out / name).read_bytes() != b"old" for name in self.files.values())
        self.result = self.result or json.loads((self.out / "r.json").read_text())


COMMANDS: dict[str, tuple[type[Command], Callable[[list[str]], int]]] = {
    "export": (Export, export.main),
    "convert": (Convert, convert.main),
    "train": (Train, stage1.main),
    "bench": (Bench, bench.main),
}


def make_command(name: str, folder: Path, seed: int) -> Command:
    """Write the command's inputs."""
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


def run_undisturbed(command: Command) -> float:
    """Run the command to its end; return its duration in seconds."""
    command.before_run()
    run = start(command, command.folder)
    code = run.wait()
    assert code == 0, run.log.read_text()[-3000:]
    command.check_finished()
    return time.monotonic() - run.started


def kill(command: Command, count: int, rng: random.Random) -> str:
    """Kill `count` runs; return a summary."""
    duration = run_undisturbed(command)
    if isinstance(command, Bench):  # measure once; the rest is about files
        result = command.result
        bench.collect.collect = lambda plan: result
        duration = run_undisturbed(command)
    killed = 0
    for number in range(count):
        command.runs += 1
        command.before_run()
        run = start(command, command.folder)
        if number % 2 == 0:
            time.sleep(rng.uniform(0, duration))
        else:
            for _ in range(rng.choice([1, 1, 2, 3, 5])):
                if not run.wait_for_commit(60):
                    break
            time.sleep(rng.uniform(0, COMMIT_SECONDS) if rng.random() < 0.7 else 0)
        run.kill()
        code = run.wait()
        assert code in (0, -signal.SIGKILL), (code, run.log.read_text()[-2000:])
        killed += code != 0
        command.check()
    command.runs += 1
    run_undisturbed(command)
    return f"{killed} killed, {count - killed} had finished, {duration:.1f} s a run"


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """Mount a disk of `size` bytes at `place`. Yields False if that is not possible."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def limited_disk(place: Path, limit: int) -> Iterator[bool]:
    """Copy `place` to a disk with `limit` bytes left. Yields False if none can be mounted."""
    copy = place.with_name("copy")
    shutil.copytree(place, copy)
    used = sum(path.stat().st_size + 8192 for path in copy.rglob("*"))
    with small_disk(place, used + limit) as mounted:
        if mounted:
            shutil.copytree(copy, place, dirs_exist_ok=True)
        shutil.rmtree(copy)
        yield mounted


def full(command: Command, count: int, rng: random.Random) -> str:
    """Run `count` times with too little space; return a summary."""
    run_undisturbed(command)
    place = command.out.parent
    sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
    failed = 0
    for number in range(count):
        command.runs += 1
        command.before_run()
        if isinstance(command, Train):
            shutil.rmtree(command.out, ignore_errors=True)
        limit = rng.randrange(100, max(sizes) if number % 2 == 0 else sum(sizes))
        with contextlib.ExitStack() as stack:
            limit_files: Callable[[], object] = lambda: None  # noqa: E731
            mounted = number % 2 == 1 and stack.enter_context(limited_disk(place, limit))
            if not mounted:
                limit = min(limit, max(sizes) - 1)
                limit_files = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731, B023
            run = start(command, command.folder.parent, limit_files)
            code = run.wait()
            log = run.log.read_text().replace("\r", "\n")
            errors = [line for line in log.splitlines() if ": error: " in line]
            context = (limit, mounted, code, log[-3000:])
            assert code in (0, 2), context
            assert code == 0 or (len(errors) == 1 and "Traceback" not in log), context
            assert code == 0 or any(word in errors[0] for word in ("space", "too large")), errors
            command.check()
            assert not hidden(place), hidden(place)
            failed += code == 2
    return f"{failed} of {count} met a full disk"


def main(mode: str, name: str, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="blip2rt-interruption-") as folder, cached_traces(Path(folder)):
        command = make_command(name, Path(folder) / "work", seed)
        if name == "export":  # trace here, so that forks find the graphs in the cache
            command.before_run()
            assert command.main(command.arguments()) == 0
        summary = {"kill": kill, "full": full}[mode](command, count, random.Random(seed))
        print(f"{name}, seed {seed}: {summary}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
