"""Tiny configurations of every architecture of transformers that writes text, by their model_type.

One set of small values: a configuration takes those that it has a field for. Some need a few more, or fail: what cannot
be built tiny is not the exporter's matter.
"""

from __future__ import annotations

import contextlib
import json
import logging
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
from export import targets
from export.checks import verify
from export.graphs import compatibility, trace
from export.language import trace_graphs
from export.precision.quantizer import BlockFormat, Quantizer

VOCAB, WIDTH, LAYERS, HEADS, POSITIONS = 97, 64, 2, 4, 96
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "d_model": WIDTH, "n_embd": WIDTH, "embed_dim": WIDTH, "dim": WIDTH,
    "embedding_size": WIDTH, "word_embed_proj_dim": WIDTH, "emb_dim": WIDTH, "num_hidden_layers": LAYERS,
    "num_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_decoder_layers": LAYERS,
    "encoder_layers": LAYERS, "decoder_layers": LAYERS, "num_encoder_layers": LAYERS, "num_attention_heads": HEADS,
    "num_heads": HEADS, "n_head": HEADS, "n_heads": HEADS, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "num_key_value_heads": 2, "num_kv_heads": 2, "intermediate_size": 96,
    "d_ff": 96, "ffn_dim": 96, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "n_inner": 96, "ffn_hidden_size": 96,
    "dff": 96, "d_inner": 96, "d_kv": 16, "head_dim": 16, "max_position_embeddings": POSITIONS,
    "n_positions": POSITIONS, "n_ctx": POSITIONS, "max_seq_len": POSITIONS, "seq_length": POSITIONS,
    "max_target_positions": POSITIONS, "max_sequence_length": POSITIONS, "rotary_dim": 8,
    "attention_types": [[["global"], LAYERS]],
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "qk_head_dim": 24, "sliding_window": 64, "attention_dropout": 0.0, "dropout": 0.0, "activation_dropout": 0.0,
    "layerdrop": 0.0, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 0,
    "hidden_dropout": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB, "laurel_rank": 4, "query_pre_attn_scalar": 16, "is_decoder": True,
    "rms_norm_eps": 1e-6, "mamba_d_state": 8, "state_size": 8, "use_cache": True, "num_memory_blocks": 2,
    "expert_layer_period": 2, "decoder_sparse_step": 2, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip


_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> model_type, and what differs from its tiny configuration
    "opt of two widths": ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "falcon with new heads": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon with all heads": ("falcon", {
        "multi_query": False, "num_kv_heads": HEADS, "parallel_attn": False, "bias": True,
    }),
    "falcon with alibi": ("falcon", {"alibi": True}),
    "falcon with alibi and new heads": ("falcon", {
        "alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2,
    }),
    "phi3 with longrope": ("phi3", {
        "original_max_position_embeddings": 64,
        "rope_parameters": {**_ROPE, "short_factor": [1.1] * 8, "long_factor": [2.0] * 8},
    }),
    "phi3 with longrope that changes": ("phi3", {
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            **_ROPE, "original_max_position_embeddings": 32, "short_factor": [1.1] * 8, "long_factor": [2.0] * 8,
        },
    }),
    "llama with dynamic rope": ("llama", {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    }),
    "llama with yarn": ("llama", {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 48,
        }
    }),
    "mistral with a window": ("mistral", {"sliding_window": 4}),
    "gemma3_text in both directions": ("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": 6}),
    "mpt with clipped values": ("mpt", {"clip_qkv": 0.5}),
    "umt5 of tied tables": ("umt5", {"tie_word_embeddings": True}),
}  # fmt: skip


def names() -> list[str]:
    """Every model_type of a causal or a seq2seq language model of the installed transformers."""
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    seq2seq = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return sorted({*causal, *seq2seq})


