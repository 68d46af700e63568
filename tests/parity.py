"""Compares with the installed transformers: `python -m tests.parity [--report FILE]`, see --help.

Random sets of options of generation beside transformers' generate; the fuzzer of options; then every architecture that
writes text, and variants of some, tiny and of random weights: equal, equal but for a tie, or refused in one line. Exits
with 1 where something is wrong or has failed, and names it. A few architectures share a process whose memory is
bounded. The report is written as it goes on: a run that is ended early leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.fuzz import options
from tests.tiny import architectures

KINDS = {
    "equal": "logits and tokens are transformers'",
    "tie": "logits are; a token differs where two are as likely to the rounding of float32",
    "refused": "one line says why, before anything is written",
    "unbuilt": "transformers itself builds no tiny model of it, or none that runs",
    "wrong": "the graphs compute something else",
    "failed": "ends in a traceback",
}
PACKAGES = ("transformers", "torch", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
_TOGETHER = 12  # cases of a process
_ROOT = Path(__file__).parents[1]

Found = dict[str, tuple[str, str]]  # name -> one of KINDS, and why


@dataclass(frozen=True)
class Options:
    """What was found of options of generation, whatever the architecture."""

    tried: int  # calls and damaged bundles of the fuzzer
    sets: Counter[str]  # equal, tie, wrong or failed -> sets of options beside transformers' generate


def cases() -> list[str]:
    """Every architecture of the installed transformers, and the variants."""
    return [*architectures.names(), *architectures.VARIANTS]


def option_sets(count: int, seed: int) -> Counter[str]:
    """Random options of generation, each beside transformers' generate on two images: equal, tie, wrong or failed."""
    from tests.engines.native import reference  # torch and transformers

    rng, counts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for name in sorted(reference.CONFIGS):
            (Path(folder) / name).mkdir()
            models.append(reference.make_case(name, Path(folder) / name, seed, images=2))
        for _ in range(count):
            case = rng.choice(models)
            try:
                what = "equal" if reference.compare(case, reference.random_options(rng, case)) else "tie"
            except AssertionError as error:
                what = "wrong"
                print(f"wrong: options: {error}", flush=True)
            except Exception as error:
                what = "failed"
                print(f"failed: options: {type(error).__name__}: {error}", flush=True)
            counts[what] += 1
    print(f"{count} sets of options: {dict(counts)}", flush=True)
    return counts


def swept(names: list[str], seed: int, tell: Callable[[Found], object] = len) -> Found:
    """What became of each case; one whose process died has failed. tell: gets what there is, now and then."""
    found: Found = {}
    left = list(names)
    while left:
        part = left[:_TOGETHER]
        command = [sys.executable, "-m", "tests.tiny.architectures", str(seed), *part]
        with tempfile.TemporaryFile("w+") as errors:
            run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=_ROOT)
            for line in run.stdout or ():
                _keep(found, *json.loads(line))
            run.wait()
            errors.seek(0)
            last = " ".join(errors.read()[-300:].split())
        missing = [name for name in part if name not in found]
        if missing:  # the first of them has ended the process
            _keep(found, missing[0], "failed", f"exit code {run.returncode}: {last}")
        left = [name for name in left if name not in found]
        tell(found)
    return found


def _keep(found: Found, name: str, what: str, why: str) -> None:
    found[name] = what, why
    print(f"{what}: {name}: {why}", flush=True)


def report(found: Found, of_options: Options, seed: int) -> str:
    """Markdown of what was found, by the packages that are installed."""
    left = [name for name in cases() if name not in found]
    counts = Counter(what for what, _ in found.values())
    sets = of_options.sets
    releases = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Parity with transformers", "",
        "`make parity` writes this page. It builds a tiny model of random weights of every architecture of",
        "transformers that writes text, and of variants of some, and compares the exported graphs with it:",
        "three rows of unequal length, a prompt and its steps.", "",
        *_wrapped(f"Python {platform.python_version()}, {releases}; seed {seed}."), "",
        f"| cases | {len(cases())} |  |", "| -- | -- | -- |",
        *(f"| {kind} | {counts[kind]} | {what} |" for kind, what in KINDS.items()),
        *([f"| not run | {len(left)} | they were not asked for, or the run was ended before |"] if left else []), "",
        *_wrapped(
            f"{sets.total():,} random sets of options of generation ran beside transformers' `generate` on two images "
            f"each: {sets['equal']:,} equal, {sets['tie']} ties, {sets['wrong']} wrong, {sets['failed']} failed. The "
            f"fuzzer of options made {of_options.tried:,} calls and damaged bundles: each worked, or was refused in "
            "one line."
        ), "",
    ]  # fmt: skip
    for kind in KINDS:
        some = sorted(name for name, (what, _) in found.items() if what == kind)
        if some and kind in ("equal", "tie"):
            lines += [f"## {kind}", "", *_wrapped(", ".join(some) + "."), ""]
        elif some:
            lines += [f"## {kind}", "", "| case | why |", "| -- | -- |"]
            lines += [f"| {name} | {_cell(found[name][1])} |" for name in some] + [""]
    if left:
        lines += ["## not run", "", *_wrapped(", ".join(left) + ".")]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Run everything; 1 where a case is wrong or has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--report", type=Path, help="a file of Markdown to write")
    parser.add_argument("--sets", type=int, default=1000, help="random sets of options beside transformers' generate")
    parser.add_argument("--seconds", type=float, default=60, help="of the fuzzer of options")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("cases", nargs="*", help="some cases alone")
    args = parser.parse_args()
    seed = random.randrange(2**31) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    sets = option_sets(args.sets, seed)  # before the fuzzer, which makes errors of warnings
    of_options = Options(options.run(args.seconds, seed), sets)

    def write(found: Found) -> None:
        if args.report is not None:
            args.report.parent.mkdir(parents=True, exist_ok=True)
            args.report.write_text(report(found, of_options, seed), encoding="utf-8")

    found = swept(args.cases or cases(), seed, write)
    bad = [name for name, (what, _) in found.items() if what in ("wrong", "failed")]
    bad += ["options of generation"] * bool(sets["wrong"] + sets["failed"])
    print(f"{len(found)} cases, {len(bad)} wrong or failed{': ' if bad else ''}{', '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
