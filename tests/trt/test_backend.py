"""The backend trt as a whole on the stand-in (tests/trt/gpu_stand_in.py): it says what the native loop on ONNX
Runtime says; and what it says where the machine cannot do what it should."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import blip2rt
from blip2rt import backends
from blip2rt.backends.trt import PlanSizes, builder, cuda, decoder, gpu, lane
from blip2rt.bundle import read
from blip2rt.errors import BackendError, OptionError
from tests.seeds import seed_of
from tests.tiny import trt as tiny_trt
from tests.trt import gpu_stand_in
from tests.trt.gpu_stand_in import Driver, Misuse, Nvrtc, TensorRT

SEED = seed_of(__name__)
GPU = gpu.Gpu("Orin", (8, 7), 8 << 30, (12, 6), True, 16)
SIZES = PlanSizes(max_batch=2, max_beams=4, capacity=48)


@dataclass
class Case:
    """The same tiny model as a bundle of either target, in float32."""

    ort: Path
    trt: Path
    name: str

    def native(self) -> Any:
        return backends.create("ort", read(self.ort), threads=1)

    def inputs(self, images: int) -> tuple[np.ndarray, list[list[int]]]:
        rng = np.random.default_rng(SEED)
        spec = read(self.ort).manifest.llm
        prefix = rng.normal(size=(images, spec.prefix_length, spec.hidden_size)).astype(np.float32)
        prompts = [rng.integers(4, spec.vocab_size, size).tolist() for size in rng.integers(0, 5, images)]
        return prefix, prompts


_cases: dict[str, Case] = {}


def case_of(name: str, folder: pytest.TempPathFactory) -> Case:
    if name not in _cases:
        where = folder.mktemp(name)
        if name == "tiny":
            weights = tiny_trt.weights_of(np.random.default_rng(SEED))
            made = [tiny_trt.write(where / target, weights, target) for target in ("ort", "trt")]
            _cases[name] = Case(*made, name)
            return _cases[name]
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        pytest.importorskip("onnxscript")
        from tests.tiny.language import build

        model = build(name, SEED)
        model.get_output_embeddings().weight.data.mul_(3)  # decided opinions: few near ties
        made = [tiny_trt.write_model(where / target, model, target) for target in ("ort", "trt")]
        _cases[name] = Case(*made, name)
    return _cases[name]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "llama", "flan")]


@pytest.fixture(params=["tiny", *SLOW])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, tmp_path_factory)


@pytest.fixture
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of("tiny", tmp_path_factory)


@dataclass
class Machine:
    """The stand-in machine that the backend finds."""

    driver: Driver
    trt: TensorRT

    def load(self, case: Case, engines: PlanSizes = SIZES) -> Any:
        return backends.create("trt", read(case.trt), device="cuda", engines=engines)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    driver = Driver()
    found = Machine(driver, TensorRT(driver))
    monkeypatch.setattr("blip2rt.backends.trt.builder.load_tensorrt", lambda name=None: found.trt)
    monkeypatch.setattr("blip2rt.backends.trt.builder.identity", lambda trt: f"tensorrt {trt.__version__}")
    monkeypatch.setattr("blip2rt.backends.trt.builder.builds_for_any", lambda trt: False)
    monkeypatch.setattr(cuda, "load_bindings", lambda: (found.driver, Nvrtc()))
    monkeypatch.setattr("blip2rt.backends.trt.gpu.find", lambda: GPU)
    monkeypatch.setenv("BLIP2RT_CACHE", str(tmp_path / "engines"))
    return found


def random_options(rng: random.Random, vocab: int, eos: list[int]) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 9), "eos_token_ids": rng.choice([[], eos[:1], eos])}
    options["num_beams"] = rng.randint(1, 4)
    if rng.random() < 0.4:
        options |= {"do_sample": True, "seed": rng.randrange(10**6), "temperature": rng.uniform(0.5, 2)}
        options |= rng.choice([{}, {"top_k": rng.randint(1, vocab)}, {"top_p": rng.random()}, {"min_p": 0.1},
                               {"top_k": 9, "top_p": 0.7}])  # fmt: skip
        if options["num_beams"] == 1:
            options["num_return_sequences"] = rng.randint(1, 4)
    if options["num_beams"] > 1:
        options |= {"num_return_sequences": rng.randint(1, options["num_beams"]),
                    "length_penalty": rng.choice([1.0, 0.0, -1.0, 2.0]),
                    "early_stopping": rng.choice(["true", "false", "never"])}  # fmt: skip
    extra = rng.choice([{}, {}, {"repetition_penalty": rng.choice([1.4, 0.8])}, {"no_repeat_ngram_size": 2},
                        {"bad_words_ids": [[eos[0]], [rng.randrange(vocab)], [rng.randrange(vocab) for _ in range(2)]]},
                        {"min_new_tokens": 3}, {"forced_prefix": [rng.randrange(vocab), 5]}])  # fmt: skip
    return options | extra


def undecided(native: Any, prefix: np.ndarray, prompts: list[list[int]], options: dict[str, Any], want: Any) -> bool:
    """Whether noise of the size of rounding changes what the native loop itself says."""
    rng = np.random.default_rng(SEED)
    noisy = (prefix * (1 + rng.normal(size=(4, *prefix.shape)) * 1e-5)).astype(np.float32)
    return any(tokens(native.generate(each, prompts, options)) != tokens(want) for each in noisy)


def tokens(sequences: Any) -> Any:
    return [[sequence for sequence, _ in image] for image in sequences]


@pytest.mark.parametrize("turn", range(3))
def test_texts_equal_the_native_loops_with_random_options(case: Case, machine: Machine, turn: int) -> None:
    rng = random.Random(SEED + turn)
    prefix, prompts = case.inputs(3)
    native, device = case.native(), machine.load(case)
    vocab = read(case.ort).manifest.llm.vocab_size
    said = native.generate(prefix, prompts, {"max_new_tokens": 8, "eos_token_ids": []})
    eos = sorted({token for [(sequence, _)] in said for token in sequence[2:4]})
    texts = [bytes([97 + i % 7]) * (1 + i % 2) for i in range(vocab)]
    clear = 0
    for _ in range(12):
        options = random_options(rng, vocab, eos)
        stops = [b"ab", b"c"] if rng.random() < 0.2 else None
        both = []
        for backend in (native, device):
            more = {} if stops is None else {"stop_strings": stops, "vocabulary": backend.vocabulary(texts)}
            both.append(backend.generate(prefix, prompts, {**options, **more}))
        want, got = both
        if tokens(got) != tokens(want):
            assert undecided(native, prefix, prompts, options, want), f"turn {turn}, {options}, {stops}"
            continue
        clear += 1
        np.testing.assert_allclose(
            [score for image in got for _, score in image], [score for image in want for _, score in image],
            rtol=2e-4, atol=2e-4,
        )  # fmt: skip
    assert clear >= 9
    assert "graph" in machine.driver.calls  # steps were replayed


def test_a_model_says_what_it_says_on_the_cpu(
    tiny_case: Case, machine: Machine, photo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """From pixels to text, in batches larger than the plans', streamed, asked, and in conversation."""
    device = blip2rt.load(tiny_case.trt, backend="trt", engines=SIZES)
    assert "building for Orin" in caplog.text  # the first load builds, and says so
    caplog.clear()
    assert machine.trt.builds == 4
    native = blip2rt.load(tiny_case.ort, threads=1)
    photos = [photo() for _ in range(5)]
    assert device.caption(photos, num_beams=3) == native.caption(photos, num_beams=3)
    assert device.caption(photos[0], do_sample=True, seed=5, num_captions=3) == native.caption(
        photos[0], do_sample=True, seed=5, num_captions=3)  # fmt: skip
    assert list(device.stream(photos[0])) == list(native.stream(photos[0]))
    one, other = device.chat(photos[1]), native.chat(photos[1])
    for question in ("what is the dog", "who sits", "red or blue"):
        assert one.ask(question, max_new_tokens=4) == other.ask(question, max_new_tokens=4)
    again = blip2rt.load(tiny_case.trt, backend="trt", engines=SIZES)
    assert again.caption(photos[0]) == native.caption(photos[0])
    assert machine.trt.builds == 4 and "building" not in caplog.text


