"""Broken samples of every kind: counted, listed with their file's name, left out up to `max_bad`; never a traceback."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.vision import VisionConfig
from blip2rt_train import prepare
from blip2rt_train.data import features
from blip2rt_train.data.features import open_features
from blip2rt_train.data.readers import read_data
from blip2rt_train.data.samples import BadSamples, Sample
from blip2rt_train.data.sampling import Mixture
from blip2rt_train.data.shards import Shards, parse_texts
from blip2rt_train.data.streaming import SampleReader, load_batches, open_sources
from blip2rt_train.data.transforms import eval_transform, read_image
from blip2rt_train.evaluation.annotations import drop_unreadable_images, read_captions, read_questions
from tests.train.shard_files import write_shard

SURROGATE, LONG = "\\ud800", "x" * 300


def picture(form: str = "JPEG", size: tuple[int, int] = (20, 16)) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("0.jpg", "1.jpg"):
        (folder / name).write_bytes(picture())
    return folder


# One entry of a JSON list, between two valid ones.
ENTRIES: dict[str, str] = {
    "a number": "5",
    "a list": '["0.jpg", "a dog"]',
    "no image": '{"caption": "a dog"}',
    "no caption": '{"image": "0.jpg"}',
    "a caption of null": '{"image": "0.jpg", "caption": null}',
    "a caption that is a number": '{"image": "0.jpg", "caption": 5}',
    "a caption of dots": '{"image": "0.jpg", "caption": "..."}',
    "a caption of spaces": '{"image": "0.jpg", "caption": " \\n "}',
    "no captions in the list": '{"image": "0.jpg", "captions": []}',
    "objects without text": '{"image": "0.jpg", "captions": [{"sentence": "a dog"}]}',
    "an image that is a number": '{"image": 7, "caption": "a dog"}',
    "an image without name": '{"image": "", "caption": "a dog"}',
    "an image that is missing": '{"image": "nowhere.jpg", "caption": "a dog"}',
    "an image outside of the folder": '{"image": "../images/1.jpg", "caption": "a dog"}',
    "an image with a null character": '{"image": "0\\u0000.jpg", "caption": "a dog"}',
    "an image with a very long name": f'{{"image": "{LONG}.jpg", "caption": "a dog"}}',
    "half a surrogate": f'{{"image": "0.jpg", "caption": "a dog {SURROGATE}"}}',
    "a question that is a number": '{"image": "0.jpg", "question": 5, "answer": "two"}',
    "an empty answer": '{"image": "0.jpg", "question": "how many?", "answer": ""}',
    "counts that are no numbers": '{"image": "0.jpg", "question": "how many?", "answers": {"two": "x"}}',
    "counts below nothing": '{"image": "0.jpg", "question": "how many?", "answers": {"two": -1}}',
    "counts without end": '{"image": "0.jpg", "question": "how many?", "answers": {"two": 1000000000000}}',
}
GOOD = '{"image": "0.jpg", "caption": "a dog"}', '{"image": "1.jpg", "captions": "a cat"}'


def assert_skipped(path: Path, images: Path, kept: list[str], images_left: int = 2) -> BadSamples:
    """Assert that one bad sample is skipped, `kept` are the other texts, and max_bad 0 raises one line."""
    bad = BadSamples(1, path.with_suffix(".bad"))
    data = read_data(path, images, bad)
    assert [sample.text for sample in data.samples] == kept and len(data.paths) == images_left
    assert len(bad.found) == 1 and path.with_suffix(".bad").read_text().count("\n") == 1
    with pytest.raises(Blip2rtError) as error:
        read_data(path, images, BadSamples(0))
    message = str(error.value)
    assert "\n" not in message and (str(path) in message or str(images) in message)
    message.encode()
    return bad


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("form", [".jsonl", ".json"])
def test_invalid_json_entry_is_skipped(images: Path, kind: str, form: str) -> None:
    lines = [GOOD[0], ENTRIES[kind], GOOD[1]]
    path = images.parent / f"list{form}"
    path.write_text("\n".join(lines) if form == ".jsonl" else f"[{','.join(lines)}]")
    assert_skipped(path, images, ["a dog", "a cat"])


@pytest.mark.parametrize("line", ["{", "a dog", "[" * 100_000, '{"image": "0.jpg", "caption": "a dog"', "\x00", "\xff"])
def test_invalid_json_line_is_skipped(images: Path, line: str) -> None:
    path = images.parent / "list.jsonl"
    path.write_bytes(b"\n".join([GOOD[0].encode(), line.encode("latin-1"), GOOD[1].encode()]))
    bad = assert_skipped(path, images, ["a dog", "a cat"])
    assert f"{path}, line 2" in bad.found


def test_one_invalid_caption_is_skipped_alone(images: Path) -> None:
    path = images.parent / "list.jsonl"
    path.write_text('{"image": "0.jpg", "captions": ["a dog", null, {"caption": "a cat"}]}\n' + GOOD[1])
    assert f"{path}, line 1, text 2" in assert_skipped(path, images, ["a dog", "a cat", "a cat"]).found


COCO: dict[str, tuple[list[Any], list[Any]]] = {  # images, annotations beside the good ones
    "an annotation of null": ([], [None]),
    "an annotation without image": ([], [{"id": 9, "caption": "a dog"}]),
    "an annotation of a list's image": ([], [{"id": 9, "image_id": [1], "caption": "a dog"}]),
    "an annotation of another image": ([], [{"id": 9, "image_id": 99, "caption": "a dog"}]),
    "a caption of null": ([], [{"id": 9, "image_id": 1, "caption": None}]),
    "a caption that is a list": ([], [{"id": 9, "image_id": 1, "caption": ["a dog"]}]),
    "an image of null": ([None], []),
    "an image without name": ([{"id": 5}], []),
    "an image without id": ([{"file_name": "0.jpg"}], []),
}


@pytest.mark.parametrize("kind", COCO)
def test_invalid_coco_annotation_is_skipped(images: Path, kind: str) -> None:
    more_images, more = COCO[kind]
    path = images.parent / "coco.json"
    good = [{"id": i, "image_id": i, "caption": text} for i, text in ((1, "a dog"), (2, "cat"))]
    listed = [{"id": 1, "file_name": "0.jpg"}, *more_images, {"id": 2, "file_name": "1.jpg"}]
    path.write_text(json.dumps({"images": listed, "annotations": [good[0], *more, good[1]]}))
    assert_skipped(path, images, ["a dog", "cat"])


VQA: dict[str, Any] = {
    "null": None,
    "no question_id": {"image_id": 0, "answers": [{"answer": "no"}]},
    "a question that is not asked": {"question_id": 8, "image_id": 0, "answers": [{"answer": "no"}]},
    "an image_id that is a text": {"question_id": 1, "image_id": "0", "answers": [{"answer": "no"}]},
    "no answers": {"question_id": 1, "image_id": 0},
    "answers of null": {"question_id": 1, "image_id": 0, "answers": [None]},
    "an answer of null": {"question_id": 1, "image_id": 0, "answers": [{"answer": None}]},
}


@pytest.mark.parametrize("kind", VQA)
def test_invalid_vqa_answer_is_skipped(images: Path, kind: str) -> None:
    folder = images / "train2014"
    folder.mkdir()
    for number in (0, 1):
        (folder / f"COCO_train2014_{number:012d}.jpg").write_bytes(picture())
    good = [{"question_id": i, "image_id": i, "answers": [{"answer": "yes"}]} for i in (0, 1)]
    path = images.parent / "v2_mscoco_train2014_annotations.json"
    path.write_text(json.dumps({"data_subtype": "train2014", "annotations": [good[0], VQA[kind], good[1]]}))
    questions = [{"question_id": i, "image_id": i, "question": "is it?"} for i in (0, 1)]
    other = images.parent / "v2_OpenEnded_mscoco_train2014_questions.json"
    other.write_text(json.dumps({"questions": [*questions, None, {"question_id": 5}]}))
    assert_skipped(path, images, ["yes", "yes"])


TABLES: dict[str, bytes] = {
    "one column": b"0.jpg\n",
    "no caption": b"0.jpg\t\n",
    "dots": b"0.jpg\t...\n",
    "no image": b"\ta dog\n",
    "latin-1": b"0.jpg\tun \xe9l\xe9phant\n",
    "a missing image": b"nowhere.jpg\ta dog\n",
    "a name in latin-1": b"\xe9.jpg\ta dog\n",
    "a field without end": b"0.jpg\t" + b"a" * 200_000 + b"\n",
    "a name that is too long": LONG.encode() + b".jpg\ta dog\n",
}


@pytest.mark.parametrize(
    ("form", "kind"),  # no reader of tables cuts the lines of .token
    [pair for pair in product([".tsv", ".csv", ".token"], TABLES) if pair != (".token", "a field without end")],
)
def test_invalid_table_row_is_skipped(images: Path, kind: str, form: str) -> None:
    header, rows = b"image\tcaption\n", [b"0.jpg\ta dog\n", TABLES[kind], b"1.jpg\ta cat\n"]
    if form == ".csv":
        header, rows = header.replace(b"\t", b","), [row.replace(b"\t", b",") for row in rows]
    if form == ".token":
        header, rows = b"", [row.replace(b"\t", b"#0\t", 1) for row in rows]
    path = images.parent / f"list{form}"
    path.write_bytes(header + b"".join(rows))
    assert_skipped(path, images, ["a dog", "a cat"])


def test_tables_of_other_encodings_are_one_line(images: Path) -> None:
    for name, content in {
        "list.tsv": "image\tcaption\n0.jpg\ta dog\n".encode("utf-16"),
        "list.csv": "image,caption\n0.jpg,a dog\n".encode("utf-16"),
        "list.json": "[]".encode("utf-16"),
        "deep.json": b"[" * 100_000,
        "number.json": b"5",
        "images.json": b'{"images": 5, "annotations": []}',
        "binary.csv": bytes(range(256)),
        "binary.tsv": bytes(range(256)),
    }.items():
        (images.parent / name).write_bytes(content)
        with pytest.raises(Blip2rtError, match=name) as error:
            read_data(images.parent / name, images, BadSamples(9))
        str(error.value).encode()


def test_table_with_byte_order_mark_is_read(images: Path) -> None:
    path = images.parent / "list.tsv"
    path.write_bytes("\ufeffimage\tcaption\n0.jpg\ta dog\n".encode())
    assert [sample.text for sample in read_data(path, images).samples] == ["a dog"]


@pytest.mark.parametrize("kind", ["none", "empty", "a folder", "latin-1", "dots", "not to be read"])
def test_invalid_text_file_is_skipped(images: Path, kind: str) -> None:
    if kind == "not to be read" and os.getuid() == 0:
        pytest.skip("root reads everything")
    for name, text in (("0", "a dog"), ("1", "a cat")):
        (images / f"{name}.txt").write_text(text)
    (images / "2.jpg").write_bytes(picture())
    (images / "folder.jpg").mkdir()
    text = images / "2.txt"
    if kind == "a folder":
        text.mkdir()
    elif kind != "none":
        text.write_bytes({"empty": b"\n", "latin-1": b"\xe9l\xe9phant", "dots": b"..."}.get(kind, b"a"))
    if kind == "not to be read":
        text.chmod(0)
    bad = BadSamples(1)
    assert [sample.text for sample in read_data(images, bad=bad).samples] == ["a dog", "a cat"]
    assert len(bad.found) == 1 and "/2." in next(iter(bad.found))


# Pictures


def bomb() -> bytes:
    """A PNG whose header claims 30,000 x 30,000 pixels."""
    body = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", body), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def damaged_png() -> bytes:
    content = picture("PNG")
    return content[:60] + b"\x00" * 20 + content[80:]


PICTURES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a text": lambda: b"<html>404</html>",
    "zeros": lambda: bytes(4096),
    "a header alone": lambda: picture()[:30],
    "a JPEG cut off": lambda: picture(size=(200, 160))[:9000],
    "a PNG cut off": lambda: picture("PNG")[:-400],
    "a PNG of damaged numbers": damaged_png,
    "a GIF cut off": lambda: picture("GIF")[:40],
    "a WebP cut off": lambda: picture("WEBP")[:60],
    "a TIFF cut off": lambda: picture("TIFF")[:100],
    "a BMP cut off": lambda: picture("BMP")[:100],
    "a decompression bomb": bomb,
    "a tar": lambda: tarfile.TarInfo("a").tobuf(),
}


def listed(images: Path, kind: str) -> Path:
    """A table of three images, the second of which is damaged."""
    (images / "2.jpg").write_bytes(PICTURES[kind]())
    path = images.parent / "list.tsv"
    path.write_text("image\tcaption\n0.jpg\ta dog\n2.jpg\ta bird\n1.jpg\ta cat\n")
    return path


@pytest.mark.parametrize("kind", PICTURES)
def test_shards_are_written_without_damaged_images(images: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = images.parent / "out"
    arguments = ["shards", "--data", str(listed(images, kind)), "--images", str(images)]
    assert prepare.main([*arguments, "--out", str(out), "--max-bad", "0"]) == 2 and not out.exists()
    assert "2.jpg" in capsys.readouterr().err
    assert prepare.main([*arguments, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "2 images, 1 skipped" in output and "2.jpg" in output
    shards = Shards(str(out), out)
    assert sorted(shards.read(i)[1][0].text for i in range(2)) == ["a cat", "a dog"] and shards.counts == [2]


class Encoder(torch.nn.Module):
    """The mean of each colour, (b, 1, 3)."""

    def __init__(self, config: Any = None, **_: Any) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, pixels: Any) -> Any:
        return pixels.mean((2, 3))[:, None]


CONFIG = VisionConfig(height=8, width=8, features=3)


@pytest.mark.parametrize("kind", ["a JPEG cut off", "a decompression bomb", "nothing", "a text"])
@pytest.mark.parametrize("cached", [True, False])
def test_features_are_computed_without_damaged_images(
    images: Path, kind: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VisionConfig, "positions", 1)
    monkeypatch.setattr(features, "VisionEncoder", Encoder)
    data = read_data(listed(images, kind), images)
    encoder: Any = None if cached else Encoder()
    computed = []
    for _ in range(2):  # the second time from the cache
        bad = BadSamples(1)
        left, source = open_features(data, CONFIG, str(images.parent / "cache"), bad, 1, encoder)
        assert [path.name for path in left.paths] == ["0.jpg", "1.jpg"]
        assert left.samples == [Sample(0, "a dog"), Sample(1, "a cat")]
        assert list(bad.found) == [str(images / "2.jpg")]
        computed.append(source.get([0, 1]))
        assert computed[0].abs().min() > 0 and torch.equal(computed[0], computed[-1])
    with pytest.raises(Blip2rtError, match=r"2\.jpg.*max_bad is 0"):
        open_features(data, CONFIG, str(images.parent / "cache"), BadSamples(0), 1, encoder)
    (images / "0.jpg").write_bytes(b"")
    (images / "1.jpg").write_bytes(b"")
    with pytest.raises(Blip2rtError, match="no image can be read"):
        open_features(data, CONFIG, str(images.parent / "cache"), BadSamples(3), 1, encoder)


def test_view_of_a_tiny_image_has_pixels() -> None:
    for view in range(2, 40):
        assert min(features.augment(Image.new("RGB", (1, 1)), view, view).size) == 1


# Shards


SAMPLES: dict[str, dict[str, bytes | str]] = {
    "no text": {"k.jpg": picture()},
    "no image": {"k.txt": "a bird"},
    "an empty text": {"k.jpg": picture(), "k.txt": "\n"},
    "dots": {"k.jpg": picture(), "k.txt": "..."},
    "a text in latin-1": {"k.jpg": picture(), "k.txt": b"\xe9l\xe9phant"},
    "no JSON": {"k.jpg": picture(), "k.json": "{"},
    "deep JSON": {"k.jpg": picture(), "k.json": "[" * 100_000},
    "a list": {"k.jpg": picture(), "k.json": "[]"},
    "no caption": {"k.jpg": picture(), "k.json": '{"url": "x"}'},
    "captions that are a number": {"k.jpg": picture(), "k.json": '{"captions": 5}'},
    "an object without text": {"k.jpg": picture(), "k.json": '{"captions": [{"x": "a"}]}'},
    "a weight of null": {"k.jpg": picture(), "k.json": '{"captions": [{"text": "a", "weight": null}]}'},
    "a weight of nothing": {"k.jpg": picture(), "k.json": '{"captions": [{"text": "a", "weight": 0}]}'},
    "a weight that is none": {"k.jpg": picture(), "k.json": '{"captions": [{"text": "a", "weight": NaN}]}'},
    "a weight without end": {"k.jpg": picture(), "k.json": '{"captions": [{"text": "a", "weight": 1e400}]}'},
    "a prompt that is a number": {"k.jpg": picture(), "k.json": '{"captions": [{"text": "a", "prompt": 5}]}'},
    "half a surrogate": {"k.jpg": picture(), "k.json": f'{{"caption": "{SURROGATE}"}}'},
    **{f"as image {kind}": {"k.jpg": made(), "k.txt": "a bird"} for kind, made in PICTURES.items()},
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_invalid_shard_sample_is_skipped(tmp_path: Path, kind: str) -> None:
    good: dict[str, bytes | str] = {"a.jpg": picture(), "a.txt": "a dog", "b.png": picture("PNG"), "b.txt": "a cat"}
    path = write_shard(tmp_path / "s" / "0.tar", {**good, **SAMPLES[kind]})

    def seen(bad: BadSamples) -> set[str]:
        sources, _ = open_sources(({"path": str(path.parent)},), tmp_path / "cache", bad)
        reader = SampleReader(sources, 0, eval_transform(CONFIG))
        batches = load_batches(reader, Mixture([1.0], 3, 0), 0, lambda rows: [rows], 0, bad)
        return {text.text for _ in range(2) for micro in next(batches)[1] for group in micro.groups for text in group}

    bad = BadSamples(1)
    assert seen(bad) == {"a dog", "a cat"}
    assert len(bad.found) == 1 and "0.tar#" in next(iter(bad.found))
    with pytest.raises(Blip2rtError, match=r"0\.tar#.*max_bad is 0"):
        seen(BadSamples(0))


def test_txt_replaces_a_json_without_caption(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s" / "0.tar", {"k.jpg": picture(), "k.json": '{"caption": null}', "k.txt": "a bird"})
    assert Shards(str(path), tmp_path).read(0)[1] == [Sample(0, "a bird")]
    faults: list[tuple[str, str]] = []
    Shards(str(path), tmp_path).read(0, faults)
    assert len(faults) == 1 and "0.tar#0" in faults[0][0]


def test_one_invalid_text_is_skipped_alone() -> None:
    content = (
        '{"captions": ["a dog", 5, {"text": "two", "prompt": "how many?", "weight": 3}, {"caption": "a cat"}, null]}'
    )
    faults: list[str] = []
    found = parse_texts(content, True, faults)
    assert found == [Sample(0, "a dog"), Sample(0, "two", "how many?", 3.0), Sample(0, "a cat")]
    assert len(faults) == 2 and faults[0].startswith("text 2") and faults[1].startswith("text 5")
    assert parse_texts('{"captions": "a dog"}', True) == [Sample(0, "a dog")]


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    good: dict[str, bytes | str] = {"a.jpg": picture(), "a.txt": "a dog"}
    for name, content in {
        "text.tar": b"no tar" * 1000,
        "zipped.tar": zlib.compress(bytes(5000)),
        "empty.tar": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Blip2rtError, match=name):
            Shards(str(tmp_path / name), tmp_path / "cache")
    path = write_shard(tmp_path / "s" / "back.tar", {**good, "b.jpg": picture(), "b.txt": "a cat"})
    content = bytearray(path.read_bytes())
    at = content.index(b"b.jpg")
    content[at + 124 : at + 136] = b"\xff" * 8 + struct.pack(">i", -2048)  # a size below nothing
    checksum = sum(content[at : at + 148]) + 8 * 32 + sum(content[at + 156 : at + 512])
    content[at + 148 : at + 156] = f"{checksum:06o}\0 ".encode()
    path.write_bytes(content)
    bad = BadSamples(1)
    assert Shards(str(path), tmp_path / "cache", bad).counts == [1] and "back.tar#" in next(iter(bad.found))


def test_truncated_index_is_rebuilt(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s" / "0.tar", {"a.jpg": picture(), "a.txt": "a dog"})
    for content in (b"", b"PK\x03\x04 half", b"no index"):
        Shards(str(path), tmp_path / "cache")
        [index] = path.parent.glob("*.index.npz")
        index.write_bytes(content)
        assert Shards(str(path), tmp_path / "cache").read(0)[1][0].text == "a dog"
        (path.parent / "shards.index.json").write_bytes(content)
        assert Shards(str(path), tmp_path / "cache").counts == [1]


# Lists of addresses


# Evaluation


EVALUATED: dict[str, dict[str, Any]] = {
    "an annotation of null": {"annotations": [None]},
    "a caption of null": {"annotations": [{"image_id": 1, "caption": None}]},
    "a caption of dots": {"annotations": [{"image_id": 1, "caption": "..."}]},
    "a caption of another image": {"annotations": [{"image_id": 77, "caption": "a dog"}]},
    "an image_id that is a list": {"annotations": [{"image_id": [1], "caption": "a dog"}]},
    "an image without caption": {"images": [{"id": 3, "file_name": "0.jpg"}]},
    "an image without name": {"images": [{"id": 3}]},
    "an image of null": {"images": [None]},
    "an image that is missing": {
        "images": [{"id": 3, "file_name": "x.jpg"}],
        "annotations": [{"image_id": 3, "caption": "a dog"}],
    },
    "an image that is damaged": {
        "images": [{"id": 3, "file_name": "2.jpg"}],
        "annotations": [{"image_id": 3, "caption": "a dog"}],
    },
}


@pytest.mark.parametrize("kind", EVALUATED)
def test_evaluation_skips_invalid_captions(images: Path, kind: str) -> None:
    (images / "2.jpg").write_bytes(PICTURES["a JPEG cut off"]())
    data = {
        "images": [{"id": 1, "file_name": "0.jpg"}, {"id": 2, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a cat"}],
    }
    path = images.parent / "coco.json"
    path.write_text(json.dumps({key: entries + EVALUATED[kind].get(key, []) for key, entries in data.items()}))

    def found(bad: BadSamples) -> list[list[str]]:
        return [item.references for item in drop_unreadable_images(path, read_captions(path, images, None, bad), bad)]

    bad = BadSamples(1)
    assert found(bad) == [["a dog"], ["a cat"]] and len(bad.found) == 1
    with pytest.raises(Blip2rtError, match=r"coco\.json|2\.jpg"):
        found(BadSamples(0))


@pytest.mark.parametrize(
    "question",
    [
        None,
        {},
        {"question_id": 3},
        {"question_id": 3, "question": None, "image_id": 0},
        {"question_id": [3], "question": "is it?", "image_id": 0},
        {"question_id": 3, "question": "is it?", "image_id": 0},
    ],
)
def test_evaluation_skips_invalid_questions(images: Path, question: Any) -> None:
    ten = [{"answer": "yes"}] * 10
    questions = [{"question_id": i, "image_id": i, "image": f"{i}.jpg", "question": "is it?"} for i in (0, 1)]
    (images.parent / "q.json").write_text(json.dumps({"questions": [questions[0], question, questions[1]]}))
    answers = [{"question_id": i, "answers": ten} for i in (0, 1)]
    (images.parent / "a.json").write_text(json.dumps({"annotations": answers}))
    bad = BadSamples(1)
    questions = read_questions(images.parent / "q.json", images.parent / "a.json", images, bad)
    assert [item.id for item in questions.items] == [0, 1] and len(bad.found) == 1
    with pytest.raises(Blip2rtError, match=r"q\.json"):
        read_questions(images.parent / "q.json", images.parent / "a.json", images, BadSamples(0))


def test_every_image_format_is_read_upright(tmp_path: Path) -> None:
    """HEIC, AVIF, TIFF of 16 bits, WebP and GIF beside JPEG; a picture that lies on its side; a damaged one."""
    kitten = Path(__file__).parents[2] / "gallery" / "kitten.heic"
    written = {"a.jpg": picture(), "b.webp": picture("WEBP"), "c.gif": picture("GIF")}
    if importlib.util.find_spec("PIL.AvifImagePlugin"):
        written["d.avif"] = picture("AVIF")
    if importlib.util.find_spec("pi_heif"):
        written["e.HEIC"] = kitten.read_bytes()
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(np.full((16, 20), 256 * 100, np.uint16)).save(tmp_path / "f.tif")
    side = Image.Exif()
    side[0x0112] = 6
    Image.new("RGB", (20, 16)).save(tmp_path / "g.tiff", exif=side)
    (tmp_path / "h.heic").write_bytes(kitten.read_bytes()[:200])
    for image in list(tmp_path.iterdir()):
        image.with_suffix(".txt").write_text("a dog")
    bad = BadSamples(1)
    data, _ = open_features(read_data(tmp_path, "", bad), CONFIG, "", bad, 1, Encoder())
    assert [path.name for path in data.paths] == [*written, "f.tif", "g.tiff"]
    [fault] = bad.found
    assert fault.endswith("h.heic")
    assert read_image(tmp_path / "f.tif").getpixel((0, 0)) == (100, 100, 100), "not cut off at 255"
    assert read_image(tmp_path / "g.tiff").size == (16, 20)
    with pytest.raises(Blip2rtError, match=r"h\.heic"):
        open_features(read_data(tmp_path, ""), CONFIG, "", BadSamples(0), 1, Encoder())
