"""`blip2rt caption`: selection, texts, sidecars, errors."""

import io
import os
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from blip2rt.gallery import captions, index
from blip2rt.image import load_rgb
from blip2rt.native import native
from tests.gallery.helpers import assert_error
from tests.tiny.image_folders import GOOD, tree

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long(7, "whole folders from the command to the files")


def test_folder_captions_match_single_captions(model, album, run):
    code, out, err = run("caption", "album")
    caption_by_name = dict(line.split("\t") for line in out.splitlines())
    assert code == 1 and caption_by_name == {f"album/{name}": model.caption(album / name) for name in GOOD}
    assert list(caption_by_name) == sorted(caption_by_name, key=os.fsencode)
    assert "album/bad.jpg" in err and "album/cut.png" in err and "notes.md" not in err
    assert err.splitlines()[-1] == "blip2rt: 9 captioned, 2 failed"
    assert "album/sub/inner.png" in run("caption", "-r", "album")[1]


def test_globs_and_lists_select_pictures(album, run, monkeypatch):
    names = ["album/a.png", "album/naïve 图.png"]
    want = run("caption", *names)
    assert want[0] == 0 and want[2] == ""
    assert run("caption", "album/[an]*[a图].png", "album/a.pn*")[1].splitlines()[::-1] == (want[1].splitlines())
    for ends in ("\n", "\r\n", "\0"):
        Path("list").write_text(ends.join([*names, names[0], ""]), newline="")
        assert run("caption", "--from-file", "list")[1].splitlines()[:2] == want[1].splitlines()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("list").read_bytes())))
        assert run("caption", "--from-file", "-")[1].splitlines()[:2] == want[1].splitlines()
    Path("list").write_text("".join(f"{name}\n" for name in names), "utf-8-sig")
    assert run("caption", "--from-file", "list")[1] == want[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("album/a.png").read_bytes())))
    assert run("caption", "-")[1] == want[1].splitlines()[0].split("\t")[1] + "\n"
    assert "'album/**/*.png' has **: give the folder, and -r" in run("caption", "album/**/*.png")[2]
    assert "no file matches 'album/*.xyz'" in run("caption", "album/*.xyz")[2]
    assert "cannot read the list 'none'" in run("caption", "--from-file", "none")[2]


def test_text_sidecars_are_written_once(model, album, run):
    before = tree(album)
    code, out, err = run("caption", "-r", "album", "--write", "txt", "--num-captions", 2)
    after = tree(album)
    assert code == 1 and out == "" and "10 captioned, 2 failed" in err
    assert {name: data for name, data in after.items() if name in before} == before
    for name in GOOD:
        expected = "".join(f"{text}\n" for text in model.caption(album / name, num_captions=2))
        assert after[os.path.splitext(name)[0] + ".txt"] == expected.encode()
    assert len(after) == len(before) + 10
    (album / "a.txt").write_text("mine\n")
    (album / "b.txt").unlink()
    command = ["caption", "-r", "album", "--write", "txt", "--num-captions", 2]
    assert "1 captioned, 9 already done, 2 failed" in run(*command)[2]
    assert (album / "a.txt").read_text() == "mine\n" and tree(album)["b.txt"] == after["b.txt"]
    run(*command, "--overwrite")
    assert tree(album) == after


def test_picture_given_twice_has_one_sidecar(model, album, run):
    command = ["caption", "album/a.png", "./album/a.png", "album", "--write", ".txt"]
    code, _, err = run(*command)
    assert code == 1 and "9 captioned, 1 already done, 2 failed" in err and "another picture" not in err
    assert (album / "a.txt").read_text() == model.caption(album / "a.png") + "\n"
    code, _, err = run("caption", "album/a.png", "album/a.png", "--xmp")
    assert code == 0 and "1 captioned" in err


def test_templates_put_text_around_captions(model, album, run):
    caption = model.caption("album/a.png")
    around = ["--template", "{folder}/{stem} photo: {caption}, nice {{x}}"]
    run("caption", "album/a.png", "--write", "caption", *around)
    assert (album / "a.caption").read_text() == f"album/a photo: {caption}, nice {{x}}\n"
    answer = native.tidied(model.ask("album/a.png", "what is red"))
    assert run("caption", "album/a.png", "--ask", "what is red")[1] == f"{answer}\n"
    assert_error(run("caption", "album/a.png", "--template", "{what}"), "{what} is not a field", "{stem}")
    assert_error(run("caption", "album/a.png", "--template", "none"), "{caption} is missing")


