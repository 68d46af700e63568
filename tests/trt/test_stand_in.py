"""The simulated driver (tests/trt/gpu_stand_in.py) detects injected faults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from blip2rt.backends.trt import decoder, lane, sizes
from blip2rt.errors import BackendError
from tests.trt import gpu_stand_in
from tests.trt.gpu_stand_in import Driver, Misuse
from tests.trt.machine import Case, Machine, tokens


def moved(tensors: Any, name: str, offset: int) -> Any:
    return (
        {**tensors, name: replace(tensors[name], address=tensors[name].address + offset)}
        if name in tensors
        else tensors
    )


def wrong_address(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = lane.Runner.set

    def shifted(self: Any, tensors: Any) -> bool:
        return real(self, moved(tensors, "past_value_1", 1 << 24))

    monkeypatch.setattr(lane.Runner, "set", shifted)


def skipped_shape(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = gpu_stand_in.Context.set_input_shape

    def skip(self: Any, name: str, shape: Any) -> bool:
        return name == "past_mask" or real(self, name, shape)

    monkeypatch.setattr(gpu_stand_in.Context, "set_input_shape", skip)


def stale_shape(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    """One input keeps the row count of the first generation."""
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
    monkeypatch.setattr(sizes, "aligned", lambda size: size + 4)


def short_buffer(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    real = lane.Lane.buffer
    monkeypatch.setattr(
        lane.Lane, "buffer", lambda self, name, size: real(self, name, size // 2 if name == "cache" else size)
    )


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


FAULTS = [wrong_address, wrong_dtype, skipped_shape, stale_shape, reused_buffer, freed_buffer, unaligned]
FAULTS += [short_buffer, uncleared_cache, other_stream, captured_cold]


@pytest.mark.parametrize("fault", FAULTS)
def test_injected_fault_is_detected(
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


def test_cache_written_elsewhere_is_detected(
    native_case: Case, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT writes it in place, so input and output share one address."""
    real, (prefix, prompts) = lane.Runner.set, native_case.inputs(1)

    def shifted(self: Any, tensors: Any) -> bool:
        return real(self, moved(tensors, "present_key_1", 256))

    device = machine.load(native_case)
    monkeypatch.setattr(lane.Runner, "set", shifted)
    with pytest.raises(Misuse, match="present_key_1 is not past_key_1"):
        device.generate(prefix, prompts, {"max_new_tokens": 3})


@pytest.mark.parametrize("kernel", ["scatter", "choose", "reorder"])
def test_missing_kernel_is_detected(
    tiny_case: Case, machine: Machine, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    prefix, prompts = tiny_case.inputs(2)
    # Otherwise a model with random weights may repeat one token for any input.
    options = {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 4, "eos_token_ids": []}
    options["no_repeat_ngram_size"] = 1
    real = decoder.Kernels.launch
    monkeypatch.setattr(
        decoder.Kernels, "launch", lambda self, name, *rest: None if name == kernel else real(self, name, *rest)
    )
    try:
        got = machine.load(tiny_case).generate(prefix, prompts, options)
    except Misuse:
        return
    assert tokens(got) != tokens(tiny_case.native().generate(prefix, prompts, options))


# The real thing
