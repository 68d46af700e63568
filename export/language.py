"""Export the language model's graphs: `embed`, `llm`, and `encoder` of an encoder-decoder.

embed:   token_ids (B,S) -> token_embeds (B,S,D)
llm:     inputs_embeds (B,S,D), positions, cache -> logits (B,V), cache; see graphs/llm.py and trt/llm.py
encoder: inputs_embeds (B,S,D), attention_mask (B,S) -> cross_key_i, cross_value_i (B,H,S,hd); see graphs/t5.py

Images arrive as prefix_embeds (n,Q,D).
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from blip2rt.bundle import EMBED, ENCODER, LLM
from blip2rt.errors import Blip2rtError
from blip2rt.modeling import streaming
from blip2rt.modeling.quantize import round_weights

from . import targets
from .checks import calibration, verify
from .checks import llm as checks
from .describe import LanguageModel
from .graph_exporter import GraphExporter
from .graphs import compatibility, llm, t5
from .options import LlmOptions
from .precision.activations import NO_RANGES, Ranges
from .precision.quantizer import BITS

INT16_ACTIVATIONS_BELOW = 1_000_000_000  # parameters: smaller models need 16-bit activations with int4 weights
EXACT_BELOW = 500_000_000  # parameters: smaller models are also compared with their own rounded weights


def write(
    exporter: GraphExporter,
    language: LanguageModel,
    precision: str,
    options: LlmOptions,
    prefixes: Sequence[np.ndarray],
) -> None:
    """Trace and write every graph. prefixes: prefix_embeds (3,Q,D) of photographs, to calibrate int8-static."""
    config = language.config
    if config.bits and config.bits != BITS.get(precision):
        exporter.progress.line(f"llm: trained against {config.bits}-bit weights, exported as {precision}")
    exporter.progress.line("llm: tracing")
    traced = trace_graphs(exporter.target, language.model, options.max_positions)
    seen: dict[str, Ranges] = {}
    if precision == "int8-static":
        exporter.progress.line("llm: calibrating int8")
        graphs, images = dict(traced), np.concatenate(prefixes)
        prompts = (language.questions * len(images))[: max(len(images), len(language.questions))]
        rows = _prompt_embeds(language.model, prompts, images)
        seen = calibration.language_ranges(graphs, exporter.folder, rows, language.start)
        traced = iter(graphs.items())
    activations = options.activations or (16 if language.size < INT16_ACTIVATIONS_BELOW else 8)
    with exporter.group("llm", precision, config.block, activations) as group:
        for name, graph in traced:
            exporter.write(name, graph, group, seen.get(name, NO_RANGES))


def trace_graphs(target: targets.Target, model: Any, max_positions: int) -> targets.NamedGraphs:
    """Trace the graphs of a language model, one after the other. Raises Blip2rtError if that fails."""
    try:
        yield from target.llm_graphs(model, max_positions)
    except Blip2rtError:
        raise
    except Exception as error:  # tracing an unknown architecture may raise anything
        raise Blip2rtError(
            f"{type(model).__name__} cannot be traced ({compatibility.error_summary(error)}): "
            "use another language model"
        ) from error


@torch.no_grad()
def _prompt_embeds(language: Any, token_ids: list[list[int]], prefixes: np.ndarray) -> list[np.ndarray]:
    """token ids of prompts, prefixes (n,Q,D) -> [prefix | prompt] embeddings (S_b,D), one row per prompt."""
    table = language.get_input_embeddings()
    with streaming.streamed(language):
        prompts = [table(torch.tensor(ids, dtype=torch.int64)).numpy() for ids in token_ids]
    rows = (np.concatenate((prefixes[n % len(prefixes)], prompt)) for n, prompt in enumerate(prompts))
    return [row.astype(np.float32) for row in rows]


def verify_graphs(
    exporter: GraphExporter, language: LanguageModel, precision: Mapping[str, str], prefixes: Sequence[np.ndarray]
) -> None:
    """Compare the written graphs with PyTorch, alone and together with the graphs before them.

    precision: of all groups. prefixes: prefix_embeds (3,Q,D) of the same images, from PyTorch and from the graphs.
    """
    exporter.progress.line("llm: verifying")
    prompts, verifier = language.prompts, exporter.verifier
    inputs = [np.concatenate([each[[n % len(each)]] for n in range(len(prompts))]) for each in prefixes]
    rows, end_to_end = (_prompt_embeds(language.model, prompts, each) for each in inputs)
    encoder = None if language.start is None else verifier.graph(ENCODER)
    longest, limit = max(map(len, rows)) + checks.STEPS, language.spec.max_positions
    if encoder is None and longest > limit:
        raise Blip2rtError(
            f"the language model has {limit} positions, and an image with a question and its answer takes {longest}: "
            "use one with more"
        )
    graphs = checks.LlmGraphs(verifier.graph(LLM), verifier.graph(EMBED), encoder, language.start, verifier.open)
    try:
        core = None
        if exporter.target is targets.ORT:
            core = checks.CoreTokens(graphs, language.spec, np.concatenate(inputs), [*prompts, *prompts])
        tokens = _compare(verifier, language, graphs, core, [*rows, *end_to_end])
    except Blip2rtError:
        raise
    except Exception as error:  # of ONNX Runtime, which rejects the graph
        raise Blip2rtError(
            f"the graphs of {type(language.model).__name__} cannot be run ({compatibility.error_summary(error)}): "
            "use another language model"
        ) from error
    embed, ids = llm.embed_graph(language.model), {"token_ids": tokens.astype(np.int64)}
    verifier.compare(EMBED, ids, embed.run(ids))
    if exporter.target.name == "trt" or precision["llm"] not in BITS or language.size > EXACT_BELOW:
        return
    round_weights(language.model, BITS[precision["llm"]], language.config.block, t5.FLOAT_TABLE)
    _compare_exact(verifier, language, graphs, rows, tokens)
    verifier.compare_exact(EMBED, ids, embed.run(ids))


def _compare(
    verifier: verify.Verifier,
    language: LanguageModel,
    graphs: checks.LlmGraphs,
    core: checks.CoreTokens | None,
    rows: list[np.ndarray],
) -> np.ndarray:
    """Compare logits and greedy tokens with PyTorch's, for [prefix | prompt] rows (S_b,D); the second half are those of
    the first half with prefixes from the graphs. core: what chooses the tokens, if not the graphs in ONNX Runtime.

    Returns the tokens (B,STEPS) that follow the first half.
    """
    half, count = len(rows) // 2, len(rows)
    random = np.random.default_rng(0).integers(0, language.spec.vocab_size, checks.STEPS)  # the same in every export
    forced = np.tile(random, (count, 1))
    tokens, got = graphs.run(rows, None if core is None else core.texts())
    after = graphs.run(rows, forced)[1][:, checks.FORCED].argmax(-1) if core is None else core.after(random)
    both = np.concatenate((tokens, forced))
    want, want_after = np.split(checks.llm_logits(language.model, rows[:half] * 4, both, language.start), 2)
    for name, part in ((LLM, slice(half)), (verify.ALL_GRAPHS, slice(half, None))):
        agreement = checks.agreement(tokens[part], want[part], after[part], want_after[part])
        verifier.add(name, verify.PYTORCH, {"logits": got[part]}, {"logits": want[part]}, agreement)
    return tokens[:half]


def _compare_exact(
    verifier: verify.Verifier,
    language: LanguageModel,
    graphs: checks.LlmGraphs,
    rows: list[np.ndarray],
    tokens: np.ndarray,
) -> None:
    """Compare logits, computed in float32, with PyTorch's for the very weights that the graphs store."""
    exact_encoder = contextlib.nullcontext() if graphs.encoder is None else verify.exact(graphs.encoder)
    with verify.exact(graphs.llm) as exact_llm, exact_encoder as encoder:
        copies = checks.LlmGraphs(exact_llm, graphs.embed, encoder, language.start)
        _, got = copies.run(rows, tokens)
    want = checks.llm_logits(language.model, rows, tokens, language.start)
    verifier.add(LLM, verify.OWN_WEIGHTS, {"logits": got}, {"logits": want})
