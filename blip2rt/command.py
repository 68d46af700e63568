"""What every command shares: one parser, and one policy from errors to exit codes. Knows no command.

Exit codes: 0 all went well, 1 some inputs failed, 2 a mistake (one line says which, and the fix), 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import __version__
from .errors import Blip2rtError, OptionError

PACKAGES = ("blip2rt", "blip2rt_train", "blip2rt_export", "train", "export")  # one of these that is missing is a bug


class UsageError(OptionError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """argparse with one way to spell an option, one way to show a default, and one line for a mistake.

    Underscores in an option's name count as hyphens. `renamed` maps hidden old names to today's. An option that does
    not exist raises UsageError, which names the nearest one and this parser's own help.
    """

    def __init__(self, *args: Any, renamed: dict[str, str] | None = None, **more: Any) -> None:
        more.setdefault("formatter_class", Formatter)
        super().__init__(*args, **more)
        self.renamed = renamed or {}

    def add_version(self) -> None:
        self.add_argument("--version", action="version", version=f"blip2rt {__version__}", help="print the version")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all of `args`; subparsers are called through here too. Raise UsageError for what is left over."""
        words = list(sys.argv[1:] if args is None else args)
        found, left = super().parse_known_args(self._spelled(words), namespace)
        if left:
            self.error(self._unknown(left))
        return found, left

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, 1)
        message = f"{value!r} is none of {', '.join(choices)}" + (f": did you mean {near[0]}?" if near else "")
        raise argparse.ArgumentError(action, message)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.split())} (see {self.prog} --help)")

    def _spelled(self, words: Sequence[str]) -> list[str]:
        """Words with today's names of options, up to `--`."""
        spelled: list[str] = []
        for i, word in enumerate(words):
            if word == "--":
                return [*spelled, *words[i:]]
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                hyphened = name.replace("_", "-")
                name = self.renamed.get(hyphened, hyphened if hyphened in self._option_string_actions else name)
            spelled.append(name + equals + value)
        return spelled

    def _unknown(self, left: Sequence[str]) -> str:
        word = left[0].partition("=")[0]
        if not word.startswith("-"):
            return f"unexpected {' '.join(map(repr, left))}: quote a text of several words"
        shown = [name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
        near = difflib.get_close_matches(word.replace("_", "-"), shown, 1)
        return f"unknown option {word}" + (f": did you mean {near[0]}?" if near else "")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows one default, as "(default: x)", of every option that has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        told = text is None or text == argparse.SUPPRESS or "default:" in text
        if told or action.default in (None, False, argparse.SUPPRESS, "", ()) or not action.option_strings:
            return text
        return f"{text} (default: {_shown(action.default).replace('%', '%%')})"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def run(program: str, work: Callable[[], int | None], *, extra: str = "", interrupted: str = "interrupted") -> int:
    """Call `work` and return the exit code; an error is one line on stderr, "PROGRAM: error: what is wrong: the fix".

    extra: the extra of blip2rt that has the packages `program` needs, named where one is missing. interrupted: what
    Ctrl-C leaves behind, in a few words.
    """
    _prepare_streams()
    try:
        code = work() or 0
        sys.stdout.flush()
    except Blip2rtError as error:
        return complain(program, error)
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in PACKAGES:
            raise
        fix = f"pip install 'blip2rt[{extra}]'" if extra else f"pip install {error.name}"
        return complain(program, f"{error.name} is not installed: {fix}")
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        _abandon_stdout()
        return 0
    except OSError as error:
        _abandon_stdout()
        return complain(program, f"{error.filename or 'standard output'}: {error.strerror or error}")
    except MemoryError:
        return complain(program, "not enough memory: close other programs, or give less at once")
    except Exception as error:  # noqa: BLE001  # safetensors and tokenizers have no OSError for a full disk
        if "(os error 28)" not in str(error):
            raise
        return complain(program, "no space left on the disk: free some and run again")
    return code


def complain(program: str, error: object) -> int:
    """Print one line about a mistake; return its exit code, 2."""
    print(f"{program}: error: {error}", file=sys.stderr)
    return 2


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
