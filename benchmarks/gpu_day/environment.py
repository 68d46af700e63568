"""Installs wheels from a folder into a separate environment, without a network, and describes the machine."""

from __future__ import annotations

import json
import re
import site
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from blip2rt.errors import Blip2rtError

_PACKAGE_PREFIXES = ("tensorrt", "onnxruntime", "cuda", "nvidia")  # packages that results depend on


def python_for(wheels: Path | None, out: Path) -> str:
    """The interpreter of an environment with all wheels of a folder; without a folder, this interpreter.

    onnxruntime-gpu may replace onnxruntime, since it contains the same files. Raises Blip2rtError if pip rejects the
    wheels or a requirement is missing.
    """
    if wheels is None:
        return sys.executable
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise Blip2rtError(f"--wheels {wheels} has no wheels: put *.whl files there, or omit the option")
    folder, stamp = out / "environment", out / "environment" / "wheels.txt"
    contents = "".join(f"{file.name} {file.stat().st_size}\n" for file in files)
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == contents:
        return str(python)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    [site_packages] = folder.glob("lib/python*/site-packages")
    # Packages of this interpreter, including paths from its .pth files, remain visible.
    parents = "".join(f"site.addsitedir({place!r});" for place in site.getsitepackages())
    (site_packages / "parents.pth").write_text(f"import site;{parents}\n")
    names = {_normalized(file.name.partition("-")[0]) for file in files}
    if {"onnxruntime", "onnxruntime-gpu"} <= names:
        raise Blip2rtError(
            f"{wheels} has onnxruntime and onnxruntime-gpu, which overwrite each other: remove onnxruntime"
        )
    _run([str(python), "-m", "pip", "install", "--no-index", "--no-deps", *map(str, files)])
    if unmet := _unmet_requirements(python, names):
        raise Blip2rtError(f"requirements are missing: {'; '.join(unmet)}: put their wheels into {wheels}")
    stamp.write_text(contents)
    return str(python)


def _unmet_requirements(python: Path, names: set[str]) -> list[str]:
    """Unmet requirements of the packages `names`, according to pip."""
    output = subprocess.run([str(python), "-m", "pip", "check"], capture_output=True, text=True).stdout.splitlines()
    lines = [line.rstrip(".") for line in output if line and _normalized(line.split()[0]) in names]
    replaced = "onnxruntime, which is not installed" if "onnxruntime-gpu" in names else None
    return [line for line in lines if replaced is None or replaced not in line]


def _normalized(name: str) -> str:
    """A package's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def machine(python: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The output of `print_machine` in a process of that interpreter. Raises Blip2rtError if it fails."""
    command = [python, "-c", f"from {__name__} import print_machine; print_machine()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise Blip2rtError(f"{python} cannot run blip2rt: {last}: install blip2rt's wheel and its dependencies there")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def print_machine() -> None:
    """Print as JSON the card, or why there is none, and the versions of the packages that results depend on."""
    from blip2rt.backends.trt import gpu  # needs numpy, which the interpreter that starts the run may lack

    found = gpu.find()
    card = found
    if not isinstance(found, str):
        memory, (major, minor) = found.memory / 1e9, found.driver
        card = f"{found.name} ({found.sm}, {memory:.0f} GB, CUDA up to {major}.{minor})"
    versions = {_normalized(each.metadata["Name"]): each.version for each in metadata.distributions()}
    packages = {name: version for name, version in sorted(versions.items()) if name.startswith(_PACKAGE_PREFIXES)}
    print(json.dumps({"card": card, "packages": packages}))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Blip2rtError(f"the wheels cannot be installed: {' '.join(last[-3:])}: use wheels for this machine")
