"""Fixtures of the runtime's tests, and the seed of every test."""

import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import nightly, seeds, skips

PACKAGES = ("blip2rt", "blip2rt_train", "blip2rt_export")
if file := os.environ.get("BLIP2RT_NATIVE"):  # another build of the core, as in `make sanitize`
    spec = importlib.util.spec_from_file_location("blip2rt._native", file)
    assert spec is not None and spec.loader is not None
    sys.modules["blip2rt._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["blip2rt._native"])

import blip2rt
from tests.tiny.bundle import Tiny, tiny_bundle


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A bundle with all components; new random weights in each session."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", seeds.new_seed())


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> blip2rt.Model:
    return blip2rt.load(tiny.path, threads=1)


@pytest.fixture(scope="session")
def traced_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph folder of tests.tiny.trace_cache, shared by all processes of this session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traced"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _trace_cache(traced_folder: Path) -> Iterator[None]:
    if not {"blip2rt_export.cli", "blip2rt_export.graphs.trace"} & {*sys.modules}:  # nothing traces in this session
        yield
        return
    from tests.tiny.trace_cache import cached_traces

    with cached_traces(traced_folder):
        yield


@pytest.fixture
def photo() -> Any:
    """A function that returns a new random picture (H, W, 3) uint8."""
    rng = np.random.default_rng(seeds.new_seed())

    def make(height: int = 20, width: int = 30) -> np.ndarray:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make


# What pytest calls: seeds, order, failures.


def pytest_configure(config: pytest.Config) -> None:
    os.environ["PYTHONSAFEPATH"] = "1"  # children of Python 3.11 and later do not see the current folder either
    root = Path(__file__).parents[1]
    found = [spec.origin for name in PACKAGES if (spec := importlib.util.find_spec(name)) and spec.origin]
    if checkout := [origin for origin in found if Path(origin).parents[1] == root]:
        raise pytest.UsageError(f"the tests judge installed packages, not {checkout[0]}: run make test, or bin/pytest")
    seeds.session_seed()
    config.pluginmanager.register(SeededFixtures())


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that all processes end together; mark what runs at night."""
    for item in items:
        if nightly.reason(item.nodeid):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: -sum(seconds for seconds, _why in (mark.args for mark in item.iter_markers("long"))))


class SeededFixtures:
    """Seed fixtures by their own name, whichever test requests them first. For session fixtures, pytest calls plugins
    but no conftest."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> None:
        owner = request.node.nodeid if fixturedef.scope == "function" else fixturedef.baseid
        seeds.start(owner, fixturedef.argname, str(getattr(request, "param_index", 0)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    seeds.start(item.nodeid)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    return unskipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[Any]:
    return unskipped((yield))


def unskipped(report: Any) -> Any:
    """The report, which in CI turns a skip that is not listed into a failure."""
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        _, _, said = report.longrepr
        if fault := skips.fault(said.removeprefix("Skipped: ")):
            report.outcome, report.longrepr = "failed", fault
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if failed := [*terminalreporter.stats.get("failed", []), *terminalreporter.stats.get("error", [])]:
        terminalreporter.section("repeat with")
        for nodeid in dict.fromkeys(report.nodeid for report in failed):
            terminalreporter.line(repeat(nodeid))


def repeat(nodeid: str) -> str:
    """The command that repeats a test."""
    return f"{seeds.VARIABLE}={seeds.session_seed()} python -m pytest {shlex.quote(nodeid)}"
