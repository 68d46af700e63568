"""Bundles of random weights in real geometries, created once and cached.

The exporter creates them in its own process, which needs the extra `export`; measuring does not.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from ..bundle import MANIFEST, embedded
from ..bundle.atomic import AtomicFolder
from ..errors import Blip2rtError
from ..install_hints import pip_install
from ..version import __version__
from . import signals

NANO = "nano"  # the embedded model, which needs no export
GEOMETRIES = ("blip2-opt-2.7b", "blip2-opt-6.7b", "blip2-flan-t5-xl", "blip2-flan-t5-xxl", NANO, "tiny")
MODULE = "blip2rt_export.synthetic"
PRECISION = "vision=int8-dynamic,qformer=int8-dynamic,llm=int4"
PRECISION_TRT = "vision=fp16,qformer=fp32,llm=int4"
REVISION = 2  # of the exporter's output; raise it to invalidate cached bundles


def cache_folder(given: str | None) -> Path:
    """Return the folder of cached bundles: the given one, $BLIP2RT_CACHE, or the system's cache folder."""
    if given or os.environ.get("BLIP2RT_CACHE"):
        return Path(given or os.environ["BLIP2RT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blip2rt"


def bundle(geometry: str, precision: str, folder: Path, target: str = "ort") -> Path:
    """Return the bundle of a geometry, exported if it is not cached. Raises Blip2rtError."""
    if geometry == NANO:
        return embedded()
    parts = precision.replace(" ", "").replace(",", "-").replace("=", "-")
    other = "" if target == "ort" else f"{target}-"
    path = folder / f"{geometry}-{__version__}-r{REVISION}-{other}{parts}"
    if not (path / MANIFEST).is_file():
        _export(geometry, "--out", path, "--precision", precision, *(["--target", target] if other else []))
    return path


def config(geometry: str, folder: Path) -> Path:
    """Return the folder with a geometry's Hugging Face config and processor, for peers. Raises Blip2rtError."""
    path = folder / f"{geometry}-{__version__}-config"
    if not (path / "preprocessor_config.json").is_file() and not (path / "processor_config.json").is_file():
        _export(geometry, "--config", path)
    return path


def _export(geometry: str, flag: str, path: Path, *more: str) -> None:
    needed = ("blip2rt_export", "torch", "transformers", "onnx", "onnxscript")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise Blip2rtError(
            f"--geometry {geometry} needs the exporter, and {', '.join(missing)} is not installed: "
            f"{pip_install('bench', 'export')}, or measure a bundle with --model"
        )
    print(f"creating {path} (cached)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", MODULE, "--geometry", geometry, flag, str(path), *more]
    last = "no message"
    with signals.child_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                last = line.strip() or last
                if ": error: " not in line:
                    print(line, end="", file=sys.stderr, flush=True)
            process.wait()
        except SystemExit:  # SIGTERM; Ctrl-C reaches the exporter directly
            process.kill()
            process.wait()
            with AtomicFolder(path):  # which removes the leftovers of a killed exporter
                pass
            raise
    if process.returncode in (130, -2):
        raise KeyboardInterrupt
    if process.returncode:
        raise Blip2rtError(f"cannot create {geometry}: {last.rpartition(': error: ')[2]}")
