"""Runs the steps in order, each in its own process, and decides which results are still valid."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from blip2rt.bundle.atomic import write_file

ROOT = Path(__file__).parents[2]
MODULE = "benchmarks.gpu_day"
DONE, FAILED, SKIPPED = "done", "failed", "skipped"
# Sources that invalidate a step's result, and sources that invalidate a bundle, when they change.
_STEP_SOURCES = ("benchmarks/gpu_day", "blip2rt", "engines/search", "export", "tests/tiny", "train")
_BUNDLE_SOURCES = ("blip2rt/bundle", "export", "modeling", "tests/tiny")
NAMES = tuple(
    "doctor bandwidth kernels sanitize loop-by-onnxruntime loop-by-tensorrt large-fp16 large-int4 training".split()
)
# Prefixes of the packages that a step depends on; by default it depends on all of them.
_DRIVER_PACKAGES: tuple[str, ...] = ("cuda", "nvidia")
_ORT_PACKAGES = (*_DRIVER_PACKAGES, "onnxruntime")
_STEP_PACKAGES = dict.fromkeys(("bandwidth", "kernels", "sanitize", "training"), _DRIVER_PACKAGES)
_STEP_PACKAGES["loop-by-onnxruntime"] = _ORT_PACKAGES
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
    card: str = ""  # name and driver
    packages: dict[str, str] = field(default_factory=dict)  # versions of NVIDIA's packages and ONNX Runtime

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the steps, with a separate plan cache."""
        return {**os.environ, "BLIP2RT_CACHE": str(self.out / "cache")}


Step = Callable[[Day], dict[str, Any]]


def run_all(
    day: Day,
    names: list[str],
    python: str,
    limit: float,
    report: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run every step that has no valid result. Return the results by name. save: called with them after each step."""
    results = {name: result for name in names if (result := read_result(day, name)) is not None}
    for number, name in enumerate(names, 1):
        label = f"{number}/{len(names)} {name}"
        if name in results and results[name]["state"] == DONE:
            report(f"{label}: done before")
        else:
            report(f"{label} ...")
            results[name] = result = _run_step(day, name, python, limit)
            why = f": {result['why'].splitlines()[-1]}" if result["why"] else ""
            report(f"{label}: {result['state']} in {result['seconds']:.0f} s{why}")
        save({each: results[each] for each in names if each in results})
    return results


def read_result(day: Day, name: str) -> dict[str, Any] | None:
    """A step's stored result; None if it has not run or ran with other sources, packages or another card."""
    result = _stored(day, name)
    return result if result is not None and result.get("key") == key(day, name) else None


def _stored(day: Day, name: str) -> dict[str, Any] | None:
    try:
        result = json.loads(_file(day, name).read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def key(day: Day, name: str) -> str:
    """A hash of everything that a step's result depends on."""
    prefixes = _STEP_PACKAGES.get(name, "")
    packages = tuple(sorted(item for item in day.packages.items() if item[0].startswith(prefixes)))
    digest = hashlib.sha256(repr((day.geometry, day.stand_in, day.turns, day.card, packages)).encode())
    return f"{digest.hexdigest()[:16]} {_digest(_STEP_SOURCES)}"


def _digest(folders: Iterable[str]) -> str:
    """A hash of all sources in the folders."""
    digest = hashlib.sha256()
    for file in sorted(_sources(folders)):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _sources(folders: Iterable[str]) -> Iterator[Path]:
    for folder in folders:
        for kind in ("*.py", "*.cu", "*.h"):
            yield from (ROOT / folder).rglob(kind)


def bundle(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The named bundle, made by `make` if it is missing or its sources have changed."""
    path, stamp, sources = folder / name, folder / f"{name}.sources", _digest(_BUNDLE_SOURCES)
    if not path.exists() or not stamp.exists() or stamp.read_text() != sources:
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        make(path)
        stamp.write_text(sources)
    return path


def _file(day: Day, name: str) -> Path:
    return day.out / "steps" / f"{name}.json"


def _run_step(day: Day, name: str, python: str, limit: float) -> dict[str, Any]:
    file, log = _file(day, name), day.out / "logs" / f"{name}.txt"
    for folder in (file.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    options = {"--out": str(day.out), "--geometry": day.geometry, "--turns": str(day.turns), "--step": name}
    command = [python, "-m", MODULE, *(word for option in options.items() for word in option)]
    command += ["--stand-in"] if day.stand_in else []
    started = time.monotonic()
    with open(log, "wb") as output:
        code = _run(command, day.environment, output, limit)
    why = "" if code is not None else f"it took more than {limit:.0f} s"
    result = _stored(day, name)
    if result is None:
        tail = log.read_text(errors="replace")[-_LOG_TAIL:].strip()
        result = {"state": FAILED, "why": why or f"{tail}\nexit status {code}", "found": {}}
    result |= {"seconds": round(time.monotonic() - started, 1), "key": key(day, name)}
    write_file(file, json.dumps(result, indent=1).encode())
    return result


def _run(command: list[str], environment: dict[str, str], output: IO[bytes], limit: float) -> int | None:
    """Run a command; return its exit status, or None after a timeout. Its child processes end with it."""
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:  # a timeout or an interrupt
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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


def combine(day: Day, results: dict[str, Any]) -> dict[str, Any]:
    """The settings and all results, as written to gpu_day.json."""
    date, python = time.strftime("%Y-%m-%d %H:%M"), sys.version.split()[0]
    return {"day": {**asdict(day), "out": str(day.out)}, "date": date, "python": python, "steps": results}
