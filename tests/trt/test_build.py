"""blip2rt-build: --check with tensorrt_rtx, which needs no GPU, plans on the simulated machine, the plan cache."""

import gc
import importlib.util
import os
import signal
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper, numpy_helper

from blip2rt.backends.trt import builder, cli, gpu, plans
from blip2rt.backends.trt.cache import PlanCache
from blip2rt.backends.trt.cli import main
from blip2rt.backends.trt.engine import Plan
from blip2rt.bundle import MANIFEST, Bundle, Component, TensorInfo, read
from blip2rt.bundle.writer import BundleWriter
from blip2rt.errors import BackendError, BundleError, OptionError
from tests.seeds import new_seed
from tests.tiny.bundle import make_manifest, parse_graph
from tests.trt.machine import Case, Machine
from tests.trt.simulated import Driver

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx: pip install 'blip2rt[trt-check]'"
)


def vision_graph() -> onnx.ModelProto:
    """A float16 convolution."""
    rng = np.random.default_rng(new_seed())
    tensors = {"weight": rng.normal(size=(8, 3, 4, 4)).astype(np.float16), "shape": np.array([0, 8, 6])}
    text = """(float[B,3,8,12] pixels) => (float[B,6,8] vision_features) {
        half = Cast <to = 10> (pixels)
        map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (half, weight)
        [the_activation] positive = Relu(map)
        rows = Reshape(positive, shape)
        turned = Transpose <perm = [0, 2, 1]> (rows)
        vision_features = Cast <to = 1> (turned)
    }"""
    return parse_graph(onnx, text, tensors, 19, 9)


def bundle(path: Path, change=lambda graph: None, target: str = "trt") -> Path:
    """A bundle of an image encoder only, its graph modified by `change`."""
    graph = vision_graph()
    change(graph.graph)
    with BundleWriter(path, overwrite=True) as writer:
        onnx.save(graph, writer.folder / "vision.onnx")
        writer.finish(replace(make_manifest({"vision": graph}, False, False), target=target))
    return path


@needs_rtx
def test_check_builds_without_storing_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle(tmp_path / "b")), "--check", "--cache", str(tmp_path / "cache")]) == 0
    told, said = capsys.readouterr()
    assert told == "all 1 graphs build for SM86, SM89, SM120; leave out --check to build and store the plans\n"
    assert "SM86, SM89, SM120" in said and "MB of weights" in said
    assert not (tmp_path / "cache").exists()


def unknown_op(graph: onnx.GraphProto) -> None:
    graph.node[2].op_type = "Nonsense"


def mixed_types(graph: onnx.GraphProto) -> None:
    """float16 + float32, which a strongly typed network rejects."""
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 8, 1, 1), np.float32), "wide"))
    graph.node[2].op_type = "Add"
    graph.node[2].input.append("wide")


def wrong_volume(graph: onnx.GraphProto) -> None:
    """Accepted by the parser, rejected by the builder."""
    graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([0, 7, 6]), "shape"))
    graph.node[3].name = "the_activation"


@needs_rtx
@pytest.mark.parametrize(
    ("change", "words"), [(unknown_op, "Nonsense"), (mixed_types, "Half and Float"), (wrong_volume, "changes volume")]
)
def test_broken_graph_gives_one_line_with_its_node(tmp_path, capsys, caplog, change, words):
    assert main([str(bundle(tmp_path / "b", change)), "--check"]) == 2
    told, said = capsys.readouterr()
    assert told == "1 of 1 graphs do not build for SM86, SM89, SM120\n"
    lines = [line for line in said.splitlines() if "error" in line]
    assert len(lines) == 1 and lines[0].startswith("blip2rt-build: error: vision: ")
    assert "the_activation" in lines[0] and words in lines[0] and "Cuda" not in lines[0]
    assert not caplog.records  # without logging configured, Python would print warnings


