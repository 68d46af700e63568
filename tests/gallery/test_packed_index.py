"""A packed index: recall, merging, captions, damaged files."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pytest

from blip2rt.errors import GalleryError
from blip2rt.gallery import Index, index_manifest
from blip2rt.gallery.catalog import Catalog, File
from blip2rt.gallery.packed import vectors as packed_vectors
from blip2rt.gallery.packed.captions import fuse
from blip2rt.gallery.packed.codec import Codec, pack, unpack
from blip2rt.gallery.packed.merge import Part, merge
from blip2rt.gallery.packed.vectors import PackedVectors
from blip2rt.gallery.vectors import Vectors, scores_of
from tests.gallery.helpers import assert_error
from tests.seeds import new_seed

QUERIES, SIZE = 4, 32


def normalized(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make_embeds(rng: np.random.Generator, count: int) -> np.ndarray:
    """image_embeds (count, Q, E) around 40 topics, with similar queries."""
    topics = np.random.default_rng(7).normal(size=(40, 1, SIZE))
    own = topics[rng.integers(40, size=count)] + rng.normal(size=(count, 1, SIZE))
    return normalized(own + 0.4 * rng.normal(size=(count, QUERIES, SIZE)))


def write_part(folder: Path, embeds: np.ndarray, name: str, free: int = 0) -> Part:
    """An index whose pictures are name/0.jpg and so on. free: rows at the beginning that were removed."""
    folder.mkdir()
    vectors, catalog = Vectors(folder / "vectors.i8", QUERIES, SIZE), Catalog(folder / "files.db", True)
    vectors.write(range(len(embeds)), embeds)
    catalog.put(File(row, f"{row}.jpg", 1, 1, b"x") for row in range(len(embeds)))
    catalog.remove(range(free))
    return Part(folder, folder.parent / name, catalog, vectors)


def pack_parts(parts: list[Part], out: Path, texts: np.ndarray) -> tuple[PackedVectors, Catalog]:
    fields = {"name": "x", "model": "y", "queries": QUERIES, "size": SIZE}
    merge(parts, out, fields, lambda: texts, None, lambda line: None)
    return PackedVectors(out, QUERIES, SIZE), Catalog(out / "files.db", False)


@pytest.fixture
def texts() -> np.ndarray:
    return normalized(np.random.default_rng(new_seed()).normal(size=(60, SIZE)))


def test_search_finds_the_exact_ten(tmp_path, monkeypatch, texts):
    monkeypatch.setattr(packed_vectors, "PROBED", 1500)
    embeds = make_embeds(np.random.default_rng(new_seed()), 6000)
    parts = [write_part(tmp_path / "a", embeds[:2500], "pa", free=100), write_part(tmp_path / "b", embeds[2500:], "pb")]
    packed, catalog = pack_parts(parts, tmp_path / "x", texts)
    assert len(packed) == len(catalog) == 5900 and len(packed._ends) > 100
    numbers = {f"pa/{i}.jpg": i for i in range(2500)} | {f"pb/{i}.jpg": 2500 + i for i in range(3500)}
    found = []
    for text in texts:
        exact = scores_of(embeds, text)
        exact[:100] = -1
        rows, scores = packed.nearest(text, 10)
        files = catalog.at(rows.tolist())
        chosen = [numbers[files[row].path] for row in rows.tolist()]
        assert scores == pytest.approx(exact[chosen], abs=0.03) and list(scores) == sorted(scores, reverse=True)
        assert scores == pytest.approx(packed.scores(rows, text), abs=1e-5)
        found.append(len(set(chosen) & set(np.argsort(-exact)[:10].tolist())) / 10)
    assert np.mean(found) > 0.95, found


def test_a_picture_finds_itself(tmp_path, texts):
    embeds = make_embeds(np.random.default_rng(new_seed()), 500)
    packed, catalog = pack_parts([write_part(tmp_path / "a", embeds, "pa")], tmp_path / "x", texts)
    for number in (0, 17, 499):
        rows, scores = packed.nearest(embeds[number], 3)
        assert catalog.at([int(rows[0])])[int(rows[0])].path == f"{number}.jpg"
        assert scores[0] == pytest.approx(1, abs=0.05)


def test_merging_in_steps_keeps_every_record(tmp_path, texts):
    embeds = make_embeds(np.random.default_rng(new_seed()), 700)
    first = write_part(tmp_path / "a", embeds[:400], "pa")
    packed, catalog = pack_parts([first], tmp_path / "x", texts)
    second = write_part(tmp_path / "b", embeds[400:], "pb")
    both, merged = pack_parts([Part(tmp_path / "x", tmp_path / "pa", catalog, packed), second], tmp_path / "y", texts)
    old = {file.path: packed.read(file.row, file.row + 1).tobytes() for file in catalog.all()}
    new = {file.path: both.read(file.row, file.row + 1).tobytes() for file in merged.all()}
    assert len(new) == 700 and all(new[f"pa/{path}"] == record for path, record in old.items())


def test_records_round_to_the_nearest_step():
    embeds = make_embeds(np.random.default_rng(new_seed()), 300)
    codec = Codec.fit(embeds, normalized(np.random.default_rng(1).normal(size=(40, SIZE))))
    wanted = codec.coefficients(embeds)
    assert np.abs(unpack(pack(wanted)) - wanted).max() <= 0.5 + 1e-3


def test_fusion_prefers_rows_of_both_rankings():
    assert fuse([1, 2, 3], [3, 4]) == [3, 1, 2, 4] and fuse([5], []) == [5]


def test_commands_merge_and_search(album, run, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.move(album / "sub", tmp_path / "more" / "sub")
    run("index", "album", "--out", "ia")
    run("index", "more", "--out", "ib")
    names = [str(path) for path in (*album.iterdir(), tmp_path / "more" / "sub" / "inner.png")]
    table = [{"image": name, "captions": ["a zebra" if name.endswith("b.jpg") else "a dog", "x"]} for name in names]
    Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    code, _, err = run("merge", "ia", "ib", "--out", "x", "--captions", "c.jsonl")
    assert code == 0 and "10 pictures in x" in err
    code, out, err = run("search", "x", "the zebras", "-n", 10)
    lines = [line.split("\t") for line in out.splitlines()]
    assert (code, err, len(lines)) == (0, "", 10) and lines[0][1].endswith("b.jpg"), "only one caption has the word"
    assert all(Path(name).is_file() for _, name in lines)
    assert run("merge", "ia", "ib", "--out", "y")[0] == 0
    plain = dict(reversed(line.split("\t")) for line in run("search", "y", "the zebras", "-n", 10)[1].splitlines())
    assert {name: float(score) for score, name in lines} == pytest.approx(
        {name: float(score) for name, score in plain.items()}, abs=0.002
    )
    assert_error(run("merge", "ia", "ia", "--out", "z"), "a picture is in two of the indexes")
    assert_error(run("merge", "x", "y", "--out", "z"), "were packed separately")
    assert_error(run("merge", "ia", "--out", "x"), "not empty")
    assert_error(run("index", "album", "--out", "x"), "is packed and cannot be changed")
    assert_error(run("duplicates", "x"), "is packed")
    assert_error(run("merge", "ia", "--out", "z", "--captions", "c.txt"), "c.txt", "--out")
    assert not Path("z").exists()


@pytest.mark.parametrize("name", ["records.bin", "codec.npz", "clusters.npz", "captions.db"])
def test_damaged_files_give_one_line(album, run, model, name):
    run("index", "album", "--out", "ia")
    table = [{"image": str(path), "captions": "a dog"} for path in album.iterdir()]
    Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    run("merge", "ia", "--out", "x", "--captions", "c.jsonl")
    path, rng = Path("x") / name, np.random.default_rng(new_seed())
    content = path.read_bytes()
    for damage in (content[:-1], b"", rng.bytes(len(content)), content[: len(content) // 2] + rng.bytes(len(content))):
        path.write_bytes(damage)
        assert_error(run("search", "x", "a dog"), "damaged")
    path.unlink()
    path.symlink_to("/dev/zero")
    assert_error(run("search", "x", "a dog"), "damaged")


def test_changed_record_is_noticed(tmp_path, texts):
    embeds = make_embeds(np.random.default_rng(new_seed()), 300)
    pack_parts([write_part(tmp_path / "a", embeds, "pa")], tmp_path / "x", texts)
    with open(tmp_path / "x" / "records.bin", "r+b") as file:
        file.seek(1000)
        file.write(b"\x55\xaa\x55")
    with pytest.raises(GalleryError, match="checksum"):
        PackedVectors(tmp_path / "x", QUERIES, SIZE).nearest(texts[0], 5)


def test_captions_with_other_tables_are_rejected(album, run):
    run("index", "album", "--out", "ia")
    Path("c.jsonl").write_text(json.dumps({"image": "album/a.png", "captions": "a dog"}))
    run("merge", "ia", "--out", "x", "--captions", "c.jsonl")
    with sqlite3.connect("x/captions.db") as db:
        db.execute("CREATE TABLE more (x)")
    db.close()
    assert_error(run("search", "x", "a dog"), "its tables are not those of captions")


def test_packed_index_opens_for_reading_only(album, run, model):
    run("index", "album", "--out", "ia")
    run("merge", "ia", "--out", "x")
    assert index_manifest.read(Path("x"))["version"] == index_manifest.PACKED
    with Index.open("x", model) as opened:
        assert len(opened) == 10 and len(opened.search("a dog", 3, rerank=2)) == 3
    with pytest.raises(Exception, match="is packed and cannot be changed"):
        Index.open("x", model, write=True)


def test_index_of_a_shard(album, run, model):
    with tarfile.open("s.tar", "w") as tar:
        for path in sorted(album.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                tar.add(path, path.name)
    code, _, err = run("index", "s.tar", "--out", "ia")
    assert code == 1 and "10 indexed, 2 failed" in err
    assert "10 already done" in run("index", "s.tar", "--out", "ia")[2]
    run("index", "album", "--out", "ib")
    for index in ("ia", "ib"):
        run("merge", index, "--out", f"{index}.packed")
    for pair in (("ia", "ib"), ("ia.packed", "ib.packed")):
        lines = [run("search", index, "a dog", "--rerank", 3)[1].splitlines() for index in pair]
        names = [[(line.split("\t")[0], Path(line.split("\t")[1]).name) for line in each] for each in lines]
        assert names[0] == names[1] and len(names[0]) == 10
    code, out, err = run("search", "ia.packed", "a dog", "--copy-to", "copies", "--html", "page.html")
    assert (code, err) == (0, "")
    assert Path("page.html").read_text().count("data:image/jpeg;base64,/9j") == 10
    copied = sorted(path.name.split("-", 1)[1] for path in Path("copies").iterdir())
    assert copied == sorted(Path(line.split("\t")[1]).name for line in out.splitlines())
    assert all((album / name).is_file() or (album / "sub" / name).is_file() for name in copied)
