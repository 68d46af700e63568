"""engines/search/kernels.cu on the CPU, with one thread and several per block, gives the CPU search's tokens.

It also copies keys and values as numpy does, and NVRTC, if installed, compiles it for every supported GPU.
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from benchmarks.gpu_day import device
from benchmarks.gpu_day.kernels import Chooser, compare_copies, compare_searches, random_logits, random_options
from blip2rt._native import SearchBatch, Vocabulary, kernels
from blip2rt.backends.trt.cuda import Cuda
from blip2rt.backends.trt.search import Kernels
from blip2rt.errors import BackendError
from tests.seeds import seed_of
from tests.trt.gpu_stand_in import PARAMETERS, Driver, Nvrtc, cpu_kernels

pytestmark = pytest.mark.long(11, "the loop's CUDA kernels, translated and run on the CPU")

SEED = seed_of(__name__)
ARCHITECTURES = [75, 80, 86, 87, 89, 90, 100, 110, 120]


@contextmanager
def opened(threads: int) -> Iterator[tuple[Any, Kernels]]:
    """A lane on the simulated driver, whose blocks have this many threads, and the kernels."""
    cuda = Cuda(Driver(threads=threads), Nvrtc())
    with device.lane(cuda) as lane:
        yield lane, Kernels(cuda, b"stand-in of sm_87")


def searches_match(vocab: int, threads: int, turns: int, logits: Callable[..., Any], **more: Any) -> None:
    """Compare random searches with the CPU's; rounding may decide one of them."""
    rng, numbers, ties = random.Random(SEED), np.random.default_rng(SEED), 0
    vocabulary = Vocabulary([bytes([97 + i % 9]) * (i % 3) for i in range(vocab)])
    for turn in range(turns):
        options = random_options(rng, vocab)
        if rng.random() < 0.2:
            options |= {"stop_strings": [b"abc", b"dd", b"e"], "vocabulary": vocabulary}
        last, drawn = 3 if turn % 5 == 0 else -1, partial(logits, numbers, vocab, spread=rng.choice([3, 3, 40]))
        with opened(threads) as (lane, loaded):
            chooser = partial(Chooser, lane, loaded, vocab=vocab, vocabulary=vocabulary)
            differs, tie = compare_searches(chooser, vocab, options, drawn, last, rounding=1e-6, **more)
        assert not differs, f"turn {turn}: {options}: {differs}"
        ties += tie
    assert ties <= 1


@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("vocab", [40, 777])
def test_kernels_choose_the_same_tokens_as_the_cpu_loop(vocab: int, threads: int) -> None:
    searches_match(vocab, threads, 30 if threads == 1 else 8, random_logits)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("vocab", [40, 777])
@pytest.mark.parametrize("levels", [1, 3, 60])
def test_ties_go_to_the_smallest_token_id(levels: int, vocab: int, threads: int) -> None:
    """Whatever their order in the graph's list, even if the list is too short for all of them."""

    def logits(rng: np.random.Generator, vocab: int, rows: int, spread: float) -> np.ndarray[Any, Any]:
        return rng.integers(0, levels, (rows, vocab)).astype(np.float32) / 4

    searches_match(vocab, threads, 12 if threads == 1 else 4, logits, falling=True)


@pytest.mark.parametrize("beams", [1, 2])
def test_nucleus_within_the_top_k_list_does_not_scan_the_row(beams: int) -> None:
    """Each scan of the row needs several block barriers."""
    vocab, waits = 777, []
    peaked, flat = np.full((1, vocab), -9, np.float32), np.random.default_rng(SEED).random((1, vocab), np.float32)
    peaked[0, [5, 70, 600]] = 3, 3, 2
    for logits in (peaked, flat):
        options = {"do_sample": True, "top_p": 0.9, "seed": 1, "num_beams": beams, "max_new_tokens": 4}
        with opened(2) as (lane, loaded):
            chooser, before = Chooser(lane, loaded, SearchBatch(1, [], vocab, options), vocab), cpu_kernels().waits()
            chooser.feed(logits, True)
            chooser.launch(True)
            lane.wait()
            waits.append(cpu_kernels().waits() - before)
    assert waits[0] < 60 < 120 < waits[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_scores_end_the_search(bad: float) -> None:
    logits = np.zeros((1, 40), np.float32)
    logits[0, 7] = bad
    with opened(1) as (lane, loaded), np.errstate(invalid="ignore"):
        chooser = Chooser(lane, loaded, SearchBatch(1, [], 40, {"num_beams": 3}), 40)
        chooser.feed(logits, True)
        chooser.launch(True)
        assert lane.download(chooser.done).all()
        with pytest.raises(BackendError, match="not finite"):
            chooser.memory.fetch()


@pytest.mark.parametrize("threads", [1, 4])
def test_scatter_reorder_and_spread_equal_numpy(threads: int) -> None:
    for turn in range(3):
        with opened(threads) as (lane, loaded):
            assert compare_copies(lane, loaded, np.random.default_rng(SEED + turn)) == []


@pytest.mark.parametrize(
    "architecture", [87, *(pytest.param(each, marks=pytest.mark.slow) for each in ARCHITECTURES if each != 87)]
)
def test_nvrtc_compiles_the_kernels(architecture: int) -> None:
    """NVRTC needs neither GPU nor driver."""
    module = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings: pip install 'blip2rt[trt-cu13]'")
    try:
        known = module.nvrtcGetSupportedArchs()[1]
    except Exception as error:
        pytest.skip(f"needs NVRTC: pip install nvidia-cuda-nvrtc ({error})")
    if architecture not in known:
        pytest.skip(f"NVRTC {module.nvrtcVersion()[1:]} does not know sm_{architecture}")
    compiler = Cuda.__new__(Cuda)
    compiler._nvrtc = module
    source, headers = kernels()
    code = compiler.compile(source, headers, f"sm_{architecture}")
    assert code[:4] == b"\x7fELF" and all(name in code for name in (b"scatter", b"choose", b"reorder", b"spread"))
    with pytest.raises(Exception, match=f"cannot compile the kernels for sm_{architecture}.*undeclared_thing"):
        compiler.compile(source + "\nundeclared_thing x;", headers, f"sm_{architecture}")


def test_launch_parameters_match_the_source() -> None:
    """The simulation's table of kernel parameters equals the source's."""
    for name, body in re.findall(r"__global__ void (\w+)\(([^)]*)\)", kernels()[0]):
        kinds = ["p" if "*" in each else "q" if "int64_t" in each else "i" for each in body.split(",")]
        assert "".join(kinds) == PARAMETERS[name]
