"""engines/search/kernels.cu on the CPU, with one thread and several per block, gives the CPU search's tokens.

It also copies keys and values as numpy does, and NVRTC, if installed, compiles it for every supported GPU.
"""

from __future__ import annotations

import ctypes
import random
import struct
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from blip2rt._native import SearchBatch, Vocabulary, kernels
from tests.seeds import seed_of
from tests.trt.gpu_stand_in import PARAMETERS, copied, cpu_kernels

pytestmark = pytest.mark.long(11)

SEED = seed_of(__name__)
IMAGES = 2
ARCHITECTURES = [75, 80, 86, 87, 89, 90, 100, 110, 120]


def launch(name: str, grid: tuple[int, int], threads: int, *arguments: Any) -> None:
    """Launch a kernel. Arrays are passed by address, None as null."""
    values = []
    for kind, argument in zip(PARAMETERS[name], arguments, strict=True):
        address = argument.ctypes.data if isinstance(argument, np.ndarray) else argument or 0
        values.append((ctypes.c_int32 if kind == "i" else ctypes.c_int64)(address))
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    assert cpu_kernels().launch(name.encode(), *grid, threads, pointers)


class Device:
    """The buffers of `choose` in host memory."""

    def __init__(self, batch: SearchBatch, vocab: int, k: int, threads: int, vocabulary: Vocabulary | None) -> None:
        plan = batch.plan
        self.batch, self.threads, self.k = batch, threads, k
        self.images, self.beams = np.array(plan["images"], np.int32), plan["beams"]
        self.answers, rows = len(self.images), len(self.images) * self.beams
        self.logits = np.zeros((rows, vocab), np.float32)
        self.rows, self.weights = np.zeros((rows, 4)), np.zeros((rows, vocab), np.float32)
        self.sums = np.zeros((rows, -(-vocab // 64)))
        self.tokens, self.positions = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.parents, self.done = np.zeros(rows, np.int32), np.zeros(self.answers, np.int32)
        self.lengths = np.arange(self.answers, dtype=np.int32) + 5
        self.text = (vocabulary.ends.ctypes.data, vocabulary.bytes.ctypes.data) if vocabulary else (0, 0)
        self.falling = False  # among equal logits, the graph's list has the largest token first

    def step(self, logits: np.ndarray, first: bool, last: bool) -> None:
        """logits: (images, V) at first, then (rows, V)"""
        tokens = np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
        order = np.lexsort((-tokens if self.falling else tokens, -logits), axis=1)[:, : self.k]
        top = np.take_along_axis(logits, order, 1)
        total = np.log(np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64).sum(1)) + logits.max(1)
        addresses = [each.ctypes.data for each in (self.batch.memory, self.rows, self.weights, self.sums)]
        packed = struct.pack("=qqqqqqiiii", *self.text, *addresses, self.batch.plan["stride"], self.beams, last, 0)
        plan = np.frombuffer(packed, np.uint8)
        if not first:
            self.logits[:] = logits
        prompts = (logits, self.images) if first else (None, None)
        graph = top, order.astype(np.int64), total.astype(np.float32)
        state = self.lengths, self.tokens, self.positions, self.parents, self.done, self.k
        launch("choose", (self.answers, 1), self.threads, plan, self.logits, *prompts, *graph, *state)


def random_options(rng: random.Random, vocab: int) -> dict[str, Any]:
    some = [rng.randrange(vocab) for _ in range(8)]
    options: dict[str, Any] = {
        "max_new_tokens": rng.randint(1, 8),
        "num_beams": rng.choice([1, 1, 2, 3, 5]),
        "eos_token_ids": some[:2],
        "length_penalty": rng.choice([1.0, -1.0, 2.0]),
        "early_stopping": rng.choice(["true", "false", "never"]),
    }
    if rng.random() < 0.6:
        options |= {"do_sample": True, "seed": rng.randrange(10**6), "temperature": rng.uniform(0.5, 2)}
        options |= {"top_k": rng.choice([0, 0, rng.randint(1, vocab)]), "top_p": rng.choice([1.0, rng.random()])}
        options["min_p"] = rng.choice([0.0, 0.0, rng.random() * 0.2])
    if options["num_beams"] == 1 and "do_sample" in options:
        options["num_return_sequences"] = rng.randint(1, 3)
    if rng.random() < 0.5:
        bad_words = {"bad_words_ids": [some[2:3], some[3:5], *([token] for token in range(0, vocab, 2))]}
        penalty, ngrams = {"repetition_penalty": rng.choice([0.7, 1.5])}, {"no_repeat_ngram_size": rng.randint(1, 3)}
        options |= rng.choice([penalty, ngrams, bad_words, {"min_new_tokens": 4}])
    return options


@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("vocab", [40, 777])
def test_kernels_choose_the_same_tokens_as_the_cpu_loop(vocab: int, threads: int) -> None:
    rng, numbers = random.Random(SEED), np.random.default_rng(SEED)
    vocabulary = Vocabulary([bytes([97 + i % 9]) * (i % 3) for i in range(vocab)])
    ties = 0
    for turn in range(30 if threads == 1 else 8):
        options = random_options(rng, vocab)
        if rng.random() < 0.2:
            options |= {"stop_strings": [b"abc", b"dd", b"e"], "vocabulary": vocabulary}
        spread = rng.choice([3, 3, 40])  # weights that float32 represents exactly, and others

        def logits(rows: int, spread: int = spread) -> np.ndarray:
            return (numbers.normal(size=(rows, vocab)) * spread).astype(np.float32)

        ties += not choices_match(
            vocab, options, threads, vocabulary, logits, f"turn {turn}: {options}", 3 if turn % 5 == 0 else -1
        )
    assert ties <= 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("vocab", [40, 777])
@pytest.mark.parametrize("levels", [1, 3, 60])
def test_ties_go_to_the_smallest_token_id(levels: int, vocab: int, threads: int) -> None:
    """Whatever their order in the graph's list, even if the list is too short for all of them."""
    rng, numbers = random.Random(SEED), np.random.default_rng(SEED)
    vocabulary = Vocabulary([b""] * vocab)
    ties = 0
    for turn in range(12 if threads == 1 else 4):
        options = random_options(rng, vocab)

        def logits(rows: int) -> np.ndarray:
            return numbers.integers(0, levels, (rows, vocab)).astype(np.float32) / 4

        ties += not choices_match(vocab, options, threads, vocabulary, logits, f"turn {turn}: {options}", falling=True)
    assert ties <= 1


def choices_match(
    vocab: int,
    options: dict[str, Any],
    threads: int,
    vocabulary: Vocabulary,
    logits: Any,
    said: str,
    last: int = -1,
    falling: bool = False,
) -> bool:
    """Step the kernels and the CPU search with the same logits. Return False if rounding alone decided a difference.

    logits: number of rows; last: the step marked as the last; falling: see Device.
    """
    ours, theirs = (SearchBatch(IMAGES, [3, 4], vocab, options) for _ in range(2))
    device = Device(theirs, vocab, min(64, vocab), threads, vocabulary)
    device.falling = falling
    steps: list[tuple[np.ndarray, bool]] = []
    for step in range(options["max_new_tokens"]):
        rows = logits(IMAGES if step == 0 else len(device.tokens))
        steps.append((rows[device.images] if step == 0 else rows, step == last))
        device.step(rows.copy(), step == 0, step == last)
        ours.advance(steps[-1][0].copy(), step == last)
        theirs.check()
        if chosen(theirs) != chosen(ours):
            assert rounding_decides(vocab, options, steps, chosen(ours)), said
            return False
        scores = [[score for image in each.results() for _, score in image] for each in (theirs, ours)]
        longer = options["max_new_tokens"] ** max(0, -options["length_penalty"])  # factor of a sum
        largest = np.abs(steps[0][0]).max()
        np.testing.assert_allclose(*scores, rtol=1e-5, atol=3e-6 * longer * max(1, largest / 3), err_msg=said)
        if step == 0:
            assert (device.positions == np.repeat(device.lengths, device.beams)).all()
        assert theirs.done == bool(device.done.all()), said
        if ours.done:
            break
    return True


def chosen(batch: SearchBatch) -> Any:
    return batch.added(), [[tokens for tokens, _ in image] for image in batch.results()], batch.done


def rounding_decides(vocab: int, options: dict[str, Any], steps: list[tuple[np.ndarray, bool]], want: Any) -> bool:
    """Whether scaling rows by a few parts per million, which keeps ties, changes the CPU search's own choice."""
    numbers = np.random.default_rng(SEED)
    for _ in range(50):
        batch = SearchBatch(IMAGES, [3, 4], vocab, options)
        for rows, last in steps:
            if not batch.done:
                scales = 1 + numbers.normal(size=(len(rows), 1)) * 1e-6
                batch.advance((rows * scales).astype(np.float32), last)
        if chosen(batch) != want:
            return True
    return False


@pytest.mark.parametrize("beams", [1, 2])
def test_nucleus_within_the_top_k_list_does_not_scan_the_row(beams: int) -> None:
    """Each scan of the row needs several block barriers."""
    vocab, waits = 777, []
    numbers = np.random.default_rng(SEED)
    peaked, flat = np.full((1, vocab), -9, np.float32), numbers.random((1, vocab)).astype(np.float32)
    peaked[0, [5, 70, 600]] = 3, 3, 2
    for logits in (peaked, flat):
        options = {"do_sample": True, "top_p": 0.9, "seed": 1, "num_beams": beams, "max_new_tokens": 4}
        device = Device(SearchBatch(1, [], vocab, options), vocab, 64, 2, None)
        before = cpu_kernels().waits()
        device.step(logits, True, False)
        waits.append(cpu_kernels().waits() - before)
    assert waits[0] < 60 < 120 < waits[1]


def test_non_finite_scores_end_the_search() -> None:
    for bad in (np.nan, np.inf):
        batch = SearchBatch(1, [], 40, {"num_beams": 3})
        device = Device(batch, 40, 40, 1, None)
        logits = np.zeros((1, 40), np.float32)
        logits[0, 7] = bad
        with np.errstate(invalid="ignore"):
            device.step(logits, True, False)
        assert device.done.all()
        with pytest.raises(RuntimeError, match="not finite"):
            batch.check()


@pytest.mark.parametrize("threads", [1, 4])
def test_scatter_reorder_and_spread_equal_numpy(threads: int) -> None:
    rng = np.random.default_rng(SEED)
    rows, heads, capacity, length, width, tensors, images = 6, 2, 9, 4, 3, 4, 3
    pad = 5  # words between tensors
    sources = np.array([0, 0, 1, 1, 2, 2], np.int32)
    counts = rng.integers(1, length + 1, images)
    fresh = rng.integers(0, 2**31, tensors * (images * heads * length * width + pad)).astype(np.uint32)
    cache = rng.integers(0, 2**31, tensors * (rows * heads * capacity * width + pad)).astype(np.uint32)
    mask = np.full((rows, capacity), -1e9, np.float32)
    want, want_mask = cache.copy(), mask.copy()

    def view(memory: np.ndarray, *shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return np.stack([memory[i * (size + pad) :][:size].reshape(shape) for i in range(tensors)])

    def kept(memory: np.ndarray, tensor: int, *shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return memory[tensor * (size + pad) :][:size].reshape(shape)

    new = view(fresh, images, heads, length, width)
    for tensor in range(tensors):
        for row in range(rows):
            count = counts[sources[row]]
            kept(want, tensor, rows, heads, capacity, width)[row, :, :count] = new[tensor, sources[row], :, :count]
            want_mask[row, :count] = 0
    cache_stride, fresh_stride = rows * heads * capacity * width + pad, images * heads * length * width + pad
    grid = (rows, tensors)
    sizes = fresh_stride, cache_stride, heads, length, capacity, width
    launch("scatter", grid, threads, fresh, cache, mask, sources, counts - 1, None, *sizes)
    assert (cache == want).all() and (mask == want_mask).all()

    step = rng.integers(0, 2**31, tensors * (rows * heads * width + pad)).astype(np.uint32)
    positions = rng.integers(4, capacity, rows)
    for tensor in range(tensors):
        for row in range(rows):
            own = view(step, rows, heads, 1, width)[tensor, row, :, 0]
            kept(want, tensor, rows, heads, capacity, width)[row, :, positions[row]] = own
            want_mask[row, positions[row]] = 0
    sizes = rows * heads * width + pad, cache_stride, heads, 1, capacity, width
    launch("scatter", grid, threads, step, cache, mask, None, None, positions, *sizes)
    assert (cache == want).all() and (mask == want_mask).all()

    plan = np.frombuffer(struct.pack("=qqqqqqiiii", 0, 0, 0, 0, 0, 0, 0, 2, 0, 0), np.uint8)
    parents = np.array([0, 0, 3, 3, 4, 5], np.int32)
    lengths = np.array([4, 5, 6], np.int32)
    ends = np.full(rows, 8)
    for tensor in range(tensors):
        own = kept(want, tensor, rows, heads, capacity, width)
        own[1, :, 4:8] = own[0, :, 4:8]
        own[2, :, 5:8] = own[3, :, 5:8]
    launch(
        "reorder", (rows, tensors), threads, plan, cache, parents, lengths, ends, cache_stride, heads, capacity, width
    )
    assert (cache == want).all()

    spread = np.zeros(tensors * rows * 7, np.uint32)
    launch("spread", (rows, tensors), threads, fresh, spread, sources, fresh_stride, rows * 7, 7)
    for tensor in range(tensors):
        source = fresh[tensor * fresh_stride :][: images * 7].reshape(images, 7)
        assert (spread[tensor * rows * 7 :][: rows * 7].reshape(rows, 7) == source[sources]).all()


def nvrtc() -> Any:
    """NVRTC, which needs neither GPU nor driver."""
    module = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings: pip install 'blip2rt[trt-cu13]'")
    try:
        module.nvrtcVersion()
    except Exception as error:
        pytest.skip(f"needs NVRTC: pip install nvidia-cuda-nvrtc ({error})")
    return module


@pytest.mark.parametrize(
    "architecture", [87, *(pytest.param(each, marks=pytest.mark.slow) for each in ARCHITECTURES if each != 87)]
)
def test_nvrtc_compiles_the_kernels(architecture: int) -> None:
    from blip2rt.backends.trt.cuda import Cuda

    module = nvrtc()
    known = module.nvrtcGetSupportedArchs()[1]
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
    import re

    for name, body in re.findall(r"__global__ void (\w+)\(([^)]*)\)", kernels()[0]):
        kinds = ["p" if "*" in each else "q" if "int64_t" in each else "i" for each in body.split(",")]
        assert "".join(kinds) == PARAMETERS[name]
    assert copied is not None
