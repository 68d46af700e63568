"""Tiny configurations of all text-generating architectures of transformers, by their model_type.

One set of small values serves all: a configuration takes those that it has fields for. Architectures that cannot be
built this way are reported as unbuilt.
"""

import contextlib
import inspect
import json
import logging
import random
import resource
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.auto import modeling_auto

from blip2rt.errors import Blip2rtError
from blip2rt.native import native
from blip2rt_export import targets
from blip2rt_export.checks import llm as checks
from blip2rt_export.checks import verify
from blip2rt_export.graphs import compatibility, trace
from blip2rt_export.language import trace_graphs
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from tests.engines.native import reference

VOCAB, WIDTH, LAYERS, HEADS, POSITIONS = 97, 64, 2, 4, 96
_VALUES: dict[str, Any] = {  # names of fields -> their value
    "hidden_size d_model n_embd embed_dim dim embedding_size word_embed_proj_dim emb_dim": WIDTH,
    "num_hidden_layers num_layers n_layer n_layers num_decoder_layers encoder_layers decoder_layers": LAYERS,
    "num_encoder_layers": LAYERS,
    "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads": HEADS,
    "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner ffn_hidden_size dff d_inner": 96,
    "max_position_embeddings n_positions n_ctx max_seq_len seq_length": POSITIONS,
    "max_target_positions max_sequence_length": POSITIONS,
    "vocab_size vocab_size_per_layer_input": VOCAB,
    "d_kv head_dim kv_lora_rank qk_nope_head_dim v_head_dim query_pre_attn_scalar": 16,
    "rotary_dim qk_rope_head_dim hidden_size_per_layer_input mamba_d_state state_size": 8,
    "num_experts num_local_experts n_routed_experts laurel_rank": 4,
    "num_key_value_heads num_kv_heads num_experts_per_tok moe_topk bos_token_id num_memory_blocks": 2,
    "expert_layer_period decoder_sparse_step": 2,
    "n_group topk_group eos_token_id first_k_dense_replace n_shared_experts": 1,
    "moe_intermediate_size shared_expert_intermediate_size": 48,
    "q_lora_rank qk_head_dim": 24,
    "sliding_window": 64,
    "num_kv_shared_layers": 0,
    "attention_dropout dropout activation_dropout layerdrop hidden_dropout attn_pdrop resid_pdrop embd_pdrop": 0.0,
    "pad_token_id decoder_start_token_id": 0,
    "rms_norm_eps": 1e-6,
    "is_decoder use_cache": True,
    "attention_types": [[["global"], LAYERS]],
}
_SMALL = {name: value for names, value in _VALUES.items() for name in names.split()}


_SCALED = {"rope_theta": 1e4, "factor": 2.0}
_YARN = {**_SCALED, "rope_type": "yarn", "original_max_position_embeddings": 48}


def _longrope(limit: int) -> dict[str, Any]:
    """Rotary tables that change beyond `limit` positions."""
    factors = {"short_factor": [1.1] * 8, "long_factor": [2.0] * 8}
    original = {"original_max_position_embeddings": limit}
    return {**original, "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **original, **factors}}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> model_type, changes to its tiny configuration
    "opt of two widths": ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "phi3 with longrope": ("phi3", _longrope(64)),
    "phi3 with longrope that changes": ("phi3", _longrope(32)),
    "llama with dynamic rope": ("llama", {"rope_parameters": {**_SCALED, "rope_type": "dynamic"}}),
    "llama with yarn": ("llama", {"rope_parameters": _YARN}),
    "mistral with a window": ("mistral", {"sliding_window": 4}),
    "moshi with a window": ("moshi", {"sliding_window": 4}),
    "llama with an epsilon of 1e-9": ("llama", {"rms_norm_eps": 1e-9}),
    "llama with heads of 10": ("llama", {"head_dim": 10}),
    "llama with heads of 100": ("llama", {"head_dim": 100}),
    "t5 with heads of 10": ("t5", {"d_kv": 10}),
}


def names() -> list[str]:
    """List the model types of causal and seq2seq language models in the installed transformers."""
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    seq2seq = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return sorted({*causal, *seq2seq})


def tiny_config(name: str, head_dim: int = 16) -> Any:
    """Make the configuration of a text model or a variant. Raises transformers' errors if it is too small."""
    name, changed = VARIANTS.get(name, (name, {}))
    default = transformers.AutoConfig.for_model(name)
    default = default.get_text_config() if not default.is_encoder_decoder else default
    fields = {**default.to_dict(), **{key: getattr(default, key) for key in _SMALL if hasattr(default, key)}}
    fixed = {key for key in _SMALL if getattr(getattr(type(default), key, None), "fset", True) is None}  # computed
    unset = {"head_dim"} & fields.keys()  # some models need it, although their config has None
    values = {key: _SMALL[key] for key in _SMALL if (fields.get(key) is not None or key in unset) and key not in fixed}
    scaled = {WIDTH: HEADS * head_dim, WIDTH // HEADS: head_dim}
    values = {key: scaled.get(value, value) if key != "sliding_window" else value for key, value in values.items()}
    for key in ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "window_layers"):
        if isinstance(fields.get(key), list | tuple) and fields[key]:
            types = list(fields[key])
            values[key] = (types[:1] + [each for each in types if each != types[0]][:1] + types)[:LAYERS]
    if default.is_encoder_decoder:
        values["decoder_start_token_id"] = 0  # T5's config has no default
    values |= changed
    return type(default)(**values)


