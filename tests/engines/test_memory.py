"""The loop allocates nothing per token, and raises MemoryError when memory runs out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blip2rt.native import native
from tests.compiled import shared_library
from tests.engines.native import library_path
from tests.tiny.bundle import HEAD_DIM, WORDS, D, Q, Tiny

ROOT = Path(__file__).parents[2]
COUNT = """
import ctypes, json, sys
import numpy as np
from blip2rt._native import Generator, Runtime, Session, Vocabulary
path, folder, geometry, ways = json.loads(sys.argv[1])
runtime = Runtime(path)
generator = Generator(*(Session(runtime, f"{folder}/{name}.onnx", 1) for name in ("embed", "llm")), *geometry)
vocabulary = Vocabulary([bytes([97 + i % 26]) for i in range(geometry[-1])])
prefix = np.random.default_rng(0).normal(size=(2, 3, geometry[-2])).astype(np.float32)
library = ctypes.CDLL(None)
def allocations(options, tokens):
    given = {**options, "max_new_tokens": tokens, "stop_strings": [b"@@@"], "vocabulary": vocabulary}
    library.count_allocations()
    generator.generate(prefix, [[2, 3], [4]], given)
    return library.allocations()
for way in ways:
    allocations(way, 45)  # grows scratch buffers, which stay
    few, many = allocations(way, 5), allocations(way, 45)
    assert few == many > 0, (way, few, many)
"""
OPTIONS = [
    {},
    {"num_beams": 5, "num_return_sequences": 3, "length_penalty": 0.5},
    {"do_sample": True, "top_k": 8, "top_p": 0.9, "min_p": 0.01, "num_return_sequences": 2},
    {"do_sample": True, "top_k": 8, "top_p": 0.9, "min_p": 0.01, "num_beams": 3},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 9, "bad_words_ids": [[3, 4], [5]], "num_beams": 3},
]


@pytest.fixture(scope="module")
def preloaded() -> dict[str, str]:
    """An environment that preloads allocations.cpp."""
    if sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    if "BLIP2RT_NATIVE" in os.environ:
        pytest.skip("a sanitizer has its own operator new")
    library = shared_library("allocations", "-O1", "-Wl,--no-as-needed", "-ldl")
    return {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}


def test_nothing_is_allocated_per_token(tiny: Tiny, preloaded: dict[str, str]) -> None:
    arguments = json.dumps([library_path(), str(tiny.path), [1, 1, HEAD_DIM, D, len(WORDS)], OPTIONS])
    done = subprocess.run([sys.executable, "-c", COUNT, arguments], capture_output=True, text=True, env=preloaded)
    assert done.returncode == 0 and Q == 3, done.stderr  # the prefix length of the script


LIMITED = """
import resource, sys
import numpy as np
from blip2rt._native import Generator, Runtime, Session
library, folder, *geometry = sys.argv[1:]
embed, llm = (Session(Runtime(library), f"{folder}/{name}.onnx", 1) for name in ("embed", "llm"))
generator, prefix = Generator(embed, llm, *map(int, geometry)), np.ones((64, 3, int(geometry[-2])), np.float32)
want, told = generator.generate(prefix[:1], [[2]], {"max_new_tokens": 3}), set()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for extra in range(0, 300, 25):
    resource.setrlimit(resource.RLIMIT_AS, (used + (extra << 20), resource.RLIM_INFINITY))
    try:
        generator.begin(prefix, [[2]] * 64, {"max_new_tokens": 30000, "num_beams": 3})
    except (MemoryError, RuntimeError) as error:
        told.add(type(error).__name__)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert told and generator.generate(prefix[:1], [[2]], {"max_new_tokens": 3}) == want, told
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_running_out_of_memory_is_an_error(tiny: Tiny) -> None:
    arguments = [library_path(), tiny.path, 1, 1, HEAD_DIM, D, len(WORDS)]
    done = subprocess.run([sys.executable, "-c", LIMITED, *map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


RESIDENT = r"""
import re, sys
import blip2rt
def resident(row, file=""):  # megabytes
    maps = open("/proc/self/smaps").read().split("VmFlags")
    return sum(int(re.search(rf"{row}: +(\d+)", each)[1]) for each in maps if row in each and file in each) / 1024
model = blip2rt.load(threads=2)
model.caption("docs/photo.jpg")
weights = [resident("Rss", file) for file in ("vision.data", "qformer.data", "llm.data")]
image = model.prepare("docs/photo.jpg")
features = model.features([image])
before = resident("Anonymous")
model.features([image.copy() for _ in range(16)])
print(*weights, resident("Rss", "vision.data"), resident("Anonymous") - before)
"""


@pytest.mark.long(3, "the memory of processes")
@pytest.mark.skipif(sys.platform != "linux" or "BLIP2RT_NATIVE" in os.environ, reason="reads /proc; not of a sanitizer")
def test_memory_after_a_caption_is_that_of_the_language_model() -> None:
    if not any(name.startswith("int4") for name in native.processor_kernels()):
        pytest.skip("without kernels ONNX Runtime maps the weights")
    done = subprocess.run([sys.executable, "-c", RESIDENT], cwd=ROOT, capture_output=True, text=True)
    vision, qformer, llm, vision_again, activations = map(float, done.stdout.split())
    assert vision < 5 and qformer < 2 and llm > 60 and vision_again > 35, done
    assert activations < 40, "a batch of 16 needs 100 MB while it runs"
