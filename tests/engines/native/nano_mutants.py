"""`python -m tests.engines.native.nano_mutants SEED COUNT FOLDER FIRST [theirs]`: nano's graphs, altered.

Each altered bundle, with a matching manifest, captions a picture or fails with an error of one line. FOLDER keeps the
last one. theirs: only the mutant FIRST, with ONNX Runtime's own operators.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx

import blip2rt
from blip2rt.backends import ort
from blip2rt.bundle import MANIFEST, embedded
from tests.engines.native import mutants

PHOTO = Path(__file__).parents[3] / "docs" / "photo.jpg"
GRAPHS = ("llm", "llm", "llm", "vision", "qformer", "embed", "image_embed", "text_embed", "itm")


@functools.cache
def graph(name: str) -> onnx.ModelProto:
    return onnx.load(embedded() / f"{name}.onnx", load_external_data=False)


def alter(folder: Path, seed: int, number: int) -> str:
    """Write the mutant with this number into the folder, and return the name of its graph."""
    rng = random.Random(f"{seed} {number}")
    name = rng.choice(GRAPHS)
    model = onnx.ModelProto()
    model.CopyFrom(graph(name))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        with contextlib.suppress(Exception):  # onnx cannot read or write some changes
            change = rng.choice([mutants.mutate, mutants.mutate, mutants.mutate, change_entry])
            change(model, rng)
    data = model.SerializeToString()
    if rng.random() < 0.2:
        data = mutants.damage(data, rng)
    for file in embedded().iterdir():
        (folder / file.name).unlink(missing_ok=True)
        try:
            os.link(file, folder / file.name)
        except OSError:  # another disk
            shutil.copyfile(file, folder / file.name)
    manifest = json.loads((embedded() / MANIFEST).read_text())
    manifest["files"][f"{name}.onnx"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for written, content in ((f"{name}.onnx", data), (MANIFEST, json.dumps(manifest).encode())):
        (folder / written).unlink()
        (folder / written).write_bytes(content)
    return name


def change_entry(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change where a tensor's data is stored."""
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    changed = rng.choice(rng.choice(outside).external_data)
    numbers = ["0", "1", "4096", str(2**31), str(2**63), "-1", ""]
    changed.value = rng.choice([*numbers, "../llm.data", "blip2rt.json", "vision.onnx", "*/_ORT_MEM_ADDR_/*"])


def caption(folder: Path, name: str) -> bool:
    """Return whether the bundle works. Raise AssertionError for an error of several lines."""
    try:
        model = blip2rt.load(folder, threads=1)
        if name in ("image_embed", "text_embed", "itm"):
            model.match(PHOTO, "a cup")
        else:
            model.caption(PHOTO, max_new_tokens=5, num_beams=2)
    except blip2rt.Blip2rtError as error:
        assert str(error).isprintable(), error
        return False
    return True


def disable_our_operators() -> None:
    core = ort.native

    class Theirs:
        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        @staticmethod
        def Session(*arguments: Any, **named: Any) -> Any:
            named |= {"custom_int8": False, "custom_int4": False}
            return core.Session(*arguments, **named)

    ort.native = Theirs()  # type: ignore[assignment]


def main(seed: int, count: int, folder: Path, first: int, theirs: bool) -> None:
    if theirs:
        disable_our_operators()
    ran = 0
    for number in range(first, first + 1 if theirs else count):
        name = alter(folder, seed, number)
        print(number, name, flush=True)
        ran += caption(folder, name)
    print("ran", ran, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:] == ["theirs"])
