"""What the generation loop costs beside the engine, and how fast a language model decodes: `python -m benchmarks.loop`.

Three parts, chosen by --parts:
  overhead  a model of almost nothing but a vocabulary: time of a step outside the graphs, greedy and with 5 beams
  decode    an OPT of random weights in int4: tokens a second against the machine's measured read bandwidth, 5 beams
            against greedy, and the second question of a chat
  compare   Hugging Face `generate` (fp32, bf16) and CTranslate2 (int8, where installed) on the same weights

Times are medians, behind them in brackets the least; nothing else should run. OPT-2.7B takes 11 GB of memory for its
fp32 weights, about 16 at most, and 8 GB of temporary files ($TMPDIR); `--geometry opt-125m` takes a minute or two.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from blip2rt import command_line
from blip2rt._native import Chat, Generator, Runtime, Session
from blip2rt.backends.ort import find_library
from blip2rt.modeling.llm import LlmConfig
from export.graphs import llm, trace
from export.precision.quantizer import BlockFormat, Quantizer
from export.precision.weight_only import quantize_weights

BEAMS = 5
GEOMETRIES = {  # layers, hidden size, heads, width of the MLP
    "opt-125m": (12, 768, 12, 3072),
    "opt-1.3b": (24, 2048, 32, 8192),
    "opt-2.7b": (32, 2560, 32, 10240),
}
PARTS = ("overhead", "decode", "compare")


def main() -> int:
    return command_line.run("python -m benchmarks.loop", lambda: _run(_parser().parse_args()))


def _parser() -> command_line.Parser:
    parser = command_line.Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    number = command_line.whole(1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="opt-2.7b", help="sizes of the language model")
    parser.add_argument("--vocab", type=number, default=50272, metavar="N", help="tokens of the vocabulary")
    parser.add_argument("--prompt", type=number, default=32, metavar="N", help="positions before the answer")
    parser.add_argument("--tokens", type=number, default=32, metavar="N", help="tokens of the answer")
    parser.add_argument("--runs", type=number, default=5, metavar="N", help="runs of each")
    parser.add_argument("--threads", type=number, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="threads of every operator")  # fmt: skip
    return parser


def _run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    runtime = Runtime(str(find_library()))
    print(f"{args.threads} threads, onnxruntime {runtime.version}, torch {torch.__version__}", flush=True)
    if "overhead" in args.parts:
        overhead(runtime, args)
    if "decode" in args.parts or "compare" in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            large(runtime, args, Path(folder))


def overhead(runtime: Runtime, args: argparse.Namespace) -> None:
    """Steps of a model whose graphs are next to nothing: what is left is the loop."""
    model = opt(layers=1, hidden=16, heads=2, ffn=16, vocab=args.vocab)
    with native(runtime, model, 1, bits=None) as (generator, _size):
        prefix = np.random.default_rng(0).normal(size=(1, args.prompt, 16)).astype(np.float32)
        for name, options, goal in (
            ("greedy", {"num_beams": 1}, 30),
            ("sampling, top-k 50", {"do_sample": True, "top_k": 50}, None),
            ("sampling, top-p 0.9", {"do_sample": True, "top_p": 0.9}, None),
            (f"{BEAMS} beams", {"num_beams": BEAMS}, 300),
            (f"{BEAMS} beams, repetition penalty", {"num_beams": BEAMS, "repetition_penalty": 1.2}, None),
        ):  # fmt: skip
            spent = []
            for _ in range(args.runs * 4):
                generation = run(generator, prefix, {**options, "max_new_tokens": args.tokens})
                steps, inside = generation.seconds
                spent.append(1e6 * (steps - inside) / (args.tokens - 1))
            line(f"loop beside the graphs, {name}", f"{typical(spent)} us a token", f"<= {goal} us" if goal else None)


def large(runtime: Runtime, args: argparse.Namespace, folder: Path) -> None:
    """The decoding speed of a large language model, and of others on its weights."""
    torch.manual_seed(0)
    layers, hidden, heads, ffn = GEOMETRIES[args.geometry]
    model = opt(layers, hidden, heads, ffn, args.vocab)
    embeds = torch.randn(1, args.prompt, hidden) * 0.02
    if "decode" in args.parts:
        decode(runtime, model, embeds.numpy(), args)
    if "compare" not in args.parts:
        return
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        milliseconds = hugging_face_token(model, embeds.to(dtype), args)
        line(f"Hugging Face generate, {str(dtype)[6:]}", f"{milliseconds:.1f} ms a token")
    try:
        line("CTranslate2, int8", f"{ctranslate2_token(model.to(torch.float16), args, folder):.1f} ms a token")
    except ImportError as error:
        line("CTranslate2, int8", f"not run: {error}")


def decode(runtime: Runtime, model: Any, prefix: np.ndarray, args: argparse.Namespace) -> None:
    bandwidth = read_bandwidth(args.threads)
    line("reading memory", f"{bandwidth:.1f} GB/s")
    with native(runtime, model, args.threads, bits=4) as (generator, size):
        first, step = {}, {}
        for beams in (1, BEAMS):
            options = {"num_beams": beams, "max_new_tokens": args.tokens}
            timed = [run_timed(generator, prefix, options) for _ in range(args.runs)]
            first[beams] = statistics.median(seconds for seconds, _ in timed)
            step[beams] = statistics.median(seconds for _, seconds in timed)
            line(f"int4, {args.geometry}, num_beams {beams}", f"{typical([1000 * s for _, s in timed], 1)} ms a token")
        speed = size / step[1] / 1e9
        share = f"{speed:.1f} GB/s, {100 * speed / bandwidth:.0f}% of memory"
        line(f"int4 weights read, {size / 1e9:.2f} GB a token", share, ">= 80%")
        line(f"{BEAMS} beams against greedy", f"{step[BEAMS] / step[1]:.2f} x a step", "<= 1.8 x")
        spread = 1000 * (first[BEAMS] - first[1])
        line(f"first token, {BEAMS} beams less greedy, which share {args.prompt} positions", f"{spread:.1f} ms a call")
        kept, anew = second_question(generator, prefix, args)
        line("second question of a chat, to its first token", f"{kept:.0f} ms, recomputing everything {anew:.0f} ms")


def second_question(generator: Generator, prefix: np.ndarray, args: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds to the first token of a second question of 8 tokens: in a chat, and with the whole history read."""
    question = list(range(10, 18))
    kept: list[float] = []
    anew: list[float] = []
    for _ in range(args.runs):
        chat = Chat(generator, prefix, 1, args.prompt + 2 * args.tokens + 32)
        first = chat.ask(question, {"max_new_tokens": args.tokens})
        while not first.done:
            first.step()
        history = question + first.results()[0][0][0]
        for generation, times in (
            (chat.ask(question, {"max_new_tokens": 2}), kept),
            (generator.begin(prefix, [history + question], {"max_new_tokens": 2}), anew),
        ):
            start = time.perf_counter()
            generation.step()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(kept), statistics.median(anew)


