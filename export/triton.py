"""Writes a model repository of NVIDIA Triton around a bundle; blip2rt.integrations.triton runs it there."""

from __future__ import annotations

import shutil
from pathlib import Path

from blip2rt.bundle.atomic import AtomicFolder
from blip2rt.errors import OptionError

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "QUESTION" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "STREAM" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
output [
  {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "SCORE" data_type: TYPE_FP32 dims: [ 1 ] }}
]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters [
  {{ key: "threads" value: {{ string_value: "4" }} }}
]
"""
MODEL = '"""Run by Triton\'s Python backend."""\n\nfrom blip2rt.integrations.triton import TritonPythonModel\n'


def check_repository(repository: Path, bundle: Path) -> None:
    """Raise OptionError if the repository has a model of this name, or is inside of the bundle."""
    if (repository / bundle.name).exists():
        raise OptionError(
            f"--triton {str(repository)!r} has a model {bundle.name!r}: remove it, or give another folder"
        )
    if repository.resolve().is_relative_to(bundle.resolve()):
        raise OptionError(f"--triton {str(repository)!r} is inside of --out: give another folder")


def write_repository(repository: Path, bundle: Path) -> Path:
    """Write the model named as the bundle's folder, with a copy of the bundle. Return its folder."""
    model = repository / bundle.name
    with AtomicFolder(model) as atomic:
        (atomic.folder / "config.pbtxt").write_text(CONFIG.format(name=bundle.name))
        shutil.copytree(bundle, atomic.folder / "1" / "bundle")
        (atomic.folder / "1" / "model.py").write_text(MODEL)
        atomic.finish()
    return model
