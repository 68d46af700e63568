"""Tables resume after truncation, reject damage without loss, and are synced."""

import csv
import importlib.util
import json
import os
import random
import sys
from pathlib import Path

import pytest

from blip2rt.gallery.outputs import Description
from blip2rt.gallery.outputs.tables import Table
from blip2rt.gallery.sources import Picture
from tests.gallery.helpers import assert_error, rows
from tests.seeds import new_seed
from tests.tiny.image_folders import GOOD, tree

WORDS = ("a red square", 'a 5" sign', "a, b", "two\nlines", "ein Bär", "1, 2, 3, 4, 5", '"', "x\ny, z\n", "''")
ASKED = ("", "--ask 'what, \"now\"'")

NEEDS_ARROW = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
EVERY_TABLE = pytest.mark.parametrize("ending", ["jsonl", "csv", pytest.param("parquet", marks=NEEDS_ARROW)])


def filled(path: Path, asked: str, rng: random.Random, words: tuple[str, ...] = WORDS) -> bytes:
    """A table of six random rows."""
    table = Table(str(path), True, "tiny", asked)
    for i in range(6):
        captions = [rng.choice(words) for _ in range(rng.randint(1, 3))]
        table.write(Picture("", ""), Description(f"{rng.choice(words)}{i}.png", captions, -1.5, "tiny"))
    table.finish(False)
    table.close()
    return path.read_bytes()


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("journal", ["", ".partial.jsonl"])
def test_truncated_rows_keep_complete_ones(tmp_path, journal, asked):
    path = tmp_path / ("t.csv" if journal else "t.jsonl")
    data = filled(tmp_path / "t.jsonl", asked, random.Random(new_seed()))
    ends, collected = [0, *(i + 1 for i, byte in enumerate(data) if byte == ord("\n"))], Path(f"{path}{journal}")
    for size in range(random.randrange(4), len(data), 4):
        collected.write_bytes(data[:size])
        Table(str(path), False, "tiny", asked).close()
        assert collected.read_bytes() == data[: max(end for end in ends if end <= size)], size