def opt(layers: int, hidden: int, heads: int, ffn: int, vocab: int) -> Any:
    """An OPT of random weights that says no stop token."""
    config = transformers.OPTConfig(
        hidden_size=hidden, word_embed_proj_dim=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        ffn_dim=ffn, vocab_size=vocab, max_position_embeddings=2048, bos_token_id=2, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config).eval()
    model.generation_config = transformers.GenerationConfig()
    return model


@contextlib.contextmanager
def native(runtime: Runtime, model: Any, threads: int, bits: int | None) -> Iterator[tuple[Generator, int]]:
    """A model in the native loop, and the bytes of weights that a step reads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
            for part, graph in (("llm", llm.trace_llm(model)), ("embed", trace.trace(llm.embed_part(model)))):
                if bits is not None:
                    quantize_weights(graph, bits, Quantizer(BlockFormat(LlmConfig.block)))
                trace.save(graph, folder / f"{part}.onnx", data)
        size = (folder / "llm.data").stat().st_size  # embedding and head share their weights; a step reads them once
        embed, decoder = (Session(runtime, str(folder / f"{part}.onnx"), threads) for part in ("embed", "llm"))
        shape = llm.geometry(model)
        sizes = (shape.layers, shape.kv_heads, shape.head_dim, shape.hidden_size, shape.vocab_size)
        yield Generator(embed, decoder, *sizes), size


def run(generator: Generator, prefix: np.ndarray, options: dict[str, Any]) -> Any:
    generation = generator.begin(prefix, [[]], options)
    while not generation.done:
        generation.step()
    return generation


def run_timed(generator: Generator, prefix: np.ndarray, options: dict[str, Any]) -> tuple[float, float]:
    """Seconds to the first token, and of a token after it."""
    start = time.perf_counter()
    generation = generator.begin(prefix, [[]], options)
    generation.step()
    first = time.perf_counter() - start
    while not generation.done:
        generation.step()
    return first, generation.seconds[0] / (options["max_new_tokens"] - 1)


def hugging_face_token(model: Any, embeds: torch.Tensor, args: argparse.Namespace) -> float:
    """Milliseconds of a greedy token after the first."""

    def generate(tokens: int) -> None:
        with torch.no_grad():
            model.generate(inputs_embeds=embeds, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)

    return difference(generate, args)


def ctranslate2_token(model: Any, args: argparse.Namespace, folder: Path) -> float:
    """Milliseconds of a greedy token after the first. Raises ImportError where CTranslate2 is not installed."""
    import ctranslate2
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(args.vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    special = {"unk_token": "w3", "bos_token": "w2", "eos_token": "w2", "pad_token": "w1"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "hf")
    model.save_pretrained(folder / "hf")
    converter = ctranslate2.converters.TransformersConverter(
        str(folder / "hf"), low_cpu_mem_usage=True, load_as_float16=True
    )
    converter.convert(str(folder / "ct2"), quantization="int8")
    generator = ctranslate2.Generator(
        str(folder / "ct2"), device="cpu", compute_type="int8_float32", intra_threads=args.threads, inter_threads=1
    )
    prompt = [[f"w{i}" for i in range(10, 10 + args.prompt)]]

    def generate(tokens: int) -> None:
        generator.generate_batch(prompt, max_length=tokens, min_length=tokens, include_prompt_in_result=False)

    return difference(generate, args)


def difference(generate: Callable[[int], None], args: argparse.Namespace) -> float:
    """Milliseconds a token: a long answer less a short one, so that the prompt does not count."""
    short: list[float] = []
    long: list[float] = []
    for _ in range(max(2, args.runs // 2)):
        for tokens, times in ((2, short), (args.tokens, long)):
            start = time.perf_counter()
            generate(tokens)
            times.append(time.perf_counter() - start)
    return 1000 * (statistics.median(long) - statistics.median(short)) / (args.tokens - 2)


def read_bandwidth(threads: int, size: int = 2 * 10**9) -> float:
    """GB/s of the best of five passes over a buffer that no cache holds."""
    buffer = np.ones(size // 8, np.int64)
    pieces = np.array_split(buffer, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, pieces))
            best = max(best, buffer.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def typical(values: list[float], digits: int = 0) -> str:
    """The median, and the least."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f})"


def line(name: str, value: str, goal: str | None = None) -> None:
    print(f"{name:60s} {value}{f'   goal {goal}' if goal else ''}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
