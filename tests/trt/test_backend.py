"""The backend trt gives the CPU's results, on a simulated machine (simulated.py) and with `pytest -m gpu` on a GPU."""

import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blip2rt
from blip2rt import backends
from blip2rt.backends.trt import PlanSizes, cuda, gpu
from blip2rt.batching import Batching
from blip2rt.bench.cli import picture
from blip2rt.bench.stages import STAGES, Workload, stages, start
from blip2rt.bundle import read
from blip2rt.errors import BackendError, CapabilityError, OptionError
from blip2rt.native import native as core
from tests.seeds import new_seed
from tests.tiny import trt as tiny_trt
from tests.trt.machine import SEED, SIZES, Case
from tests.trt.simulated import Context, CUresult, Driver, Engine, Misuse

FAMILIES = ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "llama", "t5"))]
PLAIN = {"max_new_tokens": 6, "eos_token_ids": []}


def random_options(rng: random.Random, vocab: int, eos: list[int], images: int) -> dict[str, Any]:
    """Generation options of every kind. eos: tokens that the model likes."""
    ids = [*eos, *(rng.randrange(vocab) for _ in range(8))]
    beams, sampled = rng.choice([1, 1, 2, 3, 4]), rng.random() < 0.5
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 9), "num_beams": beams}
    options |= {
        "eos_token_ids": rng.choice([[], ids[:1], ids[:2]]),
        "length_penalty": rng.choice([1.0, 0.0, -1.0, 2.0]),
    }
    options["early_stopping"] = rng.choice(["true", "false", "never"])
    if beams > 1 or sampled:
        options["num_return_sequences"] = rng.randint(1, beams if beams > 1 else 4)
    if sampled:
        options |= {"do_sample": True, "seed": rng.randrange(10**6), "temperature": rng.uniform(0.5, 2)}
        options |= {"top_k": rng.choice([0, 0, rng.randint(1, vocab)]), "top_p": rng.choice([1.0, rng.random()])}
        options["min_p"] = rng.choice([0.0, 0.0, 0.2 * rng.random()])
    elif rng.random() < 0.3:
        texts = [[[*rng.sample(range(vocab - 1), 4), vocab - 1] for _ in range(5)] for _ in range(images)]
        options["guides"] = [core.Guide(text, [rng.random() for _ in range(vocab)], vocab - 1) for text in texts]
    if rng.random() < 0.2:
        texts = [bytes([97 + i % 7]) * (1 + i % 2) for i in range(vocab)]
        options |= {"stop_strings": [b"ab", b"c"], "vocabulary": core.Vocabulary(texts)}
    half = [[token] for token in range(0, vocab, rng.choice([2, vocab]))]
    more: list[dict[str, Any]] = [{}, {}, {"repetition_penalty": rng.choice([0.7, 1.5])}, {"min_new_tokens": 3}]
    more += [{"no_repeat_ngram_size": rng.randint(1, 3)}, {"bad_words_ids": [ids[:1], ids[3:5], *half]}]
    return options | rng.choice([*more, {"forced_prefix": ids[4:6], "counts_prompt": True}])


def tokens(sequences: Any) -> Any:
    return [[sequence for sequence, _ in image] for image in sequences]


def scores(sequences: Any) -> np.ndarray:
    return np.nan_to_num([score for image in sequences for _, score in image])


