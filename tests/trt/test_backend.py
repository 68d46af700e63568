"""The backend trt on a simulated machine (tests/trt/gpu_stand_in.py) gives the CPU loop's results."""

import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blip2rt
from benchmarks.gpu_day import loops
from benchmarks.gpu_day.kernels import random_options
from benchmarks.gpu_day.loops import is_near_tie, noisy, tokens
from blip2rt.backends.trt import builder, gpu, plans
from blip2rt.bundle import read
from blip2rt.errors import BackendError
from blip2rt.native import native as core
from tests.tiny import trt as tiny_trt
from tests.trt.machine import SEED, SIZES, Case, Machine


def scores(answers: Any) -> np.ndarray:
    return np.nan_to_num([score for image in answers for _, score in image])


def matches_the_cpu_loop(case: Case, machine: Machine, turns: int, seed: int = SEED) -> tuple[Any, Any, Any, int]:
    """Compare random options. Return the backend, its log cleared, its inputs, and how often no tie decided."""
    rng, native, device = random.Random(seed), case.native(), machine.load(case)
    prefix, prompts = case.inputs(3)
    vocab = read(case.ort).manifest.llm.vocab_size
    said = native.generate(prefix, prompts, {"max_new_tokens": 8, "eos_token_ids": []})
    eos = sorted({token for [(sequence, _)] in said for token in sequence[2:4]})
    texts = [bytes([97 + i % 7]) * (1 + i % 2) for i in range(vocab)]
    clear = 0
    for turn in range(turns):
        options = random_options(rng, vocab, 4, eos)
        stops, both = rng.random() < 0.2, []
        for backend in (device, native):
            if stops:
                options |= {"stop_strings": [b"ab", b"c"], "vocabulary": core.Vocabulary(texts)}
            both.append(backend.generate(prefix, prompts, options))
        got, want = both
        what = f"turn {turn}, {options}"
        if tokens(got) != tokens(want):
            assert is_near_tie(native, prefix, prompts, options, tokens(want)), what
            continue
        clear += 1
        far = np.abs(scores(got) - scores(want)) - 2e-4 * (1 + np.abs(scores(want)))
        if (far > 0).any():  # for some weights, rounding moves the CPU loop's own scores as far
            same = [each for each in noisy(native, prefix, prompts, options, 1e-6) if tokens(each) == tokens(want)]
            assert far.max() < max((np.abs(scores(each) - scores(want)).max() for each in same), default=0.0), what
    assert "graph" in machine.driver.calls  # steps were replayed
    machine.driver.launched.clear()
    return device, prefix, prompts, clear


@pytest.mark.parametrize("turn", range(3))
def test_random_options_match_the_cpu_loop(case: Case, machine: Machine, turn: int) -> None:
    *_, clear = matches_the_cpu_loop(case, machine, 12, SEED + turn)
    assert clear >= 9


def test_in_place_cache_matches_the_cpu_loop(native_case: Case, machine: Machine) -> None:
    """Nothing is scattered, and prompts are spread over rows only if rows are not images."""
    device, prefix, prompts, _ = matches_the_cpu_loop(native_case, machine, 10)
    device.generate(prefix[:2], prompts[:2], {"max_new_tokens": 6, "eos_token_ids": []})
    assert set(machine.driver.launched) == {"choose"} and "graph" in machine.driver.calls
    device.generate(prefix[:2], prompts[:2], {"max_new_tokens": 6, "eos_token_ids": [], "num_beams": 2})
    assert set(machine.driver.launched) == {"choose", "spread", "reorder"}


@pytest.mark.long(12, "token for token on traced graphs")
def test_exported_in_place_cache_matches_the_cpu_loop(exported_case: Case, machine: Machine) -> None:
    """`--target trt-native` on the device gives the tokens of the target ort."""
    assert plans.language_sizes(read(exported_case.trt), plans.resolve(read(exported_case.trt), SIZES)).in_place
    device, prefix, prompts, _ = matches_the_cpu_loop(exported_case, machine, 8)
    device.generate(prefix[:2], prompts[:2], {"max_new_tokens": 6, "eos_token_ids": []})
    assert "scatter" not in machine.driver.launched and "graph" in machine.driver.calls


