"""Folders and files are written completely or not at all, with killed and concurrent writers on any file system."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blip2rt.bundle import atomic
from blip2rt.bundle.atomic import MARKER, AtomicFolder
from blip2rt.bundle.writer import BundleWriter
from blip2rt.errors import BundleError
from tests.seeds import new_seed

# Writes successive versions of a folder of three files, each with the version's number.
WRITER = """
import sys
from blip2rt.bundle import atomic
if sys.argv[2] == "aside":
    atomic._exchange = lambda one, other: False
for version in range(1_000_000):
    with atomic.AtomicFolder(sys.argv[1]) as writer:
        for name in "abc":
            (writer.folder / name).write_text(f"{version}\\n" * 2000)
        writer.finish()
    print(version, flush=True)
"""


def write(path: Path, text: str) -> None:
    with AtomicFolder(path) as writer:
        for name in "abc":
            (writer.folder / name).write_text(text)
        writer.finish()


def start_writer(path: Path, way: str) -> subprocess.Popen[str]:
    """Start WRITER and wait for its first version."""
    words = [sys.executable, "-c", WRITER, str(path), way]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "0\n"
    return child


def content(path: Path) -> str:
    """The content of all files of a folder, which must be equal."""
    texts = {(path / name).read_text() for name in "abc"}
    assert len(texts) == 1
    (text,) = texts
    lines = text.split()
    assert len(set(lines)) == 1 and len(lines) in (1, 2000)
    return lines[0]


@pytest.mark.parametrize("way", ["exchange", "aside"])
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_writer_leaves_old_or_new_folder(tmp_path: Path, way: str) -> None:
    rng = random.Random(new_seed())
    path = tmp_path / "b"
    for _ in range(8):
        child = start_writer(path, way)
        time.sleep(rng.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if way == "exchange":
            content(path)  # before any cleaning
        else:
            with AtomicFolder(path):  # restores a folder that was moved aside
                pass
            content(path)
    write(path, "last")
    assert content(path) == "last" and sorted(os.listdir(path)) == ["a", "b", "c"]
    assert os.listdir(tmp_path) == ["b"]


def test_readers_see_complete_folders(tmp_path: Path) -> None:
    path = tmp_path / "b"
    child = start_writer(path, "exchange")
    try:
        for _ in range(200):
            folder = os.open(path, os.O_RDONLY)  # an open folder keeps its version
            try:
                names = set(os.listdir(folder)) - {MARKER}
                deleted = not os.path.samestat(os.fstat(folder), os.stat(path))
            finally:
                os.close(folder)
            assert names == {"a", "b", "c"} or deleted
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("left", [[], [MARKER], [MARKER, "a"]])
def test_leftovers_of_killed_writers_are_removed(tmp_path: Path, left: list[str]) -> None:
    (tmp_path / ".b.00ff.partial").mkdir()
    for name in left:
        (tmp_path / ".b.00ff.partial" / name).touch()
    write(tmp_path / "b", "1")
    assert os.listdir(tmp_path) == ["b"]


def test_concurrent_writers_are_independent(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with AtomicFolder(path) as first, AtomicFolder(path) as second:
        for writer, text in ((first, "1"), (second, "2")):
            for name in "abc":
                (writer.folder / name).write_text(text)
        second.finish()
        assert content(path) == "2"
        first.finish()
    assert content(path) == "1" and os.listdir(tmp_path) == ["b"]


def test_user_folders_are_kept(tmp_path: Path) -> None:
    for name in (".b.mine.partial", ".b.mine.aside", ".b.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("x")
    write(tmp_path / "b", "1")
    write(tmp_path / "b", "2")
    assert sorted(os.listdir(tmp_path)) == [".b.mine.aside", ".b.mine.partial", ".b.old", "b"]


def test_folder_moved_aside_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "b"
    write(path, "1")
    (path / MARKER).touch()
    path.rename(tmp_path / ".b.00ff.aside")
    with pytest.raises(KeyError), AtomicFolder(path):
        assert content(path) == "1"
        raise KeyError
    assert content(path) == "1" and os.listdir(tmp_path) == ["b"]


def test_links_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "real", "1")
    (tmp_path / "b").symlink_to(tmp_path / "real")
    write(tmp_path / "b", "2")
    assert content(tmp_path / "real") == "2" and (tmp_path / "b").is_symlink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_full_disk_and_file_size_limit_are_one_line(tmp_path: Path, number: int) -> None:
    with pytest.raises(BundleError) as caught, BundleWriter(tmp_path / "b"):
        raise OSError(number, "")
    assert str(caught.value) == f"no space left on the disk of {tmp_path}: free some and run again"
    assert os.listdir(tmp_path) == []


def test_write_file_replaces_atomically_and_keeps_the_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    (tmp_path / "link").symlink_to("report")
    for text in (b"1", b"2"):
        atomic.write_file(tmp_path / "link", text)
        assert (tmp_path / "report").read_bytes() == text and (tmp_path / "link").is_symlink()
    assert (tmp_path / "report").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["link", "plain", "report"]


def test_pipes_are_written_directly(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic.write_file(tmp_path / "pipe", b"text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]


def test_temporary_file_of_a_killed_run_is_reused(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_bytes(b"half of more than a file")
    (tmp_path / ".b.part").touch()
    atomic.write_file(tmp_path / "a", b"1")
    assert sorted(os.listdir(tmp_path)) == [".b.part", "a"] and (tmp_path / "a").read_bytes() == b"1"
    long = "图" * 85  # 255 bytes, the maximum
    atomic.write_file(tmp_path / long, b"1")
    assert sorted(os.listdir(tmp_path)) == [".b.part", "a", long]


def test_concurrent_file_writers_leave_one_text(tmp_path: Path) -> None:
    texts = [str(i).encode() * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: [atomic.write_file(tmp_path / "a", text) for _ in range(5)], texts))
    assert (tmp_path / "a").read_bytes() in texts and os.listdir(tmp_path) == ["a"]