def is_near_tie(native: Any, prefix: Any, prompts: list[list[int]], options: dict[str, Any], expected: Any) -> bool:
    """Whether noise as small as rounding errors changes the CPU's own tokens."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        shaken = (prefix * (1 + rng.normal(size=prefix.shape) * 1e-5)).astype(np.float32)
        if tokens(native.generate(shaken, prompts, options)) != expected:
            return True
    return False


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [False, True])
def test_random_options_give_the_cpus_tokens(case_of: Any, any_machine: Any, family: str, shared: bool) -> None:
    """One call after the other, or in a batch that callers share."""
    case: Case = case_of(family)
    native, device = case.native(), case.load(batching=Batching(rows=8) if shared else None)
    rng, (prefix, prompts) = random.Random(new_seed()), case.inputs(3)
    vocab = read(case.ort).manifest.llm.vocab_size
    said = native.generate(prefix, prompts, {"max_new_tokens": 8, "eos_token_ids": []})
    eos = sorted({token for [(sequence, _)] in said for token in sequence[2:4]})
    every = [random_options(rng, vocab, eos, len(prompts)) for _ in range(24)]

    def generate(options: dict[str, Any]) -> Any:
        return device.generate(prefix, prompts, core.GenerationOptions(**options))

    with ThreadPoolExecutor(4 if shared else 1) as threads:
        results = list(threads.map(generate, every))
    clear = 0
    for options, got in zip(every, results, strict=True):
        want = native.generate(prefix, prompts, options)
        if tokens(got) != tokens(want):
            assert is_near_tie(native, prefix, prompts, options, tokens(want)), options
            continue
        clear += 1
        np.testing.assert_allclose(scores(got), scores(want), rtol=1e-3, atol=1e-3, err_msg=str(options))
    assert clear >= 18
    if any_machine is not None:
        assert any_machine.driver.graphs > 0  # steps were replayed
    device.close()


def test_model_gives_the_same_text_as_on_the_cpu(tiny: Case, any_machine: Any, photo: Any, caplog: Any) -> None:
    """From pixels to text: in batches larger than the plans', streamed, in rounds and in a conversation."""
    sizes = PlanSizes(max_batch=2, max_beams=4, capacity=64)
    device = blip2rt.load(tiny.trt, backend="trt", plan_sizes=sizes)
    assert "building for" in caplog.text  # the first load builds and logs it
    caplog.clear()
    native = blip2rt.load(tiny.ort, threads=1)
    photos = [photo() for _ in range(5)]
    assert device.caption(photos, num_beams=3) == native.caption(photos, num_beams=3)
    sampled = {"do_sample": True, "seed": 5, "num_captions": 3}
    assert device.caption(photos[0], **sampled) == native.caption(photos[0], **sampled)
    assert list(device.stream(photos[0])) == list(native.stream(photos[0]))
    one, other = device.chat(photos[1]), native.chat(photos[1])
    for question, beams in (("what is the dog", 1), ("who sits", 2), ("red or blue", 1)):
        asked = {"max_new_tokens": 4, "num_beams": beams}
        assert one.ask(question, **asked) == other.ask(question, **asked)
    again = blip2rt.load(tiny.trt, backend="trt", plan_sizes=sizes)
    assert again.caption(photos[0]) == native.caption(photos[0])
    assert "building" not in caplog.text


def test_every_stage_is_measured(tiny: Case, any_machine: Any, tmp_path: Path) -> None:
    """As `blip2rt-bench --backend trt` does in a worker."""
    image = str(picture(tmp_path / "a.jpg"))
    work = Workload(str(tiny.trt), image, new_tokens=4, repeat=1, backend="trt")
    assert start(work)["load"] > 0 and set(stages(work)["stages"]) == set(STAGES)


def test_rounds_share_their_prompts(tiny: Case, any_machine: Any) -> None:
    native, device, (prefix, prompts) = tiny.native(), tiny.load(), tiny.inputs(2)
    rounds = [PLAIN, {**PLAIN, "num_beams": 2}, {**PLAIN, "do_sample": True, "seed": 3}]
    got, want = (each.generate_rounds(prefix, prompts, rounds) for each in (device, native))
    assert [tokens(each) for each in got] == [tokens(each) for each in want]


def test_streams_end_where_their_callers_leave(tiny: Case, machine: Any) -> None:
    native, device, (prefix, prompts) = tiny.native(), tiny.load(), tiny.inputs(3)
    want = tokens(native.generate(prefix, prompts, PLAIN))
    generation, said = device.begin(prefix, prompts, PLAIN), [[], [], []]
    while not generation.done:
        for image, draw, token in generation.step():
            assert draw == 0
            said[image].append(token)
    assert [[one] for one in said] == want == tokens(generation.results())
    seen: list[int] = []
    device.generate(prefix, prompts, PLAIN, lambda image, draw, token: seen.append(token) or len(seen) < 3)
    assert len(seen) == 3
    late = device.generate(prefix, prompts, {**PLAIN, "max_time": 0.0})
    assert tokens(late) == [[image[0][:1]] for image in want]


