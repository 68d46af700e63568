"""A tiny bundle of real ONNX graphs with random weights, and the same in numpy."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt import bundle as contract
from blip2rt.bundle.writer import BundleWriter
from tests.seeds import new_seed

HEIGHT, WIDTH = 8, 12
N, C, Q, D, E = 6, 8, 3, 16, 4  # vision positions and width, queries, LLM width, contrastive width
HEADS, HEAD_DIM, POSITIONS = 2, 8, 64  # one key/value head
WORDS = [
    "<pad>", "</s>", "a", "dog", "cat", "man", "runs", "sits", "red", "blue", "on", "in", "the", "grass", "water",
    "Question", ":", "Answer", "what", "who", "is",
]  # fmt: skip
TEXT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "runs", "red"]
EOS = 1


@dataclass
class Tiny:
    """A bundle on disk and its weights. The methods compute in numpy what the graphs should."""

    path: Path
    weights: dict[str, np.ndarray]
    seed: int

    def vision(self, pixels: np.ndarray) -> np.ndarray:
        """pixels (B, 3, 8, 12) -> vision_features (B, 6, 8): a convolution of kernel and stride 4"""
        patches = pixels.reshape(-1, 3, 2, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(-1, N, 48)
        return patches @ self.weights["conv"].reshape(C, 48).T

    def prefix(self, features: np.ndarray) -> np.ndarray:
        return self.weights["queries"] @ features @ self.weights["project"]

    def logits(self, embeds: np.ndarray) -> np.ndarray:
        """One image's inputs_embeds (S, 16) -> the logits after the last position."""
        w = self.weights
        x = embeds + w["positions"][: len(embeds)]
        key, value = x @ w["k"], x @ w["v"]
        heads = []
        for query in np.split(x @ w["q"], HEADS, axis=1):
            scores = query[-1] @ key.T / np.sqrt(HEAD_DIM)
            attention = np.exp(scores - scores.max())
            heads.append(attention / attention.sum() @ value)
        return (x[-1] + np.concatenate(heads) @ w["o"]) @ w["head"]

    def greedy(self, prefix: np.ndarray, prompt: list[int], most: int) -> list[int]:
        """One image's prefix (3, 16) and prompt -> new token ids."""
        ids: list[int] = []
        while len(ids) < most:
            logits = self.logits(np.concatenate([prefix, self.weights["embed"][prompt + ids]]))
            if not ids:
                logits[EOS] = -np.inf  # min_new_tokens 1
            ids.append(int(logits.argmax()))
            if ids[-1] == EOS:
                return ids[:-1]
        return ids


def tiny_bundle(path: Path, seed: int) -> Tiny:
    """A bundle at `path` that captions, asks, matches and embeds."""
    weights = random_weights(np.random.default_rng(seed))
    write_bundle(path, weights)
    return Tiny(path, weights, seed)


def random_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {
        "conv": (C, 3, 4, 4), "queries": (Q, N), "project": (C, D), "embed": (len(WORDS), D),
        "positions": (POSITIONS, D),
        "q": (D, HEADS * HEAD_DIM), "k": (D, HEAD_DIM), "v": (D, HEAD_DIM), "o": (HEADS * HEAD_DIM, D),
        "head": (D, len(WORDS)), "image_project": (C, E), "text_table": (len(TEXT_WORDS), E), "text_itm": (E, 2),
        "image_itm": (C, 2),
    }  # fmt: skip
    made = {name: (rng.normal(size=shape) * 0.5).astype(np.float32) for name, shape in shapes.items()}
    made["head"][:, WORDS.index("<pad>")] = 0  # never the likeliest: every model has something to say
    return made


def _onnx() -> Any:
    import pytest  # not at the top: benchmarks.gpu_day makes bundles where there is no pytest

    return pytest.importorskip("onnx")


