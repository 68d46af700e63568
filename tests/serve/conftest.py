"""Servers that several test modules call."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

pytest.importorskip("blip2rt._native")
for package in ("starlette", "uvicorn", "prometheus_client", "python_multipart", "pydantic"):
    pytest.importorskip(package)

import blip2rt
from tests.serve.server_process import CAT, TIMEOUT, AppClient, ServerProcess, png


@pytest.fixture(scope="package")
def nano() -> Iterator[ServerProcess]:
    """The embedded model with default settings."""
    server = ServerProcess()
    yield server
    assert server.stop() == 0 and not server.other_lines
    assert not [line for line in server.log if line["level"] in ("error", "critical")], server.log


@pytest.fixture(scope="package")
def single() -> Iterator[ServerProcess]:
    """The embedded model, one request at a time and one waiting."""
    server = ServerProcess("--parallel", 1, "--max-queue", 1, "--threads", 1, "--deadline", TIMEOUT)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="package")
def model() -> Any:
    """The same model in this process, to compare with."""
    return blip2rt.load(special_tokens=False)


@pytest.fixture(scope="package")
def cat() -> bytes:
    return CAT.read_bytes()


def opened(make: Callable[..., Any], end: Callable[[Any], object]) -> Iterator[Callable[..., Any]]:
    """Yield `make`, and end what it made."""
    made: list[Any] = []

    def make_one(*arguments: object, **more: Any) -> Any:
        made.append(make(*arguments, **more))
        return made[-1]

    yield make_one
    for each in made:
        end(each)


@pytest.fixture
def start(tiny: Any) -> Iterator[Callable[..., ServerProcess]]:
    """A function that starts a server of a tiny model with the given arguments."""
    yield from opened(partial(ServerProcess, "--model", tiny.path, "--threads", 1), ServerProcess.stop)


@pytest.fixture
def app(tiny: Any) -> Iterator[Callable[..., AppClient]]:
    """A function that opens the application of a tiny model, which runs in this process."""
    yield from opened(partial(AppClient, tiny.path), AppClient.close)


@pytest.fixture(scope="package")
def limited(tiny: Any) -> Iterator[ServerProcess]:
    """A tiny model with small limits."""
    limits = ("--max-body", "50K", "--max-pixels", 10_000, "--max-prompt", 300, "--body-seconds", 3)
    server = ServerProcess("--model", tiny.path, "--threads", 1, *limits)
    yield server
    assert server.stop() == 0


@pytest.fixture
def small(photo: Any) -> bytes:
    """A small random PNG."""
    return png(photo())
