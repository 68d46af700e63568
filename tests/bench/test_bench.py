"""blip2rt-bench: what it counts, what it prints, how it complains. Nothing here asserts a time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt._native import processor_kernels
from blip2rt.bench import collect, costs, geometry, machine, peers, report, wire
from blip2rt.bench.cli import main, picture
from blip2rt.bench.stages import STAGES, Work
from blip2rt.bundle import MANIFEST, embedded, read
from tests.engines.native import Session, runtime

ROOT = Path(blip2rt.__file__).parents[1]
SEED = random.randrange(2**31)


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One run on the embedded model: (stdout, its JSON, Markdown, plot)."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "blip2rt.bench", "--repeat", "2", "--new-tokens", "4", "--threads", "1",
               "--markdown", folder / "page.md", "--plot", folder / "plot.png", "--json", "-"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1]), (folder / "page.md").read_text(), folder / "plot.png"


def test_the_embedded_model_is_measured(measured):
    out, result, page, plot = measured
    assert set(result["stages"]) == set(STAGES)
    for stage in result["stages"].values():
        assert 0 < stage["p10"] <= stage["median"] <= stage["p90"]
    assert result["stages"]["decode step"]["runs"] == 2 * 3, "two answers of four tokens, each three steps"
    for name in ("vision", "qformer", "prefill", "decode step"):
        stage = result["stages"][name]
        assert stage["limit"] > 0 and stage["share"] == pytest.approx(stage["limit"] / stage["median"])
    assert all(rate > 0 for rate in result["limits"].values())
    assert result["bundle"]["bytes"] == read(embedded()).size
    assert result["start"]["peak_rss"] > 0 and result["start"]["warm"]["load"] > 0
    assert result["machine"]["versions"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    for label in report.LABELS.values():
        assert label in out and label in page
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG" and drawn.width > 500


def test_tables_without_rich(measured, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    report.show(measured[1], sys.stdout)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("whole caption") for line in lines)


def test_peers_and_scaling_have_tables_and_plots(measured, tmp_path):
    from blip2rt.bench import plot

    stages = measured[1]["stages"]
    slower = {name: {**stages[name], "median": 2 * stages[name]["median"]} for name in ("vision", "caption")}
    points = [
        {"threads": 1, "kind": kind, "size": size, "captions_per_second": size / 2, "peak_rss": 10**8}
        for kind in ("batch", "callers") for size in (1, 2)
    ]  # fmt: skip
    result = {
        **measured[1],
        "peers": {"hf-fp32": {"stages": slower, "peak_rss": 10**9}, "hf-bf16": {"error": "torch is not installed"}},
        "scaling": points,
    }
    page = report.markdown(result)
    assert "(2.0 x)" in page and "torch is not installed" in page and "| 1 | callers | 2 | 1.000 | 100 MB |" in page
    plot.save(result, tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as drawn, Image.open(measured[3]) as before:
        assert drawn.height > 3 * before.height


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--geometry", "huge"], "blip2-opt-2.7b"),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "x", "--geometry", "nano"], "--geometry"),
        (["--batch", "0"], "'0'"),
        (["--repeat", "many"], "'many'"),
        (["--threads", "-1"], "'-1'"),
        (["--new-tokens", "999999"], "999999"),
        (["--peer", "hf-int3", "--geometry", "tiny"], "hf-bf16"),
        (["--peer", "hf-fp32"], "--geometry"),
        (["--precision", "llm=int4"], "--geometry"),
        (["--checkpoint", "x"], "--peer"),
        (["--checkpoint", "./no/such", "--peer", "hf-fp32"], "./no/such"),
        (["--checkpoint", "tests", "--peer", "hf-fp32"], "config.json"),
        (["--checkpoint", __file__, "--peer", "hf-fp32"], "config.json"),
        *(([flag, ""], f"{flag} is '': give a value") for flag in
          ("--model", "--precision", "--cache", "--image", "--checkpoint", "--json", "--markdown", "--plot")),
        (["--image", "no.jpg"], "no.jpg"),
        (["--image", "tests"], "--image tests is a folder"),
        (["--image", __file__], "not an image"),
        (["--plot", "out.txt"], ".png"),
        (["--json", "no/such/folder.json", "--plot", "x.bmp"], ".png"),
        (["--nonsense"], "--nonsense"),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_line(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(ROOT)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("blip2rt-bench: error: ") and words in err


def test_what_a_geometry_needs_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(geometry.importlib.util, "find_spec", lambda name: None)
    code, _, err = run(capsys, "--geometry", "blip2-opt-2.7b", "--cache", tmp_path)
    assert code == 2 and err.count("\n") == 1 and "pip install 'blip2rt[bench,export]'" in err


def test_a_peer_that_is_not_installed_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    for name, peer in peers.PEERS.items():
        got = collect._peer(collect.Plan(Work("x", "y")), name)
        assert got["error"].endswith(peer.install) and peer.needs[0] in got["error"]


@pytest.fixture
def planned(monkeypatch):
    """The plans that the command would have measured."""
    plans = []

    def collected(plan):
        plans.append(plan)
        return {}

    monkeypatch.setattr(collect, "collect", collected)
    monkeypatch.setattr(report, "show", lambda result, out: print("tables", file=out))
    monkeypatch.setattr(report, "markdown", lambda result: "**Markdown**\n")
    return plans


def test_peers_that_are_not_installed_are_named_before_anything_is_measured(capsys, monkeypatch, planned):
    absent = ("ctranslate2", "nncf")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name in absent else object())
    given = [f"--peer={name}" for name in ("openvino-int4", "hf-fp32", "ctranslate2-int8", "openvino-int4")]
    code, _, err = run(capsys, *given, "--checkpoint", "Salesforce/blip2-opt-2.7b")
    assert code == 0 and len(err.splitlines()) == 2
    for line, name, module in zip(err.splitlines(), ("openvino-int4", "ctranslate2-int8"), absent[::-1], strict=True):
        assert line == f"{name} is not measured: {module} is not installed: {peers.PEERS[name].install}"
    [plan] = planned
    assert plan.peers == ("openvino-int4", "hf-fp32", "ctranslate2-int8"), "the table names them too"
    assert plan.config == "Salesforce/blip2-opt-2.7b", "no folder: the hub has it"


def test_without_a_peer_that_is_installed_no_config_is_made(capsys, monkeypatch, planned, tmp_path):
    monkeypatch.setattr(geometry, "bundle", lambda *_: embedded())
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    code, _, err = run(capsys, "--geometry", "tiny", "--cache", tmp_path, "--peer", "hf-fp32")
    assert (code, err.count("\n"), planned[0].config) == (0, 1, None)


def test_threads_are_those_of_the_variable(capsys, monkeypatch, planned):
    """As blip2rt.load reads it: obeyed unless --threads is given, and refused before anything is made."""
    monkeypatch.setenv("BLIP2RT_NUM_THREADS", "3")
    assert run(capsys)[0] == 0 and run(capsys, "--threads", "2")[0] == 0
    monkeypatch.setenv("BLIP2RT_NUM_THREADS", "")
    assert run(capsys)[0] == 0
    assert [plan.work.threads for plan in planned] == [3, 2, machine.cores()]
    monkeypatch.setenv("BLIP2RT_NUM_THREADS", "many")
    monkeypatch.setattr(geometry, "bundle", None)
    code, out, err = run(capsys, "--geometry", "tiny")
    assert (code, out) == (2, "")
    assert err.startswith("blip2rt-bench: error: BLIP2RT_NUM_THREADS is 'many'") and err.count("\n") == 1


def test_markdown_and_json_go_to_stdout(capsys, planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "--json", "-", "--markdown", "-") == (0, "tables\n**Markdown**\n{}\n", "")
    assert run(capsys, "--markdown", "-") == (0, "tables\n**Markdown**\n", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("flag", ["--json", "--markdown"])
def test_a_file_that_cannot_be_written_is_named(capsys, planned, flag):
    want = f"blip2rt-bench: error: {flag} /dev/full: No space left on device\n"
    assert run(capsys, flag, "/dev/full") == (2, "tables\n", want)


def _ended(process: subprocess.Popen[str], temporary: Path) -> None:
    """SIGTERM ends it, and its child, which holds the same stdin; nothing remains."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not [*temporary.glob("blip2rt-*"), *temporary.glob("tmp*")]
    with pytest.raises(BrokenPipeError):
        os.write(process.stdin.fileno(), b"nobody reads this")


