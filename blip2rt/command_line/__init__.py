"""What every command shares: one parser, and one policy from errors to exit codes. Knows no command.

Exit codes: 0 all went well, 1 some inputs failed and others did not, 2 a mistake (one line says which, and the fix),
130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from ..errors import Blip2rtError, OptionError
from ..install_hints import pip_install
from ..version import __version__

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
PACKAGES = ("blip2rt", "blip2rt_train", "blip2rt_export", "train", "export")  # one of these that is missing is a bug
_TEXTS = ("TEXT", "QUESTION")  # positional arguments that may be several words
_KINDS: dict[Any, str] = {int: "give a whole number", float: "give a number"}
_program: ContextVar[str] = ContextVar("program", default="")  # what `run` runs


class UsageError(OptionError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """argparse with one way to spell an option, one way to show a default, and one line for a mistake.

    prog: by default the program that `run` was told. renamed: hidden old name -> today's, or "" where the value became
    a positional argument. Underscores in an option's name count as hyphens. Options may stand before, between and
    behind the positional arguments. A mistake raises UsageError, which points to this parser's own help. A parser of
    subcommands that gets nothing prints its help.
    """

    def __init__(self, prog: str | None = None, *, renamed: dict[str, str] | None = None, **more: Any) -> None:
        more.setdefault("formatter_class", Formatter)
        super().__init__(prog or running() or None, **more)
        self.renamed = renamed or {}
        if self.add_help:
            self.add_argument(
                "-V", "--version", action="version", version=f"blip2rt {__version__}", help="print the version"
            )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all of `args`; subparsers are called through here too. Raise UsageError for what is left over."""
        words = self._spelled(sys.argv[1:] if args is None else args)
        if not words and self._subparsers is not None:
            self.print_help()
            self.exit()
        unknown = self._unknown(words)
        if unknown:
            self.error(self._unknown_fault(unknown))
        found, left = super().parse_known_args(self._sorted(words), namespace)
        left = [word for word in left if word != "--"]
        if left:
            self.error(self._unknown_fault(left[0]))
        return found, left

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split()).removeprefix("argument ")
        text = text.replace("the following arguments are required", "missing")
        raise UsageError(f"{text} (see {self.prog} --help)")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError as error:
            told = isinstance(error.__context__, argparse.ArgumentTypeError)
            fix = str(error.__context__) if told else _KINDS.get(action.type, "it cannot be read")
            return self.error(f"{_name(action)} is {text!r}: {fix}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value).lower(), choices, 1)
        mean = f"did you mean {near[0]}? " if near else ""
        self.error(f"{_name(action)} is {str(value)!r}: {mean}choose from {', '.join(choices)}")

    def _spelled(self, words: Sequence[str]) -> list[str]:
        """The words with today's names of options, up to `--`."""
        spelled: list[str] = []
        for i, word in enumerate(words):
            if word == "--":
                return [*spelled, *words[i:]]
            name, equals, value = word.partition("=")
            if not name.startswith("--"):
                spelled.append(word)
                continue
            hyphened = name.replace("_", "-")
            name = self.renamed.get(hyphened, hyphened if hyphened in self._option_string_actions else name)
            spelled += [name + equals + value] if name else [value] * bool(equals)
        return spelled

    def _sorted(self, words: list[str]) -> list[str]:
        """The options with their values, `--`, then all other words: argparse takes those in one piece alone."""
        if self._subparsers is not None:
            return words
        options: list[str] = []
        others: list[str] = []
        left = deque(words)
        while left and (word := left.popleft()) != "--":
            most = self._values(word)
            (others if most is None else options).append(word)
            while most and left and left[0] != "--" and self._values(left[0]) is None:
                options.append(left.popleft())
                most -= 1
        return [*options, "--", *others, *left]

    def _values(self, word: str) -> int | None:
        """How many words an option takes behind it, at most; None of a word that is no option."""
        found: Any = self._parse_optional(word)
        if found is None:
            return None
        action, *_, value = found[0] if isinstance(found, list) else found  # newer releases of Python give several
        if action is None or value is not None:  # it is unknown, or holds its value
            return 0
        if action.nargs is None or action.nargs == argparse.OPTIONAL:
            return 1
        return action.nargs if isinstance(action.nargs, int) else sys.maxsize

    def _unknown(self, words: Iterable[str]) -> str:
        """The first option that this parser does not have, or "". It is told before what is missing."""
        for word in words:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                break  # the rest belongs to the subcommand
            name = word.partition("=")[0]
            if not name.startswith("-") or " " in word or name[1:2] in {*"0123456789.", ""}:  # a text, a number, "-"
                continue
            short = name[:2] if not name.startswith("--") else name  # -rq is -r and -q, -nTEXT is -n TEXT
            if not any(option.startswith(short) for option in self._option_string_actions):
                return word
        return ""

    def _unknown_fault(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            texts = any(action.metavar in _TEXTS for action in self._actions)
            return f"unexpected {word!r}: {'quote a text of several words' if texts else 'leave it out'}"
        today = {name: name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS}
        today |= {old: new for old, new in self.renamed.items() if new}
        near = difflib.get_close_matches(name.replace("_", "-"), today, 1)
        near = near or [option for option in today if option.lower() == name.lower()]
        return f"unknown option {name}" + (f": did you mean {today[near[0]]}?" if near else "")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Show what must be given in the usage, and one default, as "(default: x)", of every option that has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def add_usage(self, usage: Any, actions: Iterable[argparse.Action], groups: Any, prefix: Any = None) -> None:
        actions = list(actions)
        needed = [action for action in actions if action.required or not action.option_strings]
        if usage is None and len(needed) < len(actions):
            needed = [_Options(), *needed]
        super().add_usage(usage, needed, [], prefix)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment  # argparse forgets that subcommands are indented

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        told = default is None or default is False or default == argparse.SUPPRESS or "default:" in (text or "")
        if not text or told or (isinstance(default, Sized) and not default) or not action.option_strings:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


class _Options(argparse.Action):
    """The word [options] in a usage."""

    def __init__(self) -> None:
        super().__init__([], dest="[options]", metavar="[options]")

    def __call__(self, *_: Any) -> None:
        raise AssertionError("it is shown, never parsed")


def _name(action: argparse.Action) -> str:
    """--beams, IMAGE"""
    return max(action.option_strings, key=len) if action.option_strings else str(action.metavar or action.dest)


def nonempty(value: str) -> str:
    """The type of an option whose value may not be empty."""
    if not value:
        raise argparse.ArgumentTypeError("give a value, or leave it out")
    return value


def path(value: str) -> Path:
    """The type of a file or a folder."""
    return Path(nonempty(value))


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of a whole number from `low` to `high`."""

    wanted = f"give a whole number, {low} or more" if high is None else f"give a whole number from {low} to {high}"

    def read(value: str) -> int:
        digits = value.removeprefix("-")
        number = int(value) if digits.isascii() and digits.isdigit() else low - 1
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(wanted)
        return number

    return read


@contextlib.contextmanager
def flags_named(flags: Mapping[str, str]) -> Iterator[None]:
    """Where an OptionError names a field of `flags`, let it name the field's flag."""
    try:
        yield
    except OptionError as error:
        message = str(error)
        for field, flag in flags.items():
            place = r"\b" if "_" in field else r"(?:(?<=; )|^)"  # else it is a word like any other
            message = re.sub(rf"{place}{field}\b", flag, message)
        raise OptionError(message) from error


def run(
    program: str,
    work: Callable[[], int | None],
    *,
    extra: str = "",
    interrupted: str = "interrupted",
    memory: str = "close other programs, or give less at once",
) -> int:
    """Call `work` and return the exit code; an error is one line on stderr, "PROGRAM: error: what is wrong: the fix".

    extra: the extra of blip2rt that has the packages `program` needs, named where one is missing. interrupted: what
    Ctrl-C leaves behind, in a few words. memory: what helps where there is not enough.
    """
    _prepare_streams()
    before = _program.set(program)
    try:
        return _finished(work)
    except Blip2rtError as error:
        return complain(program, error)
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in PACKAGES:
            raise
        fix = pip_install(extra) if extra else f"pip install {error.name}"
        return complain(program, f"{error.name} is not installed: {fix}")
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        _abandon_stdout()
        return 0
    except OSError as error:
        return complain(program, _os_fault(error))
    except MemoryError:
        return complain(program, f"not enough memory: {memory}")
    except Exception as error:  # noqa: BLE001  # safetensors and tokenizers have no OSError for a full disk
        if not any(f"(os error {number})" in str(error) for number in _FULL):
            raise
        return complain(program, "no space left on the disk: free some and run again")
    finally:
        _program.reset(before)


def running() -> str:
    """The program that `run` runs, or ""."""
    return _program.get()


def complain(program: str, error: object) -> int:
    """Print one line about a mistake; return its exit code, 2."""
    print(f"{program}: error: {error}", file=sys.stderr)
    return 2


def _finished(work: Callable[[], int | None]) -> int:
    """The exit code of `work`, all that it printed being written."""
    try:
        code = work() or 0
    except SystemExit as end:  # of --help and --version
        if end.code:
            raise
        code = 0
    sys.stdout.flush()
    return code


def _os_fault(error: OSError) -> str:
    """The file and what is wrong with it. The system names none where it could not write to stdout."""
    if error.errno is None:  # a library's, as of a connection
        return " ".join(str(error).split()) or type(error).__name__
    if error.filename is None:
        _abandon_stdout()
    return f"{error.filename or 'standard output'}: {error.strerror}"


def _prepare_streams() -> None:
    """Print names and texts that the terminal cannot show, and nothing where the shell has closed a stream."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata: what matters is whether the image can be read


def _abandon_stdout() -> None:
    """Point stdout at nothing, so that Python's last flush does not fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
