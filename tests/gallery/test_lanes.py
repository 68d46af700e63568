"""Lanes take several batches through the graphs at a time; nobody can tell from the results."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import blip2rt
from blip2rt.backends import ort
from blip2rt.gallery import captions, flags, indexing, lanes
from blip2rt.gallery.ahead import Pace
from blip2rt.gallery.lanes import in_order
from blip2rt.gallery.pictures import Sources
from blip2rt.gallery.walk import more_than
from tests.seeds import new_seed
from tests.tiny.image_folders import fill, tree

pytest.importorskip("blip2rt._native")
pytestmark = pytest.mark.long(6)
TIMEOUT = 60  # seconds after which a lane has hung


def lanes_left() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "blip2rt-lane"]


def all_lanes_end() -> bool:
    end = time.monotonic() + TIMEOUT
    while lanes_left() and time.monotonic() < end:
        time.sleep(0.01)
    return not lanes_left()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_lanes_work_at_once_and_results_come_in_order(count):
    """As many are at work as there are lanes; the first is the slowest; one more than lanes is taken, no more."""
    together, taken, done = threading.Barrier(count), [], []

    def items() -> Iterator[int]:
        for i in range(4 * count):
            taken.append(i)
            assert len(taken) <= len(done) + count + 1, "more is taken than the lanes and what waits for one"
            yield i

    def work(item: int) -> int:
        together.wait(TIMEOUT)
        time.sleep(0.02 if item % count == 0 else 0)
        return -item

    for item, made in in_order(items(), work, count):
        done.append((item, made))
    assert done == [(i, -i) for i in range(4 * count)] and all_lanes_end()


def test_one_lane_is_the_callers_thread():
    """So Ctrl-C ends its work, and nothing is taken before its turn."""
    threads, taken = set(), []
    for item, _ in in_order(iter(range(5)), lambda _: threads.add(threading.get_ident()), 1):
        taken.append(item)
    assert threads == {threading.get_ident()} and taken == list(range(5))


@pytest.mark.parametrize("count", [1, 2])
def test_a_failure_comes_in_its_place(count):
    def work(item: int) -> int:
        if item >= 3:
            raise ValueError(item)
        return item

    done = []
    with pytest.raises(ValueError, match="3"):
        for _, made in in_order(range(9), work, count):
            done.append(made)
    assert done == [0, 1, 2] and all_lanes_end()


def test_who_stops_does_not_wait_for_the_lanes():
    """As Ctrl-C and --strict do: what waits is dropped, and what is at work ends by itself."""
    held, begun = threading.Event(), []

    def work(item: int) -> int:
        begun.append(item)
        assert item == 0 or held.wait(TIMEOUT)
        return item

    results = in_order(range(9), work, 2)
    assert next(results) == (0, 0)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < TIMEOUT / 2
    held.set()
    assert all_lanes_end() and set(begun) <= {0, 1, 2}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """The lanes that commands work in, and the threads that they load a model with."""
    seen: list[tuple[int, int | None]] = []
    loaded: list[int | None] = []
    load = blip2rt.load

    def loading(*given, **options):
        loaded.append(options["threads"])
        return load(*given, **options)

    def spied(items, work, count):
        seen.append((count, loaded[-1]))
        return in_order(items, work, count)

    monkeypatch.setattr("blip2rt.model.load", loading)
    monkeypatch.setattr(captions, "in_order", spied)
    monkeypatch.setattr(indexing, "in_order", spied)
    seen.append((0, None))
    return seen


@pytest.mark.parametrize("output", [["--out", "o.jsonl"], ["--out", "o.csv"], ["--write", "txt"], []])
def test_files_are_the_same_by_one_lane_and_by_two(tiny, tmp_path, run, used, monkeypatch, output):
    """Faults, what is done already and draws, too."""
    seed, made = new_seed(), {}
    for threads, expected in ((1, (1, 1)), (2, (2, 1)), (5, (2, 2))):
        place = tmp_path / str(threads)
        fill(place / "album", seed, 20)
        monkeypatch.chdir(place)
        (place / "album" / "n003.txt").write_text("mine\n")
        command = ["caption", "-r", "album", "--model", tiny.path, "--batch-size", 3, "--errors", "e.tsv", "--sample"]
        told = run(*command, "--beams", 1, "--seed", seed % 1000, *output, "--threads", threads)
        assert told[0] == 1 and "2 failed" in told[2] and used[-1] == expected
        made[threads] = told[1:], tree(place)
    assert made[1] == made[2] == made[5]


def test_an_index_is_the_same_by_one_lane_and_by_two(tiny, tmp_path, run, used, monkeypatch):
    seed, made = new_seed(), {}
    for threads in (1, 2):
        place = tmp_path / str(threads)
        fill(place / "album", seed, 20)
        monkeypatch.chdir(place)
        for _ in range(2):
            told = run("index", "album", "--out", "x", "--model", tiny.path, "--batch-size", 4, "--threads", threads)
            assert told[0] == 1 and used[-1] == (threads, 1)
        found = run("search", "x", "a dog", "--model", tiny.path)[1]
        made[threads] = told, found, Path("x/vectors.i8").read_bytes()
    assert made[1] == made[2]


def test_lanes_are_for_many_pictures_on_two_cores(tiny, album, run, used, monkeypatch):
    """What is less than two batches has all threads; one core, or one thread that was asked for, is one lane."""
    for more, expected in (
        (["album/a.png", "--threads", 2], (1, 2)), (["album", "--threads", 2, "--batch-size", 6], (1, 2)),
        (["album", "--threads", 2, "--batch-size", 4], (2, 1)), (["album", "--threads", 3, "--batch-size", 5], (2, 1)),
        (["album", "--threads", 1, "--batch-size", 4], (1, 1)),
    ):  # fmt: skip
        run("caption", *more, "--model", tiny.path)
        assert used[-1] == expected, more
    monkeypatch.setattr(lanes, "cores", lambda: 8)
    for environment, expected in (("", (2, 4)), ("6", (2, 3)), ("1", (1, None))):
        monkeypatch.setenv("BLIP2RT_NUM_THREADS", environment)
        run("caption", "album", "--batch-size", 4, "--model", tiny.path)
        assert used[-1] == expected and ort.num_threads() == int(environment or 0)
    monkeypatch.delenv("BLIP2RT_NUM_THREADS")
    monkeypatch.setattr(lanes, "cores", lambda: 1)
    run("caption", "album", "--batch-size", 4, "--model", tiny.path)
    assert used[-1] == (1, None)
    assert "--threads is 0" in run("caption", "album", "--batch-size", 4, "--threads", 0, "--model", tiny.path)[2]
    monkeypatch.setattr(lanes, "cores", lambda: 8)
    for backend, expected in (("ort", Pace(4, 3, 2, 4)), ("trt", Pace(4, 3, 1, None))):
        asked = argparse.Namespace(backend=backend, threads=None, batch_size=4, workers=3)
        assert flags.pace_of(asked, Sources(("album",)), 16) == expected


@pytest.mark.skipif(os.name == "nt", reason="names of pipes")
def test_a_list_from_a_pipe_is_read_once(tiny, album, run, used):
    """Pictures are counted ahead where that takes nothing away."""
    assert more_than(10, Sources(("album",))) and not more_than(11, Sources(("album",)))
    reader, writer = os.pipe()
    os.write(writer, b"album/a.png\nalbum/b.jpg\nalbum/c.webp\n")
    os.close(writer)
    command = ["caption", "--from-file", f"/dev/fd/{reader}", "--threads", 2, "--batch-size", 1, "--model", tiny.path]
    code, out, err = run(*command)
    assert (code, err, out.count("\n")) == (0, "", 3) and used[-1] == (2, 1)
    os.close(reader)


def test_cores_are_those_of_this_process():
    assert 1 <= lanes.cores() <= (os.cpu_count() or 1)
