"""llama.cpp at the language model's work, in Q4_0, in a process of its own.

    python -m blip2rt.bench.llama_peer JSON

JSON: model (a GGUF file), config (the folder of the config it was made for), and the fields of stages.Workload.
llama.cpp knows no OPT; a GPT-2 of the same sizes has the same matrices and reads the same bytes.
"""

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.atomic import AtomicFolder
from .machine import peak_rss
from .stages import WARM_UP, generation_stages
from .worker import print_result

NEEDED = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}  # module: its package
_NOISE = 1 << 22  # bytes that all weights are cut from


def model(config: Path, folder: Path) -> Path:
    """Return the GGUF file for the OPT of a Hugging Face config, written to `folder` if it is not there."""
    if not (folder / "llm.gguf").is_file():
        print(f"creating {folder} (cached)", file=sys.stderr, flush=True)
        with AtomicFolder(folder) as atomic:
            write(json.loads((config / "config.json").read_text())["text_config"], atomic.folder / "llm.gguf")
            atomic.finish()
    return folder / "llm.gguf"


def write(text: dict[str, Any], path: Path) -> None:
    """Write random weights in the sizes of an OPT's config."""
    import gguf

    width, ffn, vocab = text["hidden_size"], text["ffn_dim"], text["vocab_size"]
    kind = gguf.GGMLQuantizationType.Q4_0
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE // block_bytes, block_bytes), np.uint8)
    noise[:, :2] = np.full(len(noise), 0.004, np.float16)[:, None].view(np.uint8)  # the scale of each block

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn)
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(vocab)

    def matrix(name: str, outputs: int, inputs: int) -> None:
        blocks = np.resize(noise, (outputs, inputs // block, block_bytes))
        writer.add_tensor(f"{name}.weight", blocks.reshape(outputs, -1), raw_dtype=kind)

    def vector(name: str, value: float, *shape: int) -> None:
        writer.add_tensor(name, np.full(shape, value, np.float32))

    def norm(name: str) -> None:
        vector(f"{name}.weight", 1, width)
        vector(f"{name}.bias", 0, width)

    matrix("token_embd", vocab, width)
    vector("position_embd.weight", 0.01, text["max_position_embeddings"], width)
    norm("output_norm")
    for i in range(text["num_hidden_layers"]):
        norm(f"blk.{i}.attn_norm")
        norm(f"blk.{i}.ffn_norm")
        products = {
            "attn_qkv": (3 * width, width),
            "attn_output": (width, width),
            "ffn_up": (ffn, width),
            "ffn_down": (width, ffn),
        }
        for name, (outputs, inputs) in products.items():
            matrix(f"blk.{i}.{name}", outputs, inputs)
            vector(f"blk.{i}.{name}.bias", 0, outputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Decoder:
    """A model of a GGUF file, read from its embeddings or ids to the logits of its last position."""

    def __init__(self, path: str, threads: int, positions: int, rows: int) -> None:
        import llama_cpp

        self._api, self._rows = llama_cpp, rows
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = positions * rows
        options.n_seq_max, options.n_threads, options.n_threads_batch = rows, threads, threads
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot open {path}: delete it, and it is written again")

    def clear(self) -> None:
        """Forget all positions."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def read(self, first: int, positions: int, embeds: NDArray[np.float32] | None = None) -> None:
        """Read `positions` more positions of each row, of the embeddings (rows * positions, width) or of a token."""
        api, count = self._api, positions * self._rows
        batch = api.llama_batch_init(count, 0 if embeds is None else embeds.shape[1], 1)
        batch.n_tokens = count
        if embeds is None:
            _fill(batch.token, [2] * count)
        else:
            ctypes.memmove(batch.embd, embeds.ctypes.data, embeds.nbytes)
        _fill(batch.pos, [*range(first, first + positions)] * self._rows)
        _fill(batch.n_seq_id, [1] * count)
        _fill(batch.logits, ([0] * (positions - 1) + [1]) * self._rows)
        for i in range(count):
            batch.seq_id[i][0] = i // positions
        status = api.llama_decode(self._context, batch)
        api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")


def _fill(array: Any, values: list[int]) -> None:
    np.ctypeslib.as_array(array, (len(values),))[:] = values


def measure(given: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    sizes = json.loads((Path(given["config"]) / "config.json").read_text())
    rows, tokens, prompt = given["batch"] * given["beams"], given["new_tokens"], sizes["num_query_tokens"] + 1
    decoder = Decoder(given["model"], given["threads"], prompt + tokens, rows)
    embeds = (
        np.random.default_rng(0)
        .normal(0, 0.02, (rows * prompt, sizes["text_config"]["hidden_size"]))
        .astype(np.float32)
    )
    generations = []
    for _ in range(WARM_UP + given["repeat"]):
        decoder.clear()
        spent, before = [], time.perf_counter()
        for i in range(tokens):
            decoder.read(prompt + i - 1, 1) if i else decoder.read(0, prompt, embeds)
            spent.append(time.perf_counter() - before)
            before = time.perf_counter()
        generations.append(spent)
    packages = f"llama-cpp-python {version('llama-cpp-python')}"
    return {"stages": generation_stages(generations[WARM_UP:]), "peak_rss": peak_rss(), "version": packages}


if __name__ == "__main__":
    # other engines raise anything; the run continues
    sys.exit(print_result(lambda: measure(json.loads(sys.argv[1])), Exception))
