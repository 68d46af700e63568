"""Options of the export command, and sizes that the model does not have."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blip2rt import bundle
from blip2rt.bundle.atomic import AtomicFolder
from blip2rt.errors import OptionError
from blip2rt_export import cli, language, targets
from blip2rt_export.arguments import parse_precision
from blip2rt_export.convert import main as convert_main
from tests.export.commands_in_process import FLOAT, export

pytestmark = pytest.mark.long(9, "whole exports with each option")

GROUPS = ("vision", "qformer", "llm", "retrieval")


def test_single_precision_applies_to_every_supporting_group() -> None:
    ort, trt = targets.ORT.precisions, targets.TRT.precisions
    for precision in ("fp32", "fp16", "int8", "int8w", "int4", "int8-dynamic"):
        assert parse_precision(precision, ort) == dict.fromkeys(GROUPS, precision)
    assert parse_precision("int8", trt) == dict.fromkeys(GROUPS[:3], "int8")
    assert parse_precision("fp16,llm=int4", trt) == {**dict.fromkeys(GROUPS, "fp16"), "llm": "int4"}
    for text in ("int8,llm=int4", "llm=int4,int8"):
        assert parse_precision(text, ort) == {**dict.fromkeys(GROUPS, "int8"), "llm": "int4"}
    for wrong in ("int3", "llm", "llm=int3", "words=int8"):
        with pytest.raises(OptionError, match="the groups are|llm may be|choose from fp16, fp32, int4"):
            parse_precision(wrong, ort)


def test_unavailable_sizes_are_reported(
    llama_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--max-positions", 10000, "--image-size", 30]
    llm = bundle.read(export(llama_checkpoint, tmp_path / "b", *sizes, precision="fp32")).manifest.llm
    told = "".join(capsys.readouterr())
    assert llm is not None
    assert f"note: --max-positions is 10,000, but the language model and the bundle have {llm.max_positions:,}" in told
    assert "note: --image-size 30 is not a multiple of the patch size 7" in told and "give 28 or 35" in told


def test_dry_run_names_sizes_and_what_the_bundle_lacks(
    llama_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy := tmp_path / "copy").mkdir()
    for file in llama_checkpoint.iterdir():
        if "processor" not in file.name:
            (copy / file.name).symlink_to(file)
    assert cli.main(["--checkpoint", str(copy), "--out", str(tmp_path / "b"), "--precision", "fp32", "--dry-run"]) == 0
    said = capsys.readouterr().out
    words = ["vision ", "llm ", "fp32", "nothing was written", "cannot match or embed", "no image processor"]
    assert all(word in said for word in words), said
    assert not (tmp_path / "b").exists()


def test_mistakes_of_an_export_are_listed_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for words, faults in (
        (f" --checkpoint no/ --out {tmp_path}/full --precision llm=int3", ("is not a bundle", "llm may be")),
        (f".convert {tmp_path}/no --to hf --out {tmp_path}/full", ("is not empty", "/no' does not exist")),
    ):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", *f"blip2rt_export{words}".split()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and all(fault in done.stderr for fault in faults), done.stderr


@pytest.mark.parametrize("command", ["convert", "export"])
def test_output_appears_when_it_is_complete(
    command: str, llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/runtime/bundle/test_atomic.py kills writers of such folders at random moments."""
    out = tmp_path / "out"
    words = [str(llama_checkpoint), "--to", "hf"]
    if command == "export":
        words = ["--checkpoint", str(llama_checkpoint), "--precision", FLOAT, "--no-verify", "--overwrite"]
        export(llama_checkpoint, out, "--no-verify", "--name", "old")
    before = [path.name for path in tmp_path.iterdir()]

    def interrupted(self: AtomicFolder) -> None:
        assert len(list(self.folder.iterdir())) > 3
        raise KeyboardInterrupt

    monkeypatch.setattr(AtomicFolder, "finish", interrupted)
    main = cli.main if command == "export" else convert_main
    assert main([*words, "--out", str(out)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == before
    assert command == "convert" or bundle.verify(out).manifest.name == "old"


def test_export_repeated_after_a_kill_has_equal_bytes(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    whole, out = tmp_path / "whole", tmp_path / "out"
    export(llama_checkpoint, whole, "--name", "same")
    with monkeypatch.context() as patch:
        patch.setattr(language, "write", killed)
        patch.setattr(AtomicFolder, "__exit__", lambda *_: None)  # a killed process removes nothing
        words = ["--checkpoint", llama_checkpoint, "--out", out, "--name", "same", "--precision", FLOAT]
        assert cli.main(list(map(str, words))) == 130
    assert not out.exists() and len(list(tmp_path.glob(".*/*.onnx"))) == 2, "vision and qformer were written"
    export(llama_checkpoint, out, "--name", "same")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
