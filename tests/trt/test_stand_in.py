"""The simulated driver (tests/trt/gpu_stand_in.py) detects injected faults."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_day.loops import tokens
from blip2rt.backends.trt import decoder, lane, sizes
from blip2rt.errors import BackendError
from tests.trt.gpu_stand_in import Context, Driver, Misuse


def moved(name: str, offset: int) -> Any:
    """Bind a tensor at another address."""

    def shifted(real: Any) -> Any:
        def bind(self: Any, tensors: Any) -> Any:
            other = {name: replace(tensors[name], address=tensors[name].address + offset)} if name in tensors else {}
            return real(self, {**tensors, **other})

        return bind

    return shifted


def stale_shape(real: Any) -> Any:
    """One input keeps the row count of the first generation."""
    seen: set[Any] = set()

    def keep(self: Any, name: str, shape: Any) -> bool:
        if name == "position_ids" and id(self) in seen:
            return True
        seen.update([id(self)] * (name == "position_ids"))
        return bool(real(self, name, shape))

    return keep


def sized(real: Any) -> Any:
    return lambda self, name, size: real(self, name, size // 2 if name == "cache" else size)


# Name of the fault -> a function that is replaced: where it is, its name, and real function -> replacement.
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "wrong address": (lane.Runner, "set", moved("past_value_1", 1 << 24)),
    "wrong dtype": (decoder.Sizes, "of", lambda real: lambda *rest: replace(real(*rest), dtype=np.dtype(np.float16))),
    "skipped shape": (Context, "set_input_shape", lambda real: lambda *rest: rest[1] == "past_mask" or real(*rest)),
    "stale shape": (Context, "set_input_shape", stale_shape),
    "reused buffer": (
        lane.Lane,
        "buffer",
        lambda real: lambda self, name, size: real(self, {"step.embeds": "logits"}.get(name, name), size),
    ),
    "freed buffer": (
        decoder.Decoder,
        "begin",
        lambda real: lambda *rest: (real(*rest), rest[0].lane.cuda.free(rest[0]._cache)),
    ),
    "unaligned": (sizes, "aligned", lambda real: lambda size: size + 4),
    "short buffer": (lane.Lane, "buffer", sized),
    "uncleared cache": (Driver, "cuMemsetD32Async", lambda real: lambda *rest: (0,) if rest[3] > 2000 else real(*rest)),
    "other stream": (Context, "execute_async_v3", lambda real: lambda self, stream: real(self, stream + 77)),
    "captured cold": (decoder.Decoder, "step", lambda real: lambda self: self._capture()),
}


@pytest.mark.parametrize(("owner", "name", "replaced"), FAULTS.values(), ids=FAULTS)
def test_injected_fault_is_detected(tiny_case, machine, monkeypatch, owner, name, replaced):
    prefix, prompts = tiny_case.inputs(2)

    def use() -> None:
        device = machine.load(tiny_case)
        device.generate(prefix[:1], prompts[:1], {"max_new_tokens": 5, "num_beams": 1, "eos_token_ids": []})
        device.generate(prefix, prompts, {"max_new_tokens": 5, "num_beams": 2, "eos_token_ids": []})

    use()
    monkeypatch.setattr(owner, name, replaced(getattr(owner, name)))
    with pytest.raises((Misuse, BackendError)):
        use()


def test_cache_written_elsewhere_is_detected(native_case, machine, monkeypatch):
    """TensorRT writes it in place, so input and output share one address."""
    (prefix, prompts), device = native_case.inputs(1), machine.load(native_case)
    monkeypatch.setattr(lane.Runner, "set", moved("present_key_1", 256)(lane.Runner.set))
    with pytest.raises(Misuse, match="present_key_1 is not past_key_1"):
        device.generate(prefix, prompts, {"max_new_tokens": 3})


@pytest.mark.parametrize("kernel", ["scatter", "choose", "reorder"])
def test_missing_kernel_is_detected(tiny_case, machine, monkeypatch, kernel):
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
