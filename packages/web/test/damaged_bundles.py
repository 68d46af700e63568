"""Write damaged bundles into a folder, and print what the native core says of each.

`python damaged_bundles.py FOLDER [SEED COUNT]`: with a seed, as many bundles with random damage instead of the listed.
Prints JSON: {"image": RGBA in base64, "bundles": {name: {"text": ..} or {"kind": .., "message": ..}}}.
"""

import base64
import hashlib
import json
import os
import random
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["BLIP2RT_KERNELS"] = "sse41"  # which rounds as SIMD128 does
sys.path.append(str(Path(__file__).parents[3]))

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image

import blip2rt
from blip2rt.bundle.checksum import EMPTY, KEY, insert_checksum
from blip2rt.errors import BundleError, CapabilityError, DeadlineError
from tests.tiny.bundle import CALIBRATION, HEIGHT, WIDTH, calibrated, tiny_bundle, with_likelihood_weight, with_pool

MANIFEST = "blip2rt.json"
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
WRAPS = 2**32  # where a size of 32 bits begins again at 0
KINDS = {CapabilityError: "BundleError", BundleError: "BundleError", DeadlineError: "TimeoutError"}
Damage = Callable[[Path], None]


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with the sizes and checksums that its files have now."""
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_bytes(insert_checksum(json.dumps(manifest | {KEY: EMPTY}).encode()))


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def field(path: str, value: object) -> Damage:
    """Change a field of the manifest: "llm.layers"."""

    def damage(folder: Path) -> None:
        manifest = read_manifest(folder)
        *parents, last = path.split("/") if "/" in path else path.split(".")
        section: Any = manifest
        for key in parents:
            section = section[int(key) if isinstance(section, list) else key]
        section[int(last) if isinstance(section, list) else last] = value
        write_manifest(folder, manifest)

    return damage


def content(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change a file's bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def graph(name: str, change: Callable[[onnx.ModelProto], object]) -> Damage:
    def damage(folder: Path) -> None:
        model = onnx.load(folder / f"{name}.onnx")
        change(model)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())

    return damage


def dims(name: str, constant: str, shape: list[int]) -> Damage:
    """Change the shape that an initializer declares."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == constant)
        tensor.dims[:] = shape

    return graph(name, change)


def values(name: str, constant: str, numbers: list[int]) -> Damage:
    """Change the numbers of an initializer."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == constant)
        tensor.CopyFrom(numpy_helper.from_array(np.array(numbers), constant))

    return graph(name, change)


def nodes(*added: tuple[str, str, str], **constants: object) -> Damage:
    """Add nodes to the encoder: (operator, "inputs", output)."""

    def change(model: onnx.ModelProto) -> None:
        for name, array in constants.items():
            numbers = np.array(array)
            model.graph.initializer.append(numpy_helper.from_array(numbers, name))
        for op, inputs, output in reversed(added):
            model.graph.node.insert(0, helper.make_node(op, inputs.split(), [output]))

    return graph("vision", change)


def external(offset: int, length: int) -> Damage:
    """Put a weight of the encoder into a file, at this place."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "conv")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", "mean_prefix.data"), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=text)

    return graph("vision", change)


def attribute(name: str, numbers: list[int]) -> Damage:
    def change(model: onnx.ModelProto) -> None:
        conv = model.graph.node[0]
        kept = [each for each in conv.attribute if each.name != name]
        del conv.attribute[:]
        conv.attribute.extend([*kept, helper.make_attribute(name, numbers)])

    return graph("vision", change)


def pool_header(place: int, number: int) -> Damage:
    """Change one of the six numbers behind a pool's magic and fingerprint."""
    at = 16 + 64 + 4 * place
    return content("captions.pool", lambda data: data[:at] + struct.pack("<I", number) + data[at + 4 :])


def wide(*axes: int) -> np.ndarray:
    return np.ones(axes, np.float32)


def vocabulary(change: Callable[[dict[str, Any]], object]) -> Damage:
    def altered(data: bytes) -> bytes:
        tokenizer = json.loads(data)
        change(tokenizer)
        return json.dumps(tokenizer).encode()

    return content("tokenizer.json", altered)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def nested(part: dict[str, Any], depth: int) -> dict[str, Any]:
    return nested({"type": "Sequence", "pretokenizers": [part]}, depth - 1) if depth else part


