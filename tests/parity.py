"""Compare with the installed transformers: `python -m tests.parity [--report FILE]`, see --help.

Runs the fuzzer of options, and sweeps every text-generating architecture and some variants, tiny and with random
weights. Exits with status 1 and names the cases if any is wrong or failed. Several architectures share a process with
bounded memory. The report is updated during the sweep, so an interrupted run leaves what it has.
"""

import argparse
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from tests.fuzz import files
from tests.tiny import architectures

KINDS = {
    "equal": "logits and texts equal those of transformers",
    "tie": "logits are equal; a text differs where two tokens are equally likely within rounding",
    "refused": "rejected with one line before anything is written",
    "unbuilt": "transformers cannot build or run a tiny model of it",
    "wrong": "the graphs compute something else",
    "failed": "ends in a traceback",
}
PACKAGES = ("transformers", "torch", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
MOSHI = (
    "In transformers, moshi's forward pass ignores the window that its config sets, but its cache drops positions "
    "beyond it. The graphs compute the forward pass; texts are compared with those of a cache that keeps all positions."
)
_CASES_PER_PROCESS = 12
_ROOT = Path(__file__).parents[1]

Found = dict[str, tuple[str, str]]  # name -> (one of KINDS, reason)


def cases() -> list[str]:
    """List every architecture of the installed transformers, and the variants."""
    return [*architectures.names(), *architectures.VARIANTS]


def sweep(names: list[str], seed: int, update: Callable[[Found], object] = len) -> Found:
    """Check each case; one whose process dies has failed. update: receives intermediate results."""
    found: Found = {}
    left = list(names)
    while left:
        part = left[:_CASES_PER_PROCESS]
        command = [sys.executable, "-m", "tests.tiny.architectures", str(seed), *part]
        with tempfile.TemporaryFile("w+") as errors:
            run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=_ROOT)
            for line in run.stdout or ():
                _add(found, *json.loads(line))
            run.wait()
            errors.seek(0)
            last = " ".join(errors.read()[-300:].split())
        missing = [name for name in part if name not in found]
        if missing:  # the first of these has killed the process
            _add(found, missing[0], "failed", f"exit code {run.returncode}: {last}")
        left = [name for name in left if name not in found]
        update(found)
    return found


def _add(found: Found, name: str, kind: str, reason: str) -> None:
    found[name] = kind, reason
    print(f"{kind}: {name}: {reason}", flush=True)


def report(found: Found, fuzzed: int, seed: int) -> str:
    """Write the results as Markdown, with the versions of the installed packages. fuzzed: calls of the fuzzer."""
    left = [name for name in cases() if name not in found]
    counts = Counter(kind for kind, _ in found.values())
    wide = sorted(name for name, (_, reason) in found.items() if reason.endswith(architectures.ONE_WIDTH))
    releases = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    introduction = (
        "`make parity` writes this page. For each text-generating architecture of transformers, and for some variants, "
        "it exports two tiny models with random weights, with heads of 16 and of 12. For each model it compares logits "
        "and greedy tokens for three rows of unequal length, and texts for "
        f"{architectures.OPTION_SETS} random sets of generation options."
    )
    narrow = f" Transformers cannot build with heads of 12: {', '.join(wide)}." if wide else ""
    fuzzer = f"The fuzzer of options made {fuzzed:,} calls and damaged bundles; each worked or gave a one-line error."
    lines = ["# Parity with transformers", "", *_wrapped(introduction), ""]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True).stdout
    when = f"Run on {date.today():%-d %B %Y} at commit {commit.strip()} with Python {platform.python_version()}"
    when += f", {releases}; seed {seed}."
    lines += [*_wrapped(when), ""]
    lines += [f"| cases | {len(cases())} | meaning |", "| -- | -- | -- |"]
    lines += [f"| {kind} | {counts[kind]} | {meaning} |" for kind, meaning in KINDS.items()]
    lines += [f"| not run | {len(left)} | not requested, or the run was interrupted |"] if left else []
    lines += ["", *_wrapped(fuzzer + narrow), "", *_wrapped(MOSHI), ""]
    for kind in KINDS:
        names = sorted(name for name, (each, _) in found.items() if each == kind)
        if names:
            lines += [f"## {kind.capitalize()}", ""]
            lines += _wrapped(", ".join(names) + ".") if kind in ("equal", "tie") else _table(found, names)
            lines.append("")
    if left:
        lines += ["## Not run", "", *_wrapped(", ".join(left) + ".")]
    return "\n".join(lines).rstrip() + "\n"


def _table(found: Found, names: list[str]) -> list[str]:
    """Make one row for each reason, with its cases; the model's name is not part of a reason."""
    groups: dict[str, list[str]] = {}
    for name in names:
        reason = re.sub(
            r"^(the language model is of type '[^']*'[,:] |\w+ (?=cannot be traced|bypasses))", "", found[name][1]
        )
        groups.setdefault(reason, []).append(name)
    rows = [f"| {', '.join(names)} | {_cell(reason)} |" for reason, names in sorted(groups.items())]
    return ["| cases | reason |", "| -- | -- |", *rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Run everything; return 1 if a case is wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--seconds", type=float, default=60, help="duration of the fuzzer of options")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("cases", nargs="*", help="cases to run (default: all)")
    args = parser.parse_args()
    seed = random.randrange(2**31) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    fuzzed = files.run_random("calls", args.seconds, seed)

    def write(found: Found) -> None:
        if args.report is not None:
            args.report.parent.mkdir(parents=True, exist_ok=True)
            args.report.write_text(report(found, fuzzed, seed), encoding="utf-8")

    found = sweep(args.cases or cases(), seed, write)
    bad = [name for name, (kind, _) in found.items() if kind in ("wrong", "failed")]
    print(f"{len(found)} cases, {len(bad)} wrong or failed{': ' if bad else ''}{', '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
