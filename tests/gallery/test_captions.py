"""`blip2rt caption` of folders: selection, outputs, resuming, failures."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt.gallery import captions, index
from blip2rt.gallery.sources import Sources
from blip2rt.gallery.walk import walk
from blip2rt.image import load_rgb
from blip2rt.text import tidy
from tests.seeds import new_seed
from tests.tiny.image_folders import GOOD, ROOT, fill, picture, shard, start, tree

pytest.importorskip("blip2rt._native")
pytestmark = pytest.mark.long(14)
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and links")
TIMEOUT = 900  # seconds
DEFAULT, GERMAN = "<rdf:li xml:lang='x-default'>My words</rdf:li>", "<rdf:li xml:lang='de'>Worte</rdf:li>"


def assert_error(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2 and out == "" and err.startswith("blip2rt: error: ") and err.count("\n") == 1, result
    assert all(word in err for word in words), err


def test_folder_captions_match_single_captions(tiny, album, run):
    code, out, err = run("caption", "album", "--model", tiny.path)
    told = dict(line.split("\t") for line in out.splitlines())
    model = blip2rt.load(tiny.path)
    assert code == 1 and told == {f"album/{name}": model.caption(album / name) for name in GOOD}
    assert list(told) == sorted(told, key=os.fsencode)
    assert "album/bad.jpg" in err and "album/cut.png" in err and "notes.md" not in err
    assert err.splitlines()[-1] == "blip2rt: 9 captioned, 2 failed"
    assert "album/sub/inner.png" in run("caption", "-r", "album", "--model", tiny.path)[1]


def test_globs_and_lists_select_pictures(tiny, album, run, monkeypatch):
    names = ["album/a.png", "album/naïve 图.png"]
    want = run("caption", *names, "--model", tiny.path)
    assert want[0] == 0 and want[2] == ""
    assert run("caption", "album/[an]*[a图].png", "album/a.pn*", "--model", tiny.path)[1].splitlines()[::-1] == (
        want[1].splitlines()
    )
    for ends in ("\n", "\r\n", "\0"):
        Path("list").write_text(ends.join([*names, names[0], ""]), newline="")
        assert run("caption", "--from-file", "list", "--model", tiny.path)[1].splitlines()[:2] == want[1].splitlines()
        for flags in (["--from-file", "-"], ["-"]):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("list").read_bytes())))
            assert run("caption", *flags, "--model", tiny.path)[1].splitlines()[:2] == want[1].splitlines()
    Path("list").write_text("".join(f"{name}\n" for name in names), "utf-8-sig")
    assert run("caption", "--from-file", "list", "--model", tiny.path)[1] == want[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"album/a.png")))
    assert_error(run("caption", "-", "--model", tiny.path), "standard input is text, not an image", "--from-file -")
    assert "no file matches 'album/*.xyz'" in run("caption", "album/*.xyz", "--model", tiny.path)[2]
    assert "cannot read the list 'none'" in run("caption", "--from-file", "none", "--model", tiny.path)[2]


def test_text_sidecars_are_written_once(tiny, album, run):
    before = tree(album)
    code, out, err = run("caption", "-r", "album", "--write", "txt", "--model", tiny.path, "--num-captions", 2)
    model, after = blip2rt.load(tiny.path), tree(album)
    assert code == 1 and out == "" and "10 captioned, 2 failed" in err
    assert {name: data for name, data in after.items() if name in before} == before
    for name in GOOD:
        wanted = "".join(f"{text}\n" for text in model.caption(album / name, num_captions=2))
        assert after[os.path.splitext(name)[0] + ".txt"] == wanted.encode()
    assert len(after) == len(before) + 10
    (album / "a.txt").write_text("mine\n")
    (album / "b.txt").unlink()
    command = ["caption", "-r", "album", "--write", "txt", "--model", tiny.path, "--num-captions", 2]
    assert "1 captioned, 9 already done, 2 failed" in run(*command)[2]
    assert (album / "a.txt").read_text() == "mine\n" and tree(album)["b.txt"] == after["b.txt"]
    run(*command, "--overwrite")
    assert tree(album) == after


def test_picture_given_twice_has_one_sidecar(tiny, album, run):
    command = ["caption", "album/a.png", "./album/a.png", "album", "--caption-extension", ".txt", "--model", tiny.path]
    code, _, err = run(*command)
    assert code == 1 and "9 captioned, 1 already done, 2 failed" in err and "another picture" not in err
    assert (album / "a.txt").read_text() == blip2rt.load(tiny.path).caption(album / "a.png") + "\n"
    code, _, err = run("caption", "album/a.png", "album/a.png", "--xmp", "--model", tiny.path)
    assert code == 0 and "1 captioned" in err


def test_prefix_suffix_and_template(tiny, album, run):
    caption = blip2rt.load(tiny.path).caption("album/a.png")
    around = ["--prefix", "photo: ", "--suffix", ", nice", "--template", "{folder}/{stem} {caption} {{x}}"]
    run("caption", "album/a.png", "--caption_extension", "caption", *around, "--model", tiny.path)
    assert (album / "a.caption").read_text() == f"album/a photo: {caption}, nice {{x}}\n"
    answer = tidy(blip2rt.load(tiny.path).ask("album/a.png", "what is red"))
    assert run("caption", "album/a.png", "--ask", "what is red", "--model", tiny.path)[1] == f"{answer}\n"
    assert_error(
        run("caption", "album/a.png", "--template", "{what}", "--model", tiny.path), "{what} is not a field", "{stem}"
    )
    assert_error(run("caption", "album/a.png", "--template", "none", "--model", tiny.path), "{caption} is missing")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_table_appends_only_new_pictures(tiny, album, run, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    out = Path(f"out.{ending}")
    command = ["caption", "-r", "album", "--out", out, "--model", tiny.path]
    assert run(*command)[0] == 1
    first = rows(out)
    model = blip2rt.load(tiny.path)
    assert [row["image"] for row in first] == [f"album/{name}" for name in sorted(GOOD, key=os.fsencode)] + [
        "album/sub/inner.png"
    ]
    for row in first:
        scored = model.caption(row["image"], scores=True)
        assert row["captions"] == [scored.text] and float(row["score"]) == pytest.approx(scored.score, abs=1e-3)
        assert row["model"] == "tiny"
        if ending == "jsonl":
            assert list(row) == ["image", "captions", "score", "truncated", "model", "ms", "asked"]
            assert row["ms"] is None and row["asked"] == ""
            assert row["truncated"] == scored.truncated
    data = out.read_bytes()
    assert "10 already done" in run(*command)[2] and out.read_bytes() == data
    (album / "z.png").write_bytes((album / "a.png").read_bytes())
    assert "1 captioned, 10 already done" in run(*command)[2]
    assert [row["image"] for row in rows(out)][-1] == "album/z.png" and rows(out)[:-1] == first
    assert sorted(path.name for path in Path().iterdir()) == ["album", out.name]


def rows(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            found = list(csv.DictReader(file))
        return [{**row, "captions": row["caption"].split("\n")} for row in found]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_torn_row_is_rewritten(tiny, album, run, ending):
    """A table truncated anywhere is completed to the same bytes."""
    out = Path(f"out.{ending}")
    command = ["caption", "album", "--out", out, "--model", tiny.path, "--num-captions", 2, "--batch-size", 4]
    run(*command)
    data = out.read_bytes()
    rng = random.Random(new_seed())
    for size in [0, 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(12))]:
        out.write_bytes(data[:size])
        run(*command)
        assert out.read_bytes() == data, size


def test_foreign_tables_are_rejected_unchanged(tiny, album, run):
    for name, text in (("a.jsonl", '{"a": 1}\n'), ("a.csv", "x,y\r\n"), ("a.jsonl", "words\n")):
        Path(name).write_bytes(text.encode())
        assert_error(run("caption", "album", "--out", name, "--model", tiny.path), name, "line 1", "--overwrite")
        assert Path(name).read_bytes() == text.encode()
    row = {"image": "album/a.png", "captions": ["a"], "score": 1.0, "model": "other", "asked": ""}
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    assert_error(run("caption", "album", "--out", "a.jsonl", "--model", tiny.path), "captions by other, not by tiny")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_table_rejects_other_text_flags(tiny, album, run, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    command = ["caption", "album/a.png", "--out", f"t.{ending}", "--model", tiny.path]
    asking = [*command, "--ask", "what is red"]
    assert run(*asking)[0] == 0
    data = tree(Path())
    assert "1 already done" in run(*asking)[2]
    for other, words in (
        (command, "not plain captions"),
        ([*asking, "--prefix", "x"], "not texts of --ask 'what is red' --prefix x"),
        ([*command, "--prompt", "a"], "not texts of --prompt a"),
        ([*command, "--template", "{stem}: {caption}"], "{stem}"),
    ):
        assert_error(run(*other), f"t.{ending} has texts of --ask 'what is red'", words, "--overwrite")
        assert tree(Path()) == data
    assert run(*command, "--overwrite")[0] == 0 and rows(Path(f"t.{ending}"))[0]["asked"] == ""


@POSIX
@pytest.mark.parametrize("output", ["", "--write txt", "--out x.jsonl", "--out x.csv", "--out x.parquet"])
def test_exit_status_2_and_no_output_if_everything_fails(tiny, album, run, output, monkeypatch):
    flags = output.split()
    if "x.parquet" in flags:
        pytest.importorskip("pyarrow")
    (album / "no folder").mkdir()
    listdir = os.listdir

    def unreadable(path):
        if str(path).endswith("no folder"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", unreadable)
    before = tree(Path())
    for bad in (["nothere.jpg"], ["*.xyz"], ["--from-file", "nolist.txt"], ["album/no folder"], ["album/bad.jpg"]):
        code, out, err = run("caption", *bad, *flags, "--model", tiny.path)
        assert code == 2 and out == "" and "Traceback" not in err, (bad, err)
        assert tree(Path()) == before, bad
    assert run("caption", "album/bad.jpg", "album/a.png", *flags, "--model", tiny.path)[0] == 1
    assert run("index", "album/no folder", "--out", "x", "--model", tiny.path)[0] == 2


def test_table_without_pictures_is_empty(tiny, album, run):
    Path("empty").mkdir()
    for name, data in (("x.jsonl", b""), ("x.csv", b"image,caption,score,model,asked\r\n")):
        assert run("caption", "empty", "--out", name, "--model", tiny.path)[0] == 0
        assert Path(name).read_bytes() == data


def test_rejected_parquet_leaves_no_files(tiny, album, run):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for column in ("x", "image"):
        parquet.write_table(arrow.table({column: ["a"]}), "foreign.parquet")
        before = tree(Path())
        command = ["caption", "album", "--out", "foreign.parquet", "--model", tiny.path]
        assert_error(run(*command), "foreign.parquet was not written by blip2rt", "--overwrite")
        assert tree(Path()) == before


@POSIX
def test_xmp_preserves_comments_and_file_mode(tiny, album, run):
    mine = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><!-- a < b --><rdf:RDF
    xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><!-- none yet --></dc:description><?mine too?>
    </rdf:Description></rdf:RDF></x:xmpmeta>"""
    (album / "a.xmp").write_text(mine)
    (album / "a.xmp").chmod(0o600)
    code, _, err = run("caption", "album/a.png", "--xmp", "--model", tiny.path)
    text = (album / "a.xmp").read_text()
    assert code == 0 and "1 captioned" in err and (album / "a.xmp").stat().st_mode & 0o777 == 0o600
    assert "<!-- a < b -->" in text and "<?mine too?>" in text
    assert blip2rt.load(tiny.path).caption(album / "a.png") in text
    (album / "b.txt").write_text("old")
    (album / "b.txt").chmod(0o640)
    run("caption", "album/b.jpg", "--write", "txt", "--overwrite", "--model", tiny.path)
    assert (album / "b.txt").stat().st_mode & 0o777 == 0o640


