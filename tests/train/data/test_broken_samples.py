"""Broken samples of every kind: counted, listed with their file's name, left out up to `max_bad`; never a traceback."""

import io
import json
import struct
import zlib
from collections.abc import Callable
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
from blip2rt_train.data.transforms import eval_transform
from blip2rt_train.evaluation.annotations import drop_unreadable_images, read_captions
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
    "no image": '{"caption": "a dog"}',
    "no caption": '{"image": "0.jpg"}',
    "a caption of dots": '{"image": "0.jpg", "caption": "..."}',
    "objects without text": '{"image": "0.jpg", "captions": [{"sentence": "a dog"}]}',
    "an image that is missing": '{"image": "nowhere.jpg", "caption": "a dog"}',
    "an image with a very long name": f'{{"image": "{LONG}.jpg", "caption": "a dog"}}',
    "half a surrogate": f'{{"image": "0.jpg", "caption": "a dog {SURROGATE}"}}',
    "an empty answer": '{"image": "0.jpg", "question": "how many?", "answer": ""}',
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


COCO: dict[str, tuple[list[Any], list[Any]]] = {  # images, annotations beside the good ones
    "an annotation of null": ([], [None]),
    "an annotation without image": ([], [{"id": 9, "caption": "a dog"}]),
    "an annotation of another image": ([], [{"id": 9, "image_id": 99, "caption": "a dog"}]),
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


TABLES: dict[str, bytes] = {
    "latin-1": b"0.jpg\tun \xe9l\xe9phant\n",
    "a missing image": b"nowhere.jpg\ta dog\n",
    "a name in latin-1": b"\xe9.jpg\ta dog\n",
    "a field without end": b"0.jpg\t" + b"a" * 200_000 + b"\n",
    "a column too many": b"0.jpg\ta dog\truns\n",  # the end of a text would be lost, or become a question
    "a name that is too long": LONG.encode() + b".jpg\ta dog\n",
}


@pytest.mark.parametrize("form", [".tsv", ".csv"])
@pytest.mark.parametrize("kind", TABLES)
def test_invalid_table_row_is_skipped(images: Path, kind: str, form: str) -> None:
    header, rows = b"image\tcaption\n", [b"0.jpg\ta dog\n", TABLES[kind], b"1.jpg\ta cat\n"]
    if form == ".csv":
        header, rows = header.replace(b"\t", b","), [row.replace(b"\t", b",") for row in rows]
    path = images.parent / f"list{form}"
    path.write_bytes(header + b"".join(rows))
    assert_skipped(path, images, ["a dog", "a cat"])


def test_tables_of_other_encodings_are_one_line(images: Path) -> None:
    for name, content in {
        "list.tsv": "image\tcaption\n0.jpg\ta dog\n".encode("utf-16"),
        "list.json": "[]".encode("utf-16"),
        "deep.json": b"[" * 100_000,
        "images.json": b'{"images": 5, "annotations": []}',
        "binary.csv": bytes(range(256)),
    }.items():
        (images.parent / name).write_bytes(content)
        with pytest.raises(Blip2rtError, match=name) as error:
            read_data(images.parent / name, images, BadSamples(9))
        str(error.value).encode()


@pytest.mark.parametrize("kind", ["none", "empty", "a folder", "latin-1"])
def test_invalid_text_file_is_skipped(images: Path, kind: str) -> None:
    for name, text in (("0", "a dog"), ("1", "a cat")):
        (images / f"{name}.txt").write_text(text)
    (images / "2.jpg").write_bytes(picture())
    (images / "folder.jpg").mkdir()
    text = images / "2.txt"
    if kind == "a folder":
        text.mkdir()
    elif kind != "none":
        text.write_bytes({"empty": b"\n", "latin-1": b"\xe9l\xe9phant"}[kind])
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


PICTURES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a text": lambda: b"<html>404</html>",
    "a header alone": lambda: picture()[:30],
    "a JPEG cut off": lambda: picture(size=(200, 160))[:9000],
    "a decompression bomb": bomb,
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


@pytest.mark.parametrize(("kind", "cached"), [("a JPEG cut off", True), ("a decompression bomb", False)])
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
    "no JSON": {"k.jpg": picture(), "k.json": "{"},
    "deep JSON": {"k.jpg": picture(), "k.json": "[" * 100_000},
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
    for name, content in {
        "text.tar": b"no tar" * 1000,
        "zipped.tar": zlib.compress(bytes(5000)),
        "empty.tar": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Blip2rtError, match=name):
            Shards(str(tmp_path / name), tmp_path / "cache")


def test_truncated_index_is_rebuilt(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s" / "0.tar", {"a.jpg": picture(), "a.txt": "a dog"})
    for content in (b"", b"PK\x03\x04 half", b"no index"):
        Shards(str(path), tmp_path / "cache")
        [index] = path.parent.glob("*.index.npz")
        index.write_bytes(content)
        assert Shards(str(path), tmp_path / "cache").read(0)[1][0].text == "a dog"
        (path.parent / "shards.index.json").write_bytes(content)
        assert Shards(str(path), tmp_path / "cache").counts == [1]


# Evaluation


EVALUATED: dict[str, dict[str, Any]] = {
    "an annotation of null": {"annotations": [None]},
    "a caption of null": {"annotations": [{"image_id": 1, "caption": None}]},
    "a caption of another image": {"annotations": [{"image_id": 77, "caption": "a dog"}]},
    "an image without caption": {"images": [{"id": 3, "file_name": "0.jpg"}]},
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
