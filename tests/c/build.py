"""Build targets of the C library, once for all tests of a checkout."""

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = "libjpeg", "libpng", "libwebp", "libwebpdemux"
NEEDED = "the C library needs: apt-get install cmake pkg-config libjpeg62-turbo-dev libpng-dev libwebp-dev"


@cache
def build(target: str, *options: str, name: str = "c") -> Path:
    """Build a target of the C library. Return the folder of its files. Skips the test without the image libraries."""
    try:
        subprocess.run(["pkg-config", "--exists", *PACKAGES], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(NEEDED)
    with locked(ROOT / "build" / name) as folder:
        settings = ["-DBLIP2RT_C=ON", "-DBLIP2RT_C_TESTS=ON", "-DBLIP2RT_WERROR=ON", *options]
        core = ROOT / "build" / "core" / "libblip2rt_core.a"  # compiled for the wheel: see the Makefile
        settings += [f"-DBLIP2RT_CORE={core}"] if core.exists() and not options else []
        run("cmake", "-S", str(ROOT), "-B", str(folder), *settings)
        run("cmake", "--build", str(folder), "--target", target, "--parallel", str(os.cpu_count()))
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The folder of a build, which other test processes share."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def dist(runtime: str | Path, folder: Path) -> Path:
    """Pack with this ONNX Runtime, as `make dist` does. Return what the archive holds, unpacked."""
    with locked(build("blip2rt-c")) as built:
        run(str(ROOT / "engines" / "c" / "dist.sh"), str(runtime), str(folder), str(built))
    (unpacked := folder / "unpacked").mkdir()
    run("tar", "-C", str(unpacked), "-xzf", *map(str, folder.glob("*.tar.gz")))
    return unpacked / "blip2rt-c"


def build_sanitized(program: Path, *sources: str) -> Path:
    """Compile a program of sources of this checkout (patterns) with AddressSanitizer and UBSan. Return it."""
    build("image_check")  # skips the test without the image libraries
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", *PACKAGES], capture_output=True, text=True, check=True)
    files = [str(file) for pattern in sources for file in sorted(ROOT.glob(pattern))]
    command = f"c++ -std=c++17 -O0 -fsanitize=address,undefined -fno-sanitize-recover=all -I{ROOT}/engines".split()
    run(*command, *files, "-o", str(program), *flags.stdout.split())
    return program


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