SIDE = 2**16  # SIDE * (SIDE + 1) floats are more than 16 GB, and SIDE of them in 32 bits
SEALED: dict[str, Damage] = {
    "nothing": lambda folder: None,
    "truncated graph": content("vision.onnx", half),
    "graph without its last byte": content("llm.onnx", lambda data: data[:-1]),
    "empty graph": content("vision.onnx", lambda data: b""),
    "wrapping rows of a constant": dims("embed", "embed", [WRAPS + 20, 16]),
    "wrapping constant": dims("embed", "embed", [SIDE, SIDE]),
    "too few rows of a constant": dims("embed", "embed", [5, 64]),
    "negative constant": dims("llm", "positions", [-64, -16]),
    "vast empty constant": dims("qformer", "queries", [0, WRAPS + 6]),
    "wrapping kernel": dims("vision", "conv", [8, 3, 4, WRAPS + 4]),
    "vast pads": attribute("pads", [WRAPS, 0, 0, 0]),
    "many pads": attribute("pads", [1024, 1024, 1024, 1024]),
    "wrapping range": nodes(("Range", "zero end one", "r"), zero=0, end=WRAPS + 8, one=1),
    "wrapping range of an image": nodes(
        ("Shape", "pixels", "shape"),
        ("Gather", "shape three", "width"),
        ("Mul", "width much", "end"),
        ("Range", "zero end one", "r"),
        three=3,
        much=WRAPS,
        zero=0,
        one=1,
    ),
    "wrapping reshape": values("vision", "flat", [0, 8, WRAPS + 6]),
    "wrapping reshape to zero": values("vision", "flat", [WRAPS, WRAPS, -1]),
    "reshape of the rest": values("vision", "flat", [0, -1, WRAPS + 6]),
    "vast reshape": values("vision", "flat", [2**62, 2**62, 2**62]),
    "wrapping expand": nodes(("Expand", "x shape", "y"), x=wide(1), shape=[WRAPS + 1]),
    "vast expand": nodes(("Expand", "pixels shape", "y"), shape=[2**40, 1, 1, 1]),
    "wrapping sum": nodes(("Add", "a b", "y"), a=wide(SIDE, 1), b=wide(1, SIDE + 1)),
    "wrapping sum of an image": nodes(
        ("Expand", "pixels shape", "x"),
        ("ReduceMean", "x rest", "a"),
        ("Mul", "a b", "y"),
        shape=[SIDE, 1, 1, 1],
        rest=[1, 2, 3],
        b=wide(1, 1, 1, SIDE + 1),
    ),
    "wrapping product": nodes(("MatMul", "a b", "y"), a=wide(SIDE, 1), b=wide(1, SIDE + 1)),
    "wrapping gather": nodes(("Gather", "a places", "y"), a=wide(1, SIDE), places=np.zeros(SIDE + 1, np.int64)),
    "wrapping choice": nodes(("Where", "yes a b", "y"), yes=np.array([True]), a=wide(SIDE, 1), b=wide(1, SIDE + 1)),
    "wrapping comparison": nodes(("Less", "a b", "y"), a=wide(SIDE * 4, 1), b=wide(1, SIDE + 1)),
    "wrapping split": nodes(("Split", "a sizes", "y"), a=wide(8), sizes=[WRAPS + 8]),
    "wrapping slice": nodes(("Slice", "a start end", "y"), a=wide(8), start=[WRAPS + 1], end=[WRAPS + 5]),
    "wrapping index": nodes(("Gather", "a place", "y"), a=wide(8), place=WRAPS + 1),
    "weights past 4 GB": external(WRAPS, 4 * 8 * 3 * 16),
    "weights past the end": external(64, 4 * 8 * 3 * 16),
    "weights of another size": external(0, 64),
    "short weights": content("mean_prefix.data", half),
    "truncated tokenizer": content("tokenizer.json", half),
    "tokenizer without UTF-8": content("tokenizer.json", lambda data: data.replace(b"grass", b"gr\xffss")),
    "wrapping token": vocabulary(lambda whole: whole["model"]["vocab"].update(dog=WRAPS + 3)),
    "negative token": vocabulary(lambda whole: whole["model"]["vocab"].update(dog=-3)),
    "far token": vocabulary(lambda whole: whole["model"]["vocab"].update(dog=2**31)),
    "missing token": vocabulary(lambda whole: whole["model"]["vocab"].pop("dog")),
    "unknown tokenizer": vocabulary(lambda whole: whole["model"].update(type="Letters")),
    "deep tokenizer": content("tokenizer.json", lambda data: b'{"a":' * 100_000 + data + b"}" * 100_000),
    "deep sequence": vocabulary(lambda whole: whole.update(pre_tokenizer=nested(whole["pre_tokenizer"], 200))),
    "deep pattern": vocabulary(lambda whole: whole.update(pre_tokenizer=split("(" * 20_000 + "a" + ")" * 20_000))),
    "vast pattern": vocabulary(lambda whole: whole.update(pre_tokenizer=split("((((a{99}){99}){99}){99}){99}"))),
    "pattern of many steps": vocabulary(lambda whole: whole.update(pre_tokenizer=split("(a|a?)+" * 20 + "b"))),
    "pool of 4 billion captions": pool_header(0, WRAPS - 1),
    "pool with a vast vocabulary": pool_header(3, 2**30),
    "pool with vast codes": pool_header(2, 2**31),
}
UNSEALED: dict[str, Damage] = {
    "layers": field("llm.layers", 2),
    "heads": field("llm.kv_heads", 10_000),
    "wrapping head width": field("llm.head_dim", WRAPS + 8),
    "wrapping hidden size": field("llm.hidden_size", WRAPS + 16),
    "vocabulary": field("llm.vocab_size", 10_000_000),
    "wrapping vocabulary": field("llm.vocab_size", WRAPS + 20),
    "vast prefix": field("llm.prefix_length", 2**63 - 1),
    "positions of 80 bits": field("llm.max_positions", 2**80),
    "few positions": field("llm.max_positions", 4),
    "negative width": field("image.width", -1),
    "large picture": field("image.height", 16_384),
    "wrapping end token": field("llm.eos_token_ids", [WRAPS + 1]),
    "vast captions": field("decoding.caption", {"num_beams": 1000, "max_new_tokens": 10_000_000}),
    "endless captions": field("decoding.caption.max_new_tokens", 10_000_000),
    "length penalty": field("decoding.caption.length_penalty", 1e300),
    "wrapping file": field("files/vision.onnx/size", WRAPS),
    "wrapping input": field("components/llm/inputs/0/shape/2", WRAPS + 16),
    "truncated manifest": content(MANIFEST, half),
}


