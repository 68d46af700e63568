"""Fuzz the runtime with random options and manifests: `python -m tests.fuzz.options [--seconds N] [--seed N]`.

Each call must work or raise an error for users; a crash, another exception or a hang is a finding.
tests/runtime/test_fuzz.py runs it briefly, `make fuzz` for longer.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import blip2rt
from blip2rt import bundle as contract
from blip2rt.errors import Blip2rtError
from tests.engines.native import Generator, Session, Vocabulary, runtime
from tests.seeds import session_seed
from tests.tiny.bundle import HEAD_DIM, WORDS, D, random_weights, write_bundle

JUNK: list[Any] = [None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, -(2**31), 2**63, 2**64, 10**30]
JUNK += [0.0, -0.0, 0.5, 1.0, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, np.nan]
JUNK += ["", "a", "true", "never", "\ud800", b"", b"a", b"dog"]
JUNK += [[], [[]], [0], [1], [20], [21], [-1], [[1, 2]], [[3], [21]], ["a"], [b"a"], [b""], [None]]
JUNK += [{}, {"a": 1}, (), (1, 2), object(), np.int64(3), np.float32(0.5), np.array([1, 2])]
SENSIBLE: dict[str, list[Any]] = {"num_beams": [1, 2, 4], "max_new_tokens": [1, 5, 30], "min_new_tokens": [0, 3]}
SENSIBLE |= {"length_penalty": [-2.0, 0.0, 1.0], "repetition_penalty": [0.5, 1.0, 3.0]}
SENSIBLE |= {"no_repeat_ngram_size": [0, 1, 2], "max_time": [0.0, 9.0], "do_sample": [True, False]}
SENSIBLE |= {"temperature": [0.1, 1.0, 9.0], "top_k": [0, 1, 5], "top_p": [0.0, 0.5, 1.0], "min_p": [0.0, 0.3, 1.0]}
KEYWORDS = {**SENSIBLE, "num_captions": [1, 2], "bad_words": ["dog", ["a", "the dog"]], "prompt": ["", "a dog"]}
KEYWORDS |= {"stop_strings": ["dog", ["a", " on the"]], "forced_prefix": ["a", "the red dog"]}
KEYWORDS |= {"early_stopping": [True, False, "never"]}
SENSIBLE |= {"num_return_sequences": [1, 2], "early_stopping": ["true", "false", "never"], "vocabulary": []}
SENSIBLE |= {"bad_words_ids": [[[3]], [[4, 5], [1]]], "forced_prefix": [[], [4, 5]]}
SENSIBLE |= {"eos_token_ids": [[], [1], [1, 7, 9]], "stop_strings": [[b"dog"], [b"a", b"og c"]]}
SENSIBLE |= {"seed": [0, 2**64 - 1], "first_image": [0, 2**64 - 1]}


class Fuzzer:
    """A tiny bundle and random attacks on it. Findings are exceptions."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.folder = folder
        write_bundle(folder / "tiny", random_weights(np.random.default_rng(rng.getrandbits(32))))
        self.model = blip2rt.load(folder / "tiny", threads=1)
        self.manifest = json.loads((folder / "tiny" / contract.MANIFEST).read_text())
        sessions = [Session(runtime(), str(folder / "tiny" / f"{name}.onnx"), 1) for name in ("embed", "llm")]
        self.generator = Generator(*sessions, 1, 1, HEAD_DIM, D, len(WORDS))
        SENSIBLE["vocabulary"] = [Vocabulary([word.encode() for word in WORDS])]
        self.photo = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)

    def native_options(self) -> str:
        """Options of the native loop."""
        options = self._options(SENSIBLE)
        prompts = [[self.rng.randrange(-1, 22) for _ in range(self.rng.randrange(4))] for _ in range(2)]
        prefix = np.random.default_rng(0).normal(size=(2, self.rng.randrange(3), D)).astype(np.float32)
        what = f"generate(prompts={prompts}, options={options})"
        with _refusals(RuntimeError, what):
            for image in self.generator.generate(prefix, prompts, options):
                assert image and all(0 <= token < len(WORDS) for tokens, _ in image for token in tokens), what
        return what

    def keywords(self) -> str:
        """Options of Model.caption."""
        options = self._options(KEYWORDS)
        what = f"caption({options})"
        with _refusals(Blip2rtError, what):
            assert self.model.caption(self.photo, **options) is not None
        return what

    def manifests(self) -> str:
        """A bundle with a damaged manifest."""
        damaged = copy.deepcopy(self.manifest)
        changes = [self._damage(damaged) for _ in range(self.rng.randint(1, 3))]
        what = f"manifest with {changes}"
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            for file in (self.folder / "tiny").iterdir():
                if file.name != contract.MANIFEST:
                    os.link(file, Path(name, file.name))
            Path(name, contract.MANIFEST).write_text(json.dumps(damaged, default=repr))
            with _refusals(Blip2rtError, what):
                model = blip2rt.load(name, threads=1)
                model.caption(self.photo, max_new_tokens=3)
                model.match(self.photo, "a dog")
        return what

    def _options(self, sensible: dict[str, list[Any]]) -> dict[str, Any]:
        names = self.rng.sample(sorted(sensible), self.rng.randint(0, 8))
        junk = self.rng.choice([0, 0, 0.1, 0.5])
        options = {name: self.rng.choice(JUNK if self.rng.random() < junk else sensible[name]) for name in names}
        if self.rng.random() < junk / 2:
            options[self.rng.choice(["", "beams", "num_beam", "\u56fe"])] = self.rng.choice(JUNK)
        return options

    def _damage(self, node: Any) -> str:
        """Change something below `node`; return a description."""
        path = ""
        while True:
            key = self.rng.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
            path += f"[{key!r}]"
            child = node[key]
            if isinstance(child, dict | list) and child and self.rng.random() < 0.9:
                node = child
                continue
            kind = self.rng.randrange(3)
            if kind == 0:
                del node[key]
                return f"{path} deleted"
            if kind == 1 and isinstance(child, int) and not isinstance(child, bool):
                node[key] = child + self.rng.choice([-1, 1, 8, -child, 10**4])
            else:
                plain = [junk for junk in JUNK if not isinstance(junk, bytes | np.ndarray | np.generic)]
                node[key] = copy.deepcopy(self.rng.choice(plain))  # a copy, so that it never contains itself
            return f"{path} = {node[key]!r}"


@contextlib.contextmanager
def _refusals(kind: type[Exception], what: str) -> Iterator[None]:
    """Accept one kind of exception, with a message of one line; any other is a finding that names the action."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, kind) or not str(error) or "\n" in str(error):
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def run(seconds: float, seed: int, report: Callable[[str], object] = print) -> int:
    """Fuzz for a while; return the number of tries. Raises AssertionError for a finding."""
    rng = random.Random(seed)
    tries = 0
    warnings.simplefilter("error", RuntimeWarning)  # numeric overflow
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), rng)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rng.choice([fuzzer.native_options, fuzzer.keywords, fuzzer.manifests])()
            tries += 1
    report(f"seed {seed}: {tries} tries, nothing found")
    return tries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=session_seed())
    args = parser.parse_args()
    print(f"options: seed {args.seed}", flush=True)
    run(args.seconds, args.seed)


if __name__ == "__main__":
    main()
