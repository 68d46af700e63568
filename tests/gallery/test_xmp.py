"""XMP sidecars."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.gallery.helpers import POSIX

pytestmark = pytest.mark.long(2, "files as other programs read them")

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
    mine = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>"""
    (album / "a.xmp").write_text(mine)
    (album / "b.xmp").write_text("no XML")
    code, _, err = run("caption", "album", "--xmp")
    assert code == 1 and "8 captioned, 3 failed" in err and (album / "b.xmp").read_text() == "no XML"
    spaces = {"dc": "http://purl.org/dc/elements/1.1/", "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#"}
    for name in ("a", "c"):
        tree = ElementTree.parse(album / f"{name}.xmp")
        (item,) = tree.findall(".//dc:description/rdf:Alt/rdf:li", spaces)
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
        ("<dc:description><rdf:Bag><rdf:li>My words</rdf:li></rdf:Bag></dc:description>", True, []),
        ("<dc:description><rdf:Alt><rdf:li xml:lang='x-default'> </rdf:li></rdf:Alt></dc:description>", False, []),
        ("<dc:description/>", False, []),
        ('<rdf:Description rdf:about="" dc:description=""/>', False, []),
    ],
)
def test_xmp_description_of_any_form_is_kept_or_replaced(model, album, run, mine, done, kept):
    rdf, dc = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/"
    holder = mine if mine.startswith("<rdf:Description") else f'<rdf:Description rdf:about="">{mine}</rdf:Description>'
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:dc="{dc}" xmlns:rdf="{rdf}">{holder}</rdf:RDF>'
    text += "</x:xmpmeta>"
    (album / "a.xmp").write_text(text)
    command = ["caption", "album/a.png", "--xmp"]
    assert ("1 already done" in run(*command)[2]) == done
    assert ((album / "a.xmp").read_text() == text) == done
    run(*command, "--overwrite")
    root = ElementTree.parse(album / "a.xmp").getroot()
    items = [item.text for item in root.iterfind(f".//{{{dc}}}description/{{{rdf}}}Alt/{{{rdf}}}li")]
    assert items == [model.caption("album/a.png"), *kept]
    written = (album / "a.xmp").read_text()
    assert written.count("<dc:description") == 1 and "dc:description=" not in written and "My words" not in written