def test_xmp_preserves_other_fields(tiny, album, run):
    mine = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>"""
    (album / "a.xmp").write_text(mine)
    (album / "b.xmp").write_text("no XML")
    code, _, err = run("caption", "album", "--xmp", "--model", tiny.path)
    assert code == 1 and "8 captioned, 3 failed" in err and (album / "b.xmp").read_text() == "no XML"
    spaces = {"dc": "http://purl.org/dc/elements/1.1/", "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#"}
    for name in ("a", "c"):
        tree = ElementTree.parse(album / f"{name}.xmp")
        (item,) = tree.findall(".//dc:description/rdf:Alt/rdf:li", spaces)
        picture = next(album.glob(f"{name}.[pw]*"))
        assert item.text == blip2rt.load(tiny.path).caption(picture)
    assert 'xmp:Rating="4"' in (album / "a.xmp").read_text()
    assert "8 already done" in run("caption", "album", "--xmp", "--model", tiny.path)[2]


@pytest.mark.parametrize(
    ("mine", "done", "kept"),
    [
        ("<dc:description>My words</dc:description>", True, []),
        ('<rdf:Description rdf:about="" dc:description="My words"/>', True, []),
        (f"<dc:description><rdf:Alt>{DEFAULT}{GERMAN}</rdf:Alt></dc:description>", True, ["Worte"]),
        (f"<dc:description><rdf:Alt>{GERMAN}</rdf:Alt></dc:description>", True, ["Worte"]),
        ("<dc:description><rdf:Bag><rdf:li>My words</rdf:li></rdf:Bag></dc:description>", True, []),
        ("<dc:description><rdf:Alt><rdf:li xml:lang='x-default'> </rdf:li></rdf:Alt></dc:description>", False, []),
        ("<dc:description/>", False, []),
        ('<rdf:Description rdf:about="" dc:description=""/>', False, []),
    ],
)
def test_xmp_description_of_any_form_is_kept_or_replaced(tiny, album, run, mine, done, kept):
    rdf, dc = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/"
    holder = mine if mine.startswith("<rdf:Description") else f'<rdf:Description rdf:about="">{mine}</rdf:Description>'
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:dc="{dc}" xmlns:rdf="{rdf}">{holder}</rdf:RDF>'
    text += "</x:xmpmeta>"
    (album / "a.xmp").write_text(text)
    command = ["caption", "album/a.png", "--xmp", "--model", tiny.path]
    assert ("1 already done" in run(*command)[2]) == done
    assert ((album / "a.xmp").read_text() == text) == done
    run(*command, "--overwrite")
    root = ElementTree.parse(album / "a.xmp").getroot()
    items = [item.text for item in root.iterfind(f".//{{{dc}}}description/{{{rdf}}}Alt/{{{rdf}}}li")]
    assert items == [blip2rt.load(tiny.path).caption("album/a.png"), *kept]
    written = (album / "a.xmp").read_text()
    assert written.count("<dc:description") == 1 and "dc:description=" not in written and "My words" not in written


def test_failures_are_listed_and_strict_stops(tiny, album, run):
    code, _, err = run("caption", "album", "--out", "o.jsonl", "--errors", "e.tsv", "--model", tiny.path)
    listed = dict(line.split("\t") for line in Path("e.tsv").read_text().splitlines())
    assert code == 1 and list(listed) == ["album/bad.jpg", "album/cut.png"]
    assert err == "blip2rt: 9 captioned, 2 failed (listed in e.tsv)\n"
    run("caption", "album", "--out", "o.jsonl", "--errors", "e.jsonl", "--model", tiny.path)
    assert [json.loads(line)["image"] for line in Path("e.jsonl").read_text().splitlines()] == list(listed)
    assert_error(run("caption", "album", "--out", "s.jsonl", "--strict", "--model", tiny.path), "bad.jpg", "--strict")
    shard(Path("s.tar"), new_seed(), 6)
    assert_error(run("caption", "s.tar", "--out", "c", "--strict", "--model", tiny.path), "s.tar/0002.png", "--strict")
    assert "album/bad.jpg" in run("index", "album", "--out", "x", "--strict", "--model", tiny.path)[2]
    assert [row["image"] for row in rows(Path("s.jsonl"))] == ["album/a.png", "album/b.jpg"]


@POSIX
def test_links_and_several_names_of_a_file(tiny, album, run):
    (album / "sub" / "loop").symlink_to("..")
    (album / "sub" / "self").symlink_to("self")
    (album / "sub" / "gone.png").symlink_to("nowhere.png")
    os.link(album / "a.png", album / "sub" / "hard.png")
    os.mkfifo(album / "sub" / "pipe.png")
    code, out, err = run("caption", "-r", "album", "album/sub", "album/*.png", "--model", tiny.path)
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert code == 1 and len(names) == len(set(names)) == len(GOOD) + 2
    assert "album/sub/hard.png" in names and "gone.png' is a link to a missing file" in err and "pipe" not in err


@POSIX
def test_pattern_enters_each_folder_once(tmp_path, monkeypatch):
    """As glob.glob without links; circular links terminate."""
    monkeypatch.chdir(tmp_path)
    for name in ("g/a.png", "g/a/b/c.png", "g/a/b[1]/c.png", "g/.hidden/c.png", "g/z/b/d.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture(np.random.default_rng(new_seed())).save(name)
    patterns = "**/*.png g/**/*.png g/** ./g//**/b/*.png g/**/b/**/*.png **/b*/** */**/[cd].png g/*/*/*"
    for pattern in patterns.split():
        assert found(pattern) == sorted(filter(os.path.isfile, set(glob.glob(pattern, recursive=True)))), pattern
    for name, target in (("a/loop", ".."), ("l1", "."), ("l2", ".")):
        Path("g", name).symlink_to(target)
    assert found("g/**/*.png") == ["g/a.png", "g/a/b/c.png", "g/a/b[1]/c.png", "g/z/b/d.png"]
    assert found("g/**/b/**/*.png")[-1] == "g/z/b/d.png"


def found(*paths: str) -> list[str]:
    walked = [each.path for each in walk(Sources(paths))]
    assert len(set(walked)) == len(walked)
    return sorted(walked)


def test_pictures_are_never_overwritten(tiny, album, run):
    data = (album / "a.png").read_bytes()
    (album / "odd.txt").write_bytes(data)  # a picture by its content
    (album / "odd.png").write_bytes(data)
    (album / "a.jpeg").write_bytes(data)
    _, _, err = run("caption", "album", "--write", "txt", "--overwrite", "--model", tiny.path)
    assert (album / "odd.txt").read_bytes() == data
    assert err.count("odd.txt' would overwrite itself") == 1 and err.count("odd.txt' is a picture") == 1
    assert "album/a.png: 'album/a.txt' already belongs to another picture: rename it" in err
    (album / "c.cap").mkdir()
    command = ["caption", "album/c.webp", "--caption-extension", "cap", "--model", tiny.path]
    assert run(*command)[0] == 2 and "'album/c.cap' is a folder" in run(*command)[2]
    assert_error(
        run("caption", "album", "--caption-extension", ".PNG", "--model", tiny.path), "--caption-extension is '.PNG'"
    )
    (album / "a.jpeg").rename("picture.jsonl")
    shutil.copy("picture.jsonl", "picture.parquet"), Path("c").mkdir(), shutil.copy("picture.jsonl", "c/s.tar")
    shard(Path("s.tar"), new_seed(), 1)
    before, command = tree(Path()), ["caption", "album", "--overwrite", "--model", tiny.path]
    named = ["--out", "picture.jsonl"], ["--out", "picture.parquet"], ["--errors", "album/a.png", "--out", "o.csv"]
    for flags in named:
        assert_error(run(*command, *flags), "is a picture, which is never overwritten")
    assert_error(run("caption", "s.tar", "--out", "c", "--overwrite", "--model", tiny.path), "'c/s.tar' is a picture")
    assert tree(Path()) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "a.xml"], [".jsonl, .csv, .parquet", "'a.xml'"]),
        (["--out", "folder"], [".jsonl"]),
        (["--overwrite"], ["--write, --xmp or --out"]),
        (["--caption-extension", "a/b"], ["'a/b'", ".txt or .caption"]),
        (["--write", "xml"], ["choose from txt"]),
        (["--batch-size", "0"], ["from 1 to 1024"]),
        (["--json", "--write", "txt"], ["--json"]),
        (["--ask", "who?", "--prompt", "a"], ["prompt and question"]),
        (["--stream"], ["one image"]),
        (["--out", "none/a.jsonl"], ["folder 'none' does not exist"]),
        (["--out", "o.csv", "--errors", "./o.csv"], ["--out and --errors are the same file"]),
        (["--errors", "album/list", "--write", "txt", "--from-file", "album/list"], ["--from-file are the same file"]),
        (["--xmp", "--caption-extension", ".XMP"], ["--xmp and --caption-extension", "same file"]),
        (["s.tar", "--out", "c", "--xmp"], ["--xmp", "copies shards"]),
    ],
)
def test_usage_errors_are_one_line(tiny, album, run, flags, words):
    assert_error(run("caption", "album", *flags, "--model", tiny.path), *words)


@pytest.mark.parametrize(("flags", "said"), [([], "the same command resumes"), (["--overwrite"], "starts over")])
def test_ctrl_c_says_how_to_resume(tiny, album, run, monkeypatch, flags, said):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(captions, "prefetch", interrupted)
    code, _, err = run("caption", "album", "--out", "o.jsonl", *flags, "--model", tiny.path)
    assert code == 130 and said in err.splitlines()[0]


def test_missing_paths_are_an_error(tiny, run):
    assert_error(run("caption", "--model", tiny.path), "no pictures", "--from-file")


@POSIX
@pytest.mark.parametrize("output", ["txt", "jsonl", "tar"])
def test_killed_run_resumes_to_identical_bytes(tiny, tmp_path, output):
    rng, seed = random.Random(new_seed()), new_seed()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, killed):
        fill(place / "album", seed, 60)
        shard(place / "s.tar", seed, 60)
    command = ["caption", "--model", tiny.path, "--batch-size", 4, "--errors", "e.tsv", "--threads", 2]  # two lanes
    flags = {"txt": "-r album --write txt", "jsonl": "-r album --out o.jsonl", "tar": "s.tar --out copies"}
    command += flags[output].split()
    process = start(*command, cwd=whole)
    assert process.communicate(timeout=TIMEOUT)[1].endswith("failed (listed in e.tsv)\n")
    for _ in range(12):
        process = start(*command, cwd=killed)
        time.sleep(rng.uniform(0.3, 0.9))
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        process.communicate(timeout=TIMEOUT)
        if process.returncode == 1:
            break
    copied = (killed / "copies" / "s.tar").exists()  # its bad pictures were counted by who copied it
    assert start(*command, cwd=killed).wait(TIMEOUT) == (0 if copied else 1)
    if output == "tar":
        (whole / "e.tsv").unlink(), (killed / "e.tsv").unlink()  # a whole copy is not read again
    assert tree(killed) == tree(whole)


def test_shards_are_copied_with_captions(tiny, album, run, tmp_path):
    shard(tmp_path / "s.tar", new_seed(), 6)
    code, _, err = run("caption", "s*.tar", "--out", "copies", "--model", tiny.path)
    assert code == 1 and "4 captioned, 1 failed" in err
    with tarfile.open("s.tar") as old, tarfile.open("copies/s.tar") as new:
        want = [name for name in old.getnames() if name not in ("0002.txt", "0003.txt")]
        assert sorted(new.getnames()) == sorted(want)
        for name in new.getnames():
            data = new.extractfile(name).read()
            if name.endswith(".txt"):
                picture = old.extractfile(name.replace(".txt", ".png")).read()
                assert data.decode() == blip2rt.load(tiny.path).caption(picture) + "\n"
            else:
                assert data == old.extractfile(name).read()
    assert "already done" in run("caption", "s.tar", "--out", "copies", "--model", tiny.path)[2]
    assert "s.tar/0000.png\t" in run("caption", "s.tar", "--model", tiny.path)[1]
    assert_error(run("caption", "s.tar", "album", "--out", "copies", "--model", tiny.path), "'album' is not a shard")
    assert_error(run("caption", "sh/none.tar", "--out", "copies", "--model", tiny.path), "no such file: 'sh/none.tar'")
    assert run("caption", "s.tar", "--out", "copies.v1", "--model", tiny.path)[0] == 1
    assert tree(Path("copies.v1")) == tree(Path("copies"))
    Path("bad.tar").write_bytes(b"x" * 2000)
    code, _, err = run("caption", "*.tar", "--out", "copies", "--model", tiny.path)
    assert code == 1 and "bad.tar" in err and "1 failed" in err


def drop_root_file_access() -> None:
    """Make a process started by root obey file modes: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    import ctypes

    for capability in (1, 2) if os.geteuid() == 0 else ():
        if ctypes.CDLL(None, use_errno=True).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            raise OSError(ctypes.get_errno(), "PR_CAPBSET_DROP")


