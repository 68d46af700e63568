"""Merged indexes: equal to their parts, captions, damaged files."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from blip2rt.errors import OptionError
from blip2rt.gallery import Index, index
from blip2rt.gallery.caption_search import fuse
from tests.gallery.helpers import assert_error
from tests.seeds import new_seed


def write_table(*rows: object) -> None:
    Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def merge_error(result: tuple[int, str, str]) -> str:
    """The error after the lines that tell what a merge did."""
    code, out, err = result
    *before, error = err.splitlines()
    assert code == 2 and out == "" and error.startswith("blip2rt: error: "), result
    assert all(line.startswith(("blip2rt: copying", "blip2rt: building", "blip2rt: indexing")) for line in before), err
    return error


def test_fusion_prefers_rows_of_both_rankings():
    assert fuse([1, 2, 3], [3, 4]) == [3, 1, 2, 4] and fuse([5], []) == [5]


def test_merged_index_finds_what_its_parts_find(album, run, model, monkeypatch):
    monkeypatch.setattr(index, "MAX_EXACT", 4)  # so that there is a shortlist
    more = album.parent / "more"
    more.mkdir()
    shutil.move(album / "sub", more / "sub")
    for name in ("album", "more"):
        run("index", name, "--out", f"{name}.index")
    (album / "a.png").unlink()
    run("index", "album", "--out", "album.index")  # leaves a free row
    assert run("merge", "album.index", "more.index", "--out", "x")[0] == 0
    parts = [
        line for name in ("album", "more") for line in run("search", f"{name}.index", "a dog", "-n", 20)[1].splitlines()
    ]
    found = run("search", "x", "a dog", "-n", 20)[1].splitlines()
    assert sorted(parts) == sorted(found) and len(found) == 9
    assert all(Path(line.split("\t")[1]).is_file() for line in found)
    assert run("merge", "x", "--out", "y")[0] == 0 and run("search", "y", "a dog", "-n", 20)[1].splitlines() == found
    assert len(Index.open("y", model).search("a dog", 3, rerank=2)) == 3
    assert "a picture is in two of the indexes" in merge_error(run("merge", "x", "more.index", "--out", "z"))
    assert_error(run("merge", "album.index", "--out", "x"), "not empty")
    assert not Path("z").exists()


def test_captions_rank_too(album, run, model):
    run("index", "album", "--out", "ia")
    names = [str(path) for path in (*album.iterdir(), album / "sub" / "inner.png")]
    write_table(*({"image": n, "captions": ["a zebra" if n.endswith("b.jpg") else "a dog", "x"]} for n in names))
    assert run("merge", "ia", "--out", "x", "--captions", "c.jsonl")[0] == 0
    code, out, err = run("search", "x", "the zebras", "-n", 10)
    assert (code, err) == (0, "") and out.splitlines()[0].endswith("b.jpg"), "only one caption has the word"
    plain = run("search", "ia", "the zebras", "-n", 10)[1]
    assert sorted(out.splitlines()) == sorted(plain.splitlines()), "the same scores"
    assert_error(run("index", "album", "--out", "x"), "has captions and cannot be changed")
    with pytest.raises(OptionError, match="has captions and cannot be changed"):
        Index.open("x", model, write=True)


@pytest.mark.parametrize(
    "row",
    [
        "words",
        {"image": "a\0b", "captions": "a dog"},
        {"image": 5, "captions": "a"},
        {"image": "a", "captions": [5]},
        [1],
    ],
)
def test_odd_captions_are_one_line(album, run, row):
    run("index", "album", "--out", "ia")
    write_table({"image": "album/a.png", "captions": "\ud800 a dog"}, row)
    command = ["merge", "ia", "--out", "x", "--captions"]
    assert "'c.jsonl' is not a table of captions" in merge_error(run(*command, "c.jsonl"))
    Path("c.jsonl").write_text("[" * 100_000)
    assert "'c.jsonl' is not a table of captions" in merge_error(run(*command, "c.jsonl"))
    assert "'c.txt' is not a table of captions" in merge_error(run(*command, "c.txt"))
    write_table({"image": "elsewhere.png", "captions": "a dog"})
    assert "has none of the index's pictures" in merge_error(run(*command, "c.jsonl"))
    assert not Path("x").exists()


def test_damaged_parquet_is_one_line(album, run):
    pytest.importorskip("pyarrow")
    run("index", "album", "--out", "ia")
    Path("c.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    error = merge_error(run("merge", "ia", "--out", "x", "--captions", "c.parquet"))
    assert "'c.parquet' is not a table of captions" in error


def test_damaged_captions_give_one_line(album, run):
    run("index", "album", "--out", "ia")
    write_table(*({"image": str(path), "captions": "a dog"} for path in album.iterdir()))
    run("merge", "ia", "--out", "x", "--captions", "c.jsonl")
    path, rng = Path("x/captions.db"), random.Random(new_seed())
    content = path.read_bytes()
    others = [
        content[:-1],
        b"",
        rng.randbytes(len(content)),
        content[: len(content) // 2] + rng.randbytes(len(content)),
    ]
    for damage in others:
        path.write_bytes(damage)
        assert_error(run("search", "x", "a dog"), "damaged")
    for _ in range(60):
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + rng.randbytes(rng.choice([1, 4, 64])) + content[at + 64 :])
        code, _, err = run("search", "x", "a dog")
        assert code == 0 or (code, err.count("\n")) == (2, 1), err
    path.write_bytes(content)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE more (x)")
    db.close()
    assert_error(run("search", "x", "a dog"), "its tables are not those of captions")
    path.unlink()
    path.symlink_to("/dev/zero")
    assert_error(run("search", "x", "a dog"), "damaged")


def test_packed_index_is_rejected_with_the_command_that_rebuilds_it(album, run):
    run("index", "album", "--out", "x")
    manifest = Path("x/index.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 4}))
    assert_error(run("search", "x", "a dog"), "x is packed", "`blip2rt merge PARTS --out NEW`")


def test_index_of_a_shard(album, run):
    with tarfile.open("s.tar", "w") as tar:
        for path in sorted(album.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                tar.add(path, path.name)
    code, _, err = run("index", "s.tar", "--out", "ia")
    assert code == 1 and "10 indexed, 2 failed" in err
    assert "10 already done" in run("index", "s.tar", "--out", "ia")[2]
    run("index", "album", "--out", "ib")
    for name in ("ia", "ib"):
        run("merge", name, "--out", f"{name}.merged")
    for pair in (("ia", "ib"), ("ia.merged", "ib.merged")):
        lines = [run("search", index, "a dog", "--rerank", 3)[1].splitlines() for index in pair]
        names = [[(line.split("\t")[0], Path(line.split("\t")[1]).name) for line in each] for each in lines]
        assert names[0] == names[1] and len(names[0]) == 10
    code, out, err = run("search", "ia.merged", "a dog", "--copy-to", "copies")
    assert (code, err) == (0, "")
    copied = sorted(path.name.split("-", 1)[1] for path in Path("copies").iterdir())
    assert copied == sorted(Path(line.split("\t")[1]).name for line in out.splitlines())
    assert all((album / name).is_file() or (album / "sub" / name).is_file() for name in copied)