def write_bundle(path: Path, weights: dict[str, np.ndarray], generative: bool = True, retrieval: bool = True) -> None:
    onnx = _onnx()
    graphs = build_graphs(onnx, weights)
    names = [contract.VISION, *contract.GENERATIVE * generative, *contract.RETRIEVAL * retrieval]
    with BundleWriter(path) as writer:
        for name in names:
            onnx.save(graphs[name], writer.folder / f"{name}.onnx")
        if generative:
            save_llm_tokenizer(writer.folder / "tokenizer.json")
        if retrieval:
            save_text_tokenizer(writer.folder / "qformer_tokenizer.json")
        writer.finish(make_manifest({name: graphs[name] for name in names}, generative, retrieval))


def weighing(tiny: Tiny, path: Path, weight: float, **prompts: str) -> Path:
    """A copy of a tiny bundle whose Match.score weighs likelihoods, with a random mean_prefix; other prompts."""
    shutil.copytree(tiny.path, path, dirs_exist_ok=True)
    mean = np.random.default_rng(tiny.seed).normal(size=(Q, D)).astype("<f4")
    mean.tofile(path / "mean_prefix.data")
    manifest = json.loads((path / contract.MANIFEST).read_text())
    manifest["retrieval"] |= {"likelihood_weight": weight, "mean_prefix": "mean_prefix.data"}
    manifest["files"]["mean_prefix.data"] = {"size": mean.nbytes, "sha256": hashlib.sha256(mean.tobytes()).hexdigest()}
    manifest["prompts"] |= prompts
    (path / contract.MANIFEST).write_text(json.dumps(manifest))
    return path


def write_trt_encoder(path: Path) -> None:
    """A bundle of the target trt that holds a random image encoder alone."""
    onnx = _onnx()
    graph = build_graphs(onnx, random_weights(np.random.default_rng(new_seed())))[contract.VISION]
    with BundleWriter(path) as writer:
        onnx.save(graph, writer.folder / f"{contract.VISION}.onnx")
        writer.finish(replace(make_manifest({contract.VISION: graph}, False, False), target="trt"))