def test_steps_give_the_tokens_of_the_whole(tiny_case: Case, machine: Machine) -> None:
    prefix, prompts = tiny_case.inputs(3)
    options = {"max_new_tokens": 6, "eos_token_ids": []}
    native, device = tiny_case.native(), machine.load(tiny_case)
    want = native.generate(prefix, prompts, options)
    generation, said = device.begin(prefix, prompts, options), [[], [], []]
    while not generation.done:
        for image, draw, token in generation.step():
            assert draw == 0
            said[image].append(token)
    assert [[one] for one in said] == tokens(want) == tokens(generation.results())
    seen: list[int] = []
    device.generate(prefix, prompts, options, lambda image, draw, token: seen.append(token) or len(seen) < 3)
    assert len(seen) == 3
    late = device.generate(prefix, prompts, {**options, "max_time": 0.0})
    assert tokens(late) == [[image[0][:1]] for image in tokens(want)]


def test_memory_is_allocated_once(tiny_case: Case, machine: Machine) -> None:
    """And given back by generations that nobody runs to their end, and when something fails."""
    prefix, prompts = tiny_case.inputs(2)
    device = machine.load(tiny_case)
    options = {"max_new_tokens": 5, "num_beams": 2}
    device.generate(prefix, prompts, options)
    used, streams = machine.driver.used, len(machine.driver.streams)
    for _ in range(3):
        device.generate(prefix, prompts, options)
        left = device.begin(prefix, prompts, options)
        left.step()
        del left
    assert (machine.driver.used, len(machine.driver.streams)) == (used, streams) and not machine.driver.host
    with pytest.raises(BackendError, match="not finite"):
        device.generate(np.full_like(prefix, np.nan), prompts, options)
    assert machine.driver.used == 0 and not machine.driver.host  # that cache is not used again
    assert device.generate(prefix, prompts, options)


