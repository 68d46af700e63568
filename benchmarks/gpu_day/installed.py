"""An environment of the day's own, from wheels that were laid beside the repository: no network is needed."""

from __future__ import annotations

import site
import subprocess
import sys
from pathlib import Path

from blip2rt.errors import Blip2rtError


def python_with(wheels: Path | None, out: Path) -> str:
    """The interpreter of an environment with every wheel of a folder; this one where there is no folder.

    Raises Blip2rtError: pip refuses them.
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
    _run([str(python), "-m", "pip", "install", "--no-index", "--find-links", str(wheels), *map(str, files)])
    stamp.write_text(wanted)
    return str(python)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Blip2rtError(f"the wheels cannot be installed: {' '.join(last[-3:])}: lay their dependencies beside them")
