"""Gains of callers that share decoding steps: `python -m benchmarks.serve`.

Parts, for a bundle (nano, or random weights in a real geometry, exported once):
  callers   tokens a second of one caller, of threads that decode separately, and of threads that share steps
  newcomer  the first token of a request that arrives while others decode, next to its prefill alone
  captions  captions a second, from picture to text
  cache     a second question about a picture, and a history that is sent again

Every text is greedy and has exactly --tokens tokens. Candidates run in turns; figures are medians, with the best value
in parentheses. Nothing else should run. OPT-2.7B needs 5 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import blip2rt
from benchmarks.timing import alternate, seconds, show, typical
from blip2rt.backends import Backend
from blip2rt.batching import Batcher, Batching
from blip2rt.bench import geometry
from blip2rt.command_line import Parser, run, whole
from blip2rt.native import native

if TYPE_CHECKING:
    from blip2rt.native import GenerationOptions


def main() -> int:
    return run("python -m benchmarks.serve", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parts: list[str] = list(PARTS)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, metavar="PART", help="parts to measure")
    sizes = f"sizes of the model: {', '.join(geometry.GEOMETRIES)}"
    parser.add_argument("--geometry", choices=geometry.GEOMETRIES, default=geometry.NANO, metavar="NAME", help=sizes)
    parser.add_argument("--cache", metavar="FOLDER", help="folder for bundles of random weights")
    parser.add_argument("--callers", type=whole(1), default=8, metavar="N", help="threads that call at the same time")
    parser.add_argument("--prompt", type=whole(1), default=8, metavar="N", help="prompt tokens after the image")
    parser.add_argument("--tokens", type=whole(1), default=20, metavar="N", help="tokens of a text")
    parser.add_argument("--runs", type=whole(1), default=5, metavar="N", help="runs of each")
    parser.add_argument("--read", type=whole(1), default=Batching().read, metavar="N", help="see blip2rt.batching")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=whole(1), default=cores, metavar="N", help="threads of every operator")
    return parser


class Bench:
    """A bundle loaded with and without batching, and random requests for it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        path = geometry.bundle(args.geometry, geometry.PRECISION, geometry.cache_folder(args.cache))
        self.model = blip2rt.load(path, threads=args.threads)
        spec = self.model.bundle.manifest.llm
        assert spec is not None
        self.separate: Backend = self.model.pipeline.backend
        rows = max(16, args.callers)
        opener = self.separate._open_batcher  # type: ignore[attr-defined]
        self.shared = Batcher(opener, spec, Batching(rows=rows, read=args.read), 0)
        self.caching = Batcher(opener, spec, Batching(rows=rows, read=args.read), 1 << 30)
        self.spec = spec
        self.rng = np.random.default_rng(0)
        self.options = self.options_of(args.tokens)

    def options_of(self, tokens: int) -> GenerationOptions:
        """Greedy options for exactly this many tokens: there is no end token."""
        return native.GenerationOptions(max_new_tokens=tokens)

    def prefix(self) -> Any:
        """Random embeddings of a new picture (1, Q, D)."""
        shape = (1, self.spec.prefix_length, self.spec.hidden_size)
        return (self.rng.normal(size=shape) * 0.02).astype(np.float32)

    def prompt(self) -> list[int]:
        ids: list[int] = self.rng.integers(10, min(self.spec.vocab_size, 20_000), self.args.prompt).tolist()
        return ids

    def submit(self, tokens: int) -> Any:
        """Submit a request that shares steps and streams its tokens."""
        return self.shared.submit(self.prefix(), [self.prompt()], self.options_of(tokens), each_token=True)

    def step_time(self, count: int) -> float:
        """The mean milliseconds of the next steps."""
        begin = self._wait_for_steps(1)
        return 1000 * (self._wait_for_steps(count) - begin) / count

    def _wait_for_steps(self, count: int) -> float:
        """Return the time after this many more steps."""
        end = self.shared.counters()["steps"] + count
        while self.shared.counters()["steps"] < end:
            time.sleep(0.0002)
        return time.perf_counter()


def _run(args: argparse.Namespace) -> None:
    bench = Bench(args)
    kernels = bench.separate._session("llm").custom_kernels  # type: ignore[attr-defined]
    print(f"{args.geometry}, {args.threads} threads, {', '.join(kernels)}", flush=True)
    for part in args.parts:
        PARTS[part](bench)


def callers(bench: Bench) -> None:
    """Tokens a second of the language model for callers with different pictures."""
    count = bench.args.callers
    candidates = {
        "one caller": partial(rate, bench, bench.separate, 1),
        f"{count} threads, separately": partial(rate, bench, bench.separate, count),
        "one caller, batching": partial(rate, bench, bench.shared, 1),
        f"{count} threads that share steps": partial(rate, bench, bench.shared, count),
    }
    compare("tokens a second", candidates, bench.args.runs)


