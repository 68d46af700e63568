"""A tiny language model of random weights as a bundle of either target, written node by node: with more words than a
step returns of the likeliest, and without torch. Vision and Q-Former are those of tests/tiny/bundle.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from blip2rt import bundle as contract
from blip2rt.bundle.writer import BundleWriter
from tests.tiny.bundle import D, Q, build_graphs, make_manifest, random_weights, save_llm_tokenizer

LAYERS, HEADS, KV_HEADS, WIDTH, POSITIONS, VOCAB = 2, 4, 2, 8, 64, 300


def weights_of(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {"embed": (VOCAB, D), "positions": (POSITIONS, D), "head": (D, VOCAB)}
    for layer in range(LAYERS):
        shapes |= {f"q{layer}": (D, HEADS * WIDTH), f"k{layer}": (D, KV_HEADS * WIDTH),
                   f"v{layer}": (D, KV_HEADS * WIDTH), f"o{layer}": (HEADS * WIDTH, D)}  # fmt: skip
    made = {name: (rng.normal(size=shape) * 0.4).astype(np.float32) for name, shape in shapes.items()}
    made["head"] *= 3  # decided opinions
    return made


def llm(weights: dict[str, np.ndarray], target: str, half: bool = False, in_place: bool = False) -> onnx.ModelProto:
    """The graph `llm` of docs/bundle.md. Of the target trt: half, its cache is float16; in_place, it writes it."""
    float_, int64 = TensorProto.FLOAT, TensorProto.INT64
    constants: dict[str, np.ndarray] = {
        "last": np.array([-1]), "scale": np.array(WIDTH**-0.5, np.float32), "masked": np.array(-1e9, np.float32),
        "heads": np.array([0, 0, HEADS, WIDTH]), "kv": np.array([0, 0, KV_HEADS, WIDTH]), "one": np.array([1]),
        "flat": np.array([0, 0, HEADS * WIDTH]), "k": np.array([contract.TOP_K]), "axes": np.array([1, 2]),
        "two": np.array([2]), "row": np.array([1]), "zero": np.array(0), "unit": np.array(1),
    }  # fmt: skip
    nodes: list[Any] = []

    def node(op: str, inputs: str, outputs: str, **attributes: Any) -> None:
        given = ["" if name == "-" else name for name in inputs.split()]
        nodes.append(helper.make_node(op, given, outputs.split(), **attributes))

    node("Gather", "positions position_ids", "at")
    node("Add", "inputs_embeds at", "x0")
    if in_place:
        node("Gather", "position_ids zero", "start", axis=1)
        node("Add", "start last_index", "end")
        node("Add", "end unit", "valid")
        node("Shape", "past_key_0", "sizes")
        node("Gather", "sizes capacity_at", "capacity")
        node("Range", "zero capacity unit", "slots")
        node("Unsqueeze", "position_ids two", "here")
        node("LessOrEqual", "slots here", "seen_3")
        node("Unsqueeze", "seen_3 row", "seen")
    elif target == "trt":
        node("Unsqueeze", "past_mask axes", "past_bias")
        node("Unsqueeze", "position_ids two", "here")
        node("Unsqueeze", "position_ids row", "there")
        node("Greater", "there here", "later")
        node("Cast", "later", "later_float", to=float_)
        node("Mul", "later_float masked", "new_bias_3")
        node("Unsqueeze", "new_bias_3 row", "new_bias")
    for i in range(LAYERS):
        for part in "qkv":
            node("MatMul", f"x{i} {part}{i}", f"{part}_{i}")
        if target == "ort":
            node("GroupQueryAttention",
                 f"q_{i} k_{i} v_{i} past_key_{i} past_value_{i} seqlens_k total_sequence_length",
                 f"mixed_{i} present_key_{i} present_value_{i}", domain="com.microsoft", num_heads=HEADS,
                 kv_num_heads=KV_HEADS)  # fmt: skip
        elif in_place:
            for part, shape in (("q", "heads"), ("k", "kv"), ("v", "kv")):
                node("Reshape", f"{part}_{i} {shape}", f"{part}4_{i}")
                node("Transpose", f"{part}4_{i}", f"{part}T_{i}", perm=[0, 2, 1, 3])
                node("Cast", f"{part}T_{i}", f"{part}C_{i}", to=TensorProto.FLOAT16 if half else float_)
            for part, name in (("k", "key"), ("v", "value")):
                node("TensorScatter", f"past_{name}_{i} {part}C_{i} start", f"present_{name}_{i}", axis=-2)
            node("Attention", f"qC_{i} present_key_{i} present_value_{i} seen - - valid", f"out_typed_{i}",
                 scale=WIDTH**-0.5)  # fmt: skip
            node("Cast", f"out_typed_{i}", f"out_{i}", to=float_)
            node("Transpose", f"out_{i}", f"rows_{i}", perm=[0, 2, 1, 3])
            node("Reshape", f"rows_{i} flat", f"mixed_{i}")
        else:
            for part, shape, out in (("q", "heads", f"query_{i}"), ("k", "kv", f"new_key_{i}"),
                                     ("v", "kv", f"new_value_{i}")):  # fmt: skip
                node("Reshape", f"{part}_{i} {shape}", f"{part}4_{i}")
                cached = half and part != "q"
                node("Transpose", f"{part}4_{i}", f"{out}_wide" if cached else out, perm=[0, 2, 1, 3])
                if cached:
                    node("Cast", f"{out}_wide", out, to=TensorProto.FLOAT16)
            for source in ("past", "new"):
                for part in ("key", "value"):  # each key head serves HEADS / KV_HEADS neighbours
                    read = f"{source}_{part}_{i}"
                    if half:
                        node("Cast", read, f"{read}_read", to=float_)
                        read = f"{read}_read"
                    node("Gather", f"{read} groups", f"{source}_{part}s_{i}", axis=1)
                node("Transpose", f"{source}_keys_{i}", f"{source}_turned_{i}", perm=[0, 1, 3, 2])
                node("MatMul", f"query_{i} {source}_turned_{i}", f"{source}_raw_{i}")
                node("Mul", f"{source}_raw_{i} scale", f"{source}_scaled_{i}")
                node("Add", f"{source}_scaled_{i} {source}_bias", f"{source}_scores_{i}")
            node("Concat", f"past_values_{i} new_values_{i}", f"values_{i}", axis=2)
            node("Concat", f"past_scores_{i} new_scores_{i}", f"scores_{i}", axis=-1)
            node("Softmax", f"scores_{i}", f"attention_{i}", axis=-1)
            node("MatMul", f"attention_{i} values_{i}", f"out_{i}")
            node("Transpose", f"out_{i}", f"rows_{i}", perm=[0, 2, 1, 3])
            node("Reshape", f"rows_{i} flat", f"mixed_{i}")
        node("MatMul", f"mixed_{i} o{i}", f"projected_{i}")
        node("Add", f"x{i} projected_{i}", f"x{i + 1}")
    node("Unsqueeze", "last_index last", "index")
    node("GatherND", f"x{LAYERS} index", "last_row", batch_dims=1)
    node("MatMul", "last_row head", "logits")
    if target == "trt":
        node("TopK", "logits k", "top_logits top_tokens", axis=-1)
        node("ReduceLogSumExp", "logits one", "log_sum_exp", keepdims=1)
    constants["capacity_at"] = np.array(2)
    constants["groups"] = np.arange(HEADS) // (HEADS // KV_HEADS)

    def value(name: str, *shape: Any, dtype: int = float_) -> Any:
        return helper.make_tensor_value_info(name, dtype, shape)

    inputs = [value("inputs_embeds", "B", "S", D), value("position_ids", "B", "S", dtype=int64),
              value("last_index", "B", dtype=int64)]  # fmt: skip
    outputs = [value("logits", "B", VOCAB)]
    if target == "ort":
        inputs += [value("seqlens_k", "B", dtype=TensorProto.INT32),
                   value("total_sequence_length", dtype=TensorProto.INT32)]  # fmt: skip
    else:
        inputs += [] if in_place else [value("past_mask", "B", "T")]
        outputs += [value("top_logits", "B", contract.TOP_K), value("top_tokens", "B", contract.TOP_K, dtype=int64),
                    value("log_sum_exp", "B", 1)]  # fmt: skip
    names = contract.llm_tensors(LAYERS, target=target, in_place=in_place)
    cache, length = TensorProto.FLOAT16 if half else float_, "T" if target == "ort" or in_place else "S"
    inputs += [value(name, "B", KV_HEADS, "T", WIDTH, dtype=cache) for name in names[0]
               if name.startswith(("past_key", "past_value"))]  # fmt: skip
    outputs += [value(name, "B", KV_HEADS, length, WIDTH, dtype=cache) for name in names[1]
                if name.startswith(("present_", "new_"))]  # fmt: skip
    used = {name for each in nodes for name in each.input}
    tensors = [numpy_helper.from_array(array, name) for name, array in {**weights, **constants}.items() if name in used]
    graph = helper.make_graph(nodes, "llm", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 24 if in_place else 19), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11 if in_place else 9)


def write_model(path: Path, model: Any, target_name: str) -> Path:
    """A Hugging Face language model as a bundle whose other graphs are not to be run."""
    from export import targets

    from .language_models import write as write_llm

    config, others = model.config, build_graphs(onnx, random_weights(np.random.default_rng(0)))
    target = targets.TARGETS[target_name]
    with BundleWriter(path) as writer:
        write_llm(target.llm_graphs(model, 64), writer.folder, target)
        graphs = {name: others[name] for name in ("vision", "qformer")}
        for name, graph in graphs.items():
            onnx.save(graph, writer.folder / f"{name}.onnx")
        for file in sorted(writer.folder.glob("*.onnx")):
            graphs.setdefault(file.stem, onnx.load(file, load_external_data=False))
        save_llm_tokenizer(writer.folder / "tokenizer.json")
        manifest = make_manifest(graphs, True, False)
        past = next(each for each in manifest.components["llm"].inputs if each.name == "past_key_0")
        layers = sum(each.name.startswith("past_key_") for each in manifest.components["llm"].inputs)
        encoded = bool(config.is_encoder_decoder)
        assert manifest.llm is not None
        spec = replace(
            manifest.llm, layers=layers, kv_heads=int(past.shape[1]), head_dim=int(past.shape[3]),
            hidden_size=config.hidden_size, vocab_size=config.vocab_size, max_positions=64, encoder_decoder=encoded,
            decoder_start_token_id=config.decoder_start_token_id if encoded else None,
        )  # fmt: skip
        writer.finish(replace(manifest, llm=spec, target=target.name))
    return path


def write(path: Path, weights: dict[str, np.ndarray], target: str, half: bool = False, in_place: bool = False) -> Path:
    """A bundle that captions and asks."""
    others = build_graphs(onnx, random_weights(np.random.default_rng(0)))
    embed = helper.make_graph(
        [helper.make_node("Gather", ["embed", "token_ids"], ["token_embeds"])], "embed",
        [helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["B", "S"])],
        [helper.make_tensor_value_info("token_embeds", TensorProto.FLOAT, ["B", "S", D])],
        [numpy_helper.from_array(weights["embed"], "embed")],
    )  # fmt: skip
    graphs = {
        "vision": others["vision"], "qformer": others["qformer"],
        "embed": helper.make_model(embed, opset_imports=[helper.make_opsetid("", 19)], ir_version=9),
        "llm": llm(weights, target, half, in_place),
    }  # fmt: skip
    manifest = make_manifest(graphs, True, False)
    assert manifest.llm is not None
    spec = replace(manifest.llm, layers=LAYERS, kv_heads=KV_HEADS, head_dim=WIDTH, vocab_size=VOCAB,
                   max_positions=POSITIONS, prefix_length=Q)  # fmt: skip
    with BundleWriter(path) as writer:
        for name, graph in graphs.items():
            onnx.save(graph, writer.folder / f"{name}.onnx")
        save_llm_tokenizer(writer.folder / "tokenizer.json")
        writer.finish(replace(manifest, llm=spec, target=target))
    return path
