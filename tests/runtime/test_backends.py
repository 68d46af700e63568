"""Every backend implements the interface of blip2rt.backends; unknown keywords are rejected by name."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from dataclasses import replace

import pytest

from blip2rt import backends, load
from blip2rt.backends.ort import Backend, cores
from blip2rt.backends.trt import PlanSizes
from blip2rt.bundle import read
from blip2rt.errors import BackendError, OptionError
from tests.tiny.bundle import Tiny


@pytest.mark.parametrize("name", backends.names())
def test_backends_implement_the_base_class(name: str) -> None:
    found = importlib.import_module(f"blip2rt.backends.{name}").Backend
    assert issubclass(found, backends.Backend) and not inspect.isabstract(found)
    bundle, *others = inspect.signature(found).parameters.values()
    assert bundle.name == "bundle"
    for parameter in others:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is not inspect.Parameter.empty
        assert parameter.name in inspect.signature(load).parameters

    for method in ("generate", "begin", "chat", "preload", "_run"):
        want = list(inspect.signature(getattr(backends.Backend, method)).parameters)
        assert list(inspect.signature(getattr(found, method)).parameters) == want, method


def test_keywords_of_other_backends_are_named(tiny: Tiny) -> None:
    bundle = read(tiny.path)
    with pytest.raises(OptionError, match=r"^plan_sizes are the backend trt's: leave them out, or give backend='trt'$"):
        backends.create("ort", bundle, plan_sizes=PlanSizes())
    with pytest.raises(OptionError, match="plan_sizes are the backend trt's.*; no backend takes speed: leave it out$"):
        backends.create("ort", bundle, plan_sizes=PlanSizes(), speed=3)
    with pytest.raises(OptionError, match="plan_sizes are the backend trt's"):
        load(tiny.path, engines=PlanSizes())
    on_trt = replace(bundle, manifest=replace(bundle.manifest, target="trt"))
    with pytest.raises(OptionError, match=r"^threads are the backend ort's: leave them out, or give backend='ort'$"):
        backends.create("trt", on_trt, threads=2)


@pytest.mark.skipif(sys.platform != "linux" or cores() < 2, reason="counts threads in /proc")
def test_only_graphs_with_work_get_threads(tiny: Tiny) -> None:
    backend = Backend(read(tiny.path), threads=2)
    started = []  # threads of other tests may end meanwhile
    for name in ("embed", "vision"):
        before = {*os.listdir("/proc/self/task")}
        backend._session(name)
        started.append(len({*os.listdir("/proc/self/task")} - before))
    assert started == [0, 1]


def test_none_counts_as_not_given(tiny: Tiny) -> None:
    assert backends.create("ort", read(tiny.path), threads=None, device=None, plan_sizes=None)


def test_unknown_names_and_other_targets_are_rejected(tiny: Tiny) -> None:
    with pytest.raises(BackendError, match="no backend 'abacus': choose from ort, trt"):
        backends.create("abacus", read(tiny.path))
    with pytest.raises(BackendError, match="was exported for ort, which the backend trt cannot run"):
        backends.create("trt", read(tiny.path))
