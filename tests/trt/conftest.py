"""Fixtures: bundles and the simulated machine."""

from pathlib import Path

import pytest

pytest.importorskip("onnx")

from tests.trt.machine import Case, Machine, case_of, installed

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "llama", "t5")]


@pytest.fixture(params=["tiny", *SLOW])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, tmp_path_factory)


@pytest.fixture
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of("tiny", tmp_path_factory)


@pytest.fixture(params=["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "qwen2", "t5"))])
def exported_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An exported model whose graph writes its cache in place."""
    return case_of(f"{request.param}, native", tmp_path_factory)


@pytest.fixture
def native_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model whose graph writes its cache in place."""
    return case_of("native", tmp_path_factory)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return installed(monkeypatch, tmp_path)


@pytest.fixture
def rtx_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return installed(monkeypatch, tmp_path, rtx=True)
