"""The types that users meet are those that the code has. typing_checks.py holds what calls return; mypy reads it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import get_type_hints

import pytest

import blip2rt
from blip2rt.options import CaptionOptions, Options, TextOptions


def test_the_keywords_are_the_fields_of_options() -> None:
    assert get_type_hints(TextOptions) | {"num_captions": int} == get_type_hints(Options)
    assert CaptionOptions.__required_keys__ == frozenset()
    documented = [name for line in (Options.__doc__ or "").splitlines() if ":" in line
                  for name in line.split(":")[0].split(", ") if name.strip().isidentifier()]  # fmt: skip
    assert {field.name for field in fields(Options)} <= {name.strip() for name in documented}


def test_the_packages_functions_take_what_their_methods_take() -> None:
    """Type checkers are told that they do."""
    for name in ("caption", "ask", "match"):
        taken = list(signature(getattr(blip2rt, name)).parameters.values())
        method = list(signature(getattr(blip2rt.Model, name)).parameters.values())[1:]
        named = [
            each.name for each in method if each.kind is not each.KEYWORD_ONLY and each.kind is not each.VAR_KEYWORD
        ]
        assert [each.name for each in taken[:-1]] == named and taken[-1].kind is Parameter.VAR_KEYWORD


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(blip2rt.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("module", ["blip2rt.model", "blip2rt.backends.ort", "blip2rt.backends.trt"])
def test_typing_extensions_is_not_needed(module: str) -> None:
    code = f"import sys; sys.modules['typing_extensions'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
