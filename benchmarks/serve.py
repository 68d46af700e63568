"""What callers gain by sharing steps: `python -m benchmarks.serve`.

Parts, of a bundle (nano, or one of random weights in a real geometry, made once):
  steps     a step of 1, 2, 4, ... rows
  callers   tokens a second of one caller, of threads that decode each by itself, and of as many that share steps
  newcomer  the first token of one who comes while others decode, beside its prefill alone
  captions  from picture to text
  kept      the second question about a picture, and a history that is sent again

Every text is greedy and has exactly --tokens tokens. The ways are run turn by turn; figures are medians, behind them in
brackets the best. Nothing else should run. OPT-2.7B takes 5 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import blip2rt
from blip2rt import command_line
from blip2rt.backends import Backend
from blip2rt.batching import Batched, Batching
from blip2rt.bench import geometry

PARTS = ("steps", "callers", "newcomer", "captions", "kept")


def main() -> int:
    return command_line.run("python -m benchmarks.serve", lambda: _run(_parser().parse_args()))


def _parser() -> command_line.Parser:
    parser = command_line.Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    number = command_line.whole(1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--geometry", choices=geometry.GEOMETRIES, default=geometry.NANO, help="sizes of the model")
    parser.add_argument("--cache", metavar="FOLDER", help="where bundles of random weights are kept")
    parser.add_argument("--callers", type=number, default=8, metavar="N", help="threads that call at the same time")
    parser.add_argument("--prompt", type=number, default=8, metavar="N", help="tokens of a prompt, behind the image")
    parser.add_argument("--tokens", type=number, default=20, metavar="N", help="tokens of a text")
    parser.add_argument("--runs", type=number, default=5, metavar="N", help="runs of each")
    parser.add_argument("--read", type=number, default=Batching().read, metavar="N", help="see blip2rt.batching")
    parser.add_argument("--threads", type=number, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="threads of every operator")  # fmt: skip
    return parser


class Bench:
    """A bundle loaded both ways, and what is asked of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        path = geometry.bundle(args.geometry, geometry.PRECISION, geometry.cache_folder(args.cache))
        self.model = blip2rt.load(path, threads=args.threads)
        spec = self.model.bundle.manifest.llm
        assert spec is not None
        self.alone: Backend = self.model.pipeline.backend
        rows = max(16, args.callers)
        self.shared = Batched(self.alone, spec, Batching(rows=rows, read=args.read))
        self.keeping = Batched(self.alone, spec, Batching(rows=rows, read=args.read), kept_bytes=1 << 30)
        self.spec = spec
        self.rng = np.random.default_rng(0)
        self.options = self.options_of(args.tokens)

    def options_of(self, tokens: int) -> dict[str, Any]:
        """Greedy, and of so many tokens: nothing ends a text before."""
        return {"num_beams": 1, "num_return_sequences": 1, "max_new_tokens": tokens, "eos_token_ids": [],
                "forced_prefix": []}  # fmt: skip

    def prefix(self) -> Any:
        """The embeddings of a picture nobody has seen (1, Q, D)."""
        shape = (1, self.spec.prefix_length, self.spec.hidden_size)
        return (self.rng.normal(size=shape) * 0.02).astype(np.float32)

    def prompt(self) -> list[int]:
        ids: list[int] = self.rng.integers(10, min(self.spec.vocab_size, 20_000), self.args.prompt).tolist()
        return ids


def _run(args: argparse.Namespace) -> None:
    bench = Bench(args)
    kernels = bench.alone._session("llm").custom_kernels  # type: ignore[attr-defined]
    print(f"{args.geometry}, {args.threads} threads, {', '.join(kernels)}", flush=True)
    for part in args.parts:
        {"steps": steps, "callers": callers, "newcomer": newcomer, "captions": captions, "kept": kept}[part](bench)


def steps(bench: Bench) -> None:
    """Milliseconds of a step of several rows, of requests that have read differently much."""
    counts = [count for count in (1, 2, 4, 8, 16) if count <= 2 * bench.args.callers]
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(bench.args.runs):
        for count in counts:
            calls = [bench.shared.submit(bench.prefix(), [bench.prompt()[: 1 + i % bench.args.prompt]],
                                         bench.options_of(40), each_token=True) for i in range(count)]  # fmt: skip
            for call in calls:  # all are in, and have said something
                call.wait()
            times[count].append(step_time(bench, 12))
            assert bench.shared.counters()["rows"] == count, "a text has ended before it was measured"
            for call in calls:
                call.cancel()
            for call in calls:
                finish(call)
    one = statistics.median(times[1])
    for count in counts:
        ratio = statistics.median(times[count]) / one
        line(f"a step of {count} rows", f"{typical(times[count], 2)} ms", f"{ratio:.2f} x")


def step_time(bench: Bench, count: int) -> float:
    """Milliseconds of each of the next steps."""
    begins = wait_for(bench, 1)
    return 1000 * (wait_for(bench, count) - begins) / count


def wait_for(bench: Bench, count: int) -> float:
    """The time when so many steps more are done."""
    end = bench.shared.counters()["steps"] + count
    while bench.shared.counters()["steps"] < end:
        time.sleep(0.0002)
    return time.perf_counter()


