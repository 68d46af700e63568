"""A driver that stands in for NVIDIA's (tests/trt/native/libcuda_kernels.cpp), for a day without a GPU."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from blip2rt.errors import Blip2rtError

from .day import ROOT


def library_folder(out: Path) -> Path:
    """A folder with the libcuda.so.1 that stands in, compiled where it has to be. Raises Blip2rtError."""
    from tests.compiled import compiled

    compiler = shutil.which("c++")
    if compiler is None:
        raise Blip2rtError("--stand-in compiles the kernels for the CPU: install a C++ compiler")
    command = [compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread",
               f"-I{ROOT / 'engines'}", "-Wl,-soname,libcuda.so.1"]  # fmt: skip
    native = ROOT / "tests" / "trt" / "native"
    command.append(f"-DDRIVER={hashlib.sha256((native / 'libcuda.c').read_bytes()).hexdigest()[:16]}")  # is included
    library = compiled(command, [native / "libcuda_kernels.cpp"], ".so")
    folder = out / "driver"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libcuda.so.1"
    link.unlink(missing_ok=True)
    link.symlink_to(library)
    return folder


def use(folder: Path) -> None:
    """Let the processes that begin from here on find that driver."""
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = str(folder) + (f":{before}" if before else "")
