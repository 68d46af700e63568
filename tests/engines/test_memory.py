"""What the loop takes of memory: nothing per token, and a bounded cache per call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiled import compiled
from tests.engines.native import library_path
from tests.tiny.bundle import HEAD_DIM, WORDS, D, Q, Tiny

ROOT = Path(__file__).parents[2]
COUNT = """
import ctypes, json, sys
import numpy as np
from blip2rt._native import Generator, Runtime, Session, Vocabulary
library, folder, geometry, options = json.loads(sys.argv[1])
runtime = Runtime(library)
generator = Generator(*(Session(runtime, f"{folder}/{name}.onnx", 1) for name in ("embed", "llm")), *geometry)
vocabulary = Vocabulary([bytes([97 + i % 26]) for i in range(geometry[-1])])
prefix = np.random.default_rng(0).normal(size=(2, 3, geometry[-2])).astype(np.float32)
count = ctypes.CDLL(None).allocations_counted
def allocations(tokens):
    given = {**options, "max_new_tokens": tokens, "stop_strings": [b"@@@"], "vocabulary": vocabulary}
    before = count()
    generator.generate(prefix, [[2, 3], [4]], given)
    return count() - before
allocations(5)
print(json.dumps([allocations(5), allocations(45)]))
"""
OPTIONS = [
    {},
    {"num_beams": 5, "num_return_sequences": 3, "length_penalty": 0.5},
    {"do_sample": True, "top_k": 8, "top_p": 0.9, "min_p": 0.01, "num_return_sequences": 2},
    {"do_sample": True, "top_k": 8, "top_p": 0.9, "min_p": 0.01, "num_beams": 3},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 9, "bad_words_ids": [[3, 4], [5]], "num_beams": 3},
]


@pytest.fixture(scope="module")
def counter() -> Path:
    compiler = shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    source = ROOT / "tests" / "engines" / "native" / "count_new.cpp"
    return compiled([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,--no-as-needed", "-ldl"], [source], ".so")


@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_is_allocated_per_token(tiny: Tiny, counter: Path, options: dict[str, object]) -> None:
    geometry = [1, 1, HEAD_DIM, D, len(WORDS)]
    arguments = json.dumps([library_path(), str(tiny.path), geometry, options])
    env = {**os.environ, "LD_PRELOAD": str(counter)}
    done = subprocess.run([sys.executable, "-c", COUNT, arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)
    assert few == many and few > 0
    assert Q == 3  # the prefix of the script
