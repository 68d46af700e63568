"""The order of the steps, each in a process of its own; what is done, and what is to be done again."""

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
DONE, FAILED, LEFT_OUT = "done", "failed", "left out"
# Sources whose change makes a step old, and those whose change makes a bundle old.
_READ = ("benchmarks/gpu_day", "blip2rt", "engines/search", "export", "tests/tiny")
_WRITE = ("blip2rt/bundle", "export", "modeling", "tests/tiny")
NAMES = ("doctor", "bandwidth", "kernels", "sanitize", "loop-by-onnxruntime", "loop-by-tensorrt",
         "large-fp16", "large-int4")  # fmt: skip
# How the names of the packages begin that a step runs by: a release of another is no reason to take it anew.
_DRIVEN, _RUN = ("cuda", "nvidia"), ("cuda", "nvidia", "onnxruntime")
_RUNS_BY = {"bandwidth": _DRIVEN, "kernels": _DRIVEN, "sanitize": _DRIVEN, "loop-by-onnxruntime": _RUN}
_LAST_WORDS = 2000  # characters of what a step that failed has said


class LeftOut(Exception):
    """A step cannot be taken on this machine; the message says what it lacks."""


@dataclass(frozen=True)
class Day:
    """What all steps are told."""

    out: Path
    geometry: str  # of the language model that is measured against the card's bandwidth
    stand_in: bool = False
    turns: int = 40  # random cases of each kind
    card: str = ""  # and its driver
    packages: dict[str, str] = field(default_factory=dict)  # what is installed of NVIDIA's and ONNX Runtime: versions

    @property
    def environment(self) -> dict[str, str]:
        """Plans and kernels of the day are kept apart from others."""
        return {**os.environ, "BLIP2RT_CACHE": str(self.out / "cache"), "PYTHONPATH": str(ROOT)}


Step = Callable[[Day], dict[str, Any]]


def run_all(
    day: Day, names: list[str], python: str, limit: float, say: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:  # fmt: skip
    """Take every step that has not been taken. Return the results by name. keep: is given what is known, after each."""
    known = {name: result for name in names if (result := read(day, name)) is not None}
    for number, name in enumerate(names, 1):
        where = f"{number}/{len(names)} {name}"
        if name in known and known[name]["state"] == DONE:
            say(f"{where}: done before")
        else:
            say(f"{where} ...")
            known[name] = taken = _take(day, name, python, limit)
            why = f": {taken['why'].splitlines()[-1]}" if taken["why"] else ""
            say(f"{where}: {taken['state']} in {taken['seconds']:.0f} s{why}")
        keep({each: known[each] for each in names if each in known})
    return known


def read(day: Day, name: str) -> dict[str, Any] | None:
    """What a step has found; None where it was not taken, or by other sources, on another card or by other packages."""
    known = _found(day, name)
    return known if known is not None and known.get("key") == key(day, name) else None


def _found(day: Day, name: str) -> dict[str, Any] | None:
    try:
        known = json.loads(_file(day, name).read_text())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) else None


def key(day: Day, name: str) -> str:
    """What a step's result depends on."""
    runs_by = tuple(sorted(each for each in day.packages.items() if each[0].startswith(_RUNS_BY.get(name, ""))))
    digest = hashlib.sha256(repr((day.geometry, day.stand_in, day.turns, day.card, runs_by)).encode())
    return f"{digest.hexdigest()[:16]} {_digest(_READ)}"


def _digest(folders: Iterable[str]) -> str:
    """A hash of the sources in the folders, which every change to them changes."""
    digest = hashlib.sha256()
    for file in sorted(_sources(folders)):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _sources(folders: Iterable[str]) -> Iterator[Path]:
    for folder in folders:
        for kind in ("*.py", "*.cu", "*.h"):
            yield from (ROOT / folder).rglob(kind)


def bundle(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The bundle of that name, made by `make` where it is missing or other sources have made it."""
    path, stamp, sources = folder / name, folder / f"{name}.sources", _digest(_WRITE)
    if not path.exists() or not stamp.exists() or stamp.read_text() != sources:
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        make(path)
        stamp.write_text(sources)
    return path


def _file(day: Day, name: str) -> Path:
    return day.out / "steps" / f"{name}.json"


def _take(day: Day, name: str, python: str, limit: float) -> dict[str, Any]:
    file, log = _file(day, name), day.out / "logs" / f"{name}.txt"
    for folder in (file.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    command = [python, "-m", MODULE, "--out", str(day.out), "--geometry", day.geometry, "--turns", str(day.turns),
               *(["--stand-in"] if day.stand_in else []), "--step", name]  # fmt: skip
    started = time.monotonic()
    with open(log, "wb") as words:
        code = _run(command, day.environment, words, limit)
    why = "" if code is not None else f"it took more than {limit:.0f} s"
    result = _found(day, name)
    if result is None:
        said = log.read_text(errors="replace")[-_LAST_WORDS:].strip()
        result = {"state": FAILED, "why": why or f"{said}\nit ended with code {code}", "found": {}}
    result |= {"seconds": round(time.monotonic() - started, 1), "key": key(day, name)}
    write_file(file, json.dumps(result, indent=1).encode())
    return result


def _run(command: list[str], environment: dict[str, str], words: IO[bytes], limit: float) -> int | None:
    """Run a step. Return its exit code; None where it took too long. What it has begun ends with it."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=words,
                               stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:  # an interrupted day, too
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def take_here(day: Day, name: str, step: Step) -> int:
    """Take a step in this process, and write what it has found. Return the exit code."""
    result: dict[str, Any] = {"state": DONE, "why": "", "found": {}}
    try:
        result["found"] = step(day)
        if faults := result["found"].get("faults"):
            result |= {"state": FAILED, "why": "; ".join(faults)}
    except LeftOut as reason:
        result |= {"state": LEFT_OUT, "why": str(reason)}
    write_file(_file(day, name), json.dumps(result, indent=1, default=str).encode())
    return 0


def whole(day: Day, results: dict[str, Any]) -> dict[str, Any]:
    """All that the day has found."""
    return {"day": {**asdict(day), "out": str(day.out)}, "date": time.strftime("%Y-%m-%d %H:%M"),
            "python": sys.version.split()[0], "steps": results}  # fmt: skip
