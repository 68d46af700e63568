"""Rows of an index: free ones, concurrent writers, memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import blip2rt
from blip2rt.errors import GalleryError
from blip2rt.gallery import Index, index, index_update
from blip2rt.gallery.catalog import File
from blip2rt.gallery.near_duplicates import find_near_duplicates
from blip2rt.gallery.sources import Failure, Picture, Sources
from blip2rt.gallery.walk import walk
from tests.seeds import new_seed
from tests.tiny.image_folders import GOOD

pytest.importorskip("blip2rt._native")


@pytest.fixture
def model(tiny):
    return blip2rt.load(tiny.path)


def tear(opened: Index, place: int) -> None:
    """Overwrite half of the record of a row."""
    with open(opened.path / "vectors.i8", "r+b") as file:
        size = opened.vectors._type.itemsize
        file.seek(place * size)
        file.write(np.random.default_rng(new_seed()).bytes(size // 2))


@pytest.mark.parametrize("exact", [4, 4096])
def test_free_rows_are_never_read(model, album, monkeypatch, exact):
    if exact == 4:
        pytest.importorskip("usearch")
    monkeypatch.setattr(index, "MAX_EXACT", exact)
    with Index.create("x", album, model) as made:
        made.add()
        places = [made.catalog.by_path(name).row for name in ("a.png", "naïve 图.png")]
        for name in ("a.png", "naïve 图.png"):
            (album / name).unlink()
        made.add()
        wanted = made.search("a dog", 20)
        groups = find_near_duplicates(made, 0.5)
        for place in places:
            tear(made, place)
        assert {hit.name for hit in wanted} == {*GOOD, "sub/inner.png"} - {"a.png", "naïve 图.png"}
        assert made.search("a dog", 20) == made.search("a dog", 20, exact=True) == wanted
        made.refresh()
        assert find_near_duplicates(made, 0.5) == groups and made.add().failed == 2


def test_row_freed_by_a_concurrent_writer_is_left_out(model, album):
    """The reader caches the free rows; then a writer frees a row and starts to reuse it."""
    Index.create("x", album, model).add()
    with Index.open("x", model) as reader:
        assert len(reader._free_rows) == 0
        place = reader.catalog.by_path("a.png").row
        with Index.open("x", model, write=True) as writer:
            writer.catalog.remove([place])
        tear(reader, place)
        hits = reader.search("a dog", 20)
        assert {hit.name for hit in hits} == {*GOOD, "sub/inner.png"} - {"a.png"}
        tear(reader, place + 1)  # a picture's own
        with pytest.raises(GalleryError, match="wrong checksums: 1"):
            reader.search("a dog", 20)


def test_neighbours_need_less_than_quadratic_memory(model, album, monkeypatch):
    rng, count, size = np.random.default_rng(new_seed()), 6000, 16
    Index.create("x", album, model).close()
    about = json.loads(Path("x/index.json").read_text())
    Path("x/index.json").write_text(json.dumps({**about, "queries": 2, "size": size}))
    embeds = rng.normal(size=(count, 2, size)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    with Index.open("x", model, write=True) as made:
        made.vectors.write(range(count), embeds)
        made.catalog.put(File(row, f"{row}.png", 1, 1, str(row).encode()) for row in range(count))
        made.catalog.remove(range(0, count, 7))
        places = np.setdiff1d(np.arange(count), np.arange(0, count, 7))
        asked = index.one_vector(made.vectors.read(places[:512]))
        tracemalloc.start()
        found = made.neighbours(asked, 20)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        means = index.one_vector(made.vectors.read(places))
        nearest = [set(places[np.argsort(-(means @ vector))[:20]].tolist()) for vector in asked]
        assert np.mean([len(set(f.tolist()) & n) for f, n in zip(found, nearest, strict=True)]) > 19.9
        assert peak < 8 << 20  # all scores at once are 10 MiB, their order 20
        reads = []
        monkeypatch.setattr(made.vectors, "read", lambda places: reads.append(len(places)))
        made.neighbours(asked, 20)
        assert not reads


def test_empty_folder_keeps_its_index(tiny, model, album, run):
    run("index", "album", "--out", "x", "--model", tiny.path)
    album.rename("elsewhere")
    album.mkdir()
    code, out, err = run("index", "album", "--out", "x", "--model", tiny.path)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert "album has no pictures, but its index x has: mount the folder, or remove x" in err
    album.rmdir()
    with Index.open("x", model, write=True) as opened, pytest.raises(GalleryError, match="has no pictures"):
        opened.add()
    Path("elsewhere").rename("album")
    assert "10 already done" in run("index", "album", "--out", "x", "--model", tiny.path)[2]
    Path("none").mkdir()
    assert run("index", "none", "--out", "y", "--model", tiny.path)[0] == 0


def test_picture_removed_during_update_is_a_failure(model, album, monkeypatch):
    def going(sources: Sources) -> Iterator[Picture | Failure]:
        walked = list(walk(sources))
        (album / "a.png").unlink()
        yield from walked

    with Index.create("x", album, model) as made:
        monkeypatch.setattr(index_update, "walk", going)
        counts = made.add()
    assert (counts.processed, counts.failed) == (9, 3)