def test_the_step_is_captured_once(tiny: Case, machine: Any, caplog: Any) -> None:
    """The first step is enqueued, the second captured; later calls with as many rows replay it."""
    device, (prefix, prompts) = tiny.load(), tiny.inputs(1)
    replayed = []
    for _ in range(3):
        before = machine.driver.graphs
        device.generate(prefix, prompts, PLAIN)
        replayed.append(machine.driver.graphs - before)
    assert replayed == [4, 5, 5]  # of 5 steps after the prompt
    machine.trt.refuses_capture, other = True, tiny.load()
    got = [other.generate(prefix, prompts, PLAIN) for _ in range(2)]
    assert tokens(got[0]) == tokens(got[1]) == tokens(device.generate(prefix, prompts, PLAIN))
    assert caplog.text.count("cannot be captured as a CUDA graph") == 1


def test_a_step_moves_keys_and_values_once(tiny: Case, machine: Any) -> None:
    """In one copy of all layers, heads and beams, and one for each beam that another takes over."""
    device, (prefix, prompts) = tiny.load(), tiny.inputs(1)
    device.generate(prefix, prompts, PLAIN)
    before = machine.driver.copies
    device.generate(prefix, prompts, PLAIN)
    assert machine.driver.copies - before == 6  # of the prompt, and 5 steps


def test_memory_is_allocated_once(tiny: Case, machine: Any) -> None:
    """By calls one after the other; a closed or collected model frees it."""
    device, (prefix, prompts) = tiny.load(), tiny.inputs(2)
    options = {**PLAIN, "num_beams": 2}
    want = device.generate(prefix, prompts, options)
    used = machine.driver.used
    for _ in range(3):
        assert device.generate(prefix, prompts, options) == want
        left = device.begin(prefix, prompts, options)
        left.step()
        del left
    assert machine.driver.used == used > 0
    with pytest.raises(BackendError, match="not finite"):
        device.generate(np.full_like(prefix, np.nan), prompts, options)
    assert device.generate(prefix, prompts, options) == want
    begun = device.begin(prefix, prompts, options)
    device.close()
    while not begun.done:  # a running generation continues to its end
        begun.step()
    assert begun.results() == want
    with pytest.raises(BackendError, match="closed: load it again"):
        device.generate(prefix, prompts, options)
    del begun, device
    gc.collect()
    assert (machine.driver.used, len(machine.driver.pinned), len(machine.driver.streams)) == (0, 0, 0)


def test_threads_have_their_own_caches(tiny: Case, machine: Any) -> None:
    device, (prefix, prompts) = tiny.load(), tiny.inputs(2)
    options = {**PLAIN, "num_beams": 2}
    want = device.generate(prefix, prompts, options)
    first, second = device.begin(prefix, prompts, options), device.begin(prefix[::-1].copy(), prompts[::-1], options)
    while not (first.done and second.done):
        first.step()
        second.step()
    assert first.results() == want and second.results() == want[::-1]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: device.generate(prefix, prompts, options), range(6))) == [want] * 6


