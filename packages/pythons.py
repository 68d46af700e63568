"""Find the Pythons of this machine: on PATH, of pyenv and of uv."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def find_python(version: str, code: str = "import ensurepip, venv") -> str | None:
    """Return the first `python<version>` that runs `code`; shims of pyenv and Pythons without headers may not."""
    for path in _candidates(version):
        if subprocess.run([path, "-c", code], capture_output=True).returncode == 0:
            return path
    return None


def _candidates(version: str) -> Iterator[str]:
    name = f"python{version}"
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if found := shutil.which(name, path=folder):
            yield found
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    for pattern in (pyenv.glob(f"{version}.*/bin/{name}"), uv.glob(f"cpython-{version}.*/bin/{name}")):
        yield from map(str, sorted(pattern))
