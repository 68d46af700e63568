"""A simulated NVIDIA driver (tests/trt/native/libcuda_kernels.cpp) for runs without a GPU."""

import hashlib
import os
import shutil
from pathlib import Path

from blip2rt.errors import Blip2rtError

from .day import ROOT


def library_folder(out: Path) -> Path:
    """A folder with the simulated libcuda.so.1, compiled if needed. Raises Blip2rtError without a compiler."""
    from tests.compiled import compiled

    compiler = shutil.which("c++")
    if compiler is None:
        raise Blip2rtError("--stand-in compiles the kernels for the CPU: install a C++ compiler")
    flags = "-std=c++17 -O2 -ffp-contract=off -Wall -Werror -shared -fPIC -pthread -Wl,-soname,libcuda.so.1"
    native = ROOT / "tests" / "trt" / "native"
    included = hashlib.sha256((native / "libcuda.c").read_bytes()).hexdigest()[:16]  # recompile when it changes
    command = [compiler, *flags.split(), f"-I{ROOT / 'engines'}", f"-DDRIVER={included}"]
    library = compiled(command, [native / "libcuda_kernels.cpp"], ".so")
    folder = out / "driver"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libcuda.so.1"
    link.unlink(missing_ok=True)
    link.symlink_to(library)
    return folder


def use(folder: Path) -> None:
    """Make child processes load that driver."""
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = str(folder) + (f":{before}" if before else "")
