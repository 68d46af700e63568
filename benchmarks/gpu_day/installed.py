"""An environment of the day's own, from wheels that were laid beside the repository, and what it has: no network is
needed."""

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

_NAMED = ("tensorrt", "onnxruntime", "cuda", "nvidia")  # how the names of packages begin that results depend on


def python_with(wheels: Path | None, out: Path) -> str:
    """The interpreter of an environment with every wheel of a folder; this one where there is no folder.

    onnxruntime-gpu's wheel serves where blip2rt asks for onnxruntime, whose files it has.
    Raises Blip2rtError: pip refuses them, or they need others that are not there.
    """
    if wheels is None:
        return sys.executable
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise Blip2rtError(f"--wheels {wheels} has no wheels: lay *.whl files there, or leave it out")
    folder, stamp = out / "environment", out / "environment" / "wheels.txt"
    wanted = "".join(f"{file.name} {file.stat().st_size}\n" for file in files)
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    [own] = folder.glob("lib/python*/site-packages")
    # What this interpreter has, a virtual environment's or not, with the paths that it has from .pth files.
    around = "".join(f"site.addsitedir({place!r});" for place in site.getsitepackages())
    (own / "around.pth").write_text(f"import site;{around}\n")
    names = {_plain(file.name.partition("-")[0]) for file in files}
    if {"onnxruntime", "onnxruntime-gpu"} <= names:
        raise Blip2rtError(f"{wheels} has onnxruntime and onnxruntime-gpu, of which one overwrites the other: "
                           "take onnxruntime away")  # fmt: skip
    _run([str(python), "-m", "pip", "install", "--no-index", "--no-deps", *map(str, files)])
    if lacking := _lacking(python, names):
        raise Blip2rtError(f"the wheels need others: {'; '.join(lacking)}: lay them into {wheels}")
    stamp.write_text(wanted)
    return str(python)


def _lacking(python: Path, names: set[str]) -> list[str]:
    """What pip says of the packages `names`: requirements that are not met."""
    said = subprocess.run([str(python), "-m", "pip", "check"], capture_output=True, text=True).stdout.splitlines()
    own = [line.rstrip(".") for line in said if line and _plain(line.split()[0]) in names]
    served = "onnxruntime, which is not installed" if "onnxruntime-gpu" in names else None
    return [line for line in own if served is None or served not in line]


def _plain(name: str) -> str:
    """The name of a package as all of its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def machine(python: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """What `tell` says in a process of that interpreter. Raises Blip2rtError: it says nothing."""
    command = [python, "-c", f"from {__name__} import tell; tell()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise Blip2rtError(f"{python} cannot take the day: {last}: lay blip2rt's wheel and its dependencies there")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tell() -> None:
    """Print the card, or why there is none, and the versions of packages that results depend on."""
    from blip2rt.backends.trt import gpu  # needs numpy, which the interpreter that begins the day may lack

    found = gpu.find()
    card = found if isinstance(found, str) else (
        f"{found.name} ({found.sm}, {found.memory / 1e9:.0f} GB, CUDA up to {found.driver[0]}.{found.driver[1]})"
    )  # fmt: skip
    named = {_plain(each.metadata["Name"]): each.version for each in metadata.distributions()}
    print(json.dumps({"card": card, "packages": {
        name: version for name, version in sorted(named.items()) if name.startswith(_NAMED)}}))  # fmt: skip


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Blip2rtError(f"the wheels cannot be installed: {' '.join(last[-3:])}: lay those of this machine there")