def test_threads_have_lanes_of_their_own(tiny_case: Case, machine: Machine) -> None:
    prefix, prompts = tiny_case.inputs(2)
    device = machine.load(tiny_case)
    options = {"max_new_tokens": 6, "num_beams": 2, "eos_token_ids": []}
    want = device.generate(prefix, prompts, options)
    first, second = device.begin(prefix, prompts, options), device.begin(prefix[::-1].copy(), prompts[::-1], options)
    while not (first.done and second.done):
        first.step()
        second.step()
    assert first.results() == want and second.results() == want[::-1]
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(device.generate(prefix, prompts, options))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [want] * 3


def test_the_step_is_captured_once(tiny_case: Case, machine: Machine) -> None:
    """The first step is enqueued as it is, the second captured; generations of the same shape replay it."""
    prefix, prompts = tiny_case.inputs(2)
    device = machine.load(tiny_case)
    options = {"max_new_tokens": 6, "eos_token_ids": []}
    for turn in range(3):
        machine.driver.calls.clear()
        machine.driver.launched.clear()
        device.generate(prefix, prompts, options)
        replayed = machine.driver.calls.count("graph")
        assert replayed == (4 if turn == 0 else 5)  # of 5 steps after the prompt
        assert machine.driver.launched.count("choose") == (3 if turn == 0 else 1)


