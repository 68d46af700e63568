"""One argument parser for every command. Knows no command."""

import argparse
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Sized
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from ..errors import OptionError
from ..version import __version__

_TEXTS = ("TEXT", "QUESTION")  # positional arguments that may have several words
_KINDS: dict[Any, str] = {int: "give a whole number", float: "give a number"}
# Set by `run`: the program, and the option -> the other name that the user gave it.
current_program: ContextVar[str] = ContextVar("program", default="")
typed_names: ContextVar[dict[str, str] | None] = ContextVar("typed_names", default=None)


class UsageError(OptionError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """argparse with one way to spell an option, one way to show a default, and one line for a mistake.

    prog: by default the program that `run` runs. renamed: hidden old option -> current one, or "" if the value became a
    positional argument. explained: option that does not exist -> why. Underscores in an option's name count as hyphens.
    Options may come before, between and after the positional arguments. A mistake raises UsageError, which points to
    this parser's own help. A parser of subcommands without arguments prints its help.
    """

    def __init__(
        self,
        prog: str | None = None,
        *,
        renamed: dict[str, str] | None = None,
        explained: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        more.setdefault("formatter_class", Formatter)
        super().__init__(prog or current_program.get() or None, **more)
        self.renamed, self.explained = renamed or {}, explained or {}
        if self.add_help:
            self.add_argument(
                "-V", "--version", action="version", version=f"blip2rt {__version__}", help="print the version"
            )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all of `args`; subparsers are called through here too. Raise UsageError for unknown arguments."""
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
        text = re.sub("ignored explicit argument (.*)", r"unexpected \1 after it: put -- before a file's name", text)
        raise UsageError(f"{text} (see {self.prog} --help)")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError as error:
            explained = isinstance(error.__context__, argparse.ArgumentTypeError)
            fix = str(error.__context__) if explained else _KINDS.get(action.type, "it cannot be parsed")
            return self.error(f"{_name(action)} is {text!r}: {fix}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = _nearest(str(value).lower(), choices)
        mean = f"did you mean {near[0]}? " if near else ""
        self.error(f"{_name(action)} is {str(value)!r}: {mean}choose from {', '.join(choices)}")

    def _spelled(self, words: Sequence[str]) -> list[str]:
        """The words with the current names of options, up to `--`."""
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
            if (typed := typed_names.get()) is not None and self.renamed.get(hyphened):
                typed[name] = hyphened
            spelled += [name + equals + value] if name else [value] * bool(equals)
        return spelled

    def _sorted(self, words: list[str]) -> list[str]:
        """The options with their values, `--`, then all other words: argparse needs those in one piece."""
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
        """The maximum number of words that an option takes; None for a word that is not an option."""
        found: Any = self._parse_optional(word)
        if found is None:
            return None
        action, *_, value = found[0] if isinstance(found, list) else found  # newer releases of Python return several
        if action is None or value is not None:  # unknown, or with its value
            return 0
        if action.nargs is None or action.nargs == argparse.OPTIONAL:
            return 1
        return action.nargs if isinstance(action.nargs, int) else sys.maxsize

    def _unknown(self, words: Iterable[str]) -> str:
        """The first unknown option, or "". It is reported before missing arguments."""
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
        if name in self.explained:
            return f"unknown option {name}: {self.explained[name]}"
        known = {name: name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS}
        known |= {old: new for old, new in self.renamed.items() if new}
        if not name.startswith("--") and "." in name:
            return f"unknown option {name}: if it is a file, put -- before it"
        near = _nearest(name.replace("_", "-"), known)
        near = near or [option for option in known if option.lower() == name.lower()]
        return f"unknown option {name}" + (f": did you mean {known[near[0]]}?" if near else "")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Show required arguments in the usage, and each option's default once, as "(default: x)"."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap a description or an epilog. Lines with columns, examples and lists stay lines of their own."""
        return "\n\n".join(_wrapped(paragraph, width) for paragraph in text.strip("\n").split("\n\n"))

    def add_usage(self, usage: Any, actions: Iterable[argparse.Action], groups: Any, prefix: Any = None) -> None:
        actions = list(actions)
        needed = [action for action in actions if action.required or not action.option_strings]
        if usage is None and len(needed) < len(actions):
            needed = [_Options(), *needed]
        super().add_usage(usage, needed, [], prefix)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment  # argparse ignores that subcommands are indented

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        hidden = default is None or default is False or default == argparse.SUPPRESS or "default:" in (text or "")
        if not text or hidden or (isinstance(default, Sized) and not default) or not action.option_strings:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


def _wrapped(paragraph: str, width: int) -> str:
    """A paragraph in lines of at most `width`; a long example continues after a backslash."""
    lines = paragraph.splitlines()
    if not any(re.search(r"^\s|\S  ", line) for line in lines):
        return "\n".join(_folded(" ".join(lines), width))
    return "\n".join(_hung(line, width) for line in lines)


def _hung(line: str, width: int) -> str:
    """A line, continued below its second column, or below its first."""
    if len(line) <= width:
        return line
    column = re.match(r"\s*\S+ {2,}(?=\S)|\s*", line)
    assert column is not None
    example = re.match(r"\s+(blip2rt|python)", line) is not None
    how = {"break_long_words": False, "break_on_hyphens": False}
    hang = " " * (len(column[0]) + 4 * example)
    return (" \\\n" if example else "\n").join(_folded(line, width - 2 * example, subsequent_indent=hang, **how))


class _Options(argparse.Action):
    """The word [options] in a usage."""

    def __init__(self) -> None:
        super().__init__([], dest="[options]", metavar="[options]")

    def __call__(self, *_: Any) -> None:
        raise AssertionError("shown, never parsed")


def _folded(line: str, width: int, **how: Any) -> list[str]:
    """A line in lines of at most `width`."""
    import textwrap  # for help only

    return textwrap.wrap(line, width, **how)


def _nearest(word: str, choices: Iterable[str]) -> list[str]:
    """What was probably meant, at most one."""
    import difflib  # for mistakes only

    return difflib.get_close_matches(word, [*choices], 1)


def _name(action: argparse.Action) -> str:
    """--beams, IMAGE"""
    return max(action.option_strings, key=len) if action.option_strings else str(action.metavar or action.dest)


def nonempty(value: str) -> str:
    """Argument type of a non-empty value."""
    if not value:
        raise argparse.ArgumentTypeError("give a value, or leave it out")
    return value


def path(value: str) -> Path:
    """Argument type of a file or a folder."""
    if "://" in value:
        raise argparse.ArgumentTypeError("give a local path, and copy files of a URL, as by `aws s3 cp --recursive`")
    return Path(nonempty(value))


def byte_size(value: str) -> int:
    """Argument type: a number of bytes such as 20M, 1G or 4096."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)i?B?", value.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError("give a number of bytes, as in 20M")
    return int(match[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2].upper()]


def positive_byte_size(value: str) -> int:
    """Argument type: a number of bytes above 0."""
    if not (size := byte_size(value)):
        raise argparse.ArgumentTypeError("give a number of bytes above 0")
    return size


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Argument type of a whole number from `low` to `high`."""

    fix = f"give a whole number, {low} or more" if high is None else f"give a whole number from {low} to {high}"

    def read(value: str) -> int:
        digits = value.removeprefix("-")
        number = int(value) if digits.isascii() and digits.isdigit() else low - 1
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(fix)
        return number

    return read
