"""A tiny bundle of real ONNX graphs with random weights, and the same computation in numpy.

`python -m tests.tiny.bundle FOLDER` writes one that is calibrated.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt.bundle import manifest as contract
from blip2rt.bundle.checksum import EMPTY, KEY, insert_checksum
from blip2rt.bundle.manifest import Calibration, Logistic, Manifest, TensorInfo
from blip2rt.bundle.names import GENERATIVE, MANIFEST, RETRIEVAL, VISION
from blip2rt.bundle.writer import BundleWriter
from tests.seeds import new_seed

HEIGHT, WIDTH = 8, 12
N, C, Q, D, E = 6, 8, 3, 16, 4  # vision positions and width, queries, LLM width, contrastive width
HEADS, HEAD_DIM, POSITIONS = 2, 8, 64  # one key/value head
WORDS = "<pad> </s> a dog cat man runs sits red blue on in the grass water Question : Answer what who is".split()
TEXT_WORDS = "[PAD] [UNK] [CLS] [SEP] a dog cat runs red".split()
EOS = 1
_PHRASE = {"name_cosine": 2.0, "query_1": -0.7, "base_cosine": 0.5, "phrase_likelihood": 0.3, "yes": 0.4}
CALIBRATION = Calibration(
    phrase=Logistic(0.3, _PHRASE | {"yes_blind": -0.2}),
    sentence=Logistic(-0.2, {"cosine": 1.5, "itm": 0.6, "likelihood": -0.1, "words": 0.05}),
    label=Logistic(0.1, {"nearness": 1.3, "told": 2.0}),
    caption=Logistic(0.4, {"cosine": 0.7, "likelihood": 0.2, "score": 0.9, "words": -0.1}),
    nearness=Logistic(0.0, {"name_cosine": 1.0, "query_0": -0.5}),
    label_text=tuple(np.linspace(0.5, -0.5, E).tolist()),
    mean_text=tuple(np.linspace(-1, 1, E).tolist()),
)


@dataclass
class Tiny:
    """A bundle on disk and its weights. The methods compute in numpy what its graphs compute."""

    path: Path
    weights: dict[str, np.ndarray]
    seed: int

    def vision(self, pixels: np.ndarray) -> np.ndarray:
        """pixels (B,3,8,12) -> vision_features (B,6,8): a convolution of kernel and stride 4"""
        patches = pixels.reshape(-1, 3, 2, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(-1, N, 48)
        return patches @ self.weights["conv"].reshape(C, 48).T

    def prefix(self, features: np.ndarray) -> np.ndarray:
        return self.weights["queries"] @ features @ self.weights["project"]

    def logits(self, embeds: np.ndarray) -> np.ndarray:
        """One image's inputs_embeds (S,16) -> the logits after the last position"""
        w = self.weights
        x = embeds + w["positions"][: len(embeds)]
        key, value = x @ w["k"], x @ w["v"]
        heads = []
        for query in np.split(x @ w["q"], HEADS, axis=1):
            scores = query[-1] @ key.T / np.sqrt(HEAD_DIM)
            attention = np.exp(scores - scores.max())
            heads.append(attention / attention.sum() @ value)
        return (x[-1] + np.concatenate(heads) @ w["o"]) @ w["head"]

    def greedy(self, prefix: np.ndarray, prompt: list[int], max_new_tokens: int) -> list[int]:
        """One image's prefix (3,16) and prompt -> new token ids"""
        ids: list[int] = []
        while len(ids) < max_new_tokens:
            logits = self.logits(np.concatenate([prefix, self.weights["embed"][prompt + ids]]))
            if not ids:
                logits[EOS] = -np.inf  # min_new_tokens 1
            ids.append(int(logits.argmax()))
            if ids[-1] == EOS:
                return ids[:-1]
        return ids


def tiny_bundle(path: Path, seed: int) -> Tiny:
    """Write a bundle to `path` that captions, asks, matches and embeds."""
    weights = random_weights(np.random.default_rng(seed))
    write_bundle(path, weights)
    return Tiny(path, weights, seed)


def random_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {"conv": (C, 3, 4, 4), "queries": (Q, N), "project": (C, D), "embed": (len(WORDS), D)}
    shapes |= {"positions": (POSITIONS, D), "q": (D, HEADS * HEAD_DIM), "k": (D, HEAD_DIM), "v": (D, HEAD_DIM)}
    shapes |= {"o": (HEADS * HEAD_DIM, D), "head": (D, len(WORDS)), "image_project": (C, E)}
    shapes |= {"text_table": (len(TEXT_WORDS), E), "text_itm": (E, 2), "image_itm": (C, 2)}
    made = {name: (rng.normal(size=shape) * 0.5).astype(np.float32) for name, shape in shapes.items()}
    made["head"][:, WORDS.index("<pad>")] = 0  # never the likeliest: every model has something to say
    return made