def test_model_gives_the_same_text_as_on_the_cpu(tiny_case, machine, photo, caplog):
    """From pixels to text: in batches larger than the plans', streamed, with questions and in a conversation."""
    device = blip2rt.load(tiny_case.trt, backend="trt", plan_sizes=SIZES)
    assert "building for Orin" in caplog.text  # the first load builds and logs it
    caplog.clear()
    assert machine.trt.builds == 4
    native = blip2rt.load(tiny_case.ort, threads=1)
    photos = [photo() for _ in range(5)]
    assert device.caption(photos, num_beams=3) == native.caption(photos, num_beams=3)
    sampled = {"do_sample": True, "seed": 5, "num_captions": 3}
    assert device.caption(photos[0], **sampled) == native.caption(photos[0], **sampled)
    assert list(device.stream(photos[0])) == list(native.stream(photos[0]))
    one, other = device.chat(photos[1]), native.chat(photos[1])
    for question in ("what is the dog", "who sits", "red or blue"):
        assert one.ask(question, max_new_tokens=4) == other.ask(question, max_new_tokens=4)
    again = blip2rt.load(tiny_case.trt, backend="trt", plan_sizes=SIZES)
    assert again.caption(photos[0]) == native.caption(photos[0])
    assert machine.trt.builds == 4 and "building" not in caplog.text


def test_stepping_gives_the_same_tokens_as_generate(tiny_case: Case, machine: Machine) -> None:
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
    """Abandoned and failed generations free it."""
    prefix, prompts = tiny_case.inputs(2)
    device = machine.load(tiny_case)
    options = {"max_new_tokens": 5, "num_beams": 2}
    device.generate(prefix, prompts, options)
    used = holds(machine)
    for _ in range(3):
        device.generate(prefix, prompts, options)
        left = device.begin(prefix, prompts, options)
        left.step()
        del left
    assert holds(machine) == used and len(machine.driver.host) == 1, "the flags of the answers that have ended"
    with pytest.raises(BackendError, match="not finite"):
        device.generate(np.full_like(prefix, np.nan), prompts, options)
    assert machine.driver.used == 0 and not machine.driver.host  # that cache is not reused
    assert device.generate(prefix, prompts, options)


def holds(machine: Machine) -> tuple[int, int, int, int]:
    driver = machine.driver
    return driver.used, len(driver.host), len(driver.streams), len(driver.modules)


def test_closed_model_frees_all_memory(tiny_case: Case, machine: Machine, photo: Any) -> None:
    prefix, prompts = tiny_case.inputs(2)
    options = {"max_new_tokens": 5, "eos_token_ids": []}
    want = machine.load(tiny_case).generate(prefix, prompts, options)
    with blip2rt.load(tiny_case.trt, backend="trt", plan_sizes=SIZES) as model:
        model.caption(photo(), num_beams=2)
        device = model.pipeline.backend
        begun, stepped = device.begin(prefix, prompts, options), device.begin(prefix, prompts, options)
        stepped.step()
        assert holds(machine)[3] == 1
    for call in (lambda: model.caption(photo()), lambda: next(model.stream(photo())), begun.step):
        with pytest.raises(BackendError, match="closed: load it again"):
            call()
    stepped.run()  # a running generation continues to its end
    assert stepped.results() == want
    assert holds(machine) == (0, 0, 0, 0)
    model.close()


def test_garbage_collected_model_frees_all_memory(tiny_case: Case, machine: Machine, photo: Any) -> None:
    model = blip2rt.load(tiny_case.trt, backend="trt", plan_sizes=SIZES)
    model.caption(photo())
    assert min(holds(machine)[::3]) > 0
    del model
    gc.collect()
    assert holds(machine) == (0, 0, 0, 0)


