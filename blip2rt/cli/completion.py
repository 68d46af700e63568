"""Completion scripts of shells, written from the parser: commands, options, choices and file names."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping

_BASH = """{prelude}_blip2rt() {{
  local words=
  case "${{COMP_WORDS[1]}} $3" in
{choices}
  esac
  if [[ -z $words ]]; then case $COMP_CWORD in
    1) words={commands} ;;
    *) [[ $2 != -* ]] || case ${{COMP_WORDS[1]}} in
{options}
    esac ;;
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o default -F _blip2rt blip2rt"""
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


def script(commands: Mapping[str, argparse.ArgumentParser], shell: str) -> str:
    """The script for bash, zsh or fish. commands: the parser of each command."""
    if shell == "fish":
        return "\n".join(_fish(commands))
    options = [f"    {name}) words={_words(parser._option_string_actions)} ;;" for name, parser in commands.items()]
    choices = [
        f"    {shlex.quote(f'{name} {option}')}) words={_words(action.choices)} ;;"
        for name, parser in commands.items()
        for option, action in [(name, each) for each in parser._get_positional_actions()]
        + [*parser._option_string_actions.items()]
        if action.choices
    ]
    parts = {"commands": _words(commands), "options": "\n".join(options), "choices": "\n".join(choices)}
    return _BASH.format(prelude=_ZSH if shell == "zsh" else "", **parts)


def _words(words: object) -> str:
    return shlex.quote(" ".join(map(str, words)))  # type: ignore[call-overload]


def _fish(commands: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield f"complete -c blip2rt -n __fish_use_subcommand -f -a {_words(commands)}"
    for name, parser in commands.items():
        within = f"complete -c blip2rt -n '__fish_seen_subcommand_from {name}'"
        for action in parser._actions:
            names = [f"-l {each[2:]}" if each.startswith("--") else f"-s {each[1:]}" for each in action.option_strings]
            values = f" -x -a {_words(action.choices)}" if action.choices else " -r" if action.nargs != 0 else ""
            if names:
                yield f"{within} {' '.join(names)}{values} -d {shlex.quote((action.help or '').split(';')[0])}"
            elif action.choices:
                yield f"{within} -f -a {_words(action.choices)}"
