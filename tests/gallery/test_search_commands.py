"""The commands `blip2rt index`, `search` and `duplicates`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from blip2rt.gallery import Index
from blip2rt.gallery.near_duplicates import find_near_duplicates
from tests.gallery.helpers import POSIX, assert_error
from tests.tiny.image_folders import tree

pytestmark = pytest.mark.long(4, "an index of a whole folder, searched by commands")


def test_near_duplicates_are_grouped(model, album):
    shutil.copy(album / "a.png", album / "sub" / "same.png")
    Image.open(album / "b.jpg").save(album / "b2.png")
    with Index.create("x", album, model) as opened:
        opened.add()
        groups = [sorted(file.path for file in group) for group in find_near_duplicates(opened, 0.9999)]
    assert ["a.png", "sub/same.png"] in groups and ["b.jpg", "b2.png"] in groups


@POSIX
def test_deleting_all_but_the_first_duplicate_keeps_every_picture(album, run):
    for folder in ("album/sub", "links"):
        Path(folder).mkdir(exist_ok=True)
    shutil.copy("album/b.jpg", "album/sub/a-copy.jpg")
    os.link("album/a.png", "album/0-hard.png")
    os.symlink("a.png", "album/0-soft.png")
    os.symlink("0-soft.png", "album/00-link-to-link.png")
    for name in ("gone.png", "changed.png"):
        shutil.copy("album/a.png", f"album/sub/{name}")
    shutil.copy("album/b.jpg", "links/outside.jpg")
    os.symlink("../links/outside.jpg", "album/0-outside.jpg")
    run("index", "album", "--out", "x")
    Path("album/sub/gone.png").unlink()
    shutil.copy("album/b.jpg", "album/sub/changed.png")
    out = run("duplicates", "x", "--alike", 0.9999)[1]
    groups = [group.splitlines() for group in out.split("\n\n")]
    [group] = [group for group in groups if any("b.jpg" in path for path in group)]
    assert [str(Path(path).relative_to("album")) for path in group] == [
        "b.jpg",
        "sub/a-copy.jpg",
        "0-outside.jpg",
    ]
    assert not any(".png" in path for group in groups for path in group), "a.png has no copy, only links"


def test_index_search_and_duplicates_commands(album, run):
    code, out, err = run("index", "album", "--out", "x", "--errors", "e.tsv")
    assert (code, out, err) == (1, "", "blip2rt: 10 indexed, 2 failed (listed in e.tsv)\n")
    assert "0 indexed, 10 already done" in run("index", "album", "--out", "x")[2]
    code, out, err = run("search", "x", "a dog", "-n", 3, "--json", "--copy-to", "best")
    hits = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and err == "" and len(hits) == 3 and all(Path(hit["image"]).is_file() for hit in hits)
    assert [path.name[:3] for path in sorted(Path("best").iterdir())] == ["01-", "02-", "03-"]
    assert "album/b.jpg\n" in run("search", "x", "--image", "album/b.jpg")[1]
    assert "probability" in run("search", "x", "a dog", "--rerank", 4, "--json")[1]
    out = run("search", "x", "a dog", "-n", 4, "--rerank", 2)[1]
    assert [line.split("\t")[0].endswith(" cosine") for line in out.splitlines()] == [False, False, True, True]
    assert " cosine" not in run("search", "x", "a dog")[1]
    shutil.copy("album/a.png", "album/zz.png")
    assert "1 indexed, 10 already done" in run("index", "album", "--out", "x")[2]
    assert "11 indexed, 2 failed" in run("index", "album", "--out", "y")[2], "a copy is new"
    assert "a.png\n" in run("duplicates", "x", "--alike", 0.9999)[1]


def test_usage_errors_are_one_line(album, run):
    run("index", "album", "--out", "x")
    Path("full").mkdir()
    shutil.copy("album/a.png", "full/a.png")
    before = tree(Path())
    for command, words in (
        (["search", "none", "a dog"], ["none is not an index", "blip2rt index DIR"]),
        (["search", "album/a.png", "a dog"], ["album/a.png is a file, not an index"]),
        (["search", "x"], ["give TEXT, or --image"]),
        (["search", "x", "a", "--image", "b"], ["give TEXT, or --image"]),
        (["search", "x", "..."], ["no words"]),
        (["search", "x", "a", "-n", "0"], ["from 1"]),
        (["search", "x", "--image", "none.png"], ["no such file: 'none.png'"]),
        (["search", "x", "--image", "album/a.png", "--rerank", "3"], ["rerank"]),
        (["index", "none", "--out", "y"], ["'none' is not a folder"]),
        (["index", "album"], ["missing: --out"]),
        (["index", "album", "--out", "full"], ["full is neither an index nor empty"]),
        (["index", "album/sub", "--out", "x"], ["not of album/sub"]),
        (["duplicates", "x", "--alike", "2"], ["--alike is 2"]),
        (["search", "x", "a dog", "--copy-to", "full"], ["full is not empty: give another --copy-to"]),
        (["index", "album", "--out", "x", "--errors", "full/a.png"], ["'full/a.png' is a picture"]),
    ):
        assert_error(run(*command), *words)
        assert tree(Path()) == before, command
    about = json.loads(Path("x/index.json").read_text())
    Path("x/index.json").write_text(json.dumps(about | {"version": 1}))  # without checksums
    assert "x has version 1" in (err := run("search", "x", "a")[2]) and "create it again" in err
    for damage in ("{}", "no JSON", "[]"):
        Path("x/index.json").write_text(damage)
        assert "is damaged" in run("search", "x", "a")[2]
