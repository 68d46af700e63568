"""Bundles of random weights in real geometries, created once and cached.

The exporter, which creates them, needs the extra `export`; measuring does not.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from ..bundle import MANIFEST, embedded
from ..errors import Blip2rtError
from ..install_hints import pip_install
from ..version import __version__

NANO = "nano"  # the embedded model, which needs no export
GEOMETRIES = ("blip2-opt-2.7b", "blip2-opt-6.7b", "blip2-flan-t5-xl", "blip2-flan-t5-xxl", NANO, "tiny")
_NEEDED = ("blip2rt_export", "torch", "transformers", "onnx", "onnxscript")  # modules of the exporter
PRECISION = "vision=int8-dynamic,qformer=int8-dynamic,llm=int4"
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
        exporter = _exporter(geometry)
        print(f"creating {path} (cached)", file=sys.stderr, flush=True)
        exporter.make(geometry, path, precision, target)
    return path


def config(geometry: str, folder: Path) -> Path:
    """Return the folder with a geometry's Hugging Face config and processor, for peers. Raises Blip2rtError."""
    path = folder / f"{geometry}-{__version__}-config"
    if not (path / "preprocessor_config.json").is_file() and not (path / "processor_config.json").is_file():
        _exporter(geometry).write_config(geometry, path)
    return path


def _exporter(geometry: str) -> Any:
    """Return the module that makes bundles. Raises Blip2rtError if a package is missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Blip2rtError(
            f"--geometry {geometry} needs the exporter, and {', '.join(missing)} is not installed: "
            f"{pip_install('export')}, or measure a bundle with --model"
        )
    return importlib.import_module("blip2rt_export.synthetic")
