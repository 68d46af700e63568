"""Failures, interruptions, full disks and permissions."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gallery.helpers import POSIX, TIMEOUT, assert_error, make_unreadable, rows
from tests.seeds import new_seed
from tests.tiny.image_folders import fill, shard, start, tree

pytestmark = pytest.mark.long(6, "processes that fail in the midst of a folder")


@POSIX
@pytest.mark.parametrize("output", ["", "--write txt", "--out x.csv"])
def test_exit_status_2_and_no_output_if_everything_fails(album, run, output, monkeypatch):
    flags = output.split()
    (album / "no folder").mkdir()
    make_unreadable(monkeypatch, "no folder")
    before = tree(Path())
    for bad in (["nothere.jpg"], ["*.xyz"], ["--from-file", "nolist.txt"], ["album/no folder"], ["album/bad.jpg"]):
        code, out, err = run("caption", *bad, *flags)
        assert code == 2 and out == "" and "Traceback" not in err, (bad, err)
        assert tree(Path()) == before, bad
    assert run("caption", "album/bad.jpg", "album/a.png", *flags)[0] == 1
    assert run("index", "album/no folder", "--out", "x")[0] == 2


def test_failures_are_listed_and_strict_stops(album, run):
    code, _, err = run("caption", "album", "--out", "o.jsonl", "--errors", "e.tsv")
    listed = dict(line.split("\t") for line in Path("e.tsv").read_text().splitlines())
    assert code == 1 and list(listed) == ["album/bad.jpg", "album/cut.png"]
    assert err == "blip2rt: 9 captioned, 2 failed (listed in e.tsv)\n"
    run("caption", "album", "--out", "o.jsonl", "--errors", "e.jsonl")
    assert [json.loads(line)["image"] for line in Path("e.jsonl").read_text().splitlines()] == list(listed)
    assert_error(run("caption", "album", "--out", "s.jsonl", "--strict"), "bad.jpg", "--strict")
    shard(Path("s.tar"), new_seed(), 6)
    assert_error(run("caption", "s.tar", "--out", "c.jsonl", "--strict"), "s.tar/0002.png", "--strict")
    assert "album/bad.jpg" in run("index", "album", "--out", "x", "--strict")[2]
    assert [row["image"] for row in rows(Path("s.jsonl"))] == ["album/a.png", "album/b.jpg"]


@POSIX
@pytest.mark.parametrize("output", ["-r album --write txt", "-r album s.tar --out o.jsonl"])
def test_killed_run_resumes_to_identical_bytes(tiny, tmp_path, output):
    rng, seed = random.Random(new_seed()), new_seed()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, killed):
        fill(place / "album", seed, 60)
        shard(place / "s.tar", seed, 60)
    command = ["caption", "--model", tiny.path, "--batch-size", 4, "--errors", "e.tsv", "--threads", 2]  # two lanes
    command += output.split()
    process = start(*command, cwd=whole)
    assert process.communicate(timeout=TIMEOUT)[1].endswith("failed (listed in e.tsv)\n")
    for _ in range(6):
        process = start(*command, cwd=killed)
        time.sleep(rng.uniform(0.3, 0.9))
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        process.communicate(timeout=TIMEOUT)
        if process.returncode == 1:
            break
    assert start(*command, cwd=killed).wait(TIMEOUT) == 1
    assert tree(killed) == tree(whole)


def drop_root_file_access() -> None:
    """Make a process started by root obey file modes: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    import ctypes

    for capability in (1, 2) if os.geteuid() == 0 else ():
        if ctypes.CDLL(None, use_errno=True).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            raise OSError(ctypes.get_errno(), "PR_CAPBSET_DROP")


@pytest.mark.skipif(sys.platform != "linux", reason="file modes and root's capabilities")
def test_read_only_and_unreadable_folders(tiny, album):
    for name in ("read only", "closed", "open"):
        (album / name).mkdir()
        shutil.copy(album / "a.png", album / name)
    closed = Path("album/closed/a.png")
    shutil.copy("album/a.png", "album/locked.png")
    (album / "read only").chmod(0o555), (album / "closed").chmod(0), (album / "locked.png").chmod(0)
    try:
        try:
            read = subprocess.run(["cat", closed], preexec_fn=drop_root_file_access, capture_output=True)
        except subprocess.SubprocessError:
            pytest.skip("capabilities cannot be dropped")
        if read.returncode == 0:
            pytest.skip("this root user cannot drop its access")
        command = ["caption", "-r", "album", "--model", tiny.path, "--errors", "e.jsonl"]
        for output, failed in ((["--write", "txt"], {"album/read only/a.png"}), (["--out", "o.jsonl"], set())):
            process = start(*command, *output, preexec_fn=drop_root_file_access)
            _, err = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 1 and "Traceback" not in err, err
            listed = {row["image"]: row["error"] for row in map(json.loads, Path("e.jsonl").read_text().splitlines())}
            assert set(listed) == {"album/bad.jpg", "album/cut.png", "album/locked.png", "album/closed"} | failed
            assert "Permission denied" in listed["album/closed"] and "Permission denied" in listed["album/locked.png"]
        assert (album / "open" / "a.txt").exists() and [*(album / "read only").iterdir()] == [album / "read only/a.png"]
        assert {"album/read only/a.png", "album/open/a.png"} <= {row["image"] for row in rows(Path("o.jsonl"))}
        process = start("caption", "album/closed", "--model", tiny.path, preexec_fn=drop_root_file_access)
        assert "cannot read the folder 'album/closed'" in process.communicate(timeout=TIMEOUT)[1]
        assert process.returncode == 2
    finally:
        (album / "read only").chmod(0o755), (album / "closed").chmod(0o755)


FULL_DISKS = [
    (["--write", "txt", "--template", "x" * 3000 + "{caption}"], "album/a.txt"),
    (["--xmp", "--template", "x" * 3000 + "{caption}"], "album/a.xmp"),
    (["--out", "o.jsonl"], "o.jsonl"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE and /dev/full")
@pytest.mark.parametrize(("flags", "name"), FULL_DISKS)
def test_full_disk_is_one_line_and_the_run_resumes(tiny, album, run, flags, name):
    import resource

    before = tree(Path())
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))  # noqa: E731
    command = ["caption", "album", "--model", tiny.path, "--batch-size", 2, *flags]
    process = start(*command, preexec_fn=limit)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2 and err.splitlines()[-1] == f"blip2rt: error: {name}: File too large"
    after = tree(Path())
    assert all(after[name] == before[name] for name in before)
    assert all(line.endswith("}") for line in after.get("o.jsonl", b"").decode().splitlines())
    assert "9 captioned" in run(*command)[2] or "already done" in run(*command)[2]
    assert not [name for name in tree(Path()) if ".part" in name]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
@pytest.mark.parametrize("most", [100, 10_000])
def test_full_disk_names_the_file_of_an_index(tiny, album, most):
    import resource

    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
    process = start("index", "album", "--out", "photos.index", "--model", tiny.path, preexec_fn=limit)
    _, err = process.communicate(timeout=TIMEOUT)
    said = r"blip2rt: error: photos.index/\w+\.\w+: .*(File too large|check the disk and its free space, and run again)"
    assert process.returncode == 2 and re.fullmatch(said, err.splitlines()[-1]), err


def test_deleted_working_directory_is_named(run, album, monkeypatch):
    (album.parent / "gone").mkdir()
    monkeypatch.chdir(album.parent / "gone")
    os.rmdir(album.parent / "gone")
    found = run("caption", "a.png", "--write", "txt")
    monkeypatch.chdir(album)
    assert_error(found, "the working directory no longer exists: change to another one")