def make_manifest(graphs: dict[str, Any], generative: bool, retrieval: bool) -> contract.Manifest:
    def tensors(values: Any) -> tuple[contract.TensorInfo, ...]:
        types = {1: "float32", 6: "int32", 7: "int64", 10: "float16"}
        return tuple(
            contract.TensorInfo(
                value.name,
                types[value.type.tensor_type.elem_type],
                tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    llm = contract.LlmSpec(
        layers=1, kv_heads=1, head_dim=HEAD_DIM, hidden_size=D, vocab_size=len(WORDS), max_positions=POSITIONS,
        prefix_length=Q, bos_token_id=None, prepend_bos=False, eos_token_ids=(EOS,), pad_token_id=0,
        tokenizer="tokenizer.json",
    )  # fmt: skip
    return contract.Manifest(
        name="tiny",
        created_by="the tests",
        components={
            name: contract.Component(f"{name}.onnx", "fp32", tensors(model.graph.input), tensors(model.graph.output))
            for name, model in graphs.items()
        },
        image=contract.ImageSpec(HEIGHT, WIDTH, "bicubic", (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)),
        llm=llm if generative else None,
        retrieval=contract.RetrievalSpec("qformer_tokenizer.json", 6, 0) if retrieval else None,
        prompts={"caption": "", "ask": "Question : {} Answer :"} if generative else {},
        decoding={"caption": contract.Decoding(3, 8), "ask": contract.Decoding(2, 4)} if generative else {},
        sources=(contract.Source("all", "random numbers", "CC0-1.0", "the tests"),),
        verification=(contract.Verification("vision", "fp32", 0.0, 1.0),),
    )


def build_graphs(onnx: Any, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """The seven graphs of docs/design.md, as small as they get."""
    helper, float_, int64, int32 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32

    def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs.split(), outputs.split(), **attributes)

    def value(name: str, shape: str, dtype: int = float_) -> Any:
        return helper.make_tensor_value_info(name, dtype, [int(d) if d.isdigit() else d for d in shape.split()])

    def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> Any:
        used = {name for n in nodes for name in n.input}
        arrays = {**{k: v for k, v in weights.items() if k in used}, **{k: np.array(v) for k, v in constants.items()}}
        tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    features, ids = value("vision_features", f"B {N} {C}"), value("token_ids", "B L", int64)
    mask = value("text_mask", "B L", int64)
    pooled = [
        node("Gather", "text_table token_ids", "rows"), node("Cast", "text_mask", "float_mask", to=float_),
        node("Unsqueeze", "float_mask last", "column"), node("Mul", "rows column", "kept"),
        node("ReduceSum", "kept one", "pooled", keepdims=0),
    ]  # fmt: skip
    attention = node(
        "GroupQueryAttention", "q_ k_ v_ past_key_0 past_value_0 seqlens_k total_sequence_length",
        "attended present_key_0 present_value_0", domain="com.microsoft", num_heads=HEADS, kv_num_heads=1,
    )  # fmt: skip
    cache = f"B 1 T {HEAD_DIM}"
    llm = [
        node("Gather", "positions position_ids", "at"), node("Add", "inputs_embeds at", "x"),
        node("MatMul", "x q", "q_"), node("MatMul", "x k", "k_"), node("MatMul", "x v", "v_"), attention,
        node("MatMul", "attended o", "mixed"), node("Add", "x mixed", "y"),
        node("Unsqueeze", "last_index last", "index"),
        node("GatherND", "y index", "last_row", batch_dims=1), node("MatMul", "last_row head", "logits"),
    ]  # fmt: skip
    llm_inputs = [
        value("inputs_embeds", f"B S {D}"), value("position_ids", "B S", int64), value("last_index", "B", int64),
        value("seqlens_k", "B", int32), value("total_sequence_length", "", int32),
        value("past_key_0", cache), value("past_value_0", cache),
    ]  # fmt: skip
    llm_outputs = [value("logits", f"B {len(WORDS)}"), value("present_key_0", cache), value("present_value_0", cache)]
    return {
        "vision": model(
            [node("Conv", "pixels conv", "map", strides=[4, 4]), node("Reshape", "map flat", "rows"),
             node("Transpose", "rows", "vision_features", perm=[0, 2, 1])],
            [value("pixels", f"B 3 {HEIGHT} {WIDTH}")], [features], flat=[0, C, N],
        ),
        "qformer": model(
            [node("MatMul", "queries vision_features", "query_output"),
             node("MatMul", "query_output project", "prefix_embeds")],
            [features], [value("query_output", f"B {Q} {C}"), value("prefix_embeds", f"B {Q} {D}")],
        ),
        "embed": model([node("Gather", "embed token_ids", "token_embeds")],
                       [value("token_ids", "B S", int64)], [value("token_embeds", f"B S {D}")]),
        "llm": model(llm, llm_inputs, llm_outputs, last=[-1]),
        "image_embed": model(
            [node("MatMul", "queries vision_features", "query_output"),
             node("MatMul", "query_output image_project", "e"),
             node("LpNormalization", "e", "image_embeds", axis=-1)],
            [features], [value("image_embeds", f"B {Q} {E}")],
        ),
        "text_embed": model([*pooled, node("LpNormalization", "pooled", "text_embeds", axis=-1)],
                            [ids, mask], [value("text_embeds", f"B {E}")], last=[-1], one=[1]),
        "itm": model(
            [*pooled, node("ReduceMean", "vision_features", "mean", axes=[1], keepdims=0),
             node("MatMul", "mean image_itm", "image_part"), node("MatMul", "pooled text_itm", "text_part"),
             node("Add", "image_part text_part", "itm_logits")],
            [features, ids, mask], [value("itm_logits", "B 2")], last=[-1], one=[1],
        ),
    }  # fmt: skip


def save_llm_tokenizer(path: Path) -> None:
    """Words between spaces; two of them are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.save(str(path))


def save_text_tokenizer(path: Path) -> None:
    """As BERT's: [CLS] words [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(TEXT_WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=32)  # settings that a tokenizer's file may bring, and must not matter
    tokenizer.save(str(path))
