"""Bundles of random weights in real geometries, made once and kept in a cache. Knows names and folders.

They are made by the exporter in a process of its own, which needs the extra `export` once; measuring does not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from ..bundle import MANIFEST, embedded
from ..bundle.atomic import AtomicFolder
from ..errors import Blip2rtError
from ..install_hints import pip_install
from ..version import __version__
from . import ending

NANO = "nano"  # the embedded model: nothing has to be made
GEOMETRIES = ("blip2-opt-2.7b", "blip2-opt-6.7b", "blip2-flan-t5-xl", "blip2-flan-t5-xxl", NANO, "tiny")
MODULE = "blip2rt_export.synthetic"
PRECISION = "vision=int8-dynamic,qformer=fp32,llm=int4"
PRECISION_TRT = "vision=fp16,qformer=fp32,llm=int4"
REVISION = 2  # of what the exporter writes: raised when that changes, so that older folders are made anew
_GRACE = 10  # seconds that the exporter has to remove what it has begun


def cache(given: str | None) -> Path:
    """The folder of bundles that were made: the one given, $BLIP2RT_CACHE, or the system's place for such files."""
    if given or os.environ.get("BLIP2RT_CACHE"):
        return Path(given or os.environ["BLIP2RT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blip2rt"


def bundle(geometry: str, precision: str, folder: Path, target: str = "ort") -> Path:
    """The bundle of a geometry, made where the cache has none. Raises Blip2rtError."""
    if geometry == NANO:
        return embedded()
    parts = precision.replace(" ", "").replace(",", "-").replace("=", "-")
    other = "" if target == "ort" else f"{target}-"
    path = folder / f"{geometry}-{__version__}-r{REVISION}-{other}{parts}"
    if not (path / MANIFEST).is_file():
        _make(geometry, "--out", path, "--precision", precision, *(["--target", target] if other else []))
    return path


def config(geometry: str, folder: Path) -> Path:
    """Hugging Face's config and processor of a geometry, for peers. Raises Blip2rtError."""
    path = folder / f"{geometry}-{__version__}-config"
    if not (path / "preprocessor_config.json").is_file() and not (path / "processor_config.json").is_file():
        _make(geometry, "--config", path)
    return path


def _make(geometry: str, flag: str, path: Path, *more: str) -> None:
    needed = ("blip2rt_export", "torch", "transformers", "onnx", "onnxscript")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise Blip2rtError(
            f"--geometry {geometry} is made by the exporter, and {', '.join(missing)} is not installed: "
            f"{pip_install('bench', 'export')}, or measure a bundle with --model"
        )
    print(f"making {path}, once", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", MODULE, "--geometry", geometry, flag, str(path), *more]
    last = "it said nothing"
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with (
        ending.temporary_folder() as folder,
        ending.child(command, env={**os.environ, "TMPDIR": folder}, **pipes) as process,
    ):
        assert process.stderr is not None
        try:
            for line in process.stderr:
                last = line.strip() or last
                if ": error: " not in line:
                    print(line, end="", file=sys.stderr, flush=True)
            process.wait()
        except SystemExit:  # SIGTERM; Ctrl-C reaches the exporter by itself
            _stop(process)
            with AtomicFolder(path):  # which removes what an exporter left that had to be killed
                pass
            raise
    if process.returncode in (130, -2):
        raise KeyboardInterrupt
    if process.returncode:
        raise Blip2rtError(f"{geometry} cannot be made: {last.rpartition(': error: ')[2]}")


def _stop(process: subprocess.Popen[str]) -> None:
    """End the exporter as Ctrl-C does, so that nothing half made remains; kill it where it does not heed that."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    process.kill()
    process.wait()
