"""Faults that end a training (a NaN loss, a full disk, a damaged checkpoint), and packages that are not installed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip2rt.install_hints import pip_install
from blip2rt.modeling.checkpoint import list_checkpoints
from blip2rt_train import stage1
from blip2rt_train.cli import COMMANDS
from blip2rt_train.loop import checkpoint

from ..tiny.training import tiny_settings

pytestmark = pytest.mark.long(40, "trainings that meet full disks, bad data and lost workers")

ROOT = Path(__file__).parents[2]
MODULES = {name: f"blip2rt_train.{module}" for name, (module, _) in COMMANDS.items()}
MISSING = [("stage1", "yaml"), ("prepare", "tqdm"), ("evaluate", "tqdm")]
# Mistakes that are reported without torch, whose import takes seconds, and words of the report.
MISTAKES = {
    "stage1 --out o --train-table no.tsv --images i --start no/": ("'no.tsv' does not exist", "'no/' does not exist"),
    "stage2 --out o --train-table {} --steps 4 --warmup -1 --lr -1": ("warmup is -1", "lr is -1.0"),
    "self-critical --out {}/photo.txt --train-table {}": ("is a file: name a folder",),
    "evaluate caption --data nowhere": ("'nowhere' does not exist",),
    "calibrate no/ --data nowhere --images {} --out o": ("'nowhere' does not exist", "MODEL 'no/' does not exist"),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*tiny_settings(tmp_path_factory.mktemp("parts")), "--save_every", "2"]


def test_infinite_loss_names_the_step(
    settings: list[str], tmp_path: Path, error_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = stage1.stage1_losses, []

    def third_is_nan(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        losses = original(*arguments, **options)
        calls.append(None)
        return losses | {"loss": losses["loss"] * (torch.nan if len(calls) == 3 else 1.0)}

    monkeypatch.setattr(stage1, "stage1_losses", third_is_nan)
    error = error_of(stage1.main, [*settings, "--out", str(tmp_path)])
    assert "the loss is nan at step 3" in error
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002"]


def test_full_disk_is_one_line_and_keeps_the_last_checkpoint(
    settings: list[str], tmp_path: Path, error_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint.save_file

    def full(state: dict[str, torch.Tensor], path: Path) -> None:
        if "step-000004" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        original(state, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    error = error_of(stage1.main, [*settings, "--out", str(tmp_path)])
    assert "No space left on device" in error and "step-000004" in error and "free some space" in error
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002"]
    assert not list(tmp_path.glob(".*partial"))
    monkeypatch.undo()
    assert stage1.main([*settings, "--out", str(tmp_path), "--keep", "1"]) == 0
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000006"], "the last `keep`"


def test_damaged_checkpoints_are_named(settings: list[str], tmp_path: Path, error_of: Any) -> None:
    arguments = [*settings, "--out", str(tmp_path)]
    assert stage1.main([*arguments, "--steps", "4"]) == 0
    (tmp_path / "step-000004" / "optimizer.safetensors").write_bytes(b"")
    error = error_of(stage1.main, arguments)
    assert "step-000004" in error and "damaged" in error and "remove it" in error


def run_without(module: str, folder: Path, *command: str) -> tuple[int, str]:
    """Exit code and stderr of `python -m COMMAND` where the module is not installed."""
    (folder / f"{module}.py").write_text(f"raise ModuleNotFoundError({module!r}, name={module!r})")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr


def test_every_runnable_module_is_a_command() -> None:
    files = [path for path in (ROOT / "train").rglob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")]
    found = {"blip2rt_" + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert found - {"blip2rt_train.__main__"} == set(MODULES.values()) - {
        "blip2rt_train.recipe_files"
    }  # a subcommand only


@pytest.mark.parametrize(("command", "module"), MISSING)
def test_missing_package_is_one_line_of_every_command(command: str, module: str, tmp_path: Path) -> None:
    ended = run_without(module, tmp_path, MODULES[command], "--help")
    said = f"python -m {MODULES[command]}: error: {module} is not installed: {pip_install('train')}\n"
    assert ended == (2, said)


def test_missing_package_is_one_line_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("image\tcaption\na.tsv\ta dog\n")
    given = ["--train-table", str(tmp_path / "a.tsv"), "--images", str(tmp_path)]
    ended = run_without("torch", tmp_path, "blip2rt_train", "stage1", "--out", "o", *given)
    assert ended == (2, f"blip2rt-train stage1: error: torch is not installed: {pip_install('train')}\n")


@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_needs_no_torch(command: str, tmp_path: Path) -> None:
    assert run_without("torch", tmp_path, "blip2rt_train", *command.split(), "--help") == (0, "")


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_are_listed_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    (tmp_path / "photo.txt").write_text("a dog")
    code, said = run_without("torch", tmp_path, "blip2rt_train", *command.replace("{}", str(tmp_path)).split())
    assert code == 2 and said.count("\n") == 1, said
    assert all(words in said for words in MISTAKES[command]), said
