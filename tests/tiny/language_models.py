"""Tiny random language models of transformers, of every family, and their graphs in files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers

from export import targets
from export.checks.verify import LlmGraphs
from export.graphs import trace
from export.precision.quantizer import BlockFormat, Quantizer
from tests.tiny import onnx_validity
from tests.tiny.llm_configs import CONFIGS, MORE


def build(name: str, seed: int) -> Any:
    """A model whose biases and norms are no longer 0 and 1: nothing hides behind that."""
    torch.manual_seed(seed)
    config = (CONFIGS | MORE)[name]()
    if config.is_encoder_decoder:
        model, spread = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32).eval(), 0.1
    else:
        # Not sdpa, which in transformers 4 leaves out Gemma 2's soft cap.
        made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        model, spread = made.eval(), 0.05
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * spread)
    return model


def write(
    traced, folder: Path, target: targets.Target, precision: str = "fp32", ranges=None, block: int = 32
) -> LlmGraphs:
    """The graphs of a language model, name and graph, as a bundle holds them."""
    folder.mkdir(exist_ok=True)
    with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
        for name, graph in traced:
            target.apply(graph, precision, Quantizer(BlockFormat(block), data.keep), (ranges or {}).get(name, {}))
            trace.save(graph, folder / f"{name}.onnx", data)
    encoder = folder / "encoder.onnx"
    known = encoder.exists()
    start = 0 if known else None
    assert nothing_unread(folder), precision
    assert not onnx_validity.faults(folder), precision
    return LlmGraphs(folder / "llm.onnx", folder / "embed.onnx", encoder if known else None, start, target.open)


def nothing_unread(folder: Path) -> bool:
    """Whether the data file holds tensors of the graphs and no others."""
    pieces = set()
    for path in folder.glob("*.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                pieces.add((int(where["offset"]), int(where["length"])))
    aligned = sum(-(-length // 64) * 64 for _, length in pieces)
    return 0 <= aligned - (folder / "llm.data").stat().st_size < 64
