"""Damaged bundles: every command reports them in one line."""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2rt.bundle import MANIFEST, read
from blip2rt.bundle.reader import embedded
from blip2rt.cli import main
from blip2rt.errors import BundleError
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny

DEEP = b"[" * 200_000 + b"]" * 200_000
Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "deep": lambda data: DEEP,
    "deep inside": lambda data: b'{"version":"1.0","model":' + DEEP + b"}",
    "noise": lambda data: random.Random(new_seed()).randbytes(3000),
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zip": lambda data: b"PK\x03\x04" + data,
    "a long number": lambda data: b'{"format":' + b"9" * 100_000 + b"}",
    "not UTF-8": lambda data: b"\xff\xfe" + data,
}


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.path, tmp_path / "copy"))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def put(folder: Path, name: str, data: bytes) -> None:
    """Write a file, and its size and hash into the manifest."""
    (folder / name).write_bytes(data)
    if name != MANIFEST:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][name] = {"size": len(data), "sha256": sha256(data).hexdigest()}
        manifest.pop("manifest_sha256", None)
        (folder / MANIFEST).write_text(json.dumps(manifest))


def complaint(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    code, said = main(arguments), capfd.readouterr()
    assert code == 2, said
    (line,) = said.err.splitlines()
    assert line.startswith("blip2rt: error: ") and line.isprintable(), line
    return line


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [MANIFEST, "tokenizer.json", "qformer_tokenizer.json", "llm.onnx", "vision.onnx"])
def test_damaged_file_is_one_line(copy: Path, picture: str, name: str, damage: str, capfd: Any) -> None:
    put(copy, name, DAMAGES[damage]((copy / name).read_bytes()))
    commands = {"caption": ["caption", picture, "--model", str(copy)]}
    if name == "qformer_tokenizer.json":
        commands = {"match": ["match", picture, "a dog", "--model", str(copy)]}
    if name == MANIFEST:
        commands |= {command: [command, str(copy)] for command in ("info", "verify")}
    for arguments in commands.values():
        assert str(copy) in complaint(arguments, capfd)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("kind", ["pipe", "zero", "loop"])
@pytest.mark.parametrize("name", [MANIFEST, "tokenizer.json", "llm.onnx"])
def test_pipes_and_endless_files_do_not_block(copy: Path, picture: str, name: str, kind: str, capfd: Any) -> None:
    (copy / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(copy / name)
    else:
        (copy / name).symlink_to("/dev/zero" if kind == "zero" else name)
    for arguments in (["verify", str(copy)], ["info", str(copy)], ["caption", picture, "--model", str(copy)]):
        complaint(arguments, capfd)


@pytest.mark.parametrize(
    "change",
    [
        {"files": {f"{i}.bin": {"size": 1, "sha256": "0" * 64} for i in range(30_000)}},
        {"sources": [1] * 1_500_000},
        {"components": {f"{i}": {"inputs": [1] * 9_000} for i in range(100)}},
        {"components": {f"{i}": {"inputs": [{"name": "a"}] * 9_000} for i in range(30)}},
    ],
    ids=["names", "list", "faults", "components"],
)
def test_many_entries_are_rejected_quickly(copy: Path, change: dict[str, Any], capfd: Any) -> None:
    manifest = json.loads((copy / MANIFEST).read_text()) | change
    (copy / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")))
    started = time.process_time()
    assert len(complaint(["info", str(copy)], capfd)) < 4_000
    assert time.process_time() - started < 3  # far below a second; 12 with 30,000 names before


CALIBRATION: dict[str, Any] = {part: {"bias": 0, "weights": {"cosine": 1}} for part in ("phrase", "sentence")}


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("llm.prefix_length", 7, "llm.prefix_length is 7, but qformer writes prefix_embeds ['B', 3, 16]"),
        ("llm.kv_heads", 2, "llm.kv_heads is 2, but llm reads past_key_0 ['B', 1, 'T', 8]"),
        ("llm.vocab_size", 99, "llm.vocab_size is 99, but llm writes logits"),
        ("retrieval.max_text_length", 100_000, "retrieval.max_text_length is 100000, not from 1 to 1,024"),
        ("calibration.mean_text", [0.5] * 3, "calibration.mean_text has 3 numbers, but image_embed writes"),
        ("calibration.phrase.weights.query_999", 1, "calibration.phrase weighs 'query_999', but image_embed writes"),
        ("calibration.phrase.weights.score", 1, "calibration.phrase weighs 'score', which only captions have"),
        ("calibration.sentence.weights.cosine", 1e308, "cosine is 1e+308, not from -1,000,000 to 1,000,000"),
        ("calibration.numbers", ["one"] * 3000, "calibration.numbers has 3,000 answers, more than 100"),
        ("components.itm.outputs.0.shape", ["B", 2, 2], "itm_logits has 2 axes, but itm writes itm_logits ['B', 2, 2]"),
        ("components.vision.inputs.0.dtype", "int64", "not those of its manifest: vision.onnx has 'pixels' of float32"),
        ("components.llm.graph", "embed.onnx", "not those of its manifest: embed.onnx has no tensor 'inputs_embeds'"),
    ],
)
def test_manifest_that_contradicts_the_graphs_is_one_line(
    copy: Path, picture: str, path: str, value: Any, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copy / MANIFEST).read_text()) | {"calibration": CALIBRATION}
    *parents, last = path.split(".")
    node: Any = json.loads(json.dumps(manifest))
    changed = node
    for name in parents:
        node = node[int(name) if isinstance(node, list) else name]
    node[last] = value
    (copy / MANIFEST).write_text(json.dumps(changed))
    assert fault in complaint(["match", picture, "a dog", "--model", str(copy)], capfd)


