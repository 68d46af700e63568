"""One measurement in its own process: `python -m blip2rt.bench.worker TASK JSON` prints a JSON object last.

Tasks are functions of stages.py. `run_json` starts such a process, of this module or of a peer, and returns the printed
object.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from ..errors import Blip2rtError

TASKS = ("start", "stages", "generation", "growth")


def run_json(what: str, module: str, *arguments: Any) -> dict[str, Any]:
    """Run `python -m module` with JSON arguments and return the JSON of its last line.

    Raises Blip2rtError with the name `what` and the reason.
    """
    words = [each if isinstance(each, str) else json.dumps(each) for each in arguments]
    command = [sys.executable, "-m", module, *words]
    process = subprocess.run(command, capture_output=True, text=True)  # SIGTERM and Ctrl-C here also kill the child
    if process.returncode == 0:
        result: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
        return result
    if process.returncode in (130, -2):
        raise KeyboardInterrupt
    lines = process.stderr.strip().splitlines() or ["no message"]
    reason = lines[-1].removeprefix("error: ")
    if process.returncode in (-9, 137):
        reason = "killed by the system, probably out of memory"
    raise Blip2rtError(f"{what}: {reason}")


def run_task(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run a task in a new process. Raises Blip2rtError."""
    return run_json(f"{given.get('bundle', 'the machine')}, {task}", __name__, task, given)


def print_result(measure: Callable[[], Any], *errors: type[Exception]) -> int:
    """Print the result as JSON, or one of these errors in one line; return the exit status."""
    try:
        result = measure()
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        print("error: not enough memory", file=sys.stderr)
        return 2
    except errors as error:
        name = "" if isinstance(error, Blip2rtError | OSError) else f"{type(error).__name__}: "
        print(f"error: {name}{' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


def measure(task: str, given: dict[str, Any]) -> Any:
    from . import stages

    assert task in TASKS, "an unknown task"
    return getattr(stages, task)(stages.Workload(**given))


def main(arguments: list[str]) -> int:
    task, given = arguments[0], json.loads(arguments[1])
    return print_result(lambda: measure(task, given), Blip2rtError, OSError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