@pytest.mark.parametrize("shared", [False, True])
def test_failed_graph_fails_its_own_request(tiny: Case, machine: Any, shared: bool) -> None:
    """A prompt that cannot be read fails alone, a failed step those that took part; later calls succeed."""
    device, (prefix, prompts) = tiny.load(batching=Batching(rows=8) if shared else None), tiny.inputs(4)
    options = core.GenerationOptions(**PLAIN)
    want = device.generate(prefix, prompts, options)
    left = [3]  # runs of llm before one fails

    def fails(path: str) -> bool:
        left[0] -= path.endswith("llm.onnx")
        return path.endswith("llm.onnx") and left[0] == 0

    machine.trt.fails = fails
    with pytest.raises(BackendError, match="generation failed: llm: TensorRT cannot run the plan"):
        device.generate(prefix, prompts, options)
    results: list[Any] = []

    def call(image: int) -> None:
        try:
            results.append(
                device.generate(prefix[image : image + 1], prompts[image : image + 1], options) == [want[image]]
            )
        except BackendError:
            results.append(None)

    for left[0] in (2, 9):
        threads = [threading.Thread(target=call, args=(image,), daemon=True) for image in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a call hangs"
    assert False not in results and None in results and True in results
    left[0] = 0
    assert device.generate(prefix, prompts, options) == want


def test_broken_device_gives_one_line(tiny: Case, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device, (prefix, prompts) = tiny.load(), tiny.inputs(1)
    monkeypatch.setattr(machine.driver, "cuStreamSynchronize", lambda stream: (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,))
    for _ in range(2):
        with pytest.raises(BackendError, match="cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
            device.generate(prefix, prompts, PLAIN)


_EXITS = """
import sys, threading, time
from pathlib import Path
from blip2rt.backends.trt import backend, builder, gpu
from blip2rt.batching import Batching
from blip2rt.native import native
from tests.trt.machine import GPU, Case
from tests.trt.simulated import Driver, TensorRT

driver = Driver()
trt = TensorRT(driver)
builder.load_tensorrt, backend.load_bindings, gpu.find = lambda: trt, lambda: driver, lambda: GPU
case, shared = Case(Path(sys.argv[1]), Path(sys.argv[2])), sys.argv[3] == "True"
device, (prefix, prompts) = case.load(batching=Batching() if shared else None), case.inputs(2)
options, ran = native.GenerationOptions(max_new_tokens=20, eos_token_ids=[]), threading.Event()

def work():
    while True:
        device.generate(prefix, prompts, options)
        ran.set()

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
ran.wait()
time.sleep(0.05)
"""


@pytest.mark.parametrize("shared", [False, True])
def test_process_ends_while_threads_generate(tiny: Case, tmp_path: Path, shared: bool) -> None:
    """Threads that wait for the interpreter, which ends, neither hang nor abort."""
    environment = {**os.environ, "BLIP2RT_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", _EXITS, str(tiny.ort), str(tiny.trt), str(shared)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


def test_keys_and_values_can_be_float16(tiny: Case, any_machine: Any, tmp_path: Path) -> None:
    """As in fp16 exports: close to the CPU's float32."""
    weights = tiny_trt.random_llm_weights(np.random.default_rng(SEED))
    half = Case(tiny.ort, tiny_trt.write(tmp_path / "half", weights, "trt", half=True))
    (prefix, prompts), options = tiny.inputs(2), {**PLAIN, "num_beams": 2}
    got, want = (each.generate(prefix, prompts, options) for each in (half.load(), tiny.native()))
    np.testing.assert_allclose(scores(got), scores(want), atol=0.05)


# Limits and faults


def test_call_too_large_for_the_plans_gives_one_line(tiny: Case, machine: Any) -> None:
    (prefix, prompts), device = tiny.inputs(2), tiny.load(PlanSizes(max_batch=1, max_beams=2, capacity=20))
    with pytest.raises(BackendError, match="needs 3 rows, and there are 2: build plans with more beams"):
        device.generate(prefix, prompts, {"num_beams": 3})
    with pytest.raises(BackendError, match=r"positions of keys and values, and there are \d+: build plans with that"):
        device.generate(prefix, prompts, {"max_new_tokens": 30})
    with pytest.raises(BackendError, match="num_beams is 0"):
        device.generate(prefix, prompts, {"num_beams": 0})
    with pytest.raises(CapabilityError, match="use the backend ort"):
        device.generator().likelihoods(prefix, prompts, [0], [[5]])
    assert device.generate(prefix[:0], [], {}) == []
    with pytest.raises(OptionError, match="device is 'cpu'"):
        backends.create("trt", read(tiny.trt), device="cpu")
    with pytest.raises(OptionError, match="plan_sizes are the backend trt's"):
        backends.create("ort", read(tiny.ort), plan_sizes=SIZES)


def test_plan_that_lacks_something_gives_one_line(tiny: Case, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, prompts = tiny.inputs(1)
    real = Engine.__init__

    def fails(match: str, change: Callable[[Engine], None]) -> None:
        def init(self: Engine, trt: Any, made: dict[str, Any]) -> None:
            real(self, trt, made)
            if made["path"].endswith("llm.onnx"):
                change(self)

        monkeypatch.setattr(Engine, "__init__", init)
        with pytest.raises(BackendError, match=match):
            tiny.load().generate(prefix, prompts, PLAIN)

    def drop(engine: Engine, name: str) -> None:
        engine.ends.pop(name)
        engine.num_io_tensors -= 1

    def free(engine: Engine) -> None:
        for profile in engine.profiles:
            profile["past_key_0"][0][2] = 1

    fails("the plan of llm does not fit the loop; it lacks: output new_key_1", lambda engine: drop(engine, "new_key_1"))
    fails("past_key_0 has no fixed number of positions: build the plans again", free)
    fails("llm: the plan .* has no profile", lambda engine: setattr(engine, "num_optimization_profiles", 0))
    one = r"llm: no profile of the plan takes inputs_embeds of shape \(1, \d+, \d+\); the largest are \(8, 1, \d+\)"
    fails(one, lambda engine: setattr(engine, "num_optimization_profiles", 1))


def test_out_of_memory_gives_one_line(tiny: Case, machine: Any) -> None:
    device, (prefix, prompts) = tiny.load(), tiny.inputs(1)
    machine.driver.memory = 20_000
    with pytest.raises(BackendError, match=r"the GPU is out of memory for .* MB .*max_beams, capacity"):
        device.generate(prefix, prompts, {"max_new_tokens": 3})
    machine.driver.memory = 1 << 30
    assert device.generate(prefix, prompts, {"max_new_tokens": 3})


def test_failed_build_gives_one_line(tiny: Case, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(log: Any) -> None:
        log.log(1, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(machine.trt, "Builder", refuses)
    with pytest.raises(BackendError, match="vision: TensorRT cannot start: CUDA initialization failure with error: 35"):
        tiny.load()


def test_plan_of_another_gpu_is_rejected(tiny: Case, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for another card's name is never read; a plan that TensorRT rejects is named, with the fix."""
    prefix, prompts = tiny.inputs(1)
    tiny.load()
    machine.trt.gpu = "another"
    rejected = r"llm: .*rejects the plan .*llm-\w+\.plan \(the engine was built for Orin\).*delete the file"
    with pytest.raises(BackendError, match=rejected):
        tiny.load().generate(prefix, prompts, PLAIN)
    monkeypatch.setattr(gpu, "find", lambda: gpu.Gpu("another", (8, 7), 8 << 30, (12, 6), True, 16))
    assert tiny.load().generate(prefix, prompts, PLAIN)
    assert machine.trt.builds == 6


def test_missing_gpu_driver_or_bindings_gives_one_line(tiny, machine, monkeypatch):
    monkeypatch.setattr(gpu, "find", lambda: "no NVIDIA driver is installed")
    with pytest.raises(BackendError, match="no GPU to build for"):
        tiny.load()
    monkeypatch.undo()
    if isinstance(gpu.find(), str):
        bindings = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
        with pytest.raises(BackendError, match="no NVIDIA driver|cuInit failed"):
            cuda.Device(bindings)
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match="needs cuda-bindings.*trt-cu12"):
        cuda.load_bindings()


def test_simulation_notices_misuse() -> None:
    driver = Driver()
    driver.cuCtxSetCurrent("context")
    (_, stream), (_, address) = driver.cuStreamCreate(1), driver.cuMemAlloc(1024)
    driver.cuMemsetD32Async(address, 0, 256, stream)
    driver.cuMemFree(address)
    with pytest.raises(Misuse, match="do not lie in device memory"):
        driver.cuStreamSynchronize(stream)


def test_simulated_calls_exist() -> None:
    """The simulation has no function that the real modules lack, and the constants are theirs."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
    calls = [name for name in vars(Driver) if name.startswith("cu")]
    assert calls and all(hasattr(driver, name) for name in calls)
    assert driver.CUstreamCaptureMode(1).name.endswith("THREAD_LOCAL")
    assert driver.CUstream_flags.CU_STREAM_NON_BLOCKING == 1 and driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY == 2
    assert driver.CUmemorytype(1).name.endswith("HOST") and driver.CUmemorytype(2).name.endswith("DEVICE")
    block = driver.CUDA_MEMCPY3D()
    assert all(hasattr(block, f"{end}{part}") for end in ("src", "dst") for part in "Host Device Pitch Height".split())
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'blip2rt[trt-check]'")
    own = {"dtype", "session", "run"}  # helpers of the simulation
    for stand_in, real in ((Engine, trt.ICudaEngine), (Context, trt.IExecutionContext)):
        assert not [name for name in dir(stand_in) if name[0] != "_" and name not in own and not hasattr(real, name)]
    assert all(hasattr(trt.ICudaEngine, name) for name in ("num_io_tensors", "num_optimization_profiles"))
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED") and hasattr(trt.TensorIOMode, "INPUT")
    assert str(trt.DataType.HALF) == "DataType.HALF" and hasattr(trt.Runtime, "deserialize_cuda_engine")
