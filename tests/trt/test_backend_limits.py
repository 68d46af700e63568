"""Errors of the backend trt on a machine that lacks something; inputs and outputs of its graphs."""

from typing import Any

import pytest

from blip2rt import backends
from blip2rt.backends.trt import PlanSizes, cuda, gpu
from blip2rt.bundle import read
from blip2rt.errors import BackendError, OptionError
from blip2rt.native import native
from tests.trt.gpu_stand_in import Driver, Nvrtc
from tests.trt.machine import SIZES, Case, Machine


def test_call_too_large_for_the_plans_gives_one_line(tiny_case: Case, machine: Machine) -> None:
    prefix, prompts = tiny_case.inputs(2)
    device = machine.load(tiny_case, PlanSizes(max_batch=1, max_beams=2, capacity=20))
    with pytest.raises(OptionError, match="3 beams or draws.*max_beams=3; .* positions .*capacity="):
        device.generate(prefix, prompts, {"num_beams": 3, "max_new_tokens": 30})
    with pytest.raises(BackendError, match="num_beams is 0"):
        device.generate(prefix, prompts, {"num_beams": 0})
    assert device.generate(prefix[:0], [], {}) == []
    with pytest.raises(OptionError, match="device is 'cpu'"):
        backends.create("trt", read(tiny_case.trt), device="cpu")
    with pytest.raises(OptionError, match="plan_sizes are the backend trt's"):
        backends.create("ort", read(tiny_case.ort), plan_sizes=SIZES)


def test_out_of_memory_gives_one_line(tiny_case: Case, machine: Machine) -> None:
    prefix, prompts = tiny_case.inputs(1)
    machine.driver.memory = 40_000
    device = machine.load(tiny_case)
    with pytest.raises(BackendError, match=r"the GPU is out of memory for .* MB .*max_beams, capacity"):
        device.generate(prefix, prompts, {"max_new_tokens": 3})
    assert machine.driver.used == 0
    machine.driver.memory = 1 << 30
    assert device.generate(prefix, prompts, {"max_new_tokens": 3})


def test_failed_build_gives_one_line(tiny_case: Case, machine: Machine) -> None:
    machine.trt.refuses_builds = "no implementation for node the_node"
    with pytest.raises(BackendError, match="vision: the build failed: no implementation for node the_node"):
        machine.load(tiny_case)
    machine.trt.begins = False
    with pytest.raises(BackendError, match="TensorRT cannot start: CUDA initialization failure with error: 35"):
        machine.load(tiny_case)


def test_plan_of_another_gpu_is_rejected(tiny_case: Case, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for another card's name is never read; a plan that TensorRT rejects is named, with the fix."""
    prefix, prompts = tiny_case.inputs(1)
    machine.load(tiny_case)
    machine.trt.gpu = "another"
    rejected = r"embed: .*rejects the plan .*embed-\w+\.plan \(the engine was built for Orin\).*delete the file"
    with pytest.raises(BackendError, match=rejected):
        machine.load(tiny_case).generate(prefix, prompts, {"max_new_tokens": 3})
    monkeypatch.setattr("blip2rt.backends.trt.gpu.find", lambda: gpu.Gpu("another", (8, 7), 8 << 30, (12, 6), True, 16))
    assert machine.load(tiny_case).generate(prefix, prompts, {"max_new_tokens": 3})
    assert machine.trt.builds == 8


def test_outdated_driver_gives_one_line(tiny_case: Case, machine: Machine) -> None:
    machine.driver = Driver(version=11040)
    with pytest.raises(BackendError, match=r"supports CUDA up to 11.4.*of CUDA 12.6: update the driver"):
        machine.load(tiny_case)


def test_missing_gpu_driver_or_bindings_gives_one_line(tiny_case, machine, monkeypatch):
    monkeypatch.setattr("blip2rt.backends.trt.gpu.find", lambda: "no NVIDIA driver is installed")
    with pytest.raises(BackendError, match="no GPU to build for"):
        machine.load(tiny_case)
    monkeypatch.undo()
    if isinstance(gpu.find(), str):
        bindings = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
        with pytest.raises(BackendError, match="no NVIDIA driver|cuInit failed"):
            cuda.Cuda(bindings, Nvrtc())
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match="needs cuda-bindings.*trt-cu12"):
        cuda.load_bindings()


def test_simulated_driver_calls_exist() -> None:
    """The simulation has no function that the real modules lack."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    for stand_in, real in ((Driver, driver), (Nvrtc, nvrtc)):
        calls = [name for name in vars(stand_in) if name.startswith(("cu", "nvrtc"))]
        assert calls and all(hasattr(real, name) for name in calls)
    assert driver.CUstreamCaptureMode(1).name.endswith("THREAD_LOCAL")
    assert driver.CUstream_flags.CU_STREAM_NON_BLOCKING == 1 and driver.CUevent_flags.CU_EVENT_DISABLE_TIMING == 2
    assert driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY == 2
    attribute = driver.CUdevice_attribute
    assert attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75
    assert attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76


def test_simulated_tensorrt_calls_exist() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'blip2rt[trt-check]'")
    from tests.trt.gpu_stand_in import Context, Engine

    own = {"dims", "dtype", "session", "axes", "run"}  # helpers of the simulation
    for stand_in, real in ((Engine, trt.ICudaEngine), (Context, trt.IExecutionContext)):
        assert not [name for name in dir(stand_in) if name[0] != "_" and name not in own and not hasattr(real, name)]
    for name in ("num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"):
        assert hasattr(trt.ICudaEngine, name)
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED") and hasattr(trt.TensorIOMode, "INPUT")
    assert str(trt.DataType.HALF) == "DataType.HALF" and hasattr(trt.Runtime, "deserialize_cuda_engine")


onnx = pytest.importorskip("onnx")


def tensor(value: Any) -> tuple[str, str, list[int | str]]:
    of, sizes = value.type.tensor_type, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return value.name, str(onnx.helper.tensor_dtype_to_np_dtype(of.elem_type)), sizes


def test_graph_inputs_and_outputs_match_onnx(native_case: Case) -> None:
    for component in read(native_case.trt).manifest.components:
        file = native_case.trt / f"{component}.onnx"
        graph = onnx.load(file, load_external_data=False).graph
        for got, want in zip(native.graph_tensors(file.read_bytes()), (graph.input, graph.output), strict=True):
            assert got == [*map(tensor, want)]


def test_fixing_axes_changes_nothing_else(native_case: Case) -> None:
    text = (native_case.trt / "llm.onnx").read_bytes()
    fixed, model = native.with_axis_sizes(text, {"T": 300, "S": 1}), onnx.load_from_string(text)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in ("T", "S"):
                dim.dim_value = {"T": 300, "S": 1}[dim.dim_param]
    assert onnx.load_from_string(fixed) == model
    assert native.with_axis_sizes(text, {}) == text


def test_in_place_cache_has_a_fixed_length_before_parsing(native_case: Case, machine: Machine) -> None:
    """The plans' length, while axes that vary between profiles stay dynamic."""
    machine.load(native_case)
    [model] = machine.trt.parsed
    ends = {name: shape for name, _, shape in native.graph_tensors(model)[0]}
    assert ends["past_key_0"][0] == "B" and ends["past_key_0"][2] == 48 and ends["inputs_embeds"][:2] == ["B", "S"]