@pytest.mark.skipif(sys.platform != "linux", reason="file modes and root's capabilities")
def test_read_only_and_unreadable_folders(tiny, album):
    for name in ("read only", "closed", "open"):
        (album / name).mkdir()
        shutil.copy(album / "a.png", album / name)
    closed = Path("album/closed/a.png")
    shutil.copy("album/a.png", "album/locked.png")
    (album / "read only").chmod(0o555), (album / "closed").chmod(0), (album / "locked.png").chmod(0)
    try:
        try:
            sees = (
                subprocess.run(["cat", closed], preexec_fn=drop_root_file_access, capture_output=True).returncode == 0
            )
        except subprocess.SubprocessError:
            sees = True
        if sees:
            pytest.skip("this root user cannot drop its access")
        command = ["caption", "-r", "album", "--model", tiny.path, "--errors", "e.jsonl"]
        for output, failed in ((["--write", "txt"], {"album/read only/a.png"}), (["--out", "o.jsonl"], set())):
            process = start(*command, *output, preexec_fn=drop_root_file_access)
            _, err = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 1 and "Traceback" not in err, err
            listed = {row["image"]: row["error"] for row in map(json.loads, Path("e.jsonl").read_text().splitlines())}
            assert set(listed) == {"album/bad.jpg", "album/cut.png", "album/locked.png", "album/closed"} | failed
            assert "Permission denied" in listed["album/closed"] and "Permission denied" in listed["album/locked.png"]
        assert (album / "open" / "a.txt").exists() and [*(album / "read only").iterdir()] == [album / "read only/a.png"]
        assert {"album/read only/a.png", "album/open/a.png"} <= {row["image"] for row in rows(Path("o.jsonl"))}
        process = start("caption", "album/closed", "--model", tiny.path, preexec_fn=drop_root_file_access)
        assert "cannot read the folder 'album/closed'" in process.communicate(timeout=TIMEOUT)[1]
        assert process.returncode == 2
    finally:
        (album / "read only").chmod(0o755), (album / "closed").chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE and /dev/full")