def _started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "blip2rt.bench", "--threads", "1", *arguments]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            text=True, cwd=ROOT, env=environment)  # fmt: skip


def test_sigterm_ends_the_worker_and_removes_files(tmp_path):
    with _started(tmp_path, "--new-tokens", "2", "--repeat", "10000") as process:
        while process.stderr.readline() != "measuring the stages\n":
            assert process.poll() is None
        time.sleep(1)  # for the worker to start
        _ended(process, tmp_path / "tmp")


def test_sigterm_ends_the_exporter_and_removes_what_it_began(tmp_path):
    pytest.importorskip("onnxscript")
    (tmp_path / "cache").mkdir()
    with _started(tmp_path, "--geometry", "tiny", "--cache", str(tmp_path / "cache")) as process:
        while not list((tmp_path / "cache").glob("*.partial")):
            assert process.poll() is None
            time.sleep(0.01)
        _ended(process, tmp_path / "tmp")
    assert not list((tmp_path / "cache").glob("*.partial"))
    for path in (tmp_path / "cache").iterdir():  # it was done before the signal came
        read(path)


def test_interrupted_is_one_line(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(collect, "collect", interrupt)
    assert run(capsys) == (130, "", "blip2rt-bench: interrupted\n")


# What graphs cost.


@pytest.mark.parametrize("kind, left", [("fp32", np.float32), ("int8", np.int8), ("int8", np.uint8)])
def test_the_product_that_rates_are_measured_on(kind, left, tmp_path):
    """Its graph is one that ONNX accepts, and multiplies."""
    onnx = pytest.importorskip("onnx")
    from tests.engines.native import Session, runtime

    rng = np.random.default_rng(SEED)
    print(f"seed {SEED}")
    integer = kind == "int8"
    weight = rng.integers(-9, 9, (5, 7)).astype(np.int8 if integer else np.float32)
    x = rng.integers(0, 9, (3, 5)).astype(left)
    dtypes = (wire.UINT8 if left is np.uint8 else wire.INT8, wire.INT8, wire.INT32) if integer else (wire.FLOAT,) * 3
    data = wire.matmul("MatMulInteger" if integer else "MatMul", *dtypes, (5, 7), weight.tobytes())
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    (tmp_path / "product.onnx").write_bytes(data)
    got = Session(runtime(), str(tmp_path / "product.onnx"), 1).run({"a": x})["y"]
    assert np.array_equal(got, x.astype(np.int64) @ weight.astype(np.int64))
    assert machine.product_rate(kind, left, 1) > 0


@pytest.mark.parametrize("name", ["vision", "qformer", "llm", "itm"])
def test_graphs_are_read_as_onnx_reads_them(name):
    onnx = pytest.importorskip("onnx")
    path = embedded() / f"{name}.onnx"
    theirs = onnx.load(path, load_external_data=False).graph
    ours = wire.read(path)
    assert Counter(node.op_type for node in ours.nodes) == Counter(node.op_type for node in theirs.node)
    assert [node.inputs for node in ours.nodes] == [tuple(node.input) for node in theirs.node]
    assert {n: (t.dims, t.dtype) for n, t in ours.initializers.items()} == {
        t.name: (tuple(t.dims), t.data_type) for t in theirs.initializer
    }


def test_products_and_bytes_are_counted(tmp_path):
    """A convolution, a product in floats and one in integers of known sizes; a table's rows are not read whole."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(SEED)
    print(f"seed {SEED}")
    channels, width, height, out = (int(n) for n in rng.integers(2, 9, 4))
    height, width, stride = 4 * height, 4 * width, int(rng.integers(1, 3))
    positions = (-(-height // stride)) * (-(-width // stride))

    def constant(name, shape, dtype=np.float32):
        return onnx.numpy_helper.from_array(np.zeros(shape, dtype), name)

    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"], pads=[1, 1, 1, 1], strides=[stride, stride]),
        helper.make_node("Reshape", ["c", "flat"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Transpose", ["q"], ["t"], perm=[1, 0]),
        helper.make_node("DynamicQuantizeMatMul", ["m", "t", "s"], ["d"], domain="com.microsoft"),
        helper.make_node("Gather", ["table", "ids"], ["g"]),
        helper.make_node("Cast", ["half"], ["f"], to=kinds.FLOAT),
        helper.make_node("Mul", ["d", "f"], ["y"]),
    ]
    initializers = [
        constant("conv", (out, channels, 3, 3)), constant("flat", (3,), np.int64), constant("w", (out, 11)),
        constant("q", (13, 11), np.int8), constant("s", (13,)), constant("table", (1000, 4)),
        constant("half", (13,), np.float16), constant("ids", (3,), np.int64),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [], [], initializers)
    onnx.save(helper.make_model(graph), tmp_path / "graph.onnx")
    cost = costs.of_graph(tmp_path / "graph.onnx", {}, positions, 1, ("x", height, width))
    assert cost.float_macs == positions * (9 * channels * out + 11 * out)
    assert cost.int8_macs == positions * 11 * 13
    assert cost.weight_bytes == 4 * (9 * channels * out + 11 * out + 13 + 13) + 11 * 13 + 3 * 8


def test_a_decode_step_of_the_embedded_model_costs_its_parameters():
    """SmolLM2-135M: 134,515,008 parameters, all but the norms multiplied once a token."""
    spec = read(embedded()).manifest.llm
    found = collect.stage_costs(read(embedded()), Work(str(embedded()), ""), 20)
    step, prefill = found["decode step"], found["prefill"]
    norms = (2 * spec.layers + 1) * spec.hidden_size
    assert step.int8_macs == 134_515_008 - norms
    head = spec.vocab_size * spec.hidden_size
    assert prefill.int8_macs == 20 * (step.int8_macs - head) + head, "logits of the last position alone"
    files = read(embedded()).manifest.files
    assert files["llm.data"].size <= step.weight_bytes < 1.1 * files["llm.data"].size, "scales take twice their size"


def test_queries_cost_their_own_positions_and_the_image_its():
    """MiniLM's six layers for 16 queries; keys and values of 81 positions in three of them."""
    found = collect.stage_costs(read(embedded()), Work(str(embedded()), ""), 20)["qformer"]
    width, queries, positions, features = 384, 16, 81, 1280
    own = 6 * (4 * width * width + 2 * width * 4 * width) + 3 * 2 * width * width + width * 576
    assert found.int8_macs == queries * own + positions * 3 * 2 * features * width


def test_a_limit_is_the_longer_of_reading_and_multiplying():
    rates = costs.Rates(read_bytes=100.0, int8_ops=10.0, fp32_ops=1.0)
    assert costs.limit(costs.Cost(500, 5, 1), rates) == (5.0, "memory")
    assert costs.limit(costs.Cost(500, 50, 1), rates) == (12.0, "compute")


def test_the_made_up_picture_is_like_a_photograph(tmp_path):
    path = picture(tmp_path / "p.jpg", 800, 600)
    with Image.open(path) as image:
        assert image.size == (800, 600)
    assert 0.5 < 8 * path.stat().st_size / (800 * 600) < 4, "bits a pixel"


# Bundles of random weights, and peers on the same geometry.


def test_a_bundle_of_another_exporter_is_made_anew(tmp_path, monkeypatch):
    made = []

    def make(geometry, flag, path, *more):
        path.mkdir()
        (path / MANIFEST).touch()
        made.append(path)

    monkeypatch.setattr(geometry, "_make", make)
    old = tmp_path / f"tiny-{blip2rt.__version__}-llm-int4"
    make("tiny", "--out", old)
    first = geometry.bundle("tiny", "llm=int4", tmp_path)
    assert geometry.bundle("tiny", "llm = int4", tmp_path) == first
    monkeypatch.setattr(geometry, "REVISION", geometry.REVISION + 1)
    assert made == [old, first] and geometry.bundle("tiny", "llm=int4", tmp_path) == made[2] != first


@pytest.fixture(scope="module")
def tiny_geometry(tmp_path_factory):
    """The bundle, made through the command's own way, and the cache that it is in."""
    pytest.importorskip("onnxscript")
    cache = tmp_path_factory.mktemp("cache")
    return geometry.bundle("tiny", "vision=int8-dynamic,qformer=int8w,llm=int4", cache), cache


def test_a_synthetic_bundle_is_whole_and_captions(tiny_geometry, photo):
    from blip2rt.bundle import verify

    path, cache = tiny_geometry
    manifest = verify(path).manifest
    precisions = {name: component.precision for name, component in manifest.components.items()}
    assert precisions == {"vision": "int8-dynamic", "qformer": "int8w", "llm": "int4", "embed": "int4"}
    scored = blip2rt.load(path).caption(photo(), num_beams=1, min_new_tokens=5, max_new_tokens=5, scores=True)
    assert np.isfinite(scored.score)
    assert geometry.bundle("tiny", "vision=int8-dynamic,qformer=int8w,llm=int4", cache) == path, "made once"


def test_every_kernel_of_ours_finds_its_work_in_what_the_exporter_writes(tiny_geometry):
    if tuple(int(part) for part in runtime().version.split(".")[:2]) < (1, 21):
        pytest.skip("ONNX Runtime before 1.21 keeps its own kernels")
    path, _ = tiny_geometry
    found = {
        kernel
        for name in ("vision", "llm")
        for kernel in Session(runtime(), str(path / f"{name}.onnx"), 1, custom_int8=name == "vision").custom_kernels
    }
    assert found == set(processor_kernels())


def test_random_blocks_are_no_two_alike_but_the_tied_table(tiny_geometry):
    """Table and head are stored once, as in a real export; everything else is stored for itself."""
    onnx = pytest.importorskip("onnx")
    path, _ = tiny_geometry
    places = {}
    for name in ("llm", "embed"):
        for tensor in onnx.load(path / f"{name}.onnx", load_external_data=False).graph.initializer:
            if tensor.name.endswith(".codes"):
                places[f"{name}:{tensor.name}"] = {e.key: e.value for e in tensor.external_data}["offset"]
    shared = [name for name in places if list(places.values()).count(places[name]) > 1]
    assert len(shared) == 2 and {name.partition(":")[0] for name in shared} == {"llm", "embed"}
    assert len(places) > 8


def test_random_blocks_are_as_large_as_weights_are():
    torch = pytest.importorskip("torch")
    from blip2rt.modeling.quantize import dequantize_blockwise
    from export.synthetic import RandomBlocks

    for bits in (4, 8):
        values = dequantize_blockwise(RandomBlocks(None)("w", (64, 200), lambda: torch.empty(0), bits, 64))
        assert values.shape == (64, 200)
        assert values.std().item() == pytest.approx(0.02, rel=0.1) and abs(values.mean().item()) < 0.003


def test_transformers_does_the_same_work_on_the_same_geometry(tiny_geometry, tmp_path):
    """Its random model has the shapes of ours."""
    pytest.importorskip("transformers")
    path, cache = tiny_geometry
    config = geometry.config("tiny", cache)
    plan = collect.Plan(
        Work(str(path), str(picture(tmp_path / "p.jpg")), new_tokens=3, repeat=1), "tiny", (), str(config)
    )  # fmt: skip
    got = collect._peer(plan, "hf-bf16")
    assert "error" not in got, got
    assert set(got["stages"]) == {"image", "vision", "qformer", "first token", "caption", "decode step"}
    import torch

    from blip2rt.bench.peers.torch_peer import build, queries

    model, manifest = build(str(config), torch.float32), read(path).manifest
    with torch.no_grad():
        features = model.vision_model(
            pixel_values=torch.zeros(1, 3, manifest.image.height, manifest.image.width)
        ).last_hidden_state
        prefix = queries(model, features)
    ours = manifest.components
    assert tuple(features.shape[1:]) == tuple(ours["vision"].outputs[0].shape[1:])
    assert tuple(prefix.shape[1:]) == tuple(ours["qformer"].outputs[1].shape[1:])
    assert torch.isfinite(prefix).all()


def test_wrong_precisions_of_a_geometry_are_one_line(capsys, tmp_path):
    pytest.importorskip("onnxscript")
    code, out, err = run(capsys, "--geometry", "tiny", "--cache", tmp_path, "--precision", "llm=int5")
    assert code == 2 and out == ""
    assert "llm=int5" in err.splitlines()[-1] and "Traceback" not in err