def test_parquet_is_synced_before_its_journal_is_removed(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path, order = tmp_path / "t.parquet", []
    sync, unlink = os.fsync, os.unlink
    table = Table(str(path), False, "tiny", "")
    table.write(Picture("", ""), Description("a.png", ["a"], -1.5, "tiny"))
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(os, "unlink", lambda name: (order.append(os.path.basename(name)), unlink(name)))
    table.finish(False)
    table.close()
    assert order[-2:] == [path.stat().st_ino, "t.parquet.partial.jsonl"]


def test_table_appends_only_new_pictures(model, album, run):
    out = Path("out.jsonl")
    command = ["caption", "-r", "album", "--out", out]
    assert run(*command)[0] == 1
    first = rows(out)
    assert [row["image"] for row in first] == [f"album/{name}" for name in sorted(GOOD, key=os.fsencode)] + [
        "album/sub/inner.png"
    ]
    for row in first:
        scored = model.caption(row["image"], scores=True)
        assert row["captions"] == [scored.text] == [row["caption"]]
        assert float(row["score"]) == pytest.approx(scored.score, abs=1e-3)
        assert list(row) == ["image", "caption", "captions", "score", "truncated", "model", "ms", "asked"]
        assert row["model"] == "tiny" and row["ms"] is None and row["asked"] == ""
        assert row["truncated"] == scored.truncated
    data = out.read_bytes()
    assert "10 already done" in run(*command)[2] and out.read_bytes() == data
    (album / "z.png").write_bytes((album / "a.png").read_bytes())
    assert "1 captioned, 10 already done" in run(*command)[2]
    assert [row["image"] for row in rows(out)][-1] == "album/z.png" and rows(out)[:-1] == first
    assert sorted(path.name for path in Path().iterdir()) == ["album", out.name]


@pytest.mark.parametrize("ending", ["csv", pytest.param("parquet", marks=NEEDS_ARROW)])
def test_converted_table_has_the_rows_of_json_lines_and_is_not_continued(album, run, ending):
    command = ["caption", "-r", "album", "--out"]
    assert run(*command, "t.jsonl")[0] == run(*command, f"t.{ending}")[0] == 1
    names = ("image", "caption", "captions", "model", "asked")
    found = rows(Path(f"t.{ending}"))
    assert [[row[name] for name in names] for row in found] == [
        [row[name] for name in names] for row in rows(Path("t.jsonl"))
    ]
    before = tree(Path())
    assert_error(run(*command, f"t.{ending}"), f"t.{ending} exists: give another file, or --overwrite; only .jsonl")
    assert tree(Path()) == before and run(*command, f"t.{ending}", "--overwrite")[0] == 1


@EVERY_TABLE
@pytest.mark.skipif(sys.platform != "linux", reason="names of arbitrary bytes")
def test_names_that_are_not_utf8_are_escaped_alike(album, run, ending):
    (album / "sub" / "inner.png").rename(os.fsdecode(b"album/sub/caf\xe9.png"))
    (album / "sub" / "bad.png").write_bytes(b"bad")
    os.rename("album/sub/bad.png", os.fsdecode(b"album/sub/bad\xe9.png"))
    command = ["caption", "album/sub", "--out", f"t.{ending}", "--errors", "e.jsonl"]
    assert run(*command)[0] == 1
    assert [row["image"] for row in rows(Path(f"t.{ending}"))] == ["album/sub/caf\\xe9.png"]
    assert [row["image"] for row in rows(Path("e.jsonl"))] == ["album/sub/bad\\xe9.png"]
    printed = run("caption", "album/sub")[1]
    assert printed.startswith("album/sub/caf\\xe9.png\t")
    assert json.loads(run("caption", "album/sub", "--json")[1].splitlines()[-1])["image"] == "album/sub/caf\\xe9.png"


def test_foreign_tables_are_rejected_unchanged(album, run):
    for text in ('{"a": 1}\n', "words\n"):
        Path("a.jsonl").write_text(text)
        assert_error(run("caption", "album", "--out", "a.jsonl"), "a.jsonl", "line 1", "--overwrite")
        assert Path("a.jsonl").read_text() == text
    row = {"image": "album/a.png", "caption": "a", "captions": ["a"], "score": 1.0, "model": "other", "asked": ""}
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    assert_error(run("caption", "album", "--out", "a.jsonl"), "captions by other, not by tiny")


def test_table_rejects_other_text_flags(album, run):
    command = ["caption", "album/a.png", "--out", "t.jsonl"]
    asking = [*command, "--ask", "what is red"]
    assert run(*asking)[0] == 0
    data = tree(Path())
    assert "1 already done" in run(*asking)[2]
    for other, words in (
        (command, "not plain captions"),
        ([*asking, "--template", "x {caption}"], "not texts of --ask 'what is red' --template 'x {caption}'"),
        ([*command, "--prompt", "a"], "not texts of --prompt a"),
        ([*command, "--template", "{stem}: {caption}"], "{stem}"),
    ):
        assert_error(run(*other), "t.jsonl has texts of --ask 'what is red'", words, "--overwrite")
        assert tree(Path()) == data
    assert run(*command, "--overwrite")[0] == 0 and rows(Path("t.jsonl"))[0]["asked"] == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\t=1", "'=1", "''-1", "'a", "a=1", "'"])
def test_csv_has_no_formulas(tmp_path, text):
    """A spreadsheet takes a cell that begins with an apostrophe as text."""
    path, model = str(tmp_path / "t.csv"), f"{text}model"
    table = Table(path, False, model, "")
    table.write(Picture("", ""), Description(f"{text}.png", [text, "more"], -1.5, model))
    table.finish(False)
    table.close()
    [_, row] = csv.reader(Path(path).read_text().splitlines(keepends=True))
    assert not any(cell[0] in "=+-@\t" for cell in (*row[:3], row[4]))
    plain = not text.lstrip("'").startswith(tuple("=+-@\t"))
    assert (row[0] == f"{text}.png") == (row[4] == model) == plain


def test_table_without_pictures_is_empty(album, run):
    Path("empty").mkdir()
    for name, data in (("x.jsonl", b""), ("x.csv", b"image,caption,captions,score,model,asked\r\n")):
        assert run("caption", "empty", "--out", name)[0] == 0
        assert Path(name).read_bytes() == data
