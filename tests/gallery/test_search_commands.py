"""The commands `blip2rt index`, `search`, `merge` and `duplicates`."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from blip2rt.gallery import Index, index
from tests.gallery.helpers import POSIX, assert_error
from tests.tiny.image_folders import tree

pytestmark = pytest.mark.long(7, "an index of a whole folder, searched by commands")


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
    assert ["album/b.jpg", "album/sub/a-copy.jpg", "album/0-outside.jpg"] in groups
    assert not any(".png" in path for group in groups for path in group), "a.png has no copy, only links"
    assert_error(run("duplicates", "x", "--alike", 2), "--alike is 2")


def test_index_and_search_commands(album, run):
    code, out, err = run("index", "album", "--out", "x", "--errors", "e.tsv")
    assert (code, out, err) == (1, "", "blip2rt: 10 indexed, 2 failed (listed in e.tsv)\n")
    assert "0 indexed, 10 already done" in run("index", "album", "--out", "x")[2]
    code, out, err = run("search", "x", "a dog", "-n", 3, "--json")
    hits = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and err == "" and len(hits) == 3 and all(Path(hit["image"]).is_file() for hit in hits)
    assert "album/b.jpg\n" in run("search", "x", "--image", "album/b.jpg")[1]
    assert "probability" in run("search", "x", "a dog", "--rerank", 4, "--json")[1]
    out = run("search", "x", "a dog", "-n", 4, "--rerank", 2)[1]
    assert [line.split("\t")[0].endswith(" cosine") for line in out.splitlines()] == [False, False, True, True]
    assert " cosine" not in run("search", "x", "a dog")[1]
    shutil.copy("album/a.png", "album/zz.png")
    assert "1 indexed, 10 already done" in run("index", "album", "--out", "x")[2]
    assert "11 indexed, 2 failed" in run("index", "album", "--out", "y")[2], "a copy is new"


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
    code, out, err = run("merge", "x", "more.index", "--out", "z")
    assert (code, out) == (0, "") and "9 pictures in z" in err, "a picture in two of the indexes is one"
    assert_error(run("merge", "album.index", "--out", "x"), "not empty")


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