def write_bundle(path: Path, weights: dict[str, np.ndarray], generative: bool = True, retrieval: bool = True) -> None:
    import pytest  # not at the top: other programs make bundles without pytest

    onnx = pytest.importorskip("onnx")
    graphs = build_graphs(onnx, weights)
    names = [VISION, *GENERATIVE * generative, *RETRIEVAL * retrieval]
    with BundleWriter(path) as writer:
        for name in names:
            onnx.save(graphs[name], writer.folder / f"{name}.onnx")
        if generative:
            save_llm_tokenizer(writer.folder / "tokenizer.json")
        if retrieval:
            save_text_tokenizer(writer.folder / "qformer_tokenizer.json")
        writer.finish(make_manifest({name: graphs[name] for name in names}, generative, retrieval))


def with_likelihood_weight(tiny: Tiny, path: Path, weight: float, **prompts: str) -> Path:
    """Copy a tiny bundle; Match.score of the copy weighs likelihoods, with a random mean_prefix. Changes prompts."""
    shutil.copytree(tiny.path, path, dirs_exist_ok=True)
    mean = np.random.default_rng(tiny.seed).normal(size=(Q, D)).astype("<f4")
    mean.tofile(path / "mean_prefix.data")
    weighs = {"likelihood_weight": weight, "mean_prefix": "mean_prefix.data"}
    return changed(path, "mean_prefix.data", retrieval=weighs, prompts=prompts)


def with_pool(folder: Path, captions: Sequence[str]) -> Path:
    """Give a bundle a pool of captions."""
    import blip2rt
    from blip2rt.matching.pool import build_pool

    text, pool = folder / "captions.txt", folder / "captions.pool"
    text.write_text("\n".join(captions))
    build_pool(text, pool, blip2rt.load(folder, threads=1).pipeline)
    text.unlink()
    return changed(folder, pool.name, retrieval={"pool": pool.name})


def calibrated(folder: Path, calibration: Calibration) -> Path:
    """Put a calibration into a bundle's manifest."""
    return changed(folder, calibration=asdict(calibration))


