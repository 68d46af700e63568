"""blip2rt-bench: results, output and errors. No test asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blip2rt.bench import collect, geometry, machine, report
from blip2rt.bench.cli import main
from blip2rt.bench.stages import STAGES
from blip2rt.bundle import embedded, read
from blip2rt.install_hints import pip_install
from tests.seeds import seed_of

pytestmark = pytest.mark.long(16, "whole measurements, from the command to tables and plots")

ROOT = Path(__file__).parents[2]
SEED = seed_of(__name__)
TEXT_FLAGS = "--model --precision --cache --image --checkpoint --json --markdown".split()


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One run on the embedded model: (stdout, its JSON, Markdown)."""
    folder = tmp_path_factory.mktemp("bench")
    work = ["--repeat", "2", "--new-tokens", "4", "--threads", "1"]
    outputs = ["--markdown", folder / "page.md", "--json", "-"]
    command = [sys.executable, "-m", "blip2rt.bench", *work, *outputs]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1]), (folder / "page.md").read_text()


def test_embedded_model_is_measured(measured):
    out, result, page = measured
    assert set(result["stages"]) == set(STAGES)
    for stage in result["stages"].values():
        assert 0 < stage["p10"] <= stage["median"] <= stage["p90"]
    assert result["stages"]["decode step"]["runs"] == 2 * 3, "two answers of four tokens, each three steps"
    step = result["stages"]["decode step"]
    share = step["limit"] / step["median"]
    assert share > 0 and step["share"] == (pytest.approx(share) if share <= 1 else None)
    assert read(embedded()).manifest.files["llm.data"].size < step["limit"] * result["limits"]["read_bytes"]
    assert result["bundle"]["bytes"] == read(embedded()).size
    assert result["start"]["peak_rss"] > 0 and result["start"]["warm"]["load"] > 0
    assert result["machine"]["versions"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    for label in report.LABELS.values():
        assert label in out and label in page


@pytest.mark.parametrize("median, shown", [(1e-9, "faster: cached weights, or a busy machine"), (1e9, " x")])
def test_memorys_rate_is_the_best_of_three_moments(monkeypatch, median, shown):
    """A step faster than its limit shows no ratio."""
    moments = [{"read_bytes": 1e9}, {"read_bytes": 2e9}, {"read_bytes": 1e9}]
    stage = {"runs": 1, "p10": 1.0, "p90": 1.0, "median": median}
    stages = {name: {**stage} for name in ("decode step", "first token", "caption")}
    start = {"load": 1.0, "first_caption": 1.0, "peak_rss": 1}
    tasks = {"start": lambda: start, "stages": lambda: {"stages": stages, "peak_rss": 1}, "rates": moments.pop}
    monkeypatch.setattr(collect.worker, "run_task", lambda task, given: tasks[task]())
    monkeypatch.setattr(collect.machine, "drop_cached", lambda folder: False)
    result = collect.collect(collect.Plan(collect.Workload(str(embedded()), __file__)))
    assert result["limits"] == {"read_bytes": 2e9}
    assert report.tables(result)[0].rows[0][-1].endswith(shown)


def test_peers_and_scaling_have_tables(measured):
    stages = measured[1]["stages"]
    slower = {name: {**stages[name], "median": 2 * stages[name]["median"]} for name in ("vision", "caption")}
    loads = [(kind, size) for kind in ("batch", "callers") for size in (1, 2)]
    same = {"threads": 1, "peak_rss": 10**8}
    points = [{"kind": kind, "size": size, "captions_per_second": size / 2, **same} for kind, size in loads]
    peers = {"hf-fp32": {"stages": slower, "peak_rss": 10**9}, "hf-bf16": {"error": "torch is not installed"}}
    result = {**measured[1], "peers": peers, "scaling": points}
    page = report.markdown(result)
    assert "(2.0 x)" in page and "torch is not installed" in page and "| 1 | callers | 2 | 1.000 | 100 MB |" in page


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
        *(([flag, ""], f"{flag} is '': give a value") for flag in TEXT_FLAGS),
        (["--image", "no.jpg"], "no.jpg"),
        (["--image", "tests"], "--image tests is a folder"),
        (["--image", __file__], "not an image"),
        (["--json", "no/such/folder.json"], "does not exist"),
        (["--nonsense"], "--nonsense"),
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
    """Collect the plans instead of measuring them."""
    plans = []

    def collected(plan):
        plans.append(plan)
        return {}

    monkeypatch.setattr(collect, "collect", collected)
    monkeypatch.setattr(report, "show", lambda result, out: print("tables", file=out))
    monkeypatch.setattr(report, "markdown", lambda result: "**Markdown**\n")
    return plans


def remove(monkeypatch, *absent):
    """Hide installed modules, and pretend to have all others."""
    find = collect.importlib.util.find_spec
    monkeypatch.setattr(
        collect.importlib.util, "find_spec", lambda name: None if name in absent else find(name) or object()
    )


def test_missing_peers_are_reported_first(capsys, monkeypatch, planned):
    remove(monkeypatch, "transformers")
    given = [f"--peer={name}" for name in ("hf-bf16", "hf-fp32", "hf-bf16")]
    code, _, err = run(capsys, *given, "--checkpoint", "Salesforce/blip2-opt-2.7b")
    assert (code, err) == (0, "no peer is measured: transformers is not installed: pip install transformers\n")
    [plan] = planned
    assert plan.peers == ("hf-bf16", "hf-fp32"), "the table lists both"
    assert plan.config == "Salesforce/blip2-opt-2.7b", "a hub id"


def test_no_config_is_created_without_installed_peers(capsys, monkeypatch, planned, tmp_path):
    monkeypatch.setattr(geometry, "bundle", lambda *_: embedded())
    remove(monkeypatch, "torch")
    code, _, err = run(capsys, "--geometry", "tiny", "--cache", tmp_path, "--peer", "hf-fp32")
    assert (code, err.count("\n"), planned[0].config) == (0, 1, None)


def test_threads_default_to_the_environment_variable(capsys, monkeypatch, planned):
    """As in blip2rt.load: --threads has precedence, and a wrong value is rejected before anything is created."""
    monkeypatch.setattr("blip2rt.backends.ort.cores", lambda: 8)
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
def test_unwritable_output_is_one_line(capsys, planned, flag):
    want = f"blip2rt-bench: error: {flag} /dev/full: No space left on device\n"
    assert run(capsys, flag, "/dev/full") == (2, "tables\n", want)
