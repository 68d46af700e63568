"""Fuzz the readers of untrusted files: `python -m tests.fuzz.files TARGET [--seconds N]`.

Each target takes the bytes of one file and may only raise Blip2rtError, in one line. Atheris (libFuzzer for Python)
guides the bytes by coverage; without it, they are random mutations of the corpus, tests/corpus/TARGET. Findings are
saved in build/fuzz/TARGET; add them to the corpus once they are fixed.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from blip2rt import bundle as contract
from blip2rt.bundle.manifest import ImageSpec
from blip2rt.cli.info import describe
from blip2rt.errors import Blip2rtError, BundleError, boundary
from blip2rt.image import prepare
from blip2rt.language import read_tokenizer
from blip2rt.native import named_failure, native
from tests.seeds import session_seed

ROOT = Path(__file__).parents[2]
CORPUS, FOUND = ROOT / "tests" / "corpus", ROOT / "build" / "fuzz"
_SPEC = ImageSpec(8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_MAX_PIXELS = 100_000  # larger images would spend the run on decoding


def manifest(data: bytes, folder: Path) -> None:
    """blip2rt.json of a bundle."""
    (folder / contract.MANIFEST).write_bytes(data)
    describe(contract.read(folder))


def tokenizer(data: bytes, folder: Path) -> None:
    """tokenizer.json of a bundle."""
    file = folder / "tokenizer.json"
    file.write_bytes(data)
    read = read_tokenizer(file)
    with boundary(f"{file} failed as a tokenizer", BundleError):
        read.decode(read.encode([("a dog, 2 cats", False)], True), True)


def image(data: bytes, folder: Path) -> None:
    """An image in any format."""
    del folder
    prepare(data, _SPEC, max_pixels=_MAX_PIXELS)


def pool(data: bytes, folder: Path) -> None:
    """A pool of captions, of the tiny bundle."""
    del folder
    with named_failure():
        pool, embeds = native.CaptionPool.of_bytes(data), np.full((3, 4), 0.5, np.float32)
        guide = pool.guide(embeds, 1)
        pool.answer_guide(embeds, "what are on it?", [2, 30], native.Vocabulary([b" a"] * 21))
        guide.apply([2, 3], guide.apply([], [0.0] * 21))
        guide.agreement([2, 3, 4])


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


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    function.__name__: function for function in (manifest, tokenizer, image, pool, checkpoint)
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
    rng, corpus, done = random.Random(seed), seeds(name), 0
    for data in corpus:  # the first one imports the target's modules
        attempt(name, data)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng, corpus)
        try:
            attempt(name, data)
        except BaseException:
            (FOUND / name).mkdir(parents=True, exist_ok=True)
            (FOUND / name / f"seed-{seed}-{done}").write_bytes(data)
            raise
        done += 1
    return done


def run_guided(name: str, seconds: int, seed: int) -> None:
    """Run libFuzzer for this time. It exits itself, with 1 or more if it found something."""
    import atheris

    for data in seeds(name):
        attempt(name, data)  # imports the target's modules
    for module in [module for key, module in sys.modules.items() if key.partition(".")[0] == "blip2rt"]:
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                atheris.instrument_func(function)
    (FOUND / name / "corpus").mkdir(parents=True, exist_ok=True)
    arguments = [sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed}", "-verbosity=0"]
    arguments += [f"-artifact_prefix={FOUND / name}{os.sep}", str(FOUND / name / "corpus"), str(CORPUS / name)]
    atheris.Setup(arguments, lambda data: attempt(name, data))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--random", action="store_true", help="do not use atheris")
    args = parser.parse_args()
    seed = session_seed()
    print(f"{args.target}: seed {seed}", flush=True)
    if not args.random and importlib.util.find_spec("atheris") is not None:
        run_guided(args.target, args.seconds, seed)
    print(f"{args.target}: {run_random(args.target, args.seconds, seed)} files, nothing found")


if __name__ == "__main__":
    main()
