"""llama.cpp in Q4_0, language model only: prefill and steps.

    python -m blip2rt.bench.peers.llama_cpp_peer JSON

The bundle's language model must have the layers of Llama, as nano's has. All matrices, the embedding's table among
them, are written as random blocks of 4 bits to a temporary GGUF file without a tokenizer. Greedy search only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import onnx

from ...bundle import Bundle, read
from ..machine import peak_rss
from .timing import generation_stages, main

_Q4 = gguf.GGMLQuantizationType.Q4_0
_BLOCK, _BLOCK_BYTES = gguf.GGML_QUANT_SIZES[_Q4]
_STD = 0.02  # of random weights


def write_model(bundle: Bundle, path: Path) -> None:
    """Write random weights of the bundle's geometry. Raises ValueError if its layers are not Llama's."""
    spec = bundle.manifest.llm
    assert spec is not None, "the caller checks that the bundle captions"
    nodes = onnx.load(str(bundle.graph("llm")), load_external_data=False).graph.node
    values = [(node.op_type, {each.name: each.i for each in node.attribute}) for node in nodes]
    sizes = [(each["N"], each["K"]) for kind, each in values if kind == "MatMulNBits"]
    heads = next((each["num_heads"] for kind, each in values if kind == "GroupQueryAttention"), 0)
    width, ffn = spec.hidden_size, max((k for _, k in sizes), default=0)
    if sizes.count((ffn, width)) != 2 * spec.layers or heads == 0:
        raise ValueError("llama.cpp is only compared on int4 language models with the layers of Llama, such as nano's")
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")

    def matrix(name: str, rows: int, columns: int) -> None:
        """Blocks of a float16 scale and 32 codes of 4 bits."""
        blocks = rng.integers(0, 256, (rows, columns // _BLOCK, _BLOCK_BYTES), np.uint8)
        blocks[..., :2] = np.array([_STD / 4.6], np.float16).view(np.uint8)  # a code's standard deviation is 4.6
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=_Q4)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(width, np.float32))

    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(width)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")
    matrix("token_embd.weight", spec.vocab_size, width)  # also the head
    norm("output_norm.weight")
    queries, keys = heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for layer in range(spec.layers):
        for name, rows, columns in (
            ("attn_q", queries, width),
            ("attn_k", keys, width),
            ("attn_v", keys, width),
            ("attn_output", width, queries),
            ("ffn_gate", ffn, width),
            ("ffn_up", ffn, width),
            ("ffn_down", width, ffn),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(given: dict[str, Any]) -> dict[str, Any]:
    if given["beams"] > 1 or given["batch"] > 1:
        raise ValueError("only greedy search for one image is compared: leave --beams and --batch at 1")
    bundle = read(given["bundle"])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "model.gguf")
        write_model(bundle, path)
        spec, threads = bundle.manifest.llm, given["threads"]
        assert spec is not None
        llm = llama_cpp.Llama(
            str(path), n_ctx=spec.max_positions, n_threads=threads, n_threads_batch=threads, verbose=False
        )
    prompt = list(range(10, 10 + spec.prefix_length))

    def generate(tokens: int) -> None:
        llm.reset()
        llm.eval(prompt)
        for _ in range(tokens - 1):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(llm.ctx), (spec.vocab_size,))
            llm.eval([int(logits.argmax())])

    version = f"llama.cpp of llama-cpp-python {llama_cpp.__version__}"
    return {"stages": generation_stages(generate, given), "peak_rss": peak_rss(), "version": version}


if __name__ == "__main__":
    sys.exit(main(measure))
