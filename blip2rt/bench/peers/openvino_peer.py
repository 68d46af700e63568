"""OpenVINO in int4, language model only: prefill and steps, with the cache in the model's state.

    python -m blip2rt.bench.peers.openvino_peer JSON

transformers' model is traced with its cache as inputs and outputs, which become states; NNCF compresses the matrices to
4 bits in groups of 64. Decoder-only models and greedy search only.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import nncf
import numpy as np
import openvino as ov
import torch
import transformers
from openvino.passes import MakeStateful, Manager
from transformers.cache_utils import DynamicLayer

from ..machine import peak_rss
from .common import language_model, positions
from .timing import generation_stages, main

GROUP = 64


class Step(torch.nn.Module):
    """token_ids (B, S), mask (B, T + S), the cache of keys and values (B, H, T, hd) -> logits (B, V), the cache."""

    def __init__(self, llm: Any) -> None:
        super().__init__()
        self.llm = llm

    def forward(self, token_ids: torch.Tensor, mask: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = transformers.DynamicCache()
        for key, value in zip(past[::2], past[1::2], strict=True):
            cache.layers.append(_layer(key, value))
        out = self.llm(input_ids=token_ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        pairs = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return out.logits[:, -1], *(tensor for pair in pairs for tensor in pair)


def _layer(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """Create a filled layer of the cache; its own initialization cannot be converted."""
    layer: Any = DynamicLayer()
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    layer.dtype, layer.device = keys.dtype, keys.device
    return layer


def convert(folder: str, batch: int) -> ov.Model:
    llm = language_model(folder, torch.float32)
    config = llm.config
    llm.config._attn_implementation = "eager"
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    heads_kv = getattr(config, "num_key_value_heads", None) or heads
    past = [torch.zeros(1, heads_kv, 2, config.hidden_size // heads) for _ in range(2 * layers)]
    example = (torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 5, dtype=torch.int64), *past)
    with torch.no_grad():
        model = ov.convert_model(Step(llm), example_input=example)
    del llm
    gc.collect()
    names = {}  # a state starts with size 0 in every dynamic dimension, so the batch is fixed
    for layer in range(2 * layers):
        source, target = model.inputs[2 + layer], model.outputs[1 + layer]
        source.get_node().set_partial_shape(ov.PartialShape([batch, heads_kv, -1, config.hidden_size // heads]))
        source.get_tensor().set_names({f"past_{layer}"})
        target.get_tensor().set_names({f"present_{layer}"})
        names[f"past_{layer}"] = f"present_{layer}"
    for number in (0, 1):
        model.inputs[number].get_node().set_partial_shape(ov.PartialShape([batch, -1]))
    model.validate_nodes_and_infer_types()
    passes = Manager()
    passes.register_pass(MakeStateful(names))
    passes.run_passes(model)
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=GROUP, all_layers=True)


def measure(given: dict[str, Any]) -> dict[str, Any]:
    if given["beams"] > 1:
        raise ValueError("only greedy search is compared: leave --beams at 1")
    core = ov.Core()
    model = convert(given["config"], given["batch"])
    settings = {"INFERENCE_NUM_THREADS": given["threads"], "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    length, batch = positions(given["config"]), given["batch"]

    def generate(tokens: int) -> None:
        request.reset_state()
        ids = np.tile(np.arange(10, 10 + length), (batch, 1))
        for step in range(tokens):
            mask = np.ones((batch, length + step), np.int64)
            logits = request.infer([ids, mask])[0]
            assert logits.shape[0] == batch, logits.shape
            ids = logits.argmax(-1)[:, None].astype(np.int64)

    version = f"openvino {ov.__version__}, nncf {nncf.__version__}"
    return {"stages": generation_stages(generate, given), "peak_rss": peak_rss(), "version": version}


if __name__ == "__main__":
    sys.exit(main(measure))
