"""`optimum-cli export blip2rt` is blip2rt-export."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

optimum_cli = pytest.importorskip("optimum.commands.optimum_cli")

from blip2rt import bundle
from tests.export.commands_in_process import export
from tests.tiny import blip2


def optimum(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run optimum-cli; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        optimum_cli.main()
    return int(ended.value.code or 0)


def test_options_arrive_as_with_blip2rt_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blip2rt_export import cli

    chosen = ["--precision", "vision=fp32", "--max-positions", "96", "--name", "mine", "--no-verify", "--target", "trt"]
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(cli, "export", lambda args: seen.append(vars(args)))
    assert optimum(monkeypatch, "export", "blip2rt", *chosen, "-m", "ckpt", tmp_path / "out") == 0
    assert cli.main(["--checkpoint", "ckpt", "--out", str(tmp_path / "out"), *chosen]) == 0
    theirs, ours = seen
    assert {name: theirs[name] for name in ours} == ours


@pytest.mark.slow
def test_bundle_equals_that_of_blip2rt_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = blip2.generative(tmp_path / "hf", blip2.TEXT_CONFIGS["opt"]())
    chosen = ["--precision", "vision=fp32,qformer=fp32,llm=int4", "--max-positions", "96", "--name", "mine"]
    assert optimum(monkeypatch, "export", "blip2rt", "-m", checkpoint, tmp_path / "theirs", *chosen) == 0
    export(checkpoint, tmp_path / "ours", *chosen)
    theirs, ours = (bundle.read(tmp_path / name).manifest for name in ("theirs", "ours"))
    weights = [name for name in ours.files if not name.endswith(".onnx")]  # graphs contain names of Python modules
    assert {name: theirs.files[name] for name in weights} == {name: ours.files[name] for name in weights}
    assert theirs.components == ours.components and theirs.name == "mine"


def test_help_and_errors_are_those_of_blip2rt_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimum(monkeypatch, "export", "blip2rt", "--help") == 0
    assert "maximum of prefix, prompt and new tokens together (default: 1024)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert optimum(monkeypatch, "export", "blip2rt", "-m", tmp_path / "none", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("optimum-cli export blip2rt: error: ") and "none" in said[0]
