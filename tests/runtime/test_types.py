"""Public types match the code. typing_checks.py states the types of results; mypy reads it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import pytest

import blip2rt
from blip2rt.options import CaptionOptions, Options, TextOptions


def test_typed_keywords_match_options() -> None:
    assert get_type_hints(TextOptions) | {"num_captions": int} == get_type_hints(Options)
    assert CaptionOptions.__required_keys__ == frozenset()
    keys = [line.partition(":")[0] for line in (Options.__doc__ or "").splitlines() if ":" in line]
    documented = {name.strip() for key in keys for name in key.split(", ")}
    assert {field.name for field in fields(Options)} <= documented


def test_package_functions_match_methods() -> None:
    for name in ("caption", "ask", "match"):
        taken = list(signature(getattr(blip2rt, name)).parameters.values())
        method = list(signature(getattr(blip2rt.Model, name)).parameters.values())[1:]
        assert taken == method and (name == "match" or "num_beams" in [each.name for each in taken])


def test_package_is_typed() -> None:
    assert (Path(blip2rt.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("module", ["blip2rt.model", "blip2rt.backends.ort", "blip2rt.backends.trt"])
def test_typing_extensions_is_not_needed(module: str) -> None:
    code = f"import sys; sys.modules['typing_extensions'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