@pytest.mark.parametrize("flags", [["--write", "txt", "--prefix", "x" * 3000], ["--out", "o.jsonl"]])
def test_full_disk_is_one_line_and_the_run_resumes(tiny, album, run, flags):
    import resource

    before = tree(Path())
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))  # noqa: E731
    command = ["caption", "album", "--model", tiny.path, "--batch-size", 2, *flags]
    process = start(*command, preexec_fn=limit)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2 and "File too large" in err.splitlines()[-1] and "Traceback" not in err
    after = tree(Path())
    assert all(after[name] == before[name] for name in before)
    assert all(line.endswith("}") for line in after.get("o.jsonl", b"").decode().splitlines())
    assert "9 captioned" in run(*command)[2] or "already done" in run(*command)[2]
    assert not [name for name in tree(Path()) if ".part" in name]


def test_heic_needs_its_extra(tiny, album, run, monkeypatch):
    shutil.copy(Path(__file__).parent / "kitten.heic", album / "named wrong.jpg")  # docs/photo.jpg, small
    command = ["caption", "album/named wrong.jpg", "--model", tiny.path]
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    assert_error(run(*command), "is HEIC", "pip install ", "[heic]")
    monkeypatch.undo()
    pytest.importorskip("pi_heif")
    monkeypatch.chdir(album.parent)
    kitten = Image.open(ROOT / "docs" / "photo.jpg").convert("RGB").resize((96, 64))
    ours = load_rgb(album / "named wrong.jpg")
    assert ours.size == (96, 64) and np.abs(np.asarray(ours, int) - np.asarray(kitten, int)).mean() < 12
    assert run(*command)[0] == 0


