"""Several batches run at once with identical results."""

import argparse
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import blip2rt
from blip2rt import system
from blip2rt.backends import ort
from blip2rt.gallery import captions, flags, index_update
from blip2rt.gallery.prefetch import Parallelism, map_ordered
from blip2rt.gallery.sources import Sources
from blip2rt.gallery.walk import has_more_than
from tests.seeds import new_seed
from tests.tiny.image_folders import fill, tree

pytestmark = pytest.mark.long(6, "processes of a pool that die")
TIMEOUT = 60  # seconds


def workers_end() -> bool:
    end = time.monotonic() + TIMEOUT
    while (alive := "blip2rt-worker" in {each.name for each in threading.enumerate()}) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive


@pytest.mark.parametrize("count", [1, 2, 3])
def test_workers_run_at_once_with_results_in_order(count):
    """All workers run at once, the first is the slowest, and at most one more item is taken ahead."""
    together, taken, done = threading.Barrier(count), [], []

    def items() -> Iterator[int]:
        for i in range(4 * count):
            taken.append(i)
            assert len(taken) <= len(done) + count + 1, "took more than one item ahead"
            yield i

    def work(item: int) -> int:
        together.wait(TIMEOUT)
        time.sleep(0.02 if item % count == 0 else 0)
        return -item

    for item, made in map_ordered(items(), work, count):
        done.append((item, made))
    assert done == [(i, -i) for i in range(4 * count)] and workers_end()


def test_one_worker_is_the_callers_thread():
    """Ctrl-C interrupts it, and no item is taken ahead."""
    threads, taken = set(), []
    for item, _ in map_ordered(iter(range(5)), lambda _: threads.add(threading.get_ident()), 1):
        taken.append(item)
    assert threads == {threading.get_ident()} and taken == list(range(5))


@pytest.mark.parametrize("count", [1, 2])
def test_exception_is_raised_in_its_place(count):
    def work(item: int) -> int:
        if item >= 3:
            raise ValueError(item)
        return item

    done = []
    with pytest.raises(ValueError, match="3"):
        for _, made in map_ordered(range(9), work, count):
            done.append(made)
    assert done == [0, 1, 2] and workers_end()


def test_closing_does_not_wait_for_workers():
    """Ctrl-C and --strict drop queued items; running ones finish on their own."""
    held, begun = threading.Event(), []

    def work(item: int) -> int:
        begun.append(item)
        assert item == 0 or held.wait(TIMEOUT)
        return item

    results = map_ordered(range(9), work, 2)
    assert next(results) == (0, 0)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < TIMEOUT / 2
    held.set()
    assert workers_end() and set(begun) <= {0, 1, 2}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """The number of workers of each command, and the threads of its model."""
    seen: list[tuple[int, int | None]] = []
    loaded: list[int | None] = []
    load = blip2rt.load

    def loading(*given, **options):
        loaded.append(options["threads"])
        return load(*given, **options)

    def spied(items, work, count):
        seen.append((count, loaded[-1]))
        return map_ordered(items, work, count)

    monkeypatch.setattr("blip2rt.loading.load", loading)
    monkeypatch.setattr(ort, "cores", lambda: 8)  # more threads than cores are capped
    monkeypatch.setattr(captions, "map_ordered", spied)
    monkeypatch.setattr(index_update, "map_ordered", spied)
    seen.append((0, None))
    return seen


@pytest.mark.parametrize("output", [["--out", "o.csv"], ["--write", "txt"], []])
def test_outputs_do_not_depend_on_the_number_of_workers(tmp_path, run, used, monkeypatch, output):
    """Including failures, skipped pictures and sampled texts."""
    seed, results = new_seed(), {}
    for threads, expected in ((1, (1, 1)), (2, (2, 1)), (5, (2, 2))):
        place = tmp_path / str(threads)
        fill(place / "album", seed, 20)
        monkeypatch.chdir(place)
        (place / "album" / "n003.txt").write_text("mine\n")
        command = ["caption", "-r", "album", "--batch-size", 3, "--errors", "e.tsv", "--sample"]
        result = run(*command, "--beams", 1, "--seed", seed % 1000, *output, "--threads", threads)
        assert result[0] == 1 and "2 failed" in result[2] and used[-1] == expected
        results[threads] = result[1:], tree(place)
    assert results[1] == results[2] == results[5]


def test_index_does_not_depend_on_the_number_of_workers(tmp_path, run, used, monkeypatch):
    seed, results = new_seed(), {}
    for threads in (1, 2):
        place = tmp_path / str(threads)
        fill(place / "album", seed, 20)
        monkeypatch.chdir(place)
        for _ in range(2):
            result = run("index", "album", "--out", "x", "--batch-size", 4, "--threads", threads)
            assert result[0] == 1 and used[-1] == (threads, 1)
        found = run("search", "x", "a dog")[1]
        results[threads] = result, found, Path("x/vectors.i8").read_bytes()
    assert results[1] == results[2]


def test_two_workers_need_two_threads_and_two_batches(album, run, used, monkeypatch):
    """Fewer pictures use one worker with all threads; one core or --threads 1 means one worker."""
    for more, expected in (
        (["album/a.png", "--threads", 2], (1, 2)),
        (["album", "--threads", 2, "--batch-size", 6], (1, 2)),
        (["album", "--threads", 2, "--batch-size", 4], (2, 1)),
        (["album", "--threads", 3, "--batch-size", 5], (2, 1)),
        (["album", "--threads", 1, "--batch-size", 4], (1, 1)),
    ):
        run("caption", *more)
        assert used[-1] == expected, more
    monkeypatch.setattr(system, "physical_cores", lambda: 8)
    for environment, expected in (("", (2, 4)), ("6", (2, 3)), ("1", (1, None))):
        monkeypatch.setenv("BLIP2RT_NUM_THREADS", environment)
        run("caption", "album", "--batch-size", 4)
        assert used[-1] == expected and ort.num_threads() == int(environment or 0)
    monkeypatch.delenv("BLIP2RT_NUM_THREADS")
    monkeypatch.setattr(system, "physical_cores", lambda: 1)
    run("caption", "album", "--batch-size", 4)
    assert used[-1] == (1, None)
    assert "--threads is 0" in run("caption", "album", "--batch-size", 4, "--threads", 0)[2]
    monkeypatch.setattr(system, "physical_cores", lambda: 8)
    for backend, expected in (("ort", Parallelism(4, 3, 2, 4)), ("trt", Parallelism(4, 3, 1, None))):
        given = argparse.Namespace(backend=backend, threads=None, batch_size=4, workers=3, ray=None, gpus=None)
        assert flags.parallelism_of(given, Sources(("album",)), 16) == expected


@pytest.mark.skipif(os.name == "nt", reason="names of pipes")
def test_piped_list_is_read_once(album, run, used):
    """Pictures are counted ahead only if that consumes nothing."""
    assert has_more_than(10, Sources(("album",))) and not has_more_than(11, Sources(("album",)))
    reader, writer = os.pipe()
    os.write(writer, b"album/a.png\nalbum/b.jpg\nalbum/c.webp\n")
    os.close(writer)
    command = ["caption", "--from-file", f"/dev/fd/{reader}", "--threads", 2, "--batch-size", 1]
    code, out, err = run(*command)
    assert (code, err, out.count("\n")) == (0, "", 3) and used[-1] == (2, 1)
    os.close(reader)
