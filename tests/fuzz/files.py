"""Fuzz what Python reads of untrusted files: `python -m tests.fuzz.files TARGET [--seconds N]`. (C++: the .cpp here.)

Each target takes the bytes of one file and may only raise Blip2rtError, in one line. The bytes are random mutations of
the corpus, tests/corpus/TARGET; "calls" draws options of captions and damages of a manifest by them, "bundle" altered
graphs. Findings are saved in build/fuzz/TARGET; add them to the corpus once they are fixed. If the process ends, the
file that it tried is there as `current`.
"""

import argparse
import copy
import functools
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import blip2rt
from blip2rt.bundle import MANIFEST
from blip2rt.bundle.manifest import ImageSpec
from blip2rt.errors import Blip2rtError
from blip2rt.image import prepare
from tests.seeds import session_seed
from tests.tiny.bundle import random_weights, write_bundle

ROOT = Path(__file__).parents[2]
CORPUS, FOUND = ROOT / "tests" / "corpus", ROOT / "build" / "fuzz"
_SPEC = ImageSpec(8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_MAX_PIXELS = 100_000  # larger images would spend the run on decoding


JUNK: list[Any] = [None, True, 0, -1, 7, 2**31, -(2**31), 2**63, 2**64, 10**30, -0.0, 0.5, 1e-300, 1e300, math.nan]
JUNK += [-math.inf, "", "a", "never", "\ud800", [], [[]], [21], [[3], [21]], ["a"], [None], {}, {"a": 1}]
OPTIONS: dict[str, list[Any]] = {"num_beams": [1, 2, 4], "max_new_tokens": [1, 5, 30], "min_new_tokens": [0, 3]}
OPTIONS |= {"length_penalty": [-2.0, 0.0, 1.0], "repetition_penalty": [0.5, 3.0], "no_repeat_ngram_size": [0, 1, 2]}
OPTIONS |= {"max_time": [0.0, 9.0], "do_sample": [True, False], "temperature": [0.1, 9.0], "top_k": [0, 1, 5]}
OPTIONS |= {"top_p": [0.0, 0.5], "min_p": [0.0, 1.0], "num_captions": [1, 2], "bad_words": ["dog", ["a", "the dog"]]}
OPTIONS |= {"stop_strings": ["dog", ["a", " on the"]], "forced_prefix": ["a", "the red dog"], "prompt": ["", "a dog"]}
OPTIONS |= {"early_stopping": [True, False, "never"], "seed": [0, 2**64 - 1], "num_beam": [1]}


@functools.cache
def tiny() -> tuple[Path, blip2rt.Model]:
    path = Path(tempfile.mkdtemp(prefix="blip2rt-fuzz-")) / "tiny"
    write_bundle(path, random_weights(np.random.default_rng(session_seed())))
    return path, blip2rt.load(path, threads=1)


def calls(data: bytes, folder: Path) -> None:
    """Random options of a caption, or a damaged manifest of the tiny bundle."""
    rng, (path, model) = random.Random(data), tiny()
    photo = np.full((9, 9, 3), 90, np.uint8)
    if rng.random() < 0.6:
        names, junk = rng.sample(sorted(OPTIONS), rng.randint(0, 8)), rng.choice([0, 0, 0.1, 0.5])
        options = {name: rng.choice(JUNK if rng.random() < junk else OPTIONS[name]) for name in names}
        assert model.caption(photo, **options) is not None
        return
    manifest = json.loads((path / MANIFEST).read_text())
    for _ in range(rng.randint(1, 3)):
        node, parent, key = manifest, manifest, ""
        while isinstance(node, dict | list) and node and (node is manifest or rng.random() < 0.9):
            key = rng.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
            parent, node = node, node[key]
        if rng.random() < 0.3:
            del parent[key]
        else:
            numeric = type(node) is int and rng.random() < 0.5
            parent[key] = node + rng.choice([-1, 1, 8, 10**4]) if numeric else copy.deepcopy(rng.choice(JUNK))
    for file in path.iterdir():
        os.link(file, folder / file.name)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    damaged = blip2rt.load(folder, threads=1)
    damaged.caption(photo, max_new_tokens=3)
    damaged.match(photo, "a dog")


def image(data: bytes, folder: Path) -> None:
    """An image in any format."""
    del folder
    prepare(data, _SPEC, max_pixels=_MAX_PIXELS)


def checkpoint(data: bytes, folder: Path) -> None:
    """config.json of a checkpoint, and its tensors."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a config may name a model of the hub
    from blip2rt.modeling import weights
    from blip2rt.modeling.checkpoint import Checkpoint

    head, _, tail = data.partition(b"\0\0\0\0")
    (folder / "config.json").write_bytes(head)
    (folder / "model.safetensors").write_bytes(tail)
    reads = (
        lambda: Checkpoint(folder).config,
        lambda: weights.Weights(folder),
        lambda: Checkpoint(folder).load(vision=False, llm=False),
    )
    for read in reads:
        try:
            read()
        except Blip2rtError as error:
            assert "\n" not in str(error)


def bundle(data: bytes, folder: Path) -> None:
    """A whole bundle, whose graphs are altered."""
    from tests.fuzz import bundles  # builds the C library

    bundles.bundle(data, folder)


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    function.__name__: function for function in (calls, image, checkpoint, bundle)
}


def attempt(name: str, data: bytes) -> None:
    """Pass the bytes to a target. Anything but a Blip2rtError of one line is a finding."""
    with tempfile.TemporaryDirectory(prefix="blip2rt-fuzz-", ignore_cleanup_errors=True) as folder:
        try:
            TARGETS[name](data, Path(folder))
        except Blip2rtError as error:
            assert "\n" not in str(error), error


def seeds(name: str) -> list[bytes]:
    """The corpus of a target, smallest first."""
    if name in ("calls", "bundle"):
        return [b"0123456789"]
    return sorted((file.read_bytes() for file in (CORPUS / name).iterdir()), key=len)


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A corpus file with some bytes changed, removed, doubled, or taken from another."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.randint(1, 16))
        kind = rng.randrange(5)
        if kind == 0:
            data[start:end] = rng.randbytes(end - start)
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:start] = data[start:end]
        elif kind == 3:
            other = rng.choice(corpus)
            cut = rng.randrange(len(other) + 1)
            data[start:start] = other[cut : cut + rng.randint(1, 64)]
        else:
            data[start:end] = rng.choice([b"0", b"-1", b"null", b"[]", b"{}", b'""', b"1e999", b"99999999999999999999"])
    return bytes(data)


def run_random(name: str, seconds: float, seed: int) -> int:
    """Run random mutations for this time; return their number. Raise a finding and save its bytes."""
    rng, corpus, done, found = random.Random(seed), seeds(name), 0, FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    for data in corpus:  # the first one imports the target's modules
        attempt(name, data)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng, corpus)
        (found / "current").write_bytes(data)
        try:
            attempt(name, data)
        except BaseException:
            (found / "current").rename(found / f"seed-{seed}-{done}")
            raise
        done += 1
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    seed = session_seed()
    print(f"{args.target}: seed {seed}", flush=True)
    print(f"{args.target}: {run_random(args.target, args.seconds, seed)} files, nothing found")


if __name__ == "__main__":
    main()
