"""The models of Triton's Python backend, against a stand-in of its documented interface and tritonclient's protobuf."""

import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

import blip2rt
from blip2rt.errors import OptionError
from blip2rt_export.triton import check_repository, write_repository
from tests.tiny.bundle import Tiny

FINAL = 1
IMAGE = (Path(__file__).parents[2] / "docs" / "photo.jpg").read_bytes()


class Request:
    """A request, which collects the responses that a decoupled model sends."""

    def __init__(self, **inputs: list[bytes]) -> None:
        arrays = {name: np.array(values, np.object_)[:, None] for name, values in inputs.items()}
        self.inputs = {name: (serialize_byte_tensor(array).item(), array.shape) for name, array in arrays.items()}
        self.responses: list[Any] = []
        self.done = threading.Event()

    def get_response_sender(self) -> Any:
        return SimpleNamespace(send=self._send)

    def _send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.done.is_set()
        if response is not None:
            self.responses.append(response)
        if flags == FINAL:
            self.done.set()

    @property
    def texts(self) -> list[str]:
        assert self.done.wait(300)
        return [text for response in self.responses for text in response.texts]


class Response:
    """A response, whose tensors have the types of the configuration."""

    def __init__(self, output_tensors: list[tuple[str, np.ndarray]], error: str | None = None) -> None:
        self.outputs, self.error = dict(output_tensors), error
        assert all(value.dtype in (np.object_, np.float32) for value in self.outputs.values())

    @property
    def texts(self) -> list[str]:
        return [text.decode() for text in self.outputs["TEXT"].reshape(-1)]


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Tiny) -> Path:
    def tensor_of(request: Request, name: str) -> Any:
        if name not in request.inputs:
            return None
        data, shape = request.inputs[name]
        return SimpleNamespace(as_numpy=lambda: deserialize_bytes_tensor(data).reshape(shape))

    utils = ModuleType("triton_python_backend_utils")
    utils.__dict__.update(
        get_input_tensor_by_name=tensor_of,
        Tensor=lambda name, value: (name, value),
        InferenceResponse=Response,
        TritonError=str,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    shutil.copytree(tiny.path, tmp_path / "tiny")
    return write_repository(tmp_path / "models", tmp_path / "tiny").parent


@pytest.fixture
def open_model(repository: Path) -> Any:
    """Initialize a model of the repository as Triton does."""
    opened: list[Any] = []

    def open_one(name: str) -> Any:
        code: dict[str, Any] = {}
        exec((repository / name / "1" / "model.py").read_text(), code)
        opened.append(code["TritonPythonModel"]())
        config = json.dumps(json_format.MessageToDict(config_of(repository, name), preserving_proto_field_name=True))
        place = {"model_repository": str(repository / name), "model_version": "1", "model_instance_device_id": "0"}
        opened[-1].initialize({"model_config": config, "model_instance_kind": "CPU", **place})
        return opened[-1]

    yield open_one
    for model in opened:
        model.finalize()


def config_of(repository: Path, name: str) -> ModelConfig:
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())


def test_whole_answers_are_those_of_the_model(open_model, tiny):
    model = blip2rt.load(tiny.path)
    requests = [Request(IMAGE=[IMAGE]), Request(IMAGE=[IMAGE, IMAGE], QUESTION=[b"what?", b"who?"])]
    whole, asked = open_model("tiny").execute(requests)
    assert whole.texts == [str(model.caption(IMAGE))] and asked.outputs["TEXT"].shape == (2, 1)
    assert asked.texts == [str(text) for text in model.ask([IMAGE, IMAGE], ["what?", "who?"])]
    assert whole.outputs["SCORE"][0, 0] == pytest.approx(model.caption(IMAGE).score, abs=1e-4)


def test_pieces_are_those_of_a_stream(open_model, tiny):
    plain, asked = Request(IMAGE=[IMAGE]), Request(IMAGE=[IMAGE], QUESTION=[b"what?"])
    assert open_model("tiny-stream").execute([plain, asked]) is None
    model = blip2rt.load(tiny.path)
    assert plain.texts == [*model.stream(IMAGE)]
    assert asked.texts == [*model.stream(IMAGE, question="what?")]


@pytest.mark.parametrize("name", ["tiny", "tiny-stream"])
def test_faults_are_errors_of_their_request(open_model, name, monkeypatch):
    model = open_model(name)
    bad = [Request(IMAGE=[b"words"]), Request(IMAGE=[IMAGE], QUESTION=[b"\xff"])]
    bad += [Request(IMAGE=[IMAGE, IMAGE], QUESTION=[b"what?", b""])]
    *faults, answer = answers(model, [*bad, Request(IMAGE=[IMAGE])])
    assert len(faults) == 3 and all(response.error and not response.outputs for response in faults) and not answer.error

    def fail(*given: object, **options: object) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(model._model, "caption", fail)
    monkeypatch.setattr(model._model, "stream", fail)
    [fault] = answers(model, [Request(IMAGE=[IMAGE])])
    assert fault.error == "KeyError: 'unforeseen'"


def answers(model: Any, requests: list[Request]) -> list[Response]:
    """The last response to each request."""
    responses = model.execute(requests)
    assert all(request.done.wait(300) for request in requests if responses is None)
    return responses or [request.responses[-1] for request in requests]


def test_a_stream_has_one_image(open_model):
    [response] = answers(open_model("tiny-stream"), [Request(IMAGE=[IMAGE, IMAGE])])
    assert response.error == "a streamed request has 2 images: give one"


def test_configurations_are_tritons(repository, monkeypatch):
    whole, stream = config_of(repository, "tiny"), config_of(repository, "tiny-stream")
    assert not whole.model_transaction_policy.decoupled and whole.HasField("dynamic_batching"), "for HTTP, unary gRPC"
    assert stream.model_transaction_policy.decoupled and not stream.HasField("dynamic_batching")
    for config, names in ((whole, ["TEXT", "SCORE"]), (stream, ["TEXT"])):
        assert [tensor.name for tensor in config.input] == ["IMAGE", "QUESTION"]
        assert [tensor.name for tensor in config.output] == names
        assert config.instance_group[0].kind == ModelInstanceGroup.KIND_CPU
    assert not (repository / "tiny-stream" / "1" / "bundle").exists(), "both share one bundle"


def test_gpus_run_tensorrt(repository, monkeypatch):
    """Not on a GPU here: what is loaded, and where."""
    from blip2rt.integrations import triton

    loaded: list[Any] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    load: Callable[..., None] = lambda path, **settings: loaded.append(settings)  # noqa: E731
    monkeypatch.setattr(triton, "load", load)
    parameters = {"threads": {"string_value": "4"}, "bundle": {"string_value": "bundle"}}
    place = {"model_repository": str(repository / "tiny"), "model_version": "1", "model_instance_device_id": "1"}
    config = json.dumps({"parameters": parameters})
    triton.TritonPythonModel().initialize({"model_config": config, "model_instance_kind": "GPU", **place})
    assert loaded == [{"backend": "trt", "special_tokens": False}]


def test_repositories_are_not_overwritten(tmp_path):
    for name in ("x", "x-stream"):
        (tmp_path / "models" / name).mkdir(parents=True)
        with pytest.raises(OptionError, match=f"has a model '{name}'"):
            check_repository(tmp_path / "models", tmp_path / "x")
        (tmp_path / "models" / name).rmdir()
    with pytest.raises(OptionError, match="is inside of --out"):
        check_repository(tmp_path / "y" / "z", tmp_path / "y")
