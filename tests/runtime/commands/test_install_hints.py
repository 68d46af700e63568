"""Install commands in errors match how blip2rt was installed."""

import json
import shlex
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from blip2rt import install_hints

ROOT = Path(__file__).parents[3]


def test_install_command_names_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_hints, "__file__", str(ROOT / "blip2rt" / "install_hints.py"))
    assert shlex.split(install_hints.pip_install("train", "eval")) == ["pip", "install", f"{ROOT}[train,eval]"]
    assert shlex.split(install_hints.pip_install()) == ["pip", "install", str(ROOT)]
    assert shlex.split(install_hints.install_nano()) == ["pip", "install", f"{ROOT}/packages/nano"]


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        ("usearch.index", "", "blip2rt[gallery]"),
        ("peft", "train", "blip2rt[lora]"),
        ("torch", "train", "blip2rt[train]"),
        ("yaml", "train", "blip2rt[train]"),
        ("no_extra_has_it", "", "no-extra-has-it"),
    ],
)
def test_missing_modules_are_of_an_extra(module: str, extra: str, command: str, monkeypatch) -> None:
    monkeypatch.setattr(install_hints, "_origin", lambda: ("blip2rt", ""))
    assert install_hints.install_module(module, extra) == f"pip install {shlex.quote(command)}"


@pytest.mark.parametrize(
    ("origin", "wanted", "nano"),
    [
        (None, "blip2rt[train]", "blip2rt-nano"),
        ({}, "blip2rt[train]", "blip2rt-nano"),
        ({"url": "file:///gone/blip2rt", "dir_info": {}}, "blip2rt[train]", "blip2rt-nano"),
        (
            {"url": "https://example.org/blip2rt.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "blip2rt[train] @ git+https://example.org/blip2rt.git",
            "blip2rt-nano @ git+https://example.org/blip2rt.git#subdirectory=packages/nano",
        ),
        ({"url": Path(__file__).as_uri(), "archive_info": {}}, f"{__file__}[train]", "blip2rt-nano"),
        ("here", "{here}[train]", "{here}/packages/nano"),
    ],
)
def test_install_command_names_the_origin(
    origin: object, wanted: str, nano: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a checkout"
    (here / "packages" / "nano").mkdir(parents=True)
    if origin == "here":
        origin = {"url": here.as_uri(), "dir_info": {}}
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    monkeypatch.setattr(install_hints, "__file__", str(tmp_path / "site-packages" / "blip2rt" / "install_hints.py"))
    assert shlex.split(install_hints.pip_install("train"))[2] == wanted.format(here=here)
    assert shlex.split(install_hints.install_nano())[2] == nano.format(here=here)
