"""The types that users meet are those that the code has. typing_checks.py holds what calls return; mypy reads it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

import blip2rt
from blip2rt.options import CaptionOptions, Options, TextOptions


def test_the_keywords_are_the_fields_of_options() -> None:
    assert get_type_hints(CaptionOptions) == get_type_hints(Options)
    assert CaptionOptions.__required_keys__ == frozenset()
    several = set(get_type_hints(CaptionOptions)) - set(get_type_hints(TextOptions))
    assert several == {"num_captions"}
    documented = [name for line in (Options.__doc__ or "").splitlines() if ":" in line
                  for name in line.split(":")[0].split(", ") if name.strip().isidentifier()]  # fmt: skip
    assert {field.name for field in fields(Options)} <= {name.strip() for name in documented}


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(blip2rt.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("module", ["blip2rt.model", "blip2rt.backends.ort", "blip2rt.backends.trt"])
def test_typing_extensions_is_not_needed(module: str) -> None:
    code = f"import sys; sys.modules['typing_extensions'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
