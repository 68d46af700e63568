"""Run a command: errors become one line on standard error and an exit status."""

import atexit
import contextlib
import errno
import gc
import json
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from ..errors import Blip2rtError, OptionError, printable
from ..install_hints import install_module
from .parser import Parser, current_program, typed_names

PACKAGES = ("blip2rt", "blip2rt_train", "blip2rt_export", "train", "export")  # a missing one of these is a bug
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextlib.contextmanager
def flags_named(flags: Mapping[str, str]) -> Iterator[None]:
    """Replace names of fields by their flags in an OptionError."""
    try:
        yield
    except OptionError as error:
        message = str(error)
        for field, flag in flags.items():
            place = r"\b" if "_" in field else r"(?:(?<=; )|^)"  # otherwise it is an ordinary word
            message = re.sub(rf"{place}{field}\b", flag, message)
        raise OptionError(message) from error


def run_process(main: Callable[[], int]) -> NoReturn:
    """Call `main` and end the process with its exit status. Saves processor time. Call it before numpy is imported."""
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # numpy's threads sleep at once, and do not spin at first
    gc.disable()  # what is imported stays; see collect_garbage
    ended: list[int] = []
    atexit.register(_leave, ended)  # runs after all that is registered later
    ended.append(main())
    sys.exit(ended[0])


def _leave(ended: list[int]) -> None:
    """Let the system free what is left, which is faster than object by object. ended: the exit status, if known."""
    if ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


def collect_garbage() -> None:
    """Collect garbage from here on, but of nothing that was imported. Call it when a model has been loaded."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def run(
    program: str,
    work: Callable[[], int | None],
    *,
    extra: str = "",
    interrupted: str = "interrupted",
    memory: str = "close other programs, or give less at once",
) -> int:
    """Call `work` and return the exit status; an error is one line, "PROGRAM: error: what is wrong: the fix".

    extra: the extra of blip2rt with the packages that `program` needs, named if one is missing. interrupted: what to
    print on Ctrl-C. memory: what helps if memory runs out.
    """
    _prepare_streams()
    before = current_program.set(program)
    typed_names.set({})
    try:
        return _finished(work)
    except Blip2rtError as error:
        return complain(program, _as_typed(str(error)))
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in PACKAGES:
            raise
        return complain(program, f"{error.name} is not installed: {install_module(error.name, extra)}")
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader is gone, as with `| head`
        _abandon_stdout()
        return 0
    except OSError as error:
        return complain(program, _os_fault(error))
    except MemoryError:
        return complain(program, f"not enough memory: {memory}")
    except Exception as error:  # noqa: BLE001  # safetensors and tokenizers have no OSError for a full disk
        if not any(f"(os error {number})" in str(error) for number in _DISK_FULL):
            raise
        return complain(program, "no space left on the disk: free some and run again")
    finally:
        current_program.reset(before)


def run_script(parser: Parser, work: Callable[[Any], Iterable[str] | None], extra: str = "train") -> NoReturn:
    """Print the lines that `work` makes of a script's arguments, and exit. extra: see `run`."""

    def show_lines() -> None:
        for line in work(parser.parse_args()) or ():
            print(line, flush=True)

    sys.exit(run(parser.prog, show_lines, extra=extra))


def running() -> str:
    """The name of the running program, or ""."""
    return current_program.get()


def show(text: str, end: str = "\n", flush: bool = False) -> None:
    """Print an untrusted text on standard output; on a terminal, with its control characters escaped."""
    print(printable(text) if sys.stdout.isatty() else text, end=end, flush=flush)


def show_json(row: object, indent: int | None = None, flush: bool = False) -> None:
    """Print an object as JSON, like `show`."""
    show(json.dumps(row, indent=indent, ensure_ascii=False), flush=flush)


def complain(program: str, error: object) -> int:
    """Print one line about a mistake and return its exit status, 2."""
    print(f"{program}: error: {printable(str(error))}", file=sys.stderr)
    return 2


def _as_typed(message: str) -> str:
    """A message with the names of options that the user gave."""
    for name, typed in (typed_names.get() or {}).items():
        message = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", typed, message)
    return message


def _finished(work: Callable[[], int | None]) -> int:
    """The exit status of `work`, once its output is written."""
    try:
        code = work() or 0
    except SystemExit as end:  # of --help and --version
        if end.code:
            raise
        code = 0
    sys.stdout.flush()
    return code


def _os_fault(error: OSError) -> str:
    """The file and its error. The system names no file if it could not write to one, such as standard output."""
    if error.errno is None:  # raised by a library, as for a connection
        return " ".join(str(error).split()) or type(error).__name__
    name = error.filename2 or error.filename  # a copy fails at its target
    if name is None and isinstance(error, FileNotFoundError):  # of os.getcwd
        return "the working directory no longer exists: change to another one"
    if name is None and _stdout_can_fill_up():
        _abandon_stdout()
        name = "standard output"
    return str(error.strerror) if name is None else f"{os.fsdecode(name)}: {error.strerror}"


def _stdout_can_fill_up() -> bool:
    """Whether standard output is a file or a device, and not a terminal or a pipe. Writers of other files name them."""
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
        return stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not sys.stdout.isatty())
    except (OSError, ValueError):
        return False


def _prepare_streams() -> None:
    """Escape characters that the terminal cannot show, and tolerate streams that the shell has closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata


def _abandon_stdout() -> None:
    """Redirect standard output to nothing, so that Python's last flush does not fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
