"""The targets ONNX Runtime and TensorRT: opset, graphs of the language model, precisions.

Everything else (the list of graphs, tracing, verification, the manifest) is shared.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from blip2rt.bundle import EMBED, ENCODER, LLM

from . import trt
from .arguments import ORT_PRECISIONS, TRT_PRECISIONS
from .checks.sessions import session, unfused_session
from .graphs import llm, t5, trace
from .precision.apply import apply
from .precision.quantizer import Quantizer

NamedGraphs = Iterator[tuple[str, ir.Model]]  # (name, graph), each traced when it is requested


@dataclass(frozen=True)
class Target:
    """The runtime that a bundle is exported for."""

    name: str  # a bundle's target, see blip2rt.backends.Backend
    opset: int
    precisions: Mapping[str, tuple[str, ...]]  # group -> choices
    defaults: Mapping[str, str]
    llm_graphs: Callable[[Any, int], NamedGraphs]  # (language model, max_positions)
    apply: Callable[[ir.Model, str, Quantizer], None]  # bring a graph to a precision, in place
    open: Callable[[Path], Any]  # open a graph in ONNX Runtime to verify it


def _ort_graphs(language: Any, max_positions: int) -> NamedGraphs:
    if language.config.is_encoder_decoder:
        yield ENCODER, t5.trace_encoder(language)
        yield LLM, t5.trace_decoder(language)
    else:
        yield LLM, llm.trace_llm(language, max_positions)
    yield EMBED, trace.trace(llm.embed_graph(language))


def _trt_graphs(language: Any, max_positions: int) -> NamedGraphs:
    if language.config.is_encoder_decoder:
        yield ENCODER, trace.trace(t5.encoder_graph(language), trt.llm.OPSET)
        yield LLM, trt.t5.trace_decoder(language)
    else:
        yield LLM, trt.llm.trace_llm(language, max_positions)
    yield EMBED, trace.trace(llm.embed_graph(language), trt.llm.OPSET)


ORT = Target(
    name="ort",
    opset=trace.OPSET,
    precisions=ORT_PRECISIONS,
    defaults={"vision": "int8w", "qformer": "int4", "llm": "int4", "retrieval": "int4"},
    llm_graphs=_ort_graphs,
    apply=apply,
    open=session,
)
TRT = Target(
    name="trt",
    opset=trt.llm.OPSET,
    precisions=TRT_PRECISIONS,
    defaults={"vision": "fp16", "qformer": "fp32", "llm": "fp16", "retrieval": "fp32"},
    llm_graphs=_trt_graphs,
    apply=trt.precision.apply,
    open=unfused_session,
)
TARGETS = {"ort": ORT, "trt": TRT}  # as --target has them
