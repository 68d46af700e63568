"""SIGTERM ends `blip2rt-bench` with its child processes and leaves no file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blip2rt.bundle import read

pytestmark = pytest.mark.long(22, "processes ended by signals leave nothing behind")

ROOT = Path(__file__).parents[2]


def _assert_ended(process: subprocess.Popen[str], temporary: Path) -> None:
    """SIGTERM ends it and its child, which shares its stdin; no file remains."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(900) == 128 + signal.SIGTERM
    assert not [*temporary.glob("blip2rt-*"), *temporary.glob("tmp*")]
    with pytest.raises(BrokenPipeError):
        os.write(process.stdin.fileno(), b"unread")


def _start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "blip2rt.bench", "--threads", "1", *arguments]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, cwd=ROOT, env=environment)


def _children(parent: int) -> list[bytes]:
    """The command lines of a process' children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == parent:
                found.append((stat.parent / "cmdline").read_bytes())
    return found


def test_sigterm_ends_the_worker_and_removes_files(tmp_path):
    with _start(tmp_path, "--new-tokens", "2", "--repeat", "10000") as process:
        while process.stderr.readline() != "measuring the stages\n":
            assert process.poll() is None
        while Path("/proc").is_dir() and not any(b"worker\0stages" in each for each in _children(process.pid)):
            assert process.poll() is None
        _assert_ended(process, tmp_path / "tmp")


def test_sigterm_ends_the_exporter_and_removes_partial_files(tmp_path):
    pytest.importorskip("onnxscript")
    (tmp_path / "cache").mkdir()
    with _start(tmp_path, "--geometry", "tiny", "--cache", str(tmp_path / "cache")) as process:
        while not list((tmp_path / "cache").glob("*.partial")):
            assert process.poll() is None
            time.sleep(0.01)
        _assert_ended(process, tmp_path / "tmp")
    assert not list((tmp_path / "cache").glob("*.partial"))
    for path in (tmp_path / "cache").iterdir():  # finished before the signal
        read(path)
