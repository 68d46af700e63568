"""Runs the steps in order, each in its own process, and collects their results."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from blip2rt.bundle.atomic import write_file

from . import report

ROOT = Path(__file__).parents[2]
MODULE = "benchmarks.gpu_day"
DONE, FAILED, SKIPPED = "done", "failed", "skipped"
NAMES = tuple("doctor bandwidth kernels sanitize loop-by-onnxruntime loop-by-tensorrt large-fp16 large-int4".split())
_PACKAGE_PREFIXES = ("tensorrt", "onnxruntime", "cuda", "nvidia")  # packages that results depend on
_LOG_TAIL = 2000  # characters of a failed step's log that its result includes


class Skipped(Exception):
    """A step cannot run on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Day:
    """Settings of a run, for all steps."""

    out: Path
    geometry: str  # of the language model that is compared with the card's bandwidth
    stand_in: bool = False
    turns: int = 40  # random cases of each kind

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the steps, with a separate plan cache."""
        return {**os.environ, "BLIP2RT_CACHE": str(self.out / "cache")}


Step = Callable[[Day], dict[str, Any]]


def run_all(day: Day, names: list[str], limit: float) -> dict[str, Any]:
    """Run the steps and write gpu_day.json and report.md after each. Return the results by name."""
    results: dict[str, Any] = {}
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)} {name} ...", file=sys.stderr, flush=True)
        results[name] = result = _run_step(day, name, limit)
        why = f": {result['why'].splitlines()[-1]}" if result["why"] else ""
        print(f"  {result['state']} in {result['seconds']:.0f} s{why}", file=sys.stderr, flush=True)
        everything = {"day": {**asdict(day), "out": str(day.out)}, **_machine(), "steps": results}
        write_file(day.out / "gpu_day.json", json.dumps(everything, indent=1).encode())
        write_file(day.out / "report.md", report.markdown(everything).encode())
    return results


def _machine() -> dict[str, Any]:
    """The date, and the versions of Python and of the packages that results depend on."""
    versions = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    packages = {name: version for name, version in sorted(versions.items()) if name.startswith(_PACKAGE_PREFIXES)}
    return {"date": time.strftime("%Y-%m-%d %H:%M"), "python": sys.version.split()[0], "packages": packages}


def _run_step(day: Day, name: str, limit: float) -> dict[str, Any]:
    file, log = _file(day, name), day.out / "logs" / f"{name}.txt"
    for folder in (file.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    options = {"--out": str(day.out), "--geometry": day.geometry, "--turns": str(day.turns), "--step": name}
    command = [sys.executable, "-m", MODULE, *(word for option in options.items() for word in option)]
    command += ["--stand-in"] if day.stand_in else []
    started, why = time.monotonic(), ""
    with open(log, "wb") as output:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        try:
            done = subprocess.run(command, cwd=ROOT, env=day.environment, timeout=limit, **streams)
        except subprocess.TimeoutExpired:
            why = f"it took more than {limit:.0f} s"
    if file.exists():
        result = json.loads(file.read_text())
    else:
        tail = log.read_text(errors="replace")[-_LOG_TAIL:].strip()
        result = {"state": FAILED, "why": why or f"{tail}\nexit status {done.returncode}", "found": {}}
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def _file(day: Day, name: str) -> Path:
    return day.out / "steps" / f"{name}.json"


def run_here(day: Day, name: str, step: Step) -> int:
    """Run a step in this process and write its result. Return the exit status."""
    result: dict[str, Any] = {"state": DONE, "why": "", "found": {}}
    try:
        result["found"] = step(day)
        if faults := result["found"].get("faults"):
            result |= {"state": FAILED, "why": "; ".join(faults)}
    except Skipped as reason:
        result |= {"state": SKIPPED, "why": str(reason)}
    write_file(_file(day, name), json.dumps(result, indent=1, default=str).encode())
    return 0
