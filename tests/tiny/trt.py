"""A tiny random language model as a bundle of either target, written without torch.

Vision and Q-Former are those of tests/tiny/bundle.py.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from blip2rt.bundle.writer import BundleWriter
from blip2rt.native import native
from tests.tiny.bundle import D, Q, build_graphs, make_manifest, parse_graph, random_weights, save_llm_tokenizer

LAYERS, HEADS, KV_HEADS, WIDTH, POSITIONS, VOCAB = 2, 4, 2, 8, 64, 300


def random_llm_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {"embed": (VOCAB, D), "positions": (POSITIONS, D), "head": (D, VOCAB)}
    widths = {"q": (D, HEADS * WIDTH), "k": (D, KV_HEADS * WIDTH), "v": (D, KV_HEADS * WIDTH), "o": (HEADS * WIDTH, D)}
    for layer in range(LAYERS):
        shapes |= {f"{name}{layer}": shape for name, shape in widths.items()}
    made = {name: (rng.normal(size=shape) * 0.4).astype(np.float32) for name, shape in shapes.items()}
    made["head"] *= 3  # clear preferences
    return made


_HEADS = """
    {part}4_{i} = Reshape({part}_{i}, {shape})
    {part}T_{i} = Transpose <perm = [0, 2, 1, 3]> ({part}4_{i})"""
_ORT_ATTENTION = """
    mixed_{i}, present_key_{i}, present_value_{i} =
        com.microsoft.GroupQueryAttention <num_heads = {heads}, kv_num_heads = {kv_heads}>
        (q_{i}, k_{i}, v_{i}, past_key_{i}, past_value_{i}, seqlens_k, total_sequence_length)"""
_SCORES = """
    PART_key_read_{i} = Cast <to = 1> (PART_key_{i}) PART_keys_{i} = Gather <axis = 1> (PART_key_read_{i}, groups)
    PART_value_read_{i} = Cast <to = 1> (PART_value_{i})
    PART_values_{i} = Gather <axis = 1> (PART_value_read_{i}, groups)
    PART_turned_{i} = Transpose <perm = [0, 1, 3, 2]> (PART_keys_{i}) PART_raw_{i} = MatMul(qT_{i}, PART_turned_{i})
    PART_scaled_{i} = Mul(PART_raw_{i}, scale) PART_scores_{i} = Add(PART_scaled_{i}, PART_bias)"""
_READ_ONLY_ATTENTION = f"""
    new_key_{{i}} = Cast <to = {{cache}}> (kT_{{i}}) new_value_{{i}} = Cast <to = {{cache}}> (vT_{{i}})
    {_SCORES.replace("PART", "past")} {_SCORES.replace("PART", "new")}
    values_{{i}} = Concat <axis = 2> (past_values_{{i}}, new_values_{{i}})
    scores_{{i}} = Concat <axis = -1> (past_scores_{{i}}, new_scores_{{i}})
    attention_{{i}} = Softmax <axis = -1> (scores_{{i}}) out_{{i}} = MatMul(attention_{{i}}, values_{{i}})"""
_READ_ONLY_MASK = """
    past_bias = Unsqueeze(past_mask, axes)
    here = Unsqueeze(position_ids, two) there = Unsqueeze(position_ids, row) later = Greater(there, here)
    later_float = Cast <to = 1> (later) new_bias_3 = Mul(later_float, masked) new_bias = Unsqueeze(new_bias_3, row)"""


def llm(weights: dict[str, np.ndarray], target: str, half: bool = False) -> onnx.ModelProto:
    """Build the graph `llm` of docs/inside/bundle.md. Target trt: half is a float16 cache."""
    trt, cache = target == "trt", "float16" if half else "float"
    nodes = [_READ_ONLY_MASK if trt else ""]
    attention = _READ_ONLY_ATTENTION if trt else _ORT_ATTENTION
    numbers = {"heads": HEADS, "kv_heads": KV_HEADS, "scale": WIDTH**-0.5, "cache": 10 if half else 1}
    for i in range(LAYERS):
        nodes += [f"{part}_{i} = MatMul(x{i}, {part}{i})" for part in "qkv"]
        if trt:
            nodes += [_HEADS.format(part=part, shape="heads" if part == "q" else "kv", i=i) for part in "qkv"]
        nodes.append(attention.format(i=i, **numbers))
        if trt:
            nodes += [f"rows_{i} = Transpose <perm = [0, 2, 1, 3]> (out_{i})", f"mixed_{i} = Reshape(rows_{i}, flat)"]
        nodes += [f"projected_{i} = MatMul(mixed_{i}, o{i})", f"x{i + 1} = Add(x{i}, projected_{i})"]
    extra_inputs = ", float[B,T] past_mask" if trt else ", int32[B] seqlens_k, int32 total_sequence_length"
    inputs, outputs = native.component_tensors("llm", LAYERS, target=target)
    past = [
        f"{cache}[B,{KV_HEADS},T,{WIDTH}] {name}" for name in inputs if name.startswith("past_") and name[-1].isdigit()
    ]
    kept = f"{cache}[B,{KV_HEADS},{'S' if trt else 'T'},{WIDTH}]"
    present = [f"{kept} {name}" for name in outputs if re.match("present_|new_", name)]
    body = "\n".join(nodes)
    source = f"""(
        float[B,S,{D}] inputs_embeds, int64[B,S] position_ids, int64[B] last_index{extra_inputs}, {", ".join(past)}
    ) => (float[B,{VOCAB}] logits, {", ".join(present)}) {{
        at = Gather(positions, position_ids)
        x0 = Add(inputs_embeds, at)
        {body}
        index = Unsqueeze(last_index, last)
        last_row = GatherND <batch_dims = 1> (x{LAYERS}, index)
        logits = MatMul(last_row, head)
    }}"""
    constants: dict[str, Any] = {"last": [-1], "two": [2], "row": [1], "axes": [1, 2]}
    constants |= {"heads": [0, 0, HEADS, WIDTH], "kv": [0, 0, KV_HEADS, WIDTH], "flat": [0, 0, HEADS * WIDTH]}
    constants |= {"scale": np.float32(WIDTH**-0.5), "masked": np.float32(-1e9)}
    constants["groups"] = np.arange(HEADS) // (HEADS // KV_HEADS)  # each key head serves neighbouring query heads
    arrays = {**weights, **{name: np.asarray(value) for name, value in constants.items()}}
    return parse_graph(onnx, source, arrays, 19, 9)


def write_model(path: Path, model: Any, target_name: str) -> Path:
    """Write a Hugging Face language model as a bundle whose vision and Q-Former must not be run."""
    from blip2rt_export import targets

    from .language_models import write as write_llm

    config, target = model.config, targets.TARGETS[target_name]
    with BundleWriter(path) as writer:
        write_llm(target.llm_graphs(model, 64), writer.folder, target)
        names = [file.stem for file in sorted(writer.folder.glob("*.onnx"))]
        graphs = _save(writer.folder, {})
        graphs |= {name: onnx.load(writer.folder / f"{name}.onnx", load_external_data=False) for name in names}
        manifest = make_manifest(graphs, True, False)
        qformer = manifest.components["qformer"]  # which no test runs: its width is not the model's
        outputs = tuple(replace(each, shape=("B", Q, config.hidden_size)) for each in qformer.outputs)
        manifest.components["qformer"] = replace(qformer, outputs=outputs)
        inputs = manifest.components["llm"].inputs
        past = next(each for each in inputs if each.name == "past_key_0")
        encoded = bool(config.is_encoder_decoder)
        assert manifest.llm is not None
        start = config.decoder_start_token_id if encoded else None
        sizes = {"kv_heads": int(past.shape[1]), "head_dim": int(past.shape[3]), "max_positions": 64}
        sizes |= {"layers": sum(each.name.startswith("past_key_") for each in inputs)}
        sizes |= {"hidden_size": config.hidden_size, "vocab_size": config.vocab_size}
        spec = replace(manifest.llm, **sizes, encoder_decoder=encoded, decoder_start_token_id=start)
        writer.finish(replace(manifest, llm=spec, target=target.name))
    return path


def write(path: Path, weights: dict[str, np.ndarray], target: str, half: bool = False) -> Path:
    """Write a bundle that captions and asks."""
    embed = f"(int64[B,S] token_ids) => (float[B,S,{D}] token_embeds) {{ token_embeds = Gather(embed, token_ids) }}"
    language = {"embed": parse_graph(onnx, embed, weights, 19, 9), "llm": llm(weights, target, half)}
    with BundleWriter(path) as writer:
        manifest = make_manifest(_save(writer.folder, language), True, False)
        assert manifest.llm is not None
        sizes = {"layers": LAYERS, "kv_heads": KV_HEADS, "head_dim": WIDTH, "vocab_size": VOCAB}
        spec = replace(manifest.llm, **sizes, max_positions=POSITIONS, prefix_length=Q)
        writer.finish(replace(manifest, llm=spec, target=target))
    return path


def _save(folder: Path, language: dict[str, Any]) -> dict[str, Any]:
    """Save vision, qformer, the language model's graphs and its tokenizer. Return the graphs."""
    others = build_graphs(onnx, random_weights(np.random.default_rng(0)))
    graphs = {"vision": others["vision"], "qformer": others["qformer"], **language}
    for name, graph in graphs.items():
        onnx.save(graph, folder / f"{name}.onnx")
    save_llm_tokenizer(folder / "tokenizer.json")
    return graphs
