"""Compile C++ of the tests once, cached in build/tests by a hash of the inputs."""

import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "tests"


def compiled(command: Sequence[str], sources: Sequence[Path], suffix: str = "") -> Path:
    """The output of a compiler command for `sources`: a program or a library.

    command: the compiler and its flags, without -o. Headers count as all those of engines/ do.
    """
    folders = (ROOT / "engines", ROOT / "tests" / "engines" / "native")
    read = {*sources, *(path for folder in folders for path in folder.rglob("*.h"))}
    digest = hashlib.sha256("\0".join((*command, _version(command[0]))).encode())
    for path in sorted(read):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    program = CACHE / f"{sources[0].stem}-{digest.hexdigest()[:16]}{suffix}"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_name(f".{os.getpid()}-{program.name}")  # other processes may compile it, too
        try:
            done = subprocess.run([*command, *map(str, sources), "-o", str(unfinished)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            unfinished.rename(program)
        finally:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()
    return program


def shared_library(name: str, *flags: str) -> Path:
    """tests/engines/native/NAME.cpp as a library; skips the test without a compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    command = [compiler, "-std=c++17", "-shared", "-fPIC", f"-I{ROOT / 'engines'}", *flags]
    return compiled(command, [ROOT / "tests" / "engines" / "native" / f"{name}.cpp"], ".so")


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
