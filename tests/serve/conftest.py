"""Servers that many tests call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("blip2rt._native")
for package in ("starlette", "uvicorn", "httptools", "prometheus_client", "python_multipart", "pydantic"):
    pytest.importorskip(package)

import blip2rt
from tests.serve.running import PHOTO, Running


@pytest.fixture(scope="package")
def nano() -> Iterator[Running]:
    """The embedded model, served as by default."""
    running = Running()
    yield running
    assert running.stop() == 0 and not running.others
    assert not [line for line in running.log if line["level"] in ("error", "critical")], running.log


@pytest.fixture(scope="package")
def model() -> Any:
    """The same model in this process, to compare with."""
    return blip2rt.load(special_tokens=False)


@pytest.fixture(scope="package")
def cat() -> bytes:
    return PHOTO.read_bytes()


@pytest.fixture
def start(tiny: Any) -> Iterator[Callable[..., Running]]:
    """A function: a server of a tiny model, told what you like. It is ended with the test."""
    made: list[Running] = []

    def start(*arguments: object, **more: Any) -> Running:
        made.append(Running("--model", tiny.path, "--threads", 1, *arguments, **more))
        return made[-1]

    yield start
    for running in made:
        running.stop()
