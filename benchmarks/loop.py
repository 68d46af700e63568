"""Time per token that the decoding loop spends outside the graphs: `python -m benchmarks.loop`.

The model is a tiny OPT with a full vocabulary, whose graphs take next to no time; their share is subtracted. Prints the
median and the minimum; nothing else should run. `blip2rt-bench` measures whole language models and other engines.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from benchmarks.timing import show, typical
from blip2rt._native import Generator, Runtime, Session
from blip2rt.backends.ort import find_library
from blip2rt.command_line import Parser, run, whole
from blip2rt_export.graphs import llm, trace

WIDTH = 16
BEAMS = {"num_beams": 5}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "greedy": ({}, "goal <= 30 us"),
    "sampling, top-k 50": ({"do_sample": True, "top_k": 50}, ""),
    "sampling, top-p 0.9": ({"do_sample": True, "top_p": 0.9}, ""),
    "no repeated 3-grams": ({"no_repeat_ngram_size": 3}, ""),
    "5 beams": (BEAMS, "goal <= 300 us"),
    "5 beams, repetition penalty": ({**BEAMS, "repetition_penalty": 1.2}, ""),
}


def main() -> int:
    return run("python -m benchmarks.loop", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=whole(8), default=50272, metavar="N", help="tokens of the vocabulary")
    parser.add_argument("--prompt", type=whole(1), default=32, metavar="N", help="positions before the answer")
    parser.add_argument("--tokens", type=whole(2), default=32, metavar="N", help="tokens of the answer")
    parser.add_argument("--runs", type=whole(1), default=20, metavar="N", help="runs of each")
    return parser


def _run(args: argparse.Namespace) -> None:
    with tiny_generator(args.vocab) as generator:
        prefix = np.random.default_rng(0).normal(size=(1, args.prompt, WIDTH)).astype(np.float32)
        for name, (options, goal) in OPTIONS.items():
            options = {"num_beams": 1, **options, "max_new_tokens": args.tokens}
            spent = [outside_graphs(generator, prefix, options) / (args.tokens - 1) for _ in range(args.runs)]
            show(f"outside the graphs, {name}", f"{typical([1e6 * each for each in spent])} us a token", goal)


def outside_graphs(generator: Generator, prefix: np.ndarray, options: dict[str, Any]) -> float:
    """Generate an answer and return the seconds of its steps without the graphs' share."""
    generation = generator.begin(prefix, [[]], options)
    while not generation.done:
        generation.step()
    steps, graphs = generation.seconds
    return steps - graphs


@contextlib.contextmanager
def tiny_generator(vocab: int) -> Iterator[Generator]:
    """A generator on one thread, for an OPT of random weights that has no end token."""
    sizes: dict[str, Any] = dict.fromkeys(("hidden_size", "word_embed_proj_dim", "ffn_dim"), WIDTH)
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": vocab}
    tokens: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": None, "pad_token_id": 1}
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, **tokens)).eval()
    runtime = Runtime(str(find_library()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
            for part, graph in (("llm", llm.trace_llm(model)), ("embed", trace.trace(llm.embed_graph(model)))):
                trace.save(graph, folder / f"{part}.onnx", data)
        embed, decoder = (Session(runtime, str(folder / f"{part}.onnx"), 1) for part in ("embed", "llm"))
        shape = llm.geometry(model)
        dimensions = (shape.layers, shape.kv_heads, shape.head_dim, shape.hidden_size, shape.vocab_size)
        yield Generator(embed, decoder, *dimensions)


if __name__ == "__main__":
    sys.exit(main())