def callers(bench: Bench) -> None:
    """Tokens a second of the language model, whose callers have pictures of their own."""
    ways: dict[str, Callable[[], float]] = {
        "one caller": lambda: rate(bench, bench.alone, 1),
        f"{bench.args.callers} threads, each by itself": lambda: rate(bench, bench.alone, bench.args.callers),
        "one caller, batching": lambda: rate(bench, bench.shared, 1),
        f"{bench.args.callers} threads that share steps": lambda: rate(bench, bench.shared, bench.args.callers),
    }
    compare("tokens a second", ways, bench.args.runs)


def rate(bench: Bench, backend: Backend, count: int) -> float:
    """Tokens a second of `count` threads, which all ask at once."""
    asked = [(bench.prefix(), bench.prompt()) for _ in range(count)]
    spent = together(count, lambda i: backend.generate(asked[i][0], [asked[i][1]], bench.options))
    return count * bench.args.tokens / spent


def newcomer(bench: Bench) -> None:
    """Milliseconds to the first token of one who comes while others decode, beside a prefill and steps alone."""
    others = bench.args.callers - 1
    first, alone, step = [], [], []
    for _ in range(bench.args.runs):
        calls = [bench.shared.submit(bench.prefix(), [bench.prompt()], bench.options_of(60), each_token=True)
                 for _ in range(others)]  # fmt: skip
        for call in calls:
            call.wait()
        while bench.shared.counters()["rows"] < others:
            time.sleep(0.001)
        step.append(step_time(bench, 6))
        time.sleep(float(bench.rng.random()) * step[-1] / 1000)
        start = time.perf_counter()
        new = bench.shared.submit(bench.prefix(), [bench.prompt()], bench.options_of(2), each_token=True)
        new.wait()
        first.append(1000 * (time.perf_counter() - start))
        for call in calls:
            call.cancel()
        for call in (*calls, new):
            finish(call)
        start = time.perf_counter()
        bench.alone.begin(bench.prefix(), [bench.prompt()], bench.options_of(2)).step()
        alone.append(1000 * (time.perf_counter() - start))
    goal = statistics.median(alone) + 2 * statistics.median(step)
    line("a prefill alone", f"{typical(alone)} ms")
    line(f"a step of {others} rows", f"{typical(step)} ms")
    line(f"first token beside {others} others", f"{typical(first)} ms", f"a prefill and 2 steps: {goal:.0f} ms")


def captions(bench: Bench) -> None:
    """Captions a second, from picture to text, with pictures nobody has seen."""
    image = bench.model.bundle.manifest.image
    path = bench.model.bundle.path
    shared = blip2rt.load(path, threads=bench.args.threads, batching=True)
    options: Any = {"num_beams": 1, "max_new_tokens": bench.args.tokens, "min_new_tokens": bench.args.tokens}

    def run(model: blip2rt.Model, count: int) -> float:
        pictures = bench.rng.integers(0, 256, (count, image.height, image.width, 3), np.uint8)
        return count / together(count, lambda i: model.caption(pictures[i], **options))

    count = bench.args.callers
    ways: dict[str, Callable[[], float]] = {
        "one caller": lambda: run(bench.model, 1),
        f"{count} threads, each by itself": lambda: run(bench.model, count),
        f"{count} threads that share steps": lambda: run(shared, count),
    }
    compare("captions a second", ways, bench.args.runs, 3)


def kept(bench: Bench) -> None:
    """Milliseconds to the first token of a second question about a picture, and of a history that is sent again."""
    question: list[float] = []
    history: list[float] = []
    anew: list[float] = []
    again: list[float] = []
    for _ in range(bench.args.runs):
        prefix, long = bench.prefix(), bench.prompt() * 12
        finish(bench.keeping.submit(prefix, [bench.prompt()], bench.options, each_token=False))
        for times, backend, prompt in (
            (question, bench.keeping, bench.prompt()),
            (anew, bench.shared, bench.prompt()),
        ):
            times.append(first_token(bench, backend, prefix, prompt))
        call = bench.keeping.submit(prefix, [long], bench.options, each_token=False)
        finish(call)
        said = call.results()[0][0][0]
        history.append(first_token(bench, bench.keeping, prefix, [*long, *said, *bench.prompt()]))
        again.append(first_token(bench, bench.shared, prefix, [*long, *said, *bench.prompt()]))
    line("a second question about a picture", f"{typical(question)} ms", f"anew: {typical(anew)} ms")
    length = bench.args.prompt * 12 + bench.args.tokens
    line(f"a question behind {length} tokens sent again", f"{typical(history)} ms", f"anew: {typical(again)} ms")


def first_token(bench: Bench, backend: Batched, prefix: Any, prompt: list[int]) -> float:
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


def together(count: int, work: Callable[[int], object]) -> float:
    """Seconds until `count` threads that begin at once have ended."""
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


def compare(what: str, ways: dict[str, Callable[[], float]], runs: int, digits: int = 1) -> None:
    """Runs ways turn by turn; the first is what others are compared with."""
    for way in ways.values():  # graphs load, memory is touched
        way()
    values: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            values[name].append(way())
    base = statistics.median(next(iter(values.values())))
    for name, each in values.items():
        line(f"{what}, {name}", f"{statistics.median(each):.{digits}f} ({max(each):.{digits}f})",
             f"{statistics.median(each) / base:.2f} x")  # fmt: skip


def typical(values: list[float], digits: int = 0) -> str:
    """The median, and the least."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f})"


def line(name: str, value: str, beside: str = "") -> None:
    print(f"{name:60s} {value:20s} {beside}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