def test_a_refused_capture_is_said_and_done_without(
    tiny_case: Case, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    prefix, prompts = tiny_case.inputs(2)
    machine.trt.refuses_capture = True
    options = {"max_new_tokens": 6, "num_beams": 3, "eos_token_ids": []}
    got = machine.load(tiny_case).generate(prefix, prompts, options)
    assert tokens(got) == tokens(tiny_case.native().generate(prefix, prompts, options))
    assert caplog.text.count("cannot be captured") == 1 and "graph" not in machine.driver.calls


def test_keys_and_values_may_be_float16(tiny_case: Case, machine: Machine, tmp_path: Path) -> None:
    """As the export's fp16 has them: near the native loop's float32, the same as long as that is clear."""
    weights = tiny_trt.weights_of(np.random.default_rng(SEED))
    half = Case(tiny_case.ort, tiny_trt.write(tmp_path / "half", weights, "trt", half=True), "half")
    prefix, prompts = tiny_case.inputs(2)
    options = {"max_new_tokens": 8, "num_beams": 2, "eos_token_ids": []}
    got, want = (
        machine.load(half).generate(prefix, prompts, options),
        tiny_case.native().generate(prefix, prompts, options),
    )
    scores = np.array([[image[0][1] for image in each] for each in (got, want)])
    np.testing.assert_allclose(scores[0], scores[1], atol=0.05)


def test_teams_of_several_threads_choose_the_same(tiny_case: Case, machine: Machine) -> None:
    machine.driver.threads = 3
    prefix, prompts = tiny_case.inputs(1)
    options = {"max_new_tokens": 4, "num_beams": 3, "repetition_penalty": 1.3}
    got = machine.load(tiny_case).generate(prefix, prompts, options)
    assert tokens(got) == tokens(tiny_case.native().generate(prefix, prompts, options))


# What a machine lacks


def test_a_call_too_large_for_the_plans_is_one_line(tiny_case: Case, machine: Machine) -> None:
    prefix, prompts = tiny_case.inputs(2)
    device = machine.load(tiny_case, PlanSizes(max_batch=1, max_beams=2, capacity=20))
    with pytest.raises(OptionError, match="3 beams or draws.*max_beams=3; .* positions .*capacity="):
        device.generate(prefix, prompts, {"num_beams": 3, "max_new_tokens": 30})
    with pytest.raises(BackendError, match="num_beams is 0"):
        device.generate(prefix, prompts, {"num_beams": 0})
    assert device.generate(prefix[:0], [], {}) == []
    with pytest.raises(OptionError, match="device is 'cpu'"):
        backends.create("trt", read(tiny_case.trt), device="cpu")
    with pytest.raises(OptionError, match="engines are the backend trt's"):
        backends.create("ort", read(tiny_case.ort), engines=SIZES)


def test_memory_that_is_lacking_is_one_line(tiny_case: Case, machine: Machine) -> None:
    prefix, prompts = tiny_case.inputs(1)
    machine.driver.memory = 40_000
    device = machine.load(tiny_case)
    with pytest.raises(BackendError, match=r"the GPU has no room for .* MB .*max_beams, capacity"):
        device.generate(prefix, prompts, {"max_new_tokens": 3})
    assert machine.driver.used == 0
    machine.driver.memory = 1 << 30
    assert device.generate(prefix, prompts, {"max_new_tokens": 3})


def test_a_build_that_fails_is_one_line(tiny_case: Case, machine: Machine) -> None:
    machine.trt.refuses_builds = "no implementation for node the_node"
    with pytest.raises(BackendError, match="vision: the builder gives up: no implementation for node the_node"):
        machine.load(tiny_case)


def test_a_plan_of_another_gpu_is_refused(tiny_case: Case, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under another card's name it is never looked at; what TensorRT refuses is named, with the fix."""
    prefix, prompts = tiny_case.inputs(1)
    machine.load(tiny_case)
    machine.trt.gpu = "another"
    with pytest.raises(BackendError, match=r"embed: .*refuses the plan .*embed-\w+\.plan.*remove the file"):
        machine.load(tiny_case).generate(prefix, prompts, {"max_new_tokens": 3})
    monkeypatch.setattr("blip2rt.backends.trt.gpu.find", lambda: gpu.Gpu("another", (8, 7), 8 << 30, (12, 6), True, 16))
    assert machine.load(tiny_case).generate(prefix, prompts, {"max_new_tokens": 3})
    assert machine.trt.builds == 8


def test_a_driver_too_old_is_one_line(tiny_case: Case, machine: Machine) -> None:
    machine.driver = Driver(version=11040)
    with pytest.raises(BackendError, match=r"runs CUDA up to 11.4.*of CUDA 12.6: update the driver"):
        machine.load(tiny_case)


def test_a_lacking_gpu_driver_or_bindings_is_one_line(
    tiny_case: Case, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip2rt.backends.trt.gpu.find", lambda: "no NVIDIA driver is installed")
    with pytest.raises(BackendError, match="there is no GPU to build for"):
        machine.load(tiny_case)
    monkeypatch.undo()
    if isinstance(gpu.find(), str):
        bindings = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
        with pytest.raises(BackendError, match="no NVIDIA driver|cuInit failed"):
            cuda.Cuda(bindings, Nvrtc())
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match="needs cuda-bindings.*trt-cu12"):
        cuda.load_bindings()


def test_what_is_called_exists() -> None:
    """The stand-in has no function that the real modules lack."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    for stand_in, real in ((Driver, driver), (Nvrtc, nvrtc)):
        assert not [
            name
            for name in vars(stand_in)
            if name.startswith(("cu", "nvrtc")) and name != "current" and not hasattr(real, name)
        ]
    assert driver.CUstreamCaptureMode(1).name.endswith("THREAD_LOCAL")
    assert driver.CUstream_flags.CU_STREAM_NON_BLOCKING == 1 and driver.CUevent_flags.CU_EVENT_DISABLE_TIMING == 2
    assert driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY == 2
    attribute = driver.CUdevice_attribute
    assert attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75
    assert attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76


def test_what_is_called_of_tensorrt_exists() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'blip2rt[trt-check]'")
    from tests.trt.gpu_stand_in import Context, Engine

    own = {"dims", "numpy_dtype", "axes", "run", "profiles"}  # of the stand-in alone
    for stand_in, real in ((Engine, trt.ICudaEngine), (Context, trt.IExecutionContext)):
        assert not [name for name in vars(stand_in) if name[0] != "_" and name not in own and not hasattr(real, name)]
    for name in ("num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"):
        assert hasattr(trt.ICudaEngine, name)
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED") and hasattr(trt.TensorIOMode, "INPUT")
    assert str(trt.DataType.HALF) == "DataType.HALF" and hasattr(trt.Runtime, "deserialize_cuda_engine")


# Faults put in by hand


def wrong_address(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = lane.Runner.set

    def shifted(self: Any, tensors: Any) -> bool:
        return real(self, {name: replace(each, address=each.address + (1 << 24)) if name == "past_value_1" else each
                           for name, each in tensors.items()})  # fmt: skip

    monkeypatch.setattr(lane.Runner, "set", shifted)


def skipped_shape(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = gpu_stand_in.Context.set_input_shape
    monkeypatch.setattr(gpu_stand_in.Context, "set_input_shape",
                        lambda self, name, shape: name == "past_mask" or real(self, name, shape))  # fmt: skip


def stale_shape(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    """One input keeps the rows of the first generation."""
    real, seen = gpu_stand_in.Context.set_input_shape, set()

    def keep(self: Any, name: str, shape: Any) -> bool:
        if name == "position_ids" and (id(self), name) in seen:
            return True
        seen.add((id(self), name))
        return real(self, name, shape)

    monkeypatch.setattr(gpu_stand_in.Context, "set_input_shape", keep)


def reused_buffer(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real, other = lane.Lane.buffer, {"step.embeds": "logits"}
    monkeypatch.setattr(lane.Lane, "buffer", lambda self, name, size: real(self, other.get(name, name), size))


def freed_buffer(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = decoder.Decoder.begin

    def begin(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        driver.cuMemFree(self._cache)

    monkeypatch.setattr(decoder.Decoder, "begin", begin)


def unaligned(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(decoder, "aligned", lambda size: size + 4)


def short_buffer(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = lane.Lane.buffer
    monkeypatch.setattr(lane.Lane, "buffer",
                        lambda self, name, size: real(self, name, size // 2 if name == "cache" else size))  # fmt: skip


def uncleared_cache(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = driver.cuMemsetD32Async

    def small_ones(address: int, word: int, count: int, stream: Any) -> Any:
        return (0,) if count > 2000 else real(address, word, count, stream)

    monkeypatch.setattr(driver, "cuMemsetD32Async", small_ones)


def other_stream(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = gpu_stand_in.Context.execute_async_v3
    monkeypatch.setattr(gpu_stand_in.Context, "execute_async_v3", lambda self, stream: real(self, stream + 77))


def captured_cold(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(decoder.Decoder, "_enqueue", decoder.Decoder._enqueue)
    monkeypatch.setattr(decoder.Decoder, "step", lambda self: self._capture())


def wrong_dtype(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = decoder.Sizes.of
    monkeypatch.setattr(decoder.Sizes, "of", lambda *arguments: replace(real(*arguments), dtype=np.dtype(np.float16)))


FAULTS = [wrong_address, wrong_dtype, skipped_shape, stale_shape, reused_buffer, freed_buffer, unaligned, short_buffer,
          uncleared_cache, other_stream, captured_cold]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_put_in_by_hand_is_found(
    tiny_case: Case, machine: Machine, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    prefix, prompts = tiny_case.inputs(2)

    def use() -> None:
        device = machine.load(tiny_case)
        device.generate(prefix[:1], prompts[:1], {"max_new_tokens": 5, "num_beams": 1, "eos_token_ids": []})
        device.generate(prefix, prompts, {"max_new_tokens": 5, "num_beams": 2, "eos_token_ids": []})

    use()
    fault(monkeypatch, machine.driver)
    with pytest.raises((Misuse, BackendError)) as found:
        use()
    print(found.value)


@pytest.mark.parametrize("kernel", ["scatter", "choose", "reorder"])
def test_a_kernel_left_out_is_found(
    tiny_case: Case, machine: Machine, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    prefix, prompts = tiny_case.inputs(2)
    # A model of random weights may say one word for ever, whatever it is shown: not with this.
    options = {"max_new_tokens": 10, "num_beams": 4, "eos_token_ids": [], "num_return_sequences": 4,
               "no_repeat_ngram_size": 1}  # fmt: skip
    real = decoder.Kernels.launch
    monkeypatch.setattr(decoder.Kernels, "launch",
                        lambda self, name, *rest: None if name == kernel else real(self, name, *rest))  # fmt: skip
    try:
        got = machine.load(tiny_case).generate(prefix, prompts, options)
    except Misuse:
        return
    assert tokens(got) != tokens(tiny_case.native().generate(prefix, prompts, options))


# The real thing


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{"num_beams": 1}, {"num_beams": 3}, {"do_sample": True, "seed": 1, "num_return_sequences": 2}]
)
def test_a_gpu_says_what_the_cpu_says(
    tiny_case: Case, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`pytest -m gpu`: TensorRT, the driver and NVRTC themselves in place of the stand-in."""
    found = gpu.find()
    if isinstance(found, str):
        pytest.skip(f"needs a GPU: {found}")
    pytest.importorskip(
        "cuda.bindings.driver", reason="needs cuda-bindings: pip install 'blip2rt[trt-cu12]', or trt-cu13"
    )
    try:
        builder.load_tensorrt()
    except BackendError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("BLIP2RT_CACHE", str(tmp_path))
    prefix, prompts = tiny_case.inputs(3)
    options = {"max_new_tokens": 12, "eos_token_ids": [], **options}
    device, native = backends.create("trt", read(tiny_case.trt), device="cuda", engines=SIZES), tiny_case.native()
    for _ in range(3):  # enqueued, captured, replayed
        got, want = device.generate(prefix, prompts, options), native.generate(prefix, prompts, options)
        assert tokens(got) == tokens(want) or undecided(native, prefix, prompts, options, want)
