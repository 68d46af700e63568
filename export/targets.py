"""What the exporter does differently for ONNX Runtime and for TensorRT: opset, graphs of the language model, precision.

Everything else (which graphs there are, tracing, verification, the manifest) is one code for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from blip2rt.bundle import EMBED, ENCODER, LLM

from .checks.ranges import Operands
from .checks.stepping import as_written, session
from .graphs import llm, t5, trace
from .precision import static, weights
from .precision.weights import Keep, Progress, Ranges
from .trt import llm as trt_llm
from .trt import precision as trt_precision
from .trt import t5 as trt_t5

_FLOATS = ("fp32", "fp16")
_WEIGHTS = ("int8", "int8-dynamic", "int8w", "int4")
_STATIC = (*_FLOATS, "int8", "int8-static")

LlmGraphs = Iterator[tuple[str, ir.Model]]


@dataclass(frozen=True)
class Target:
    """An engine that a bundle is made for."""

    name: str  # one of blip2rt.bundle.TARGETS
    opset: int
    precisions: Mapping[str, tuple[str, ...]]  # group -> what may be chosen
    defaults: Mapping[str, str]
    calibrated: tuple[str, ...]  # groups that may be int8 by photographs
    operands: Operands  # of a graph, the values whose ranges that takes
    llm_graphs: Callable[
        [Any, int], LlmGraphs
    ]  # (language model, max_positions) -> one after the other, name and graph
    apply: Callable[[ir.Model, str, int, Keep, Progress, weights.Encode, Ranges], None]
    open: Callable[[Path], Any]  # a session of ONNX Runtime in which its graphs are verified


def _ort_graphs(language: Any, max_positions: int) -> LlmGraphs:
    if language.config.is_encoder_decoder:
        yield ENCODER, t5.trace_encoder(language)
        yield LLM, t5.trace_decoder(language)
    else:
        yield LLM, llm.trace_llm(language, max_positions)
    yield EMBED, trace.trace(llm.embed_part(language))


def _trt_graphs(language: Any, max_positions: int) -> LlmGraphs:
    if language.config.is_encoder_decoder:
        yield ENCODER, trace.trace(t5.encoder_part(language), trt_llm.OPSET)
        yield LLM, trt_t5.trace_decoder(language)
    else:
        yield LLM, trt_llm.trace_llm(language, max_positions)
    yield EMBED, trace.trace(llm.embed_part(language), trt_llm.OPSET)


def _ort_apply(
    model: ir.Model, precision: str, block: int, keep: Keep, progress: Progress, encode: weights.Encode,
    ranges: Ranges,
) -> None:  # fmt: skip
    if precision == "int8-static":
        static.apply(model, ranges, block, keep, progress, encode)
    else:
        weights.apply(model, precision, block, keep, progress, encode)


def _trt_apply(
    model: ir.Model, precision: str, block: int, keep: Keep, _: Progress, encode: weights.Encode, ranges: Ranges
) -> None:
    trt_precision.apply(model, precision, keep, ranges, block, encode)


ORT = Target(
    "ort", trace.OPSET,
    {**dict.fromkeys(("vision", "qformer", "llm"), (*_FLOATS, "int8-static", *_WEIGHTS)),
     "retrieval": (*_FLOATS, *_WEIGHTS)},
    {"vision": "int8w", "qformer": "int4", "llm": "int4", "retrieval": "int4"},
    ("vision", "qformer", "llm"), static.operands, _ort_graphs, _ort_apply, session,
)  # fmt: skip
TRT = Target(
    "trt", trt_llm.OPSET,
    {"vision": _STATIC, "qformer": _STATIC, "llm": (*_STATIC, "int4"), "retrieval": _FLOATS},
    {"vision": "fp16", "qformer": "fp32", "llm": "fp16", "retrieval": "fp32"},
    ("vision", "qformer", "llm"), trt_precision.operands, _trt_graphs, _trt_apply, as_written,
)  # fmt: skip
TARGETS = {target.name: target for target in (ORT, TRT)}
