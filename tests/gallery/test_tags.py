"""`blip2rt tag` in every output, captions that are not certain, and XMP sidecars."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import blip2rt
from blip2rt.bundle.manifest import Calibration, Logistic
from blip2rt.cli import main
from tests.gallery.helpers import POSIX
from tests.tiny.bundle import Tiny, calibrated, with_likelihood_weight

pytestmark = pytest.mark.long(5, "whole folders from the command to the files")

SPACES = {"dc": "http://purl.org/dc/elements/1.1/", "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#"}
SPACES |= {"lr": "http://ns.adobe.com/lightroom/1.0/", "digiKam": "http://www.digikam.org/ns/1.0/"}
RATED = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>"""
SURE = Logistic(3.0, {"words": 0.0})
Tag = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(tiny: Tiny, tmp_path: Path) -> Path:
    folder = with_likelihood_weight(tiny, tmp_path / "calibrated", 0.4)
    label = Logistic(1.0, {"nearness": 1.0})
    return calibrated(folder, Calibration(SURE, SURE, label, Logistic(-1.0, {"words": 0.0})))


@pytest.fixture
def call(bundle: Path, capsys: pytest.CaptureFixture[str], album: Path) -> Tag:
    (album.parent / "labels.txt").write_text("dog\nanimal|cat\nplace|water|sea\n")

    def call(command: str, *arguments: str) -> tuple[int, str, str]:
        return main([command, *arguments, "--model", str(bundle)]), *capsys.readouterr()

    return call


CHOSEN = ("--labels", "labels.txt", "--threshold", "0")


def test_labels_are_printed(call: Tag, bundle: Path, album: Path) -> None:
    want = blip2rt.load(bundle).tag(album / "a.png", ["dog", "animal|cat", "place|water|sea"], threshold=0)
    assert len(want) == 3
    assert call("tag", "album/a.png", *CHOSEN)[1] == f"{', '.join(want)}\n"
    row = json.loads(call("tag", "album/a.png", *CHOSEN, "--json")[1])
    assert row["tags"] == want and row["parents"] == [list(tag.parents) for tag in want]
    assert row["probabilities"] == pytest.approx([tag.probability for tag in want], abs=1e-4)
    code, out, err = call("tag", "album", *CHOSEN, "--top", "1")
    assert code == 1 and len(out.splitlines()) == 9 and f"album/a.png\t{want[0]}\n" in out and "9 labelled" in err
    assert call("tag", "album/a.png", *CHOSEN[:2], "--threshold", "1") == (0, "\n", "")


def test_files_hold_the_labels_and_are_not_written_twice(call: Tag, bundle: Path, album: Path) -> None:
    want = ", ".join(blip2rt.load(bundle).tag(album / "a.png", ["dog", "animal|cat", "place|water|sea"], threshold=0))
    assert "1 labelled" in call("tag", "album/a.png", *CHOSEN, "--out", "tags.csv")[2]
    for flags in (["--write", "txt"], ["--out", "tags.jsonl"], ["--xmp"]):
        assert "1 labelled" in call("tag", "album/a.png", *CHOSEN, *flags)[2]
        assert "0 labelled, 1 already done" in call("tag", "album/a.png", *CHOSEN, *flags)[2]
    assert (album / "a.txt").read_text() == f"{want}\n"
    [row] = map(json.loads, Path("tags.jsonl").read_text().splitlines())
    assert ", ".join(row["tags"]) == want and row["image"] == "album/a.png" and len(row["probabilities"]) == 3
    assert row["asked"] == "--labels labels.txt --top 10 --threshold 0"
    with open("tags.csv", newline="") as file:
        [record] = csv.DictReader(file)
    assert record["tags"].split("\n") == want.split(", ")
    code, _, err = call("tag", "album/b.jpg", "--labels", "labels.txt", "--out", "tags.jsonl")
    assert code == 2 and "give another file, or --overwrite" in err
    code, _, err = call("caption", "album/b.jpg", "--out", "tags.jsonl")
    assert code == 2 and "was not written by blip2rt" in err