def random_damage(rng: random.Random) -> Damage:
    """Flip bytes of a file, cut it, or replace a number in the manifest or in an initializer."""
    name = rng.choice(
        [MANIFEST, "vision.onnx", "qformer.onnx", "embed.onnx", "llm.onnx", "tokenizer.json", "captions.pool"]
    )
    numbers = [
        0,
        1,
        -1,
        2**16,
        2**31 - 1,
        2**31,
        WRAPS - 1,
        WRAPS,
        WRAPS + 1,
        WRAPS + 8,
        2**34,
        2**40,
        2**62,
        2**63 - 1,
    ]
    if name.endswith(".onnx") and rng.random() < 0.6:

        def change(model: onnx.ModelProto) -> None:
            tensor = rng.choice(model.graph.initializer)
            if rng.random() < 0.5 and len(tensor.dims):
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
            elif tensor.data_type == INT64:
                array = numpy_helper.to_array(tensor).copy()
                array.flat[rng.randrange(array.size)] = rng.choice(numbers)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            else:
                nodes_of = [each for each in model.graph.node if each.attribute]
                if nodes_of:
                    one = rng.choice(rng.choice(nodes_of).attribute)
                    one.i = rng.choice(numbers)
                    if one.ints:
                        one.ints[rng.randrange(len(one.ints))] = rng.choice(numbers)

        return graph(name.removesuffix(".onnx"), change)

    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)

    def number(data: bytes) -> bytes:
        digits = [at for at, byte in enumerate(data) if chr(byte).isdigit() and not chr(data[at - 1]).isdigit()]
        at = rng.choice(digits)
        end = at
        while chr(data[end]).isdigit():
            end += 1
        return data[:at] + str(rng.choice(numbers)).encode() + data[end:]

    is_text = name.endswith(".json")
    return content(name, number if is_text and rng.random() < 0.7 else flip)


def said(folder: Path, image: Image.Image) -> dict[str, str]:
    """Load a bundle with the core and caption an image: the text, or the error."""
    try:
        return {"text": str(blip2rt.load(folder, backend="core", threads=1).caption(image))}
    except Exception as error:
        kind = next((name for of, name in KINDS.items() if isinstance(error, of)), type(error).__name__)
        return {"kind": kind, "message": str(error)}


def main(out: Path, seed: int | None = None, count: int = 0) -> None:
    base = tiny_bundle(out / "tiny", 7)
    whole = calibrated(with_likelihood_weight(base, out / "whole", 0.4), CALIBRATION)
    whole = with_pool(whole, ["a dog", "a cat", "the man runs"])
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    pixels = np.random.default_rng(7).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    image = Image.fromarray(pixels)
    damages = {name: (damage, True) for name, damage in SEALED.items()}
    damages |= {name: (damage, False) for name, damage in UNSEALED.items()}
    if seed is not None:
        damages = {f"{seed}-{i}": (random_damage(random.Random(seed * 100_000 + i)), True) for i in range(count)}
    bundles = {}
    for name, (damage, sealed) in damages.items():
        folder = out / name.replace(" ", "-")
        folder.mkdir()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        damage(folder)
        if sealed:
            with suppress(ValueError, KeyError, TypeError, AttributeError, OSError):  # the manifest itself is damaged
                seal(folder, read_manifest(folder))
        print(name, file=sys.stderr, flush=True)
        bundles[folder.name] = said(folder, image)
    rgba = base64.b64encode(image.convert("RGBA").tobytes()).decode()
    print(json.dumps({"image": {"width": WIDTH, "height": HEIGHT, "data": rgba}, "bundles": bundles}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
