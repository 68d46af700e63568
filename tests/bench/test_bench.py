"""blip2rt-bench: results, output and errors. No test asserts a time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt._native import processor_kernels
from blip2rt.bench import collect, geometry, llama_peer, report, stages
from blip2rt.bench.cli import main
from blip2rt.bench.machine import LinearRead
from blip2rt.bench.stages import STAGES, step_files
from blip2rt.bundle import MANIFEST, embedded, read
from blip2rt.install_hints import pip_install
from tests.engines.native import Session, runtime
from tests.seeds import seed_of

pytestmark = pytest.mark.long(55, "whole measurements, from the command to tables and plots")

ROOT = Path(__file__).parents[2]
SEED = seed_of(__name__)
TEXT_FLAGS = "--model --precision --cache --image --json".split()


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def measured():
    """One run on the embedded model: (stdout, its JSON)."""
    work = ["--repeat", "2", "--new-tokens", "4", "--threads", "1", "--json", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "blip2rt.bench", *work], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def test_embedded_model_is_measured(measured):
    out, result = measured
    assert set(result["stages"]) == set(STAGES)
    for stage in result["stages"].values():
        assert 0 < stage["p10"] <= stage["median"] <= stage["p90"]
    assert result["stages"]["decode step"]["runs"] == 2 * 3, "two answers of four tokens, each three steps"
    step = result["stages"]["decode step"]
    assert step["limit"] > 0 and 0.1 < step["of_limit"] * step["limit"] / step["median"] < 10
    assert result["bundle"]["bytes"] == read(embedded()).size
    assert result["start"]["peak_rss"] > 0 and result["start"]["warm"]["load"] > 0
    assert result["machine"]["versions"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    for label in report.LABELS.values():
        assert label in out


def test_peers_have_a_table(capsys, measured):
    stages = measured[1]["stages"]
    slower = {name: {**stages[name], "median": 2 * stages[name]["median"]} for name in ("vision", "caption")}
    peers = {"hf-fp32": {"stages": slower, "peak_rss": 10**9}, "hf-bf16": {"error": "torch is not installed"}}
    report.show({**measured[1], "peers": peers}, sys.stdout)
    page = capsys.readouterr().out
    assert "(2.00 x)" in page and "torch is not installed" in page


def test_linear_read_covers_the_files_of_a_step():
    bundle = read(embedded())
    size = sum(bundle.manifest.files[name].size for name in ("llm.onnx", "llm.data"))
    for threads in (1, 3):
        limit = LinearRead(step_files(bundle), threads)
        assert limit.bytes == size and limit.seconds() > 0


def test_growth_has_a_table_for_each_curve(capsys, measured):
    curves = {"decode step, by rows": {"1": 0.01, "2": 0.015}, "prefill, by positions": {"33": 0.1, "64": 0.2}}
    report.show({**measured[1], "growth": {"1": curves, "2": curves}}, sys.stdout)
    page = capsys.readouterr().out
    assert page.count("15.0 (1.50 x)") == page.count("200 (2.00 x)") == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--model", "nowhere"], "nowhere"),
        (["--model", "x", "--geometry", "nano"], "--geometry"),
        (["--batch", "0"], "'0'"),
        (["--repeat", "many"], "'many'"),
        (["--new-tokens", "999999"], "999999"),
        (["--peer", "hf-int3", "--geometry", "tiny"], "hf-bf16"),
        (["--peer", "hf-fp32"], "--geometry"),
        (["--peer", "llama.cpp", "--geometry", "blip2-flan-t5-xl"], "blip2-flan-t5-xl"),
        (["--precision", "llm=int4"], "--geometry"),
        *(([flag, ""], f"{flag} is '': give a value") for flag in TEXT_FLAGS),
        (["--image", "no.jpg"], "no.jpg"),
        (["--image", __file__], "not an image"),
    ],
)
def test_usage_errors_are_one_line(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(ROOT)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("blip2rt-bench: error: ") and words in err


def test_missing_exporter_names_its_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(geometry.importlib.util, "find_spec", lambda name: None)
    code, _, err = run(capsys, "--geometry", "blip2-opt-2.7b", "--cache", tmp_path)
    assert code == 2 and err.count("\n") == 1 and pip_install("export") in err


@pytest.fixture
def planned(monkeypatch):
    """Nothing is measured."""
    monkeypatch.setattr(collect, "collect", lambda plan: {})
    monkeypatch.setattr(report, "show", lambda result, out: print("tables", file=out))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_unwritable_output_is_one_line(capsys, planned):
    want = "blip2rt-bench: error: --json /dev/full: No space left on device\n"
    assert run(capsys, "--json", "/dev/full") == (2, "tables\n", want)
    assert run(capsys, "--json", "-") == (0, "tables\n{}\n", "")


def _children(parent: int) -> list[bytes]:
    """The command lines of a process' children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == parent:
                found.append((stat.parent / "cmdline").read_bytes())
    return found


