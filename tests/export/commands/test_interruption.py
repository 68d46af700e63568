"""blip2rt-export and blip2rt-convert, killed at any moment, leave the old or the new output intact.

Runs fork from a server that has imported the commands. tests/train/test_training.py kills trainings.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from blip2rt import bundle
from blip2rt.bundle import atomic
from blip2rt_export import cli, convert
from tests.export.commands_in_process import FLOAT
from tests.seeds import new_seed
from tests.tiny.trace_cache import cached_traces

pytestmark = [
    pytest.mark.long(20, "processes killed at random moments"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits files"),
]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])
COMMIT_SECONDS = 0.03  # roughly how long it takes to put output files in place


def work(main: Callable[[list[str]], int], words: list[str], folder: Path, commits: Connection) -> None:
    """Run a command. `commits` hears when it puts output in place."""
    with open(folder / "log.txt", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    finish = atomic.AtomicFolder.finish
    atomic.AtomicFolder.finish = lambda self: (commits.send_bytes(b"w"), finish(self))[1]  # type: ignore
    with cached_traces(folder):
        sys.exit(main(words))


@dataclass
class Command:
    """A command that turns the output `old` into `new`, as `read` reads them. None: there is no output."""

    folder: Path
    main: Callable[[list[str]], int]
    words: list[str]
    read: Callable[[Path], object]
    old: object = None
    new: object = None

    @property
    def out(self) -> Path:
        return self.folder / "place" / "out"

    def start(self) -> tuple[Any, Connection]:
        """Restore the old output and start a run. Return its process and its messages."""
        shutil.rmtree(self.out, ignore_errors=True)
        if self.old is not None:
            shutil.copytree(self.folder / "old", self.out)
        reader, writer = SERVER.Pipe(duplex=False)
        words = [*self.words, "--out", str(self.out)]
        process = SERVER.Process(target=work, args=(self.main, words, self.folder, writer))
        process.start()
        writer.close()
        return process, reader

    def finish(self) -> float:
        """Run to the end; set `new`, which every run must produce. Return the duration in seconds."""
        started = time.monotonic()
        process, _ = self.start()
        process.join()
        assert process.exitcode == 0, (self.folder / "log.txt").read_text()[-3000:]
        found = self.read(self.out)
        assert found == (self.new or found) and os.listdir(self.out.parent) == ["out"]
        self.new = found
        return time.monotonic() - started

    def check(self) -> None:
        assert (self.read(self.out) if self.out.exists() else None) in (self.old, self.new)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != atomic.MARKER}


def bundle_name(folder: Path) -> str:
    return bundle.verify(folder).manifest.name


@pytest.fixture(params=["convert", pytest.param("export", marks=pytest.mark.slow)])
def command(request: pytest.FixtureRequest, llama_checkpoint: Path, tmp_path: Path) -> Command:
    (tmp_path / "place").mkdir()
    if request.param == "convert":
        return Command(tmp_path, convert.main, [str(llama_checkpoint), "--to", "hf"], contents)
    words = ["--checkpoint", str(llama_checkpoint), "--precision", FLOAT, "--overwrite", "--name"]
    old = Command(tmp_path, cli.main, [*words, "old"], bundle_name)
    old.finish()
    shutil.copytree(old.out, tmp_path / "old")
    return Command(tmp_path, cli.main, [*words, "new"], bundle_name, old="old")


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_keep_output_intact(command: Command, kills: int) -> None:
    """At a random moment, or (every second run) while output is put in place."""
    rng, duration = random.Random(new_seed()), command.finish()
    for number in range(kills):
        process, commits = command.start()
        if number % 2 == 0:
            time.sleep(rng.uniform(0, duration))
        else:
            commits.poll(60)
            time.sleep(rng.uniform(0, COMMIT_SECONDS))
        process.kill()
        process.join()
        assert process.exitcode in (0, -9), (command.folder / "log.txt").read_text()[-2000:]
        command.check()
    command.finish()
