"""Fixtures of the exporter's tests, which are not collected without the packages of the export extra."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if all(map(find_spec, ("torch", "transformers", "timm", "onnxscript", "blip2rt._native"))):
    collect_ignore_glob = []
else:
    collect_ignore_glob = ["*"]


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a tiny BLIP-2 with a Llama."""
    from tests.tiny import blip2

    return blip2.generative(tmp_path_factory.mktemp("llama") / "hf", blip2.TEXT_CONFIGS["llama"]())


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Checkpoints of both stages and their bundles, a both_stages.Made."""
    from tests.export.both_stages import export_stages

    return export_stages(tmp_path_factory.mktemp("export"))


@pytest.fixture
def checkpoint_copy(llama_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(llama_checkpoint, tmp_path / "copy"))


@pytest.fixture
def export_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function: export a checkpoint that is rejected; return the error, which is one line."""
    from blip2rt_export.cli import main

    def export(checkpoint: Path | str, *arguments: str) -> str:
        capsys.readouterr()
        assert main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), *arguments]) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
        assert line.startswith("blip2rt-export: error: ")
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
        return line

    return export
