"""The model of Triton's Python backend, against a stand-in of its documented interface."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import blip2rt
from blip2rt.errors import OptionError
from blip2rt_export.triton import check_repository, write_repository
from tests.tiny.bundle import Tiny

FINAL = 1


class Sender:
    """Collects the responses to a request."""

    def __init__(self) -> None:
        self.responses: list[Any] = []
        self.done = threading.Event()

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.done.is_set()
        if response is not None:
            self.responses.append(response)
        if flags == FINAL:
            self.done.set()


class Request:
    def __init__(self, **inputs: Any) -> None:
        self.inputs, self.sender = inputs, Sender()

    def get_response_sender(self) -> Sender:
        return self.sender

    @property
    def texts(self) -> list[str]:
        assert self.sender.done.wait(300)
        return [response.outputs["TEXT"][0].decode() for response in self.sender.responses]


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Tiny) -> Any:
    """The initialized model of a written repository."""

    def tensor_of(request: Request, name: str) -> Any:
        value = request.inputs.get(name)
        return None if value is None else SimpleNamespace(as_numpy=lambda: np.array([value], np.object_))

    def response(output_tensors: list[Any], error: Any = None) -> Any:
        return SimpleNamespace(outputs=dict(output_tensors), error=error)

    utils = ModuleType("triton_python_backend_utils")
    utils.__dict__.update(
        get_input_tensor_by_name=tensor_of,
        Tensor=lambda name, value: (name, value),
        InferenceResponse=response,
        TritonError=str,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    shutil.copytree(tiny.path, tmp_path / "tiny")
    folder = write_repository(tmp_path / "models", tmp_path / "tiny")
    code: dict[str, Any] = {}
    exec((folder / "1" / "model.py").read_text(), code)
    model = code["TritonPythonModel"]()
    config = {"parameters": {"threads": {"string_value": "1"}}}
    model.initialize({"model_config": json.dumps(config), "model_repository": str(folder), "model_version": "1"})
    yield model
    model.finalize()


@pytest.fixture
def image() -> bytes:
    return (Path(__file__).parents[2] / "docs" / "photo.jpg").read_bytes()


def test_answers_are_those_of_the_model(triton, tiny, image):
    model = blip2rt.load(tiny.path)
    whole, asked, streamed = (
        Request(IMAGE=image),
        Request(IMAGE=image, QUESTION=b"what?"),
        Request(IMAGE=image, STREAM=True),
    )
    triton.execute([whole, asked, streamed])
    assert whole.texts == [str(model.caption(image))] and asked.texts == [str(model.ask(image, "what?"))]
    assert whole.sender.responses[0].outputs["SCORE"][0] == pytest.approx(model.caption(image).score, abs=1e-4)
    assert "".join(streamed.texts) == "".join(model.stream(image)) and len(streamed.texts) > 1


@pytest.mark.parametrize("inputs", [{"IMAGE": b"words"}, {}, {"IMAGE": b"", "STREAM": True}])
def test_bad_images_are_errors_of_their_request(triton, image, inputs):
    bad, good = Request(**inputs), Request(IMAGE=image)
    triton.execute([bad, good])
    assert len(good.texts) == 1 and bad.sender.done.wait(300)
    [response] = bad.sender.responses
    assert response.error and not response.outputs


def test_configuration_names_what_the_model_reads(triton, tmp_path):
    config = (tmp_path / "models" / "tiny" / "config.pbtxt").read_text()
    for name in ("IMAGE", "QUESTION", "STREAM", "TEXT", "SCORE"):
        assert f'name: "{name}"' in config
    assert config.count("{") == config.count("}") and "decoupled: true" in config and 'name: "tiny"' in config


def test_repositories_are_not_overwritten(tmp_path):
    (tmp_path / "models" / "x").mkdir(parents=True)
    with pytest.raises(OptionError, match="has a model 'x'"):
        check_repository(tmp_path / "models", tmp_path / "x")
    with pytest.raises(OptionError, match="is inside of --out"):
        check_repository(tmp_path / "y" / "z", tmp_path / "y")
