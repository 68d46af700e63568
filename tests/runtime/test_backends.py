"""Every backend implements the interface of blip2rt.backends; unknown keywords are rejected by name."""

import importlib
import inspect
from dataclasses import replace

import pytest

import blip2rt
from blip2rt import backends, load
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
    with pytest.raises(
        OptionError, match=r"^threads are the backend auto and core and ort's: leave them out, or give backend='ort'$"
    ):
        backends.create("trt", on_trt, threads=2)


def test_unknown_names_and_other_targets_are_rejected(tiny: Tiny) -> None:
    with pytest.raises(BackendError, match="no backend 'abacus': choose from auto, core, ort, trt"):
        backends.create("abacus", read(tiny.path))
    with pytest.raises(BackendError, match="was exported for ort, which the backend trt cannot run"):
        backends.create("trt", read(tiny.path))


@pytest.mark.parametrize(("device", "instead"), [("tpu", ""), ("cuda", "; cuda needs the backend trt and a bundle")])
def test_ort_runs_on_cpu_only(tiny: Tiny, device: str, instead: str) -> None:
    with pytest.raises(OptionError, match=f"device is '{device}': the backend auto runs on cpu{instead}"):
        blip2rt.load(tiny.path, device=device)
    assert blip2rt.load(tiny.path, device="cpu")
