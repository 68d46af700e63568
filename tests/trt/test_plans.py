"""Plans on the simulated machine (tests/trt/gpu_stand_in.py): checks after a build, metadata, tensorrt-rtx, memory."""

import gc
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_day.loops import SIZES, tokens
from blip2rt.backends.trt import PlanSizes, cache, cli, plan_check, plans
from blip2rt.bundle import read
from blip2rt.errors import BackendError
from tests.trt.gpu_stand_in import Misuse
from tests.trt.machine import Case, Machine, case_of

SIZE_FLAGS = ["--max-batch", "2", "--max-beams", "4", "--capacity", "48"]  # as SIZES
OPTIONS = {"max_new_tokens": 5, "num_beams": 2, "eos_token_ids": []}


def metadata_of(component: str) -> dict[str, Any]:
    [found] = cache.default_folder().glob(f"{component}-*.json")
    return json.loads(found.read_text())


# The check after a build


def test_a_plan_is_tested_after_its_build(tiny_case: Case, machine: Machine) -> None:
    """In each profile, against ONNX Runtime; the findings are in the plan's metadata."""
    machine.load(tiny_case)
    for component in read(tiny_case.trt).manifest.components:
        tested = metadata_of(component)["tested"]
        assert len(tested["profiles"]) == (2 if component in ("llm", "embed") else 1) and "onnxruntime" in tested["by"]
        assert all(profile["cosine"] > 0.9999 for profile in tested["profiles"]) and tested["scratch"] >= 1000
    assert machine.driver.used == 0 and not machine.driver.streams
    runs = len(machine.trt.contexts)
    machine.load(tiny_case)
    assert len(machine.trt.contexts) == runs  # checked only once


def test_wrong_plan_is_rejected(tiny_case, machine, capsys, monkeypatch):
    """As TensorRT 10.3 may build with two profiles. It stays rejected in later processes until it is accepted."""
    machine.trt.wrong_profile = 1
    for _ in range(2):
        with pytest.raises(BackendError, match=r"embed: the plan's results differ .* of profile 1 .*--no-test"):
            machine.load(tiny_case)
    assert "profile 1" in metadata_of("embed")["tested"]["wrong"]
    assert cli.main([str(tiny_case.trt), *SIZE_FLAGS]) == 2 and "profile 1" in capsys.readouterr().err
    assert cli.main([str(tiny_case.trt), *SIZE_FLAGS, "--no-test"]) == 0
    builds = machine.trt.builds
    assert machine.load(tiny_case) and machine.trt.builds == builds


def test_plan_check_is_skipped_without_host_memory(tiny_case, machine, monkeypatch, caplog):
    monkeypatch.setattr(plan_check, "_free_memory", lambda: 1000)
    machine.load(tiny_case)
    assert "MB are free" in metadata_of("llm")["tested"]["left out"] and "llm: not tested" in caplog.text


def test_plan_check_is_postponed_without_gpu_memory(tiny_case, machine, caplog):
    """Other programs may free it later."""
    room, machine.driver.memory = machine.driver.memory, 1000
    machine.load(tiny_case)
    assert "llm: not tested: the GPU is out of memory" in caplog.text and "tested" not in metadata_of("llm")
    machine.driver.memory = room
    machine.load(tiny_case)
    assert metadata_of("llm")["tested"]["profiles"]


@pytest.mark.parametrize("fault", [BackendError("the plan cannot be run"), KeyboardInterrupt()])
def test_interrupted_plan_check_is_repeated_by_the_next_load(tiny_case, machine, monkeypatch, fault):
    """After a failure or Ctrl-C the plan exists without a verdict."""
    machine.trt.wrong_profile = 1

    def fails(graph: Path) -> Any:
        if graph.stem == "embed":
            raise fault
        return real(graph)

    real = plan_check._session
    with monkeypatch.context() as patch:
        patch.setattr(plan_check, "_session", fails)
        with pytest.raises(type(fault)):
            machine.load(tiny_case)
    assert "tested" not in metadata_of("embed")
    builds = machine.trt.builds
    with pytest.raises(BackendError, match="embed: the plan's results differ from the graph's: .* of profile 1"):
        machine.load(tiny_case)
    assert machine.trt.builds == builds


def test_untested_plan_is_tested_by_the_first_load(tiny_case, machine, monkeypatch, capsys):
    """For example one built for another GPU. --no-test skips the test for good and says so."""
    command = [str(tiny_case.trt), *SIZE_FLAGS]
    machine.trt.wrong_profile = 1
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_plan_check", lambda trt, bundle: None)
        assert cli.main(command) == 0
    assert "embed: not tested yet" in capsys.readouterr().err and "tested" not in metadata_of("embed")
    with pytest.raises(BackendError, match="embed: the plan's results differ from the graph's"):
        machine.load(tiny_case)
    for plan in cache.default_folder().glob("*.plan"):
        plan.unlink()
    assert cli.main([*command, "--no-test"]) == 0
    assert "without a test" in metadata_of("embed")["tested"]["left out"]
    assert "embed: not tested: " in capsys.readouterr().err
    assert machine.load(tiny_case)