@needs_rtx
def test_failed_build_leaves_no_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the garbage collector may destroy it inside our logger, which TensorRT calls while it holds a lock."""
    made, kept = builder.create, []

    def noted(log: Any, kind: Any) -> Any:
        kept.append(weakref.ref(one := made(log, kind)))
        return one

    monkeypatch.setattr(builder, "create", noted)
    graph = bundle(tmp_path / "b", unknown_op) / "vision.onnx"
    with pytest.raises(BackendError, match="Nonsense") as fault:
        builder.build(builder.load_tensorrt("tensorrt_rtx"), graph, [{"B": (1, 1, 1)}], builder.Settings(("SM86",)))
    assert len(kept) == 1 and kept[0]() is None, fault


def test_a_plan_is_built_and_compared_once(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """And rebuilt for other sizes or weights, or after tampering."""
    where, cache = bundle(tmp_path / "b"), tmp_path / "cache"

    def build(*more: str) -> Path:
        assert main([str(where), "--cache", str(cache), *more]) == 0
        told, said = capsys.readouterr()
        assert "--no-test" in more or "vision: profile 0 has a cosine of 1.0000 with ONNX Runtime" in said
        return Path(told.strip())

    first = build()
    data, time = first.read_bytes(), first.stat().st_mtime_ns
    assert build("--no-test") == first and first.stat().st_mtime_ns == time
    assert build("--max-batch", "2") != first
    first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert build() == first and first.stat().st_mtime_ns != time
    bundle(where)  # new random weights
    assert build() != first
    others, graph = {build(), first}, where / "vision.onnx"  # edited, while the manifest has the old hash
    graph.write_bytes(graph.read_bytes().replace(b"the_activation", b"an_activation_"))
    assert build() not in others
    gc.collect()
    assert not list(cache.glob(".*")) and machine.driver.used == 0


def test_wrong_plan_is_reported(tiny: Case, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """As TensorRT 10.3 may build with two profiles."""
    machine.trt.wrong_profile = 1
    sizes = ["--max-batch", "2", "--max-beams", "4", "--capacity", "48"]
    assert main([str(tiny.trt), *sizes]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "llm: the plan is wrong" in line and "of profile 1 has a cosine of" in line and ".plan" in line


@needs_rtx
def test_ctrl_c_stops_a_build_at_its_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the main thread waits for TensorRT, where Python handles no signals."""
    stops, monitor = [], builder._monitor

    def interrupting(trt: Any, stop: threading.Event) -> Any:
        made, step = monitor(trt, stop), type(monitor(trt, stop)).step_complete
        stops.append(stop)

        def complete(self: Any, phase: str, number: int) -> bool:
            if not stop.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                assert stop.wait(60)  # set by the main thread
            return step(self, phase, number) and stop.is_set()

        monkeypatch.setattr(type(made), "step_complete", complete)
        return made

    monkeypatch.setattr(builder, "_monitor", interrupting)
    graph, settings = read(bundle(tmp_path / "b")).graph("vision"), builder.Settings(cli.CHECKED)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            builder.build(builder.load_tensorrt("tensorrt_rtx"), graph, [{"B": (1, 1, 1)}], settings)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stops[0].is_set()


@needs_rtx
def test_plan_file_is_memory_mapped(tmp_path: Path) -> None:
    """The real runtime accepts a mapped file; without a GPU it reports that instead."""
    trt = builder.load_tensorrt("tensorrt_rtx")
    graph, settings = read(bundle(tmp_path / "b")).graph("vision"), builder.Settings(("SM86",))
    plan = tmp_path / "vision.plan"
    plan.write_bytes(builder.build(trt, graph, [{"B": (1, 1, 1)}], settings))
    log = builder.logger(trt)
    if isinstance(gpu.find(), str):
        with pytest.raises(BackendError, match=r"rejects the plan .*\(.*deserializeCudaEngine.*CUDA"):
            Plan(Driver(), trt, builder.create(log, trt.Runtime), plan, "vision", log)


