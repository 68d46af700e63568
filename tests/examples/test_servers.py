"""The examples for Ray Serve and Triton, on the embedded model and stand-ins for the servers."""

import asyncio
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

import blip2rt

ROOT = Path(__file__).parents[2]
SERVERS = ROOT / "examples" / "servers"
IMAGE, QUESTION = (ROOT / "docs" / "photo.jpg").read_bytes(), "what colour is the cup?"


def test_ray_serve_captions_and_answers() -> None:
    replica = runpy.run_path(str(SERVERS / "ray_serve.py"))["Captioner"].func_or_class()

    def call(image: bytes, **query: str) -> Any:
        async def body() -> bytes:
            return image

        return asyncio.run(replica(SimpleNamespace(body=body, query_params=query)))

    assert call(IMAGE)["text"] == blip2rt.caption(IMAGE)
    assert call(IMAGE, question=QUESTION)["text"] == blip2rt.ask(IMAGE, QUESTION)
    assert call(b"words").status_code == 400


def test_triton_captions_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_format.Parse((SERVERS / "triton" / "config.pbtxt").read_text(), ModelConfig())
    names = [tensor.name for tensor in config.input], [tensor.name for tensor in config.output]
    assert names == (["IMAGE", "QUESTION"], ["TEXT"]) and config.name == "triton"

    def tensor_of(request: dict[str, list[bytes]], name: str) -> Any:
        values = np.array(request.get(name, []), np.object_)[:, None]
        return SimpleNamespace(as_numpy=lambda: values) if name in request else None

    utils = ModuleType("triton_python_backend_utils")
    utils.__dict__.update(get_input_tensor_by_name=tensor_of, TritonError=str, InferenceResponse=SimpleNamespace)
    utils.__dict__["Tensor"] = lambda name, value: (name, value)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    model = runpy.run_path(str(SERVERS / "triton" / "1" / "model.py"))["TritonPythonModel"]()
    model.initialize({"model_config": json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))})
    asked = {"IMAGE": [IMAGE, IMAGE], "QUESTION": [QUESTION.encode()] * 2}
    whole, both, fault = model.execute([{"IMAGE": [IMAGE]}, asked, {"IMAGE": [b"words"]}])
    assert whole.output_tensors[0][1].tolist() == [[blip2rt.caption(IMAGE).encode()]]
    assert both.output_tensors[0][1].tolist() == [[blip2rt.ask(IMAGE, QUESTION).encode()]] * 2
    assert fault.error and not fault.output_tensors