def test_xmp_has_keywords_for_lightroom_and_digikam(call: Tag, album: Path) -> None:
    (album / "b.xmp").write_text(RATED)
    call("caption", "album/b.jpg", "--xmp")
    for name in ("a.png", "b.jpg"):
        assert call("tag", f"album/{name}", *CHOSEN, "--xmp")[0] == 0
        tree = ElementTree.parse(album / f"{name[0]}.xmp")
        found = {
            field: [item.text for item in tree.findall(f".//{field}/rdf:{kind}/rdf:li", SPACES)]
            for field, kind in (("dc:subject", "Bag"), ("lr:hierarchicalSubject", "Bag"), ("digiKam:TagsList", "Seq"))
        }
        assert sorted(found["dc:subject"]) == ["cat", "dog", "sea"]
        assert sorted(found["lr:hierarchicalSubject"]) == ["animal|cat", "dog", "place|water|sea"]
        assert sorted(found["digiKam:TagsList"]) == ["animal/cat", "dog", "place/water/sea"]
    text = (album / "b.xmp").read_text()
    assert 'xmp:Rating="4"' in text and tree.find(".//dc:description", SPACES) is not None
    call("tag", "album/b.jpg", *CHOSEN, "--top", "1", "--xmp", "--overwrite")
    tree = ElementTree.parse(album / "b.xmp")
    assert len(tree.findall(".//rdf:li", SPACES)) == 4  # a caption, and one label in each of three fields


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--labels", "absent.txt"], "cannot read 'absent.txt': No such file or directory; give a file of labels"),
        (["--labels", "empty.txt"], "there are no labels: give one or more"),
        (["--threshold", "2"], "threshold is 2.0: give a probability from 0 to 1"),
        (["--json", "--write", "txt"], "--json prints"),
    ],
)
def test_wrong_input_is_one_line(call: Tag, arguments: list[str], problem: str) -> None:
    Path("empty.txt").write_text("\n# none\n")
    code, out, err = call("tag", "album/a.png", *arguments)
    assert code == 2 and not out and problem in err and err.count("\n") == 1


def test_a_bundle_without_calibration_says_what_is_missing(run: Any, album: Path) -> None:
    for arguments in (["tag", "album/a.png"], ["caption", "album/a.png", "--min-confidence", "0.5"]):
        code, out, err = run(*arguments)
        assert code == 2 and not out and "blip2rt-train calibrate adds it" in err and err.count("\n") == 1


def test_uncertain_captions_are_hedged_or_left_out(call: Tag, bundle: Path, album: Path) -> None:
    caption = blip2rt.load(bundle).caption(album / "a.png", forced_prefix="a dog")  # confidence 1 / (1 + e)
    image = "album/a.png", "--forced-prefix", "a dog"  # without words, it would be 0
    assert call("caption", *image, "--min-confidence", "0.2")[1] == f"{caption}\n"
    assert call("caption", *image, "--min-confidence", "0.3")[1] == f"maybe {caption}\n"
    assert call("caption", *image, "--min-confidence", "0.3", "--unsure", "silent")[1] == "\n"
    row = json.loads(call("caption", *image, "--json")[1])
    assert row["caption"] == caption and row["confidence"] == pytest.approx(0.2689, abs=1e-4)
    code, _, err = call("caption", *image, "--min-confidence", "1.1")
    assert code == 2 and "--min-confidence is 1.1: give a probability from 0 to 1" in err
    assert call("caption", *image, "--ask", "who is it?", "--min-confidence", "0.5")[0] == 2


DEFAULT, GERMAN = "<rdf:li xml:lang='x-default'>My words</rdf:li>", "<rdf:li xml:lang='de'>Worte</rdf:li>"


