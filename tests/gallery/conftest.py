"""What the gallery's tests share: a folder of pictures, and the command in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

import blip2rt
from blip2rt.cli import main
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny
from tests.tiny.image_folders import fill

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder "album" of pictures in the working directory."""
    fill(tmp_path / "album", new_seed())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "album"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny: Tiny) -> Run:
    """Run `blip2rt` on the tiny bundle: its exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([*map(str, arguments), "--model", str(tiny.path)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def model(tiny: Tiny) -> blip2rt.Model:
    return blip2rt.load(tiny.path)