def tiny_config(name: str) -> Any:
    """A configuration of the text model, or of a variant. Raise what transformers raises for one that is too small."""
    name, changed = VARIANTS.get(name, (name, {}))
    made = transformers.AutoConfig.for_model(name)
    made = made.get_text_config() if not made.is_encoder_decoder else made
    fields = {**made.to_dict(), **{key: getattr(made, key) for key in _SMALL if hasattr(made, key)}}
    fixed = {key for key in _SMALL if getattr(getattr(type(made), key, None), "fset", True) is None}  # computed
    values = {key: _SMALL[key] for key in _SMALL if fields.get(key) is not None and key not in fixed}
    for key in ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "window_layers"):
        if isinstance(fields.get(key), list | tuple) and fields[key]:
            given = list(fields[key])
            values[key] = (given[:1] + [each for each in given if each != given[0]][:1] + given)[:LAYERS]
    if made.is_encoder_decoder:
        values["decoder_start_token_id"] = 0  # T5's config has none of its own
    values |= changed
    if name == "mpt" and "clip_qkv" in changed:
        values = {"attn_config": {"clip_qkv": values.pop("clip_qkv")}, **values}
    return type(made)(**values)


def tiny_model(name: str, seed: int) -> Any:
    """A model of random weights in eval mode, whose biases and norms are no longer 0 and 1."""
    config = tiny_config(name)
    made = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


ROOM = 64  # positions that graphs are made for
LARGEST = 20_000_000  # parameters of a model that counts as tiny
MEMORY = 9 << 30  # bytes that a process may have
SECONDS = 1800  # of a processor


def judge(name: str, seed: int, verified: bool = True) -> tuple[str, str]:
    """equal, tie, refused, unbuilt; wrong or failed, which none may be; and why."""
    try:
        model = tiny_model(name, seed)
    except Exception as error:  # transformers' own, of a configuration that is too small for it
        return "unbuilt", " ".join(f"{type(error).__name__}: {error}".split())[:150]
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
        return "unbuilt", "it is not tiny"
    wrong = compatibility.unsupported_reason(model.config, "ort", verified, ROOM)
    if wrong is not None:
        return "refused", wrong
    try:
        with tempfile.TemporaryDirectory() as folder:
            error, same = _compared(model, Path(folder), seed)
    except Blip2rtError as fault:
        return "refused", str(fault)
    except Exception as fault:  # what a user would see as a traceback
        return "failed", " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
    if error >= verify.EXACT or not np.isfinite(error):
        return "wrong", f"logits differ by {error:.1e} of the largest"
    return ("equal" if same else "tie"), f"{error:.1e}"


def _compared(model: Any, folder: Path, seed: int) -> tuple[float, bool]:
    """The largest difference of logits from PyTorch's, in units of the largest; whether all tokens are the same."""
    with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
        for name, graph in trace_graphs(targets.ORT, model, ROOM):
            targets.ORT.apply(graph, "fp32", Quantizer(BlockFormat(32), data.keep), {})
            trace.save(graph, folder / f"{name}.onnx", data)
    encoder = folder / "encoder.onnx"
    start = model.config.decoder_start_token_id if encoder.exists() else None
    opened = encoder if encoder.exists() else None
    graphs = verify.LlmGraphs(folder / "llm.onnx", folder / "embed.onnx", opened, start, targets.ORT.open)
    rng, width = np.random.default_rng(seed), model.get_input_embeddings().weight.shape[1]
    rows = [rng.normal(size=(length, width)).astype(np.float32) * 0.3 for length in (3, 9, 6)]
    tokens, got = graphs.run(rows)
    want = verify.llm_logits(model, rows, tokens, start)
    same = bool((got.argmax(-1) == want.argmax(-1)).all())
    return float(np.abs(got - want).max() / np.abs(want).max()), same


def main() -> None:
    """argv: a seed and names. Print [name, what, why] of each as a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        print(json.dumps([name, *judge(name, int(sys.argv[1]))]), flush=True)


if __name__ == "__main__":
    main()