def rate(bench: Bench, backend: Backend | Batcher, count: int) -> float:
    """Tokens a second of `count` threads that call at the same time."""
    requests = [(bench.prefix(), bench.prompt()) for _ in range(count)]
    spent = concurrently(count, lambda i: backend.generate(requests[i][0], [requests[i][1]], bench.options))
    return count * bench.args.tokens / spent


def newcomer(bench: Bench) -> None:
    """The first token of a request that arrives while others decode, next to a prefill alone and the steps."""
    others = bench.args.callers - 1
    first, prefill, step = [], [], []
    for _ in range(bench.args.runs):
        calls = [bench.submit(60) for _ in range(others)]
        for call in calls:
            call.wait()
        while bench.shared.counters()["rows"] < others:
            time.sleep(0.001)
        step.append(bench.step_time(6))
        time.sleep(float(bench.rng.random()) * step[-1] / 1000)
        start = time.perf_counter()
        new = bench.submit(2)
        new.wait()
        first.append(1000 * (time.perf_counter() - start))
        cancel(calls)
        finish(new)
        generation = bench.separate.begin(bench.prefix(), [bench.prompt()], bench.options_of(2))
        prefill.append(1000 * seconds(generation.step))
    goal = statistics.median(prefill) + 2 * statistics.median(step)
    show("a prefill alone", f"{typical(prefill)} ms")
    show(f"a step of {others} rows", f"{typical(step)} ms")
    show(f"first token next to {others} others", f"{typical(first)} ms", f"a prefill and 2 steps: {goal:.0f} ms")


def captions(bench: Bench) -> None:
    """Captions a second, from new pictures to text."""
    image = bench.model.bundle.manifest.image
    shared = blip2rt.load(bench.model.bundle.path, threads=bench.args.threads, batching=True)
    options: Any = {"num_beams": 1, "max_new_tokens": bench.args.tokens, "min_new_tokens": bench.args.tokens}

    def speed(model: blip2rt.Model, count: int) -> float:
        pictures = bench.rng.integers(0, 256, (count, image.height, image.width, 3), np.uint8)
        return count / concurrently(count, lambda i: model.caption(pictures[i], **options))

    count = bench.args.callers
    candidates = {
        "one caller": partial(speed, bench.model, 1),
        f"{count} threads, separately": partial(speed, bench.model, count),
        f"{count} threads that share steps": partial(speed, shared, count),
    }
    compare("captions a second", candidates, bench.args.runs, 3)


def cache(bench: Bench) -> None:
    """The first token of a second question about a picture, and of a history that is sent again."""
    question: dict[Batcher, list[float]] = {bench.caching: [], bench.shared: []}
    history: dict[Batcher, list[float]] = {bench.caching: [], bench.shared: []}
    for _ in range(bench.args.runs):
        prefix, long = bench.prefix(), bench.prompt() * 12
        finish(bench.caching.submit(prefix, [bench.prompt()], bench.options, each_token=False))
        for backend, times in question.items():
            times.append(first_token(bench, backend, prefix, bench.prompt()))
        call = bench.caching.submit(prefix, [long], bench.options, each_token=False)
        finish(call)
        answer = call.results()[0][0][0]
        for backend, times in history.items():
            times.append(first_token(bench, backend, prefix, [*long, *answer, *bench.prompt()]))
    length = bench.args.prompt * 12 + bench.args.tokens
    for name, found in (
        ("a second question about a picture", question),
        (f"a question after {length} tokens sent again", history),
    ):
        show(name, f"{typical(found[bench.caching])} ms", f"without a cache: {typical(found[bench.shared])} ms")


def first_token(bench: Bench, backend: Batcher, prefix: Any, prompt: list[int]) -> float:
    start = time.perf_counter()
    call = backend.submit(prefix, [prompt], bench.options_of(2), each_token=True)
    call.wait()
    spent = 1000 * (time.perf_counter() - start)
    finish(call)
    return spent


def finish(call: Any) -> None:
    while not call.done:
        call.wait()
        call.take()


def cancel(calls: list[Any]) -> None:
    for call in calls:
        call.cancel()
    for call in calls:
        finish(call)


def concurrently(count: int, work: Callable[[int], object]) -> float:
    """Return the seconds until `count` threads that start at once have finished."""
    barrier = threading.Barrier(count + 1)

    def one(number: int) -> None:
        barrier.wait()
        work(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def compare(quantity: str, candidates: Mapping[str, Callable[[], float]], runs: int, digits: int = 1) -> None:
    """Measure candidates in turns and compare them with the first."""
    values = alternate(candidates, runs)
    base = statistics.median(next(iter(values.values())))
    for name, each in values.items():
        show(f"{quantity}, {name}", typical(each, digits, max), f"{statistics.median(each) / base:.2f} x")


PARTS = {"callers": callers, "newcomer": newcomer, "captions": captions, "cache": cache}

if __name__ == "__main__":
    sys.exit(main())