def test_read_only_cache_folder_does_not_fail(tiny_case, machine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_plan_check", lambda trt, bundle: None)
        assert cli.main([str(tiny_case.trt), *SIZE_FLAGS]) == 0

    def refuse(*_: Any) -> None:
        raise BackendError("cannot write")

    monkeypatch.setattr(cache.PlanCache, "_write", refuse)
    assert machine.load(tiny_case) and "tested" not in metadata_of("llm")


# Metadata


def test_a_plan_is_hashed_once(tiny_case: Case, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when its file changes."""
    machine.load(tiny_case)
    hashed: list[Path] = []
    real = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda path: hashed.append(path) or real(path))
    machine.load(tiny_case)
    assert not hashed
    [plan] = cache.default_folder().glob("llm-*.plan")
    plan.write_bytes(plan.read_bytes())
    for _ in range(2):
        machine.load(tiny_case)
    assert hashed == [plan] and machine.trt.builds == 4
    plan.write_bytes(plan.read_bytes().replace(b"Orin", b"Thor"))
    machine.load(tiny_case)
    assert machine.trt.builds == 5


def test_host_arrays_stay_alive_until_copied(tiny_case: Case, machine: Machine) -> None:
    """An integrated GPU may read host memory late; the simulation notices if a lane does not keep it."""
    device = machine.load(tiny_case)
    with device._lanes.lane() as lane:
        for size in (10, 1000, 1_000_000):
            lane.upload("some", np.arange(size))
            others = [np.full(size, -1) for _ in range(8)]  # reuses freed memory
            tensor = lane.tensor("some", (size,), np.int64)
            assert (lane.download(tensor) == np.arange(size)).all() and others
    with pytest.raises(Misuse, match="freed or changed"), device._lanes.lane() as lane:
        lane.upload("some", np.arange(1000))
        lane._pending_arrays.clear()
        others = [np.full(1000, -1) for _ in range(8)]
        assert others and lane.wait() is None


# tensorrt-rtx


@pytest.mark.parametrize(
    ("machine_kind", "fault"),
    [
        ("rtx_machine", ""),
        ("rtx_machine", "uncapturable"),
        ("machine", "refuses_capture"),
        ("machine", "refuses_while_collecting"),
    ],
)
def test_steps_are_captured_or_enqueued(tiny_case, request, caplog, machine_kind, fault):
    """tensorrt-rtx allocates nothing while it runs, has its kernels before a capture, and is asked before one."""
    machine, (prefix, prompts) = request.getfixturevalue(machine_kind), tiny_case.inputs(2)
    setattr(machine.trt, fault or "none", True)
    got = machine.load(tiny_case).generate(prefix, prompts, {**OPTIONS, "max_new_tokens": 6})
    assert tokens(got) == tokens(tiny_case.native().generate(prefix, prompts, {**OPTIONS, "max_new_tokens": 6}))
    captured = fault in ("", "refuses_while_collecting")
    assert ("graph" in machine.driver.calls) is captured and gc.isenabled()
    assert caplog.text.count("the step cannot be captured") == (not captured)
    assert caplog.text.count("compiling the search for sm_87") == 1
    assert ("embed: TensorRT reports" in caplog.text) is (fault == "uncapturable")


def test_kernels_are_compiled_once(tiny_case: Case, rtx_machine: Machine) -> None:
    """They are stored beside the plan; those of another GPU are not loaded."""
    prefix, prompts = tiny_case.inputs(2)
    trt = rtx_machine.trt
    counts = []
    for gpu in (None, None, "other", None):
        for file in cache.default_folder().glob("*.kernels"):
            if gpu is not None:
                file.write_bytes(file.read_bytes().replace(b"Orin", gpu.encode()))
        device = rtx_machine.load(tiny_case)
        before = trt.compiled
        device.generate(prefix, prompts, OPTIONS)
        counts.append(trt.compiled - before)
        asked = trt.serialized
        device.generate(prefix, prompts, OPTIONS)
        assert trt.serialized == asked  # no new shape, so nothing to save
    assert counts[0] > 0 and counts == [counts[0], 0, counts[0], 0]


# Memory


@pytest.mark.parametrize("kind", ["tiny", "native", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sizes", [SIZES, PlanSizes(max_batch=1, max_beams=1, capacity=64)])
def test_memory_estimate_matches_a_generations_allocations(kind, machine, sizes, tmp_path_factory):
    """From pixels to tokens, with and without an in-place cache."""
    case = case_of(kind, tmp_path_factory)
    bundle = read(case.trt)
    told = plans.estimate(bundle, plans.resolve(bundle, sizes))
    image, device = bundle.manifest.image, machine.load(case, sizes)
    device.prefix_embeds(device.vision(np.zeros((sizes.max_batch, 3, image.height, image.width), np.float32)))
    prefix, _ = case.inputs(sizes.max_batch)
    prompts = [[5] * (sizes.capacity - prefix.shape[1] - 2)] * sizes.max_batch
    sampled = {"do_sample": True, "num_beams": sizes.max_beams} if sizes.max_beams > 1 else {"do_sample": True}
    device.generate(prefix, prompts, {"max_new_tokens": 2, "seed": 1, **sampled})
    small = 40 * 256 + 4096 * sizes.max_batch  # small buffers, each rounded up to 256 bytes; search blocks
    scratch = max(context.scratch[1] for context in machine.trt.contexts)
    taken = machine.driver.used - scratch
    assert told.buffers >= sizes.max_batch * 3 * image.height * image.width * 4
    assert taken - small <= told.cache + told.logits + told.buffers <= 1.2 * taken
    assert told.running == sum((told.weights, told.cache, told.logits, told.buffers, told.scratch, told.context))


def test_scratch_memory_grows_with_the_prompt(tiny_case: Case) -> None:
    """Because of attention scores, per image and not per beam."""
    bundle = read(tiny_case.trt)
    sizes = [PlanSizes(1, 1, 64), PlanSizes(1, 3, 64), PlanSizes(3, 1, 64)]
    one, beams, images = (plans.estimate(bundle, plans.resolve(bundle, each)).scratch for each in sizes)
    llm = bundle.manifest.llm
    assert one == beams and images == 3 * one
    assert one >= math.ceil(llm.hidden_size / llm.head_dim) * 64 * 128 * 4