def test_missing_package_names_its_extra(tiny, album, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_error(run("caption", "album", "--out", "a.parquet", "--model", tiny.path), "pip install ", "[parquet]")
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    monkeypatch.setattr(index, "MAX_EXACT", 4)
    command = ["index", "album", "--out", "x", "--model", tiny.path]
    assert_error(run(*command, "--format", "clip-retrieval"), "pip install ", "[parquet]")
    assert not Path("x").exists()
    for _ in range(2):  # without usearch search is slower, and finds the same
        code, _, err = run(*command)
        assert code == 1 and "more than 4 pictures, each of which is scored in every search" in err.splitlines()[0]
        assert "pip install " in err and "[gallery]" in err
    found = run("search", "x", "a dog", "-n", 10, "--model", tiny.path)
    assert found[0] == 0 and found == run("search", "x", "a dog", "-n", 10, "--exact", "--model", tiny.path)
    monkeypatch.setattr(index, "MAX_EXACT", 4096)
    assert "usearch" not in run(*command)[2]


def test_walk_memory_does_not_grow_with_name_length(tmp_path):
    """A walk over 20,000 names keeps only a hash of each."""
    fill(tmp_path / "album", new_seed())
    for i in range(20_000):
        os.link(tmp_path / "album" / "a.png", tmp_path / "album" / f"{i:06d} {'name' * 20}.png")
    tracemalloc.start()
    count, walked = 0, walk(Sources((str(tmp_path / "album"),)))
    for _ in walked:
        count += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000 + len(GOOD) + 2 and peak < 8 << 20


def test_options_may_stand_between_positional_arguments(tiny, album, run):
    run("caption", "album/a.png", "--write", "txt", "album/b.jpg", "--model", tiny.path)
    run("index", "--out", "x", "album", "--model", tiny.path)
    assert (album / "a.txt").exists() and (album / "b.txt").exists()
    assert run("search", "x", "--rerank", 2, "a dog", "--model", tiny.path)[0] == 0
    assert "unknown option --rerang: did you mean --rerank?" in run("search", "x", "--rerang", 2, "a dog")[2]