def test_generation_is_collected_while_another_acquires_a_lane(tiny_case, machine, monkeypatch):
    prefix, prompts = tiny_case.inputs(1)
    device = machine.load(tiny_case)
    left: list[Any] = [device.begin(prefix, prompts, {"max_new_tokens": 5})]
    left[0].step()
    left.append(left)  # a reference cycle, which only the garbage collector frees
    del left
    create = machine.driver.cuStreamCreate
    monkeypatch.setattr(machine.driver, "cuStreamCreate", lambda flags: (gc.collect(), create(flags))[1])
    thread = threading.Thread(target=lambda: device.generate(prefix, prompts, {"max_new_tokens": 5}), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_device_failure_is_reported_over_cleanup_failures(tiny_case, machine, monkeypatch):
    prefix, prompts = tiny_case.inputs(1)
    device = machine.load(tiny_case)

    class Failed(int):
        name = "CUDA_ERROR_ILLEGAL_ADDRESS"

    def fails(*_: Any) -> tuple[Any]:
        for call in "StreamSynchronize EventSynchronize EventDestroy MemFree MemFreeHost StreamDestroy".split():
            monkeypatch.setattr(machine.driver, f"cu{call}", lambda *_: (Failed(700),))
        return (Failed(700),)

    monkeypatch.setattr(machine.driver, "cuLaunchKernel", fails)
    with pytest.raises(BackendError, match="cuLaunchKernel failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.generate(prefix, prompts, {"max_new_tokens": 5})


def test_threads_use_separate_lanes(tiny_case: Case, machine: Machine) -> None:
    prefix, prompts = tiny_case.inputs(2)
    device = machine.load(tiny_case)
    options = {"max_new_tokens": 6, "num_beams": 2, "eos_token_ids": []}
    want = device.generate(prefix, prompts, options)
    first, second = device.begin(prefix, prompts, options), device.begin(prefix[::-1].copy(), prompts[::-1], options)
    while not (first.done and second.done):
        first.step()
        second.step()
    assert first.results() == want and second.results() == want[::-1]
    with ThreadPoolExecutor(3) as threads:
        results = [threads.submit(device.generate, prefix, prompts, options) for _ in range(3)]
    assert [each.result() for each in results] == [want] * 3


def test_the_step_is_captured_once(tiny_case: Case, machine: Machine) -> None:
    """The first step is enqueued, the second captured; later generations of the same shape replay it."""
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


def test_keys_and_values_can_be_float16(tiny_case: Case, machine: Machine, tmp_path: Path) -> None:
    """As in fp16 exports: close to the CPU loop's float32, and equal where there is no near tie."""
    weights = tiny_trt.random_llm_weights(np.random.default_rng(SEED))
    half = Case(tiny_case.ort, tiny_trt.write(tmp_path / "half", weights, "trt", half=True), "half")
    prefix, prompts = tiny_case.inputs(2)
    options = {"max_new_tokens": 8, "num_beams": 2, "eos_token_ids": []}
    got, want = (each.generate(prefix, prompts, options) for each in (machine.load(half), tiny_case.native()))
    np.testing.assert_allclose(scores(got), scores(want), atol=0.05)


# A real GPU


@pytest.mark.gpu
def test_gpu_gives_the_same_tokens_as_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`pytest -m gpu`: TensorRT or its replacement with the real driver and NVRTC."""
    if isinstance(found := gpu.find(), str):
        pytest.skip(f"needs a GPU: {found}")
    pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: pip install 'blip2rt[trt-cu12]', or -cu13")
    try:
        builder.load_runner(found.sm)  # or its replacement
    except BackendError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("BLIP2RT_CACHE", str(tmp_path))
    assert loops.on_trt(tmp_path)["faults"] == []