def test_verify_names_every_graph_that_loading_would_reject(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy)]) == 0
    for name in ("itm.onnx", "text_embed.onnx"):  # right inputs and outputs, but no operator that exists
        put(copy, name, (copy / name).read_bytes().replace(b"ReduceSum", b"ReduceSun"))
    line = complaint(["verify", str(copy)], capfd)
    assert "itm.onnx is rejected: node" in line and "text_embed.onnx is rejected: node" in line
    assert main(["verify", "--trusted-graphs", str(copy)]) == 0
    with pytest.raises(BundleError, match="itm.onnx is rejected: node .* exports do not use this operator"):
        read(copy).check_parts()


def test_verify_reads_tokenizers_to_the_end(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = json.loads((embedded() / "tokenizer.json").read_text())
    put(copy, "tokenizer.json", json.dumps(tokenizer).encode())
    assert main(["verify", str(copy)]) == 0
    tokenizer["model"]["merges"][-1] = ["dog", "nothing"]
    put(copy, "tokenizer.json", json.dumps(tokenizer).encode())
    put(copy, "qformer_tokenizer.json", b"{}")
    line = complaint(["verify", str(copy)], capfd)
    assert "/tokenizer.json needs what no supported tokenizer has: a merge with" in line
    assert "/qformer_tokenizer.json is not a tokenizer" in line


EVIL = "\x1b]0;title\x07\x9b2J\u202e\x7f\x08"


def test_captions_cannot_control_the_terminal(copy: Path, picture: str, capsys: Any, monkeypatch: Any) -> None:
    """A malicious vocabulary; files and pipes get the text as it is."""
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] = {
        word if word in special else f"{word}{EVIL}": number for word, number in vocabulary.items()
    }
    put(copy, "tokenizer.json", json.dumps(tokenizer).encode())
    commands = (["caption"], ["caption", "--stream"], ["caption", "--json"], ["ask", "--json"], ["ask"])
    for name, *flags in commands:
        arguments = [name, picture, *["what is it"] * (name == "ask"), *flags, "--model", str(copy)]
        assert main(arguments) == 0
        plain = capsys.readouterr().out
        assert EVIL[-3] in plain
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        monkeypatch.undo()
        assert shown.replace("\n", "").isprintable() and "\\u202e" in shown, shown
        if "--json" in flags:
            same = [{**json.loads(text), "ms": 0} for text in (plain, shown)]
            assert same[0] == same[1]
    assert main(["caption", picture, "--write", "txt", "--model", str(copy)]) == 0
    assert EVIL[-3] in Path(picture).with_suffix(".txt").read_text()
