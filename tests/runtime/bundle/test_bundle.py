"""The bundle's contract: round trip, atomic writing, and damaged bundles."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import blip2rt
from blip2rt.bundle.manifest import Component, ImageSpec, Manifest, Source, TensorInfo, Verification, from_json, to_json
from blip2rt.bundle.names import MANIFEST
from blip2rt.bundle.reader import embedded, read, verify
from blip2rt.bundle.writer import BundleWriter
from blip2rt.cli.info import describe
from blip2rt.errors import BundleError

FILE = {"size": 1, "sha256": ""}
QUESTION = {"tokenizer": "q.json", "max_text_length": 9, "pad_token_id": 0}


def minimal_manifest() -> Manifest:
    """A bundle of the vision component alone."""
    pixels = TensorInfo("pixels", "float32", ("B", 3, 4, 6))
    features = TensorInfo("vision_features", "float32", ("B", 5, 8))
    return Manifest(
        name="tiny",
        created_by="test",
        components={"vision": Component("vision.onnx", "fp32", (pixels,), (features,))},
        image=ImageSpec(4, 6, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        llm=None,
        retrieval=None,
        prompts={},
        decoding={},
        sources=(Source("vision", "none", "Apache-2.0", "here"),),
        verification=(Verification("vision", "fp32", 0.0),),
    )


def write(path: Path, content: bytes = b"graph", overwrite: bool = False) -> Path:
    with BundleWriter(path, overwrite=overwrite) as writer:
        (writer.folder / "vision.onnx").write_bytes(content)
        writer.finish(minimal_manifest())
    return path


def edit(path: Path, change) -> None:
    data = json.loads((path / MANIFEST).read_text())
    change(data)
    (path / MANIFEST).write_text(json.dumps(data))


def test_bundle_round_trip(tmp_path):
    bundle = verify(write(tmp_path / "deep" / "b"))
    assert replace(bundle.manifest, files=None) == minimal_manifest()
    assert bundle.size == 5 and bundle.graph("vision").read_bytes() == b"graph"
    assert bundle.has("vision") and not bundle.has("vision", "llm")
    assert from_json(to_json(bundle.manifest)) == bundle.manifest
    assert sorted(os.listdir(tmp_path / "deep")) == ["b"]


def test_unknown_fields_are_ignored(tmp_path):
    write(tmp_path / "b")
    edit(tmp_path / "b", lambda d: d.update(novelty=[1], image={**d["image"], "more": 1}))
    read(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format_version=2), ["version 2", "newer blip2rt"]),
        (lambda d: d.update(format="other"), ["not the manifest"]),
        (lambda d: d.pop("image"), ["image is missing"]),
        (lambda d: (d.pop("name"), d["image"].update(height="x")), ["name is missing", "image.height is 'x', not int"]),
        (lambda d: d["components"]["vision"].update(inputs=[]), ["vision lacks the inputs pixels"]),
        (lambda d: d["files"].update({"../x": FILE}), ["leads outside"]),
        (lambda d: d["files"].update(a=FILE, c=FILE), ["a is missing", "c is missing"]),
        (lambda d: d["files"].clear(), ["vision.onnx is used but not in files"]),
        (lambda d: d["image"].update(std=[0, 1, 1]), ["image.std"]),
        (lambda d: d["image"].update(width=-3, resample="cubic"), ["image.width is -3", "'cubic': choose"]),
        (lambda d: d.update(components=[]), ["components is [], not an object"]),
        (lambda d: d["image"].update(height=5), ["image is 5 x 6, but vision reads pixels ['B', 3, 4, 6]"]),
        (lambda d: d["image"].update(height=10**6), ["image.height is 1000000, not from 1 to 16,384"]),
        (lambda d: d.update(name="x" * 10**6), ["name has 1,000,000 characters, more than 100,000"]),
        (lambda d: d["files"].update({f"{i}": FILE for i in range(10_001)}), ["files has 10,002 entries, more than"]),
        (lambda d: d.update(decoding={"caption": {"length_penalty": 1e9}}), ["length_penalty from -100 to 100"]),
        (lambda d: d["image"].update(resample="\x1b[2J\u202e"), ["'\\x1b[2J\\u202e': choose"]),
        (lambda d: d.update(question=QUESTION), ["q.json is used"]),
        (lambda d: d.update(question=QUESTION | {"max_text_length": 0}), ["max_text_length is 0, not from 1 to 1,024"]),
        (lambda d: d.update(target="tpu"), ["target is 'tpu': this blip2rt knows ort, trt"]),
        (lambda d: d["components"]["vision"]["outputs"][0].update(shape=["B", 5]), ["has 3 axes, but vision writes"]),
        (lambda d: d["components"]["vision"]["outputs"][0].update(shape=[None]), ["[0] is None, not int or str"]),
        (lambda d: d["image"].update(height=True), ["image.height is True, not int"]),
        (lambda d: d.update({f"{i}": 1 for i in range(10_001)}), ["the manifest has 10,0", " entries, more than"]),
    ],
)
def test_damaged_manifest_is_one_line(tmp_path, change, words):
    write(tmp_path / "b")
    edit(tmp_path / "b", change)
    with pytest.raises(BundleError) as caught:
        read(tmp_path / "b")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"name": "tiny"', '"name": "tiny", "name": "other"', "the manifest has the key 'name' twice"),
        ('"vision": {"graph"', '"vision": {}, "vision": {"graph"', "components has the key 'vision' twice"),
        ('"height": 4,', '"height": 4.0,', "image.height is 4.0, not int"),
        ('"height": 4,', '"height": 04,', "not JSON: no value at byte"),
        ('"name": "tiny"', '"name": "tiny", "later": NaN', "not JSON: no value at byte"),
        ('"name": "tiny"', '"name": "tiny", "later": 1e999', "not JSON: no value at byte"),
        ('"name": "tiny"', '"name": "tiny", "later": .5', "not JSON: no value at byte"),
        ('"name": "tiny"', '"name": "\\ud800"', "not JSON: half a character"),
        ('"format_version": 1,', '"format_version": 1.0,', "format_version is 1.0, not a whole number"),
    ],
)
def test_text_that_readers_could_take_differently_is_rejected(tmp_path, old, new, words):
    write(tmp_path / "b")
    text = json.dumps(json.loads((tmp_path / "b" / MANIFEST).read_text()))
    assert old in text
    (tmp_path / "b" / MANIFEST).write_text(text.replace(old, new))
    with pytest.raises(BundleError, match=re.escape(words)):
        read(tmp_path / "b")


def test_huge_manifest_is_not_read(tmp_path):
    write(tmp_path / "b")
    os.truncate(tmp_path / "b" / MANIFEST, 1 << 30)
    with pytest.raises(BundleError, match="it has more than 4,194,304 bytes"):
        read(tmp_path / "b")


def test_control_characters_are_shown_as_escapes(tmp_path):
    write(tmp_path / "b")
    edit(tmp_path / "b", lambda d: d.update(name="a\x1b]0;b\x07c\u202ed"))
    shown = describe(read(tmp_path / "b"))
    assert shown.startswith("a\\x1b]0;b\\x07c\\u202ed") and "\x1b" not in shown


def test_verify_checks_the_manifest(tmp_path):
    file = write(tmp_path / "b") / MANIFEST
    verify(tmp_path / "b")
    whole = file.read_text()
    file.write_text(whole.replace('"name": "', '"name": "n', 1))
    with pytest.raises(BundleError, match=r"altered: the sha256 of blip2rt.json differs"):
        verify(tmp_path / "b")
    file.write_text(re.sub(r'  "manifest_sha256": "[0-9a-f]{64}",\n', "", whole))
    verify(tmp_path / "b")
    assert "manifest_sha256" in (embedded() / MANIFEST).read_text()
    assert verify(embedded()).manifest.name == "nano"


def test_non_bundles_are_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / MANIFEST).write_text('{"format": "blip2')
    for path in (5, b"x", ["a"]):
        with pytest.raises(BundleError, match="give its folder's path"):
            read(path)
    with pytest.raises(BundleError, match="cannot read .*name too long"):
        read("x" * 5000)
    for name, words in {"file": "is a file", "none": "no such folder", ".": "has no", "cut": "not JSON"}.items():
        with pytest.raises(BundleError, match=words):
            read(tmp_path / name)


def test_overwrite_replaces_bundles_only(tmp_path):
    path = write(tmp_path / "b")
    with pytest.raises(BundleError, match="exists already"):
        write(path, b"other")
    write(path, b"other", overwrite=True)
    assert (verify(path).path / "vision.onnx").read_bytes() == b"other"
    (tmp_path / "home").mkdir()
    write(tmp_path / "home")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(BundleError, match="not a bundle"):
        write(tmp_path / "precious", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["b", "home", "precious"]


def test_interrupt_during_setup_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder):
        if folder.name != "b":
            assert folder.is_dir()
            raise KeyboardInterrupt

    monkeypatch.setattr("blip2rt.bundle.atomic._try_lock", interrupted)
    with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / "b"):
        raise AssertionError("it never began")
    assert os.listdir(tmp_path) == []


# Written by 0.1's exporter: a tiny Llama in int4, with heads of 12 that its graph pads.
WRITTEN = Path(__file__).parents[2] / "corpus" / "bundle_0_1"


def test_a_bundle_that_0_1_wrote_captions(photo: Any) -> None:
    onnx = pytest.importorskip("onnx")
    kinds = {node.op_type for node in onnx.load(WRITTEN / "llm.onnx", load_external_data=False).graph.node}
    assert {"Pad", "GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MatMulNBits"} <= kinds
    verify(WRITTEN)
    with blip2rt.load(WRITTEN, threads=1) as model:
        assert model.caption(photo(), max_new_tokens=5)
        assert len(model.caption(photo(), num_beams=3, num_captions=3)) == 3