def changed(folder: Path, new_file: str = "", **sections: dict[str, Any]) -> Path:
    """Change fields in sections of a bundle's manifest, and list a new file."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if new_file:
        data = (folder / new_file).read_bytes()
        manifest["files"][new_file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest |= {name: {**(manifest.get(name) or {}), **fields} for name, fields in sections.items()}
    (folder / MANIFEST).write_bytes(insert_checksum(json.dumps(manifest | {KEY: EMPTY}).encode()))
    return folder


def with_nodes(folder: Path, component: str, output: str, nodes: str) -> Path:
    """Append nodes to a graph, which make `output` of its old value, named made. Declared shapes and hashes stay valid.

    nodes: in ONNX's textual format, with the constants zero, one, two and last (each one number in a list).
    """
    import onnx

    file = folder / f"{component}.onnx"
    model = onnx.load(file)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["made" if name == output else name for name in names]
    constants = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "last": np.array([-1])}
    more = parse_graph(onnx, f"(float[B] made) => (float[B] {output}) {{ {nodes} }}", constants, 17, 8).graph
    given = {each.name for each in model.graph.initializer}
    model.graph.initializer.extend(each for each in more.initializer if each.name not in given)
    model.graph.node.extend(more.node)
    onnx.save(model, file)
    return changed(folder, file.name)


def make_manifest(graphs: dict[str, Any], generative: bool, retrieval: bool) -> Manifest:
    def tensors(values: Any) -> tuple[TensorInfo, ...]:
        types = {1: "float32", 6: "int32", 7: "int64", 10: "float16"}
        return tuple(
            TensorInfo(
                value.name,
                types[value.type.tensor_type.elem_type],
                tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    sizes = {"layers": 1, "kv_heads": 1, "head_dim": HEAD_DIM, "hidden_size": D, "vocab_size": len(WORDS)}
    tokens = {"bos_token_id": None, "prepend_bos": False, "eos_token_ids": (EOS,), "pad_token_id": 0}
    lengths = {"max_positions": POSITIONS, "prefix_length": Q}
    llm = contract.LlmSpec(**sizes, **lengths, **tokens, tokenizer="tokenizer.json")
    return Manifest(
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
    """Build the seven graphs of a bundle, as small as possible."""
    features, cache = f"float[B,{N},{C}] vision_features", f"float[B,1,T,{HEAD_DIM}]"
    text = "int64[B,L] token_ids, int64[B,L] text_mask"
    pooling = """
        rows = Gather(text_table, token_ids)
        float_mask = Cast <to = 1> (text_mask)
        column = Unsqueeze(float_mask, last)
        kept = Mul(rows, column)
        pooled = ReduceSum <keepdims = 0> (kept, one)"""
    sources = {
        "vision": f"""(float[B,3,{HEIGHT},{WIDTH}] pixels) => ({features}) {{
            map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (pixels, conv)
            rows = Reshape(map, flat)
            vision_features = Transpose <perm = [0, 2, 1]> (rows)
        }}""",
        "qformer": f"""({features}) => (float[B,{Q},{C}] query_output, float[B,{Q},{D}] prefix_embeds) {{
            query_output = MatMul(queries, vision_features)
            prefix_embeds = MatMul(query_output, project)
        }}""",
        "embed": f"""(int64[B,S] token_ids) => (float[B,S,{D}] token_embeds) {{
            token_embeds = Gather(embed, token_ids)
        }}""",
        "llm": f"""(
            float[B,S,{D}] inputs_embeds, int64[B,S] position_ids, int64[B] last_index, int32[B] seqlens_k,
            int32 total_sequence_length, {cache} past_key_0, {cache} past_value_0
        ) => (float[B,{len(WORDS)}] logits, {cache} present_key_0, {cache} present_value_0) {{
            at = Gather(positions, position_ids)
            x = Add(inputs_embeds, at)
            q_ = MatMul(x, q)
            k_ = MatMul(x, k)
            v_ = MatMul(x, v)
            attended, present_key_0, present_value_0 =
                com.microsoft.GroupQueryAttention <num_heads = {HEADS}, kv_num_heads = 1>
                (q_, k_, v_, past_key_0, past_value_0, seqlens_k, total_sequence_length)
            mixed = MatMul(attended, o)
            y = Add(x, mixed)
            index = Unsqueeze(last_index, last)
            last_row = GatherND <batch_dims = 1> (y, index)
            logits = MatMul(last_row, head)
        }}""",
        "image_embed": f"""({features}) => (float[B,{Q},{E}] image_embeds) {{
            query_output = MatMul(queries, vision_features)
            e = MatMul(query_output, image_project)
            {normalized("e", "image_embeds")}
        }}""",
        "text_embed": f"""({text}) => (float[B,{E}] text_embeds) {{{pooling}
            {normalized("pooled", "text_embeds")}
        }}""",
        "itm": f"""({features}, {text}) => (float[B,2] itm_logits) {{{pooling}
            mean = ReduceMean <axes = [1], keepdims = 0> (vision_features)
            image_part = MatMul(mean, image_itm)
            text_part = MatMul(pooled, text_itm)
            itm_logits = Add(image_part, text_part)
        }}""",
    }
    constants = {"last": np.array([-1]), "one": np.array([1]), "flat": np.array([0, C, N])}
    return {name: parse_graph(onnx, source, {**weights, **constants}, 17, 8) for name, source in sources.items()}


def normalized(x: str, y: str) -> str:
    """Nodes that divide the rows of x by their length."""
    return f"squares = Mul({x}, {x}) sum = ReduceSum(squares, last) norm = Sqrt(sum) {y} = Div({x}, norm)"


def parse_graph(onnx: Any, source: str, constants: dict[str, np.ndarray], opset: int, ir_version: int) -> Any:
    """Make a model of ONNX's textual format: (inputs) => (outputs) { nodes }, with the constants that it uses."""
    graph = onnx.parser.parse_graph(f"tiny {source}")
    used = {name for node in graph.node for name in node.input}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items() if name in used]
    graph.initializer.extend(tensors)
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def save_llm_tokenizer(path: Path) -> None:
    """Save a tokenizer of words between spaces; two of them are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.save(str(path))


def save_text_tokenizer(path: Path) -> None:
    """Save a tokenizer like BERT's: [CLS] words [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(TEXT_WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=32)  # a tokenizer's file may set this, and it must have no effect
    tokenizer.save(str(path))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        plain = tiny_bundle(Path(temporary) / "tiny", new_seed())
        calibrated(with_likelihood_weight(plain, Path(sys.argv[1]), 0.4), CALIBRATION)