def test_plan_of_a_killed_build_or_altered_is_not_loaded(tmp_path: Path) -> None:
    cache, origin = PlanCache(tmp_path), {"gpu": "SM86"}
    plan = cache.store("llm", origin, b"plan")
    assert cache.find("llm", origin) == plan and cache.find("llm", {"gpu": "SM89"}) is None
    plan.with_suffix(".json").unlink()
    assert cache.find("llm", origin) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="BLIP2RT_CACHE"):
        PlanCache(tmp_path / "file" / "cache").store("llm", origin, b"plan")
    cache.store("llm", origin, b"plan").write_bytes(b"evil")
    assert cache.find("llm", origin) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-batch", "0", "--max-beams", "99"], "--max-beams is 99"),
        (["--workspace", "much"], "--workspace is 'much': give a number of bytes, as in 20M"),
        (["--gpu", "SM86"], "run blip2rt-build there"),
        (["--cache"], "--cache"),
    ],
)
def test_invalid_options_give_one_line(tmp_path, capsys, arguments, words):
    code = main([str(bundle(tmp_path / "b")), *arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert code == 2 and len(lines) == 1 and words in lines[0]


def test_other_targets_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle(tmp_path / "b", target="ort")), "--check"]) == 2
    assert "--target trt" in capsys.readouterr().err
    manifest = bundle(tmp_path / "b") / MANIFEST
    manifest.write_text(manifest.read_text().replace('"target": "trt"', '"target": "abc"'))
    with pytest.raises(BundleError, match="target is 'abc'.*ort, trt"):
        read(tmp_path / "b")


def test_sizes_follow_the_bundle(tmp_path: Path) -> None:
    """The capacity stays within the model's positions; the estimate counts shared weights once per plan."""
    graph = vision_graph()
    for name in ("llm", "embed"):
        onnx.save(graph, tmp_path / f"{name}.onnx", save_as_external_data=True, location="llm.data", size_threshold=64)
    manifest = replace(make_manifest({}, True, True), target="trt")
    ports = {"llm": ("past_key_0", "float16", ("B", 1, "T", 8)), "embed": ("token_ids", "int64", ("B", "S"))}
    components = {name: Component(f"{name}.onnx", "fp16", (TensorInfo(*port),), ()) for name, port in ports.items()}
    tiny = Bundle(tmp_path, replace(manifest, components=components))
    wanted = plans.resolve(tiny, plans.PlanSizes(max_batch=2, max_beams=3))
    assert wanted.capacity == 64  # the model's maximum
    sizes, one = plans.estimate(tiny, wanted), 2 * 8 * 3 * 4 * 4 + (tmp_path / "llm.onnx").stat().st_size
    keys = 2 * 2 * 8 * (6 * 64 + 64)  # of rows in the cache, and of a prompt
    assert (sizes.weights, sizes.cache, sizes.largest) == (one, keys, one)  # the CPU has embed
    step, prompt = plans.profiles(tiny, "llm", wanted)
    assert step["S"] == (1, 1, 1) and prompt["S"][2] == 64 and step["T"] == prompt["T"] == (64, 64, 64)
    assert step["B"] == (1, 6, 6) and prompt["B"] == (1, 1, 1)
    assert plans.resolve(tiny, plans.PlanSizes(capacity=50)).capacity == 64  # whose rows TensorRT can address
    with pytest.raises(OptionError, match="capacity is 65"):
        plans.resolve(tiny, plans.PlanSizes(capacity=65))


def test_tensors_with_shared_data_are_counted_separately(tmp_path: Path) -> None:
    """For example zeros of every layer: the file stores them once, but a loaded graph holds them all."""
    same = [numpy_helper.from_array(np.zeros(1000, np.float32), name) for name in ("a", "b")]
    for tensor in same:
        onnx.external_data_helper.set_external_data(tensor, "weights.data", 0, 4000)
        tensor.ClearField("raw_data")
    file = tmp_path / "llm.onnx"
    file.write_bytes(helper.make_model(helper.make_graph([], "llm", [], [], same)).SerializeToString())
    assert plans.graph_bytes(file) == 8000 + file.stat().st_size
