"""Tiny random language models of every family in llm_configs.py, and their exported graphs."""

import contextlib
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers

from blip2rt_export import targets
from blip2rt_export.checks.llm import LlmGraphs
from blip2rt_export.graphs import trace
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from tests.tiny import onnx_validity
from tests.tiny.llm_configs import CONFIGS, SLOW_CONFIGS


def build(name: str, seed: int) -> Any:
    """Build a model with random weights, including its biases and norms."""
    torch.manual_seed(seed)
    config = (CONFIGS | SLOW_CONFIGS)[name]()
    if config.is_encoder_decoder:
        model, spread = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32).eval(), 0.1
    else:
        # Not sdpa, which in transformers 4 ignores Gemma 2's soft cap.
        auto = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        model, spread = auto.eval(), 0.05
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * spread)
    return model


def write(
    graphs, folder: Path, target: targets.Target, precision: str = "fp32", ranges=None, block: int = 32
) -> LlmGraphs:
    """Write (name, graph) pairs of a language model as in a bundle, and check them."""
    folder.mkdir(exist_ok=True)
    with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
        for name, graph in graphs:
            quantizer = Quantizer(BlockFormat(block), data.store_large, ranges=(ranges or {}).get(name, {}))
            target.apply(graph, precision, quantizer)
            trace.save(graph, folder / f"{name}.onnx", data)
    assert data_is_used(folder), precision
    assert not onnx_validity.faults(folder), precision
    encoder, start = (folder / "encoder.onnx", 0) if (folder / "encoder.onnx").exists() else (None, None)
    return LlmGraphs(folder / "llm.onnx", folder / "embed.onnx", encoder, start, target.open)


def data_is_used(folder: Path) -> bool:
    """Whether the data file holds exactly the tensors of the graphs."""
    pieces = set()
    for path in folder.glob("*.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            location = {entry.key: entry.value for entry in tensor.external_data}
            if location:
                pieces.add((int(location["offset"]), int(location["length"])))
    aligned = sum(-(-length // 64) * 64 for _, length in pieces)
    return 0 <= aligned - (folder / "llm.data").stat().st_size < 64