def test_pictures_are_never_overwritten(album, run):
    data = (album / "a.png").read_bytes()
    (album / "odd.txt").write_bytes(data)  # a picture by its content
    (album / "odd.png").write_bytes(data)
    (album / "a.jpeg").write_bytes(data)
    _, _, err = run("caption", "album", "--write", "txt", "--overwrite")
    assert (album / "odd.txt").read_bytes() == data
    assert err.count("odd.txt' would overwrite itself") == 1 and err.count("odd.txt' is a picture") == 1
    assert "album/a.png: 'album/a.txt' already belongs to another picture: rename it" in err
    (album / "c.cap").mkdir()
    command = ["caption", "album/c.webp", "--write", "cap"]
    assert run(*command)[0] == 2 and "'album/c.cap' is a folder" in run(*command)[2]
    assert_error(run("caption", "album", "--write", ".PNG"), "--write is '.PNG'")
    assert_error(run("caption"), "no pictures", "--from-file")
    (album / "a.jpeg").rename("picture.jsonl")
    shutil.copy("picture.jsonl", "picture.parquet")
    before, command = tree(Path()), ["caption", "album", "--overwrite"]
    named = ["--out", "picture.jsonl"], ["--out", "picture.parquet"], ["--errors", "album/a.png", "--out", "o.csv"]
    for flags in named:
        assert_error(run(*command, *flags), "is a picture, which is never overwritten")
    assert tree(Path()) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "a.xml"], [".jsonl, .csv, .parquet", "'a.xml'"]),
        (["--overwrite"], ["--write, --xmp or --out"]),
        (["--write", "a/b"], ["'a/b'", ".txt or .caption"]),
        (["--batch-size", "0"], ["from 1 to 1024"]),
        (["--json", "--write", "txt"], ["--json"]),
        (["--ask", "who?", "--prompt", "a"], ["prompt and question"]),
        (["--stream"], ["one image"]),
        (["--out", "none/a.jsonl"], ["folder 'none' does not exist"]),
        (["--out", "o.csv", "--errors", "./o.csv"], ["--out and --errors are the same file"]),
        (["--errors", "album/list", "--write", "txt", "--from-file", "album/list"], ["--from-file are the same file"]),
        (["--xmp", "--write", ".XMP"], ["--xmp and --write", "same file"]),
    ],
)
def test_usage_errors_are_one_line(album, run, flags, words):
    assert_error(run("caption", "album", *flags), *words)


@pytest.mark.parametrize(("flags", "said"), [([], "the same command resumes"), (["--overwrite"], "starts over")])
def test_ctrl_c_says_how_to_resume(album, run, monkeypatch, flags, said):
    monkeypatch.setattr(captions, "prefetch", Mock(side_effect=KeyboardInterrupt))
    code, _, err = run("caption", "album", "--out", "o.jsonl", *flags)
    assert code == 130 and said in err.splitlines()[0]


def test_heic_needs_its_extra(album, run, monkeypatch):
    shutil.copy(Path(__file__).parent / "kitten.heic", album / "named wrong.jpg")  # cat.jpg, small
    command = ["caption", "album/named wrong.jpg"]
    for package in ("pi_heif", "pillow_heif"):
        monkeypatch.setitem(sys.modules, package, None)
    assert_error(run(*command), "is HEIC", "pip install ", "[heic]")
    monkeypatch.undo()
    pytest.importorskip("pi_heif")
    monkeypatch.chdir(album.parent)
    kitten = Image.open(ROOT / "tests" / "cat.jpg").convert("RGB").resize((96, 64))
    ours = load_rgb(album / "named wrong.jpg")
    assert ours.size == (96, 64) and np.abs(np.asarray(ours, int) - np.asarray(kitten, int)).mean() < 12
    assert run(*command)[0] == 0
    monkeypatch.setitem(sys.modules, "pillow_heif", sys.modules["pi_heif"])  # the same API
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    assert run(*command)[0] == 0


def test_missing_package_names_its_extra(album, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_error(run("caption", "album", "--out", "a.parquet"), "pip install ", "[parquet]")
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    monkeypatch.setattr(index, "MAX_EXACT", 4)
    command = ["index", "album", "--out", "x"]
    for _ in range(2):  # without usearch search is slower, and finds the same
        code, _, err = run(*command)
        assert code == 1 and "more than 4 pictures, each of which is scored in every search" in err.splitlines()[0]
        assert "pip install " in err and "[gallery]" in err
    found = run("search", "x", "a dog", "-n", 10)
    assert found[0] == 0 and found == run("search", "x", "a dog", "-n", 10, "--exact")
    monkeypatch.setattr(index, "MAX_EXACT", 4096)
    assert "usearch" not in run(*command)[2]
