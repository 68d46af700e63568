"""Writes a model repository of NVIDIA Triton around a bundle; blip2rt.integrations.triton runs it there."""

import shutil
from pathlib import Path

from blip2rt.bundle import read
from blip2rt.bundle.atomic import AtomicFolder
from blip2rt.errors import OptionError

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 16
{policy}
input [
  {{ name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "QUESTION" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }}{score}
]
instance_group [ {{ kind: {kind} count: 1 }} ]
parameters [
  {{ key: "threads" value: {{ string_value: "4" }} }},
  {{ key: "bundle" value: {{ string_value: "{bundle}" }} }}
]
"""
UNARY = {
    "policy": "dynamic_batching {}",
    "score": ',\n  { name: "SCORE" data_type: TYPE_FP32 dims: [ 1 ] }',
    "bundle": "bundle",
}
MODEL = '"""Run by Triton\'s Python backend."""\n\nfrom blip2rt.integrations.triton import {} as TritonPythonModel\n'


def _names(bundle: Path) -> tuple[str, str]:
    """The names of the model with whole texts and of the streaming one."""
    return bundle.name, f"{bundle.name}-stream"


def check_repository(repository: Path, bundle: Path) -> None:
    """Raise OptionError if the repository has a model of these names, or is inside of the bundle."""
    for name in _names(bundle):
        if (repository / name).exists():
            raise OptionError(f"--triton {str(repository)!r} has a model {name!r}: remove it, or give another folder")
    if repository.resolve().is_relative_to(bundle.resolve()):
        raise OptionError(f"--triton {str(repository)!r} is inside of --out: give another folder")


def write_repository(repository: Path, bundle: Path) -> Path:
    """Write the model named as the bundle's folder, with a copy of the bundle, and a streaming one of the same copy.

    Return the folder of the first.
    """
    kind = "KIND_GPU" if read(bundle).manifest.target == "trt" else "KIND_CPU"
    whole, stream = _names(bundle)
    shared = {
        "policy": "model_transaction_policy { decoupled: true }",
        "score": "",
        "bundle": f"../../{whole}/1/bundle",
    }
    for name, cls, fields in ((whole, "TritonPythonModel", UNARY), (stream, "StreamingModel", shared)):
        with AtomicFolder(repository / name) as atomic:
            (atomic.folder / "1").mkdir()
            (atomic.folder / "1" / "model.py").write_text(MODEL.format(cls))
            (atomic.folder / "config.pbtxt").write_text(CONFIG.format(name=name, kind=kind, **fields))
            if name == whole:
                shutil.copytree(bundle, atomic.folder / "1" / "bundle")
            atomic.finish()
    return repository / whole