@POSIX
def test_xmp_preserves_comments_and_file_mode(model, album, run):
    mine = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><!-- a < b --><rdf:RDF
    xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><!-- none yet --></dc:description><?mine too?>
    </rdf:Description></rdf:RDF></x:xmpmeta>"""
    (album / "a.xmp").write_text(mine)
    (album / "a.xmp").chmod(0o600)
    code, _, err = run("caption", "album/a.png", "--xmp")
    text = (album / "a.xmp").read_text()
    assert code == 0 and "1 captioned" in err and (album / "a.xmp").stat().st_mode & 0o777 == 0o600
    assert "<!-- a < b -->" in text and "<?mine too?>" in text
    assert model.caption(album / "a.png") in text
    (album / "b.txt").write_text("old")
    (album / "b.txt").chmod(0o640)
    run("caption", "album/b.jpg", "--write", "txt", "--overwrite")
    assert (album / "b.txt").stat().st_mode & 0o777 == 0o640


def test_xmp_may_be_named_after_the_whole_file_name(album, run):
    (album / "a.jpg").write_bytes((album / "b.jpg").read_bytes())  # next to a.png
    code, _, err = run("caption", "album/a.png", "album/a.jpg", "--xmp-name", "photo.jpg.xmp")
    assert code == 0 and "2 captioned" in err and (album / "a.png.xmp").exists() and (album / "a.jpg.xmp").exists()
    assert not (album / "a.xmp").exists()
    assert "2 already done" in run("caption", "album/a.png", "album/a.jpg", "--xmp-name", "photo.jpg.xmp")[2]
    assert "already belongs to another picture" in run("caption", "album/a.png", "album/a.jpg", "--xmp")[2]


def test_xmp_preserves_other_fields(model, album, run):
    (album / "a.xmp").write_text(RATED)
    (album / "b.xmp").write_text("no XML")
    code, _, err = run("caption", "album", "--xmp")
    assert code == 1 and "8 captioned, 3 failed" in err and (album / "b.xmp").read_text() == "no XML"
    for name in ("a", "c"):
        tree = ElementTree.parse(album / f"{name}.xmp")
        (item,) = tree.findall(".//dc:description/rdf:Alt/rdf:li", SPACES)
        picture = next(album.glob(f"{name}.[pw]*"))
        assert item.text == model.caption(picture)
    assert 'xmp:Rating="4"' in (album / "a.xmp").read_text()
    assert "8 already done" in run("caption", "album", "--xmp")[2]


@pytest.mark.parametrize(
    ("mine", "done", "kept"),
    [
        ("<dc:description>My words</dc:description>", True, []),
        ('<rdf:Description rdf:about="" dc:description="My words"/>', True, []),
        (f"<dc:description><rdf:Alt>{DEFAULT}{GERMAN}</rdf:Alt></dc:description>", True, ["Worte"]),
        (f"<dc:description><rdf:Alt>{GERMAN}</rdf:Alt></dc:description>", True, ["Worte"]),
        ("<dc:description><rdf:Alt><rdf:li>My words</rdf:li></rdf:Alt></dc:description>", True, []),
        ("<dc:description><rdf:Bag><rdf:li>My words</rdf:li></rdf:Bag></dc:description>", True, []),
        ("<dc:description><rdf:Alt><rdf:li xml:lang='x-default'> </rdf:li></rdf:Alt></dc:description>", False, []),
        ("<dc:description/>", False, []),
        ('<rdf:Description rdf:about="" dc:description=""/>', False, []),
    ],
)
def test_xmp_description_of_any_form_is_kept_or_replaced(model, album, run, mine, done, kept):
    holder = mine if mine.startswith("<rdf:Description") else f'<rdf:Description rdf:about="">{mine}</rdf:Description>'
    names = " ".join(f'xmlns:{name}="{SPACES[name]}"' for name in ("dc", "rdf"))
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {names}>{holder}</rdf:RDF></x:xmpmeta>'
    (album / "a.xmp").write_text(text)
    command = ["caption", "album/a.png", "--xmp"]
    assert ("1 already done" in run(*command)[2]) == done
    assert ((album / "a.xmp").read_text() == text) == done
    run(*command, "--overwrite")
    items = ElementTree.parse(album / "a.xmp").findall(".//dc:description/rdf:Alt/rdf:li", SPACES)
    assert [item.text for item in items] == [model.caption("album/a.png"), *kept]
    written = (album / "a.xmp").read_text()
    assert written.count("<dc:description") == 1 and "dc:description=" not in written and "My words" not in written