def test_sigterm_ends_the_worker_and_removes_files(tmp_path):
    """The worker is a child, which shares the standard input."""
    command = [sys.executable, "-m", "blip2rt.bench", *"--threads 1 --new-tokens 2 --repeat 10000".split()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, **pipes, cwd=ROOT, env=environment) as process:
        while process.stderr.readline() != "measuring the stages\n":
            assert process.poll() is None
        while Path("/proc").is_dir() and not any(b"worker\0stages" in each for each in _children(process.pid)):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(900) == 128 + signal.SIGTERM and not [*tmp_path.glob("blip2rt-*"), *tmp_path.glob("tmp*")]
        with pytest.raises(BrokenPipeError):  # once the worker has ended
            for _ in range(6000):
                time.sleep(os.write(process.stdin.fileno(), b"unread") and 0.01)


def test_revision_invalidates_cached_bundles(tmp_path, monkeypatch):
    made = []

    def make(geometry, path, precision, target):
        path.mkdir()
        (path / MANIFEST).touch()
        made.append(path)

    monkeypatch.setattr(geometry, "_exporter", lambda geometry: SimpleNamespace(make=make))
    old = tmp_path / f"tiny-{blip2rt.__version__}-llm-int4"
    make("tiny", old, "", "ort")
    first = geometry.bundle("tiny", "llm=int4", tmp_path)
    assert geometry.bundle("tiny", "llm = int4", tmp_path) == first
    monkeypatch.setattr(geometry, "REVISION", geometry.REVISION + 1)
    assert made == [old, first] and geometry.bundle("tiny", "llm=int4", tmp_path) == made[2] != first


@pytest.fixture(scope="module")
def tiny_geometry(tmp_path_factory):
    """The bundle as the command creates it, and its cache."""
    pytest.importorskip("onnxscript")
    cache = tmp_path_factory.mktemp("cache")
    return geometry.bundle("tiny", "vision=int8-dynamic,qformer=int8-dynamic,llm=int4", cache), cache


def test_synthetic_bundle_is_complete_and_captions(tiny_geometry, photo):
    from blip2rt.bundle import verify

    path, cache = tiny_geometry
    manifest = verify(path).manifest
    precisions = {name: component.precision for name, component in manifest.components.items()}
    int8 = dict.fromkeys(("vision", "qformer"), "int8-dynamic")
    assert precisions == {**int8, "llm": "int4", "embed": "int4"}
    scored = blip2rt.load(path).caption(photo(), num_beams=1, min_new_tokens=5, max_new_tokens=5, scores=True)
    assert np.isfinite(scored.score)
    assert geometry.bundle("tiny", "vision=int8-dynamic,qformer=int8-dynamic,llm=int4", cache) == path, "it is cached"


def test_growth_is_measured_in_every_size(tiny_geometry, photo, tmp_path, monkeypatch):
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    monkeypatch.setattr(stages, "POSITIONS", (33, 40, 100_000))
    curves = stages.growth(stages.Workload(str(tiny_geometry[0]), str(tmp_path / "photo.png"), repeat=1))
    sizes = [list(points) for points in curves.values()]
    assert sizes == [list(stages.ROWS), [33, 40], [33, 40], list(stages.IMAGES)], "sizes beyond the model are left out"
    assert all(seconds > 0 for points in curves.values() for seconds in points.values())


def test_absent_peer_names_its_packages(monkeypatch):
    monkeypatch.setattr(collect.importlib.util, "find_spec", lambda name: None)
    assert "pip install llama-cpp-python gguf" in collect.absent("llama.cpp")
    assert "pip install torch transformers" in collect.absent("hf-fp32")


def test_llama_reads_a_model_of_the_same_sizes(tiny_geometry):
    gguf = pytest.importorskip("gguf")
    _, cache = tiny_geometry
    path = llama_peer.model(geometry.config("tiny", cache), cache / "tiny-q4_0")
    sizes = {each.name: tuple(map(int, each.shape)) for each in gguf.GGUFReader(path).tensors}
    assert sizes["token_embd.weight"] == (128, 528) and sizes["blk.1.ffn_up.weight"] == (128, 512)
    assert llama_peer.model(cache, cache / "tiny-q4_0") == path, "it is cached"


def test_exported_graphs_use_every_kernel(tiny_geometry):
    path, _ = tiny_geometry
    found = {
        kernel
        for name in ("vision", "llm")
        for kernel in Session(runtime(), str(path / f"{name}.onnx"), 1).custom_kernels
    }
    assert found == set(processor_kernels())
    assert {kernel for kernel in found if kernel.startswith("int8 ")} <= set(
        blip2rt.load(path).pipeline.backend.session("qformer").custom_kernels
    )


def test_wrong_precision_is_one_line(capsys, tmp_path):
    pytest.importorskip("onnxscript")
    code = main(["--geometry", "tiny", "--cache", str(tmp_path), "--precision", "llm=int5"])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert "llm=int5" in err.splitlines()[-1] and "Traceback" not in err