def tiny_model(name: str, seed: int, head_dim: int = 16) -> Any:
    """Make a model with random weights in eval mode, including its biases and norms."""
    config = tiny_config(name, head_dim)
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


MAX_POSITIONS = 64
MAX_PARAMETERS = 20_000_000
MAX_MEMORY = 9 << 30  # bytes
MAX_CPU_SECONDS = 1800
OPTION_SETS = 10
ONE_WIDTH = "heads of 16 only"


def check(name: str, seed: int, verified: bool = True, head_dim: int = 16) -> tuple[str, str]:
    """Compare an architecture's graphs with transformers. Returns a kind of tests.parity.KINDS and the reason."""
    try:
        model = tiny_model(name, seed, head_dim)
        ids = torch.ones(1, 3, dtype=torch.long)
        model(input_ids=ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))
    except Exception as error:  # of transformers, for a configuration that is too small
        return "unbuilt", " ".join(f"{type(error).__name__}: {error}".split())[:150]
    if sum(parameter.numel() for parameter in model.parameters()) > MAX_PARAMETERS:
        return "unbuilt", "too large for this sweep"
    reason = compatibility.unsupported_reason(model.config, verified, MAX_POSITIONS)
    if reason is not None:
        return "refused", reason
    try:
        with tempfile.TemporaryDirectory() as folder:
            error, same = _compared(model, Path(folder), seed)
            if error >= verify.MAX_ERROR or not np.isfinite(error):
                return "wrong", f"logits differ by {error:.1e} of the largest"
            same &= _same_texts(model, Path(folder), seed)
    except Blip2rtError as refusal:
        return "refused", str(refusal)
    except AssertionError as difference:
        return "wrong", " ".join(str(difference).split())[:200]
    except Exception as failure:  # a user would see a traceback
        return "failed", " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
    return ("equal" if same else "tie"), f"{error:.1e}"


def check_widths(name: str, seed: int) -> tuple[str, str]:
    """Check an architecture with heads of 16 and, if it is exported and its variant sets no width, with heads of 12."""
    kind, reason = check(name, seed)
    if kind not in ("equal", "tie") or " with heads of " in name:
        return kind, reason
    narrow, why = check(name, seed, head_dim=12)
    if narrow == kind or narrow == "equal":
        return kind, f"{reason}, {why}"
    return (narrow, f"with heads of 12: {why}") if narrow != "unbuilt" else (kind, f"{reason}, {ONE_WIDTH}")


def _compared(model: Any, folder: Path, seed: int) -> tuple[float, bool]:
    """Return the largest error of logits, relative to the largest logit, and whether all tokens are equal."""
    with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
        for name, graph in trace_graphs(targets.ORT, model, MAX_POSITIONS):
            targets.ORT.apply(graph, "fp32", Quantizer(BlockFormat(32), data.store_large))
            trace.save(graph, folder / f"{name}.onnx", data)
    for path in folder.glob("*.onnx"):
        native.check_graph(str(path))
    encoder = folder / "encoder.onnx"
    start = model.config.decoder_start_token_id if encoder.exists() else None
    opened = encoder if encoder.exists() else None
    graphs = checks.LlmGraphs(folder / "llm.onnx", folder / "embed.onnx", opened, start, targets.ORT.open)
    rng, width = np.random.default_rng(seed), model.get_input_embeddings().weight.shape[1]
    rows = [rng.normal(size=(length, width)).astype(np.float32) * 0.3 for length in (3, 9, 6)]
    tokens, got = graphs.run(rows)
    want = checks.llm_logits(model, rows, tokens, start)
    same = bool((got.argmax(-1) == want.argmax(-1)).all())
    return float(np.abs(got - want).max() / np.abs(want).max()), same


def _same_texts(model: Any, folder: Path, seed: int) -> bool:
    """Assert that `generate` with OPTION_SETS random sets of options says what transformers says, within rounding.

    Half of them run with ONNX Runtime, half with the executor.
    """
    if "inputs_embeds" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
        return True  # transformers cannot generate from an image
    if model.config.model_type == "moshi":  # its forward pass ignores the window, after which its cache forgets
        model.config.sliding_window = POSITIONS
    rng = random.Random(seed)
    same = 0
    for core in (False, True):
        case = reference.case_of(model, reference.open_graphs(model, folder, core=core), seed, images=2)
        same += sum(reference.compare(case, reference.random_options(rng, case)) for _ in range(OPTION_SETS // 2))
    return same == OPTION_SETS


def main() -> None:
    """argv: a seed and names. Print [name, kind, reason] for each as a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        print(json.dumps([name, *check_widths(name, int(sys.argv[1]))]), flush=True)


if __name__ == "__main__":
    main()
