"""Rows of an index: free ones, concurrent writers, memory."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from blip2rt.errors import GalleryError
from blip2rt.gallery import Index, index, index_update, one_vector
from blip2rt.gallery.catalog import Catalog, File
from blip2rt.gallery.sources import Failure, Picture, Sources
from blip2rt.gallery.vectors import Vectors
from blip2rt.gallery.walk import walk
from tests.seeds import new_seed
from tests.tiny.image_folders import GOOD, picture


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
    with Index.create("x", album, model) as opened:
        opened.add()
        places = [opened.catalog.by_path(name).row for name in ("a.png", "naïve 图.png")]
        for name in ("a.png", "naïve 图.png"):
            (album / name).unlink()
        opened.add()
        expected = opened.search("a dog", 20)
        for place in places:
            tear(opened, place)
        assert {hit.name for hit in expected} == {*GOOD, "sub/inner.png"} - {"a.png", "naïve 图.png"}
        assert opened.search("a dog", 20) == opened.search("a dog", 20, exact=True) == expected
        opened.refresh()
        assert opened.add().failed == 2


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


def test_empty_folder_keeps_its_index(model, album, run):
    run("index", "album", "--out", "x")
    album.rename("elsewhere")
    album.mkdir()
    code, out, err = run("index", "album", "--out", "x")
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert "album has no pictures, but its index x has: mount the folder, or remove x" in err
    album.rmdir()
    with Index.open("x", model, write=True) as opened, pytest.raises(GalleryError, match="has no pictures"):
        opened.add()
    Path("elsewhere").rename("album")
    assert "10 already done" in run("index", "album", "--out", "x")[2]
    Path("none").mkdir()
    assert run("index", "none", "--out", "y")[0] == 0


def test_index_of_failures_alone_leaves_no_folder(album, run):
    (folder := album / "damaged").mkdir()
    shutil.copy(album / "bad.jpg", folder)
    assert run("index", folder, "--out", "x")[0] == 2 and not Path("x").exists()
    assert run("index", folder, "--out", "y", "--errors", "y/failures")[0] == 2 and Path("y", "failures").read_text()
    shutil.copy(album / "a.png", folder)
    assert run("index", folder, "--out", "x")[0] == 1
    (folder / "a.png").write_bytes(b"cut")
    assert run("index", folder, "--out", "x")[0] == 2 and Path("x", "index.json").exists()


def test_picture_removed_during_update_is_a_failure(model, album, monkeypatch):
    def going(sources: Sources) -> Iterator[Picture | Failure]:
        walked = list(walk(sources))
        (album / "a.png").unlink()
        yield from walked

    with Index.create("x", album, model) as opened:
        monkeypatch.setattr(index_update, "walk", going)
        counts = opened.add()
    assert (counts.processed, counts.failed) == (9, 3)


def test_shortlist_search_equals_exact_search(model, album, monkeypatch):
    pytest.importorskip("usearch")
    monkeypatch.setattr(index, "MAX_EXACT", 4)
    rng = np.random.default_rng(new_seed())
    with Index.create("x", album, model) as opened:
        opened.add()
        assert (Path("x") / "shortlist.usearch").exists() and not opened.catalog.not_in_shortlist()
        assert opened.search("a dog", 5) == opened.search("a dog", 5, exact=True)
        (album / "a.png").unlink()
        picture(rng).save(album / "z.png")
        opened.add()
        assert opened.search("a dog", 10) == opened.search("a dog", 10, exact=True)
        picture(rng).save(album / "zz.png")
        monkeypatch.setattr(Index, "refresh", lambda self: None)  # killed before the shortlist was brought up to date
        opened.add()
    with Index.open("x", model) as opened:
        assert "zz.png" in {hit.name for hit in opened.search("a dog", 11)}


@pytest.mark.long(3, "recall over thousands of vectors")
def test_shortlist_loses_less_than_a_point_of_recall(model, album, monkeypatch):
    """R@10 of 500 vectors near one of 1,500 pictures, with a shortlist and without."""
    pytest.importorskip("usearch")
    monkeypatch.setattr(index, "MAX_EXACT", 1000)
    rng = np.random.default_rng(new_seed())
    Index.create("x", album, model).close()
    queries, size = 8, 64
    with Index(Path("x"), album, (queries, size), model, write=True) as opened:
        topics = rng.normal(size=(60, 1, size))  # pictures lie in heaps, and so do the vectors of one
        embeds = topics[rng.integers(60, size=1500)] + 0.8 * rng.normal(size=(1500, 1, size))
        embeds = embeds + 0.5 * rng.normal(size=(1500, queries, size))
        embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
        opened.vectors.write(range(1500), embeds.astype(np.float32))
        opened.catalog.put(File(row, f"{row}.png", 1, 1, str(row).encode()) for row in range(1500))
        opened.refresh()
        targets = rng.choice(1500, 500, replace=False)
        query_vectors = embeds[targets, rng.integers(queries, size=500)] + rng.normal(size=(500, size)) * 2 / size**0.5
        query_vectors = (query_vectors / np.linalg.norm(query_vectors, axis=-1, keepdims=True)).astype(np.float32)
        pairs = list(zip(targets, query_vectors, strict=True))
        found = [np.mean([row in opened.nearest(vector, 10, exact)[0] for row, vector in pairs]) for exact in (0, 1)]
    assert 0.2 < found[1] < 0.99 and found[0] > found[1] - 0.01, found


def test_stored_vectors_keep_their_cosines(tmp_path):
    rng = np.random.default_rng(new_seed())
    embeds = rng.normal(size=(7, 3, 256)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    vectors = Vectors(tmp_path / "v", 3, 256)
    vectors.write([4, 0, 2], embeds[:3])
    vectors.write([1, 3], embeds[3:5])
    got = vectors.read([4, 0, 2, 1, 3])
    assert np.abs(np.einsum("bqe,bqe->bq", got, embeds[:5]) - 1).max() < 0.003
    assert np.linalg.norm(one_vector(embeds), axis=-1) == pytest.approx(1)


def test_catalog_reuses_free_rows_first(tmp_path):
    catalog = Catalog(tmp_path / "c.db", True)
    catalog.put(File(row, f"{row}.png", 1, 1, bytes([row])) for row in catalog.next_rows(5))
    catalog.remove([1, 3])
    assert catalog.next_rows(3) == [1, 3, 5] and catalog.row_count == 5 and len(catalog) == 3
    catalog.put([File(1, "0.png", 2, 2, b"x")])  # a picture that changed leaves its old place
    assert catalog.free_rows() == [0, 3] and catalog.by_path("0.png").row == 1


def test_vectors_are_synced_before_the_catalog(model, album, monkeypatch):
    order = []
    sync, put = os.fsync, Catalog.put
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(Catalog, "put", lambda self, files: (order.append("catalog"), put(self, files)))
    with Index.create("x", album, model) as opened:
        order.clear()
        opened.add()
    assert order == [os.stat("x/vectors.i8").st_ino, "catalog"] * 2
