"""`blip2rt-train COMMAND ...`, which is `python -m train.COMMAND ...`, and how these commands end.

Exit codes: 0 all went well, 2 a mistake or a package that is not installed (one line says which), 130 interrupted
by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from blip2rt.command_line import Parser, run, running

from .loop.ending import Interrupted

PROGRAM = "blip2rt-train"
COMMANDS = {  # name -> module, help; a module is imported when its command runs
    "prepare": ("prepare", "data before a training: tables, shards and their indices"),
    "stage1": ("stage1", "representation learning: the Q-Former learns to see what texts say"),
    "stage2": ("stage2", "generative learning: a language model learns to read the Q-Former"),
    "evaluate": ("evaluate", "quality of a model: captions, answers, retrieval"),
    "questions": ("extras.questions", "questions and answers made from captions by rule"),
    "self-critical": ("extras.self_critical", "captions are sampled and learned by their CIDEr"),
    "calibrate": ("extras.calibrate", "how much a model's words weigh in Match.score"),
    "refit": ("extras.refit", "a checkpoint sees by another image encoder, without a training"),
    "average": ("extras.average", "the weighted mean of checkpoints"),
}


def main(argv: list[str] | None = None) -> int:
    """Run `blip2rt-train` with `argv`, or the process's own; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return _run(PROGRAM, lambda: run_command(_parser().parse_args(words[:1]).command, words[1:]))


def run_command(name: str, argv: list[str] | None = None) -> int:
    """Import a command and call its main(). A package that its imports lack is one line, as every mistake is."""
    module = f"{__package__}.{COMMANDS[name][0]}"
    return _run(_program(name), lambda: importlib.import_module(module).main(argv))


def run_main(work: Callable[[], object], program: str = PROGRAM, argv: list[str] | None = None) -> int:
    """What the main() of every command calls: do the work, by the policy of all commands. Return the exit code.

    program: its name where run_command has not told it. argv: what main() was given.
    """
    name = running() or program

    def all_of_it() -> int:
        code = 0
        try:
            work()
        except Interrupted as end:
            code = end.code
            if os.environ.get("RANK", "0") == "0":
                print(f"{name}: {end}; go on: {_again(name, argv)}", file=sys.stderr)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from .loop.parallel import leave  # torch, which not every command needs

            leave()
        return code

    return _run(name, all_of_it)


def _again(program: str, argv: list[str] | None) -> str:
    """The command that goes on: the one that was given, torchrun's or accelerate's where one of them started it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        try:
            words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
            return shlex.join(os.fsdecode(word) for word in words if word)
        except OSError:
            return "the same command on every node"
    return shlex.join([*program.split(), *(sys.argv[1:] if argv is None else argv)])


def _run(program: str, work: Callable[[], int]) -> int:
    return run(
        program, work, extra="train", interrupted="interrupted; the same command goes on from what has been kept"
    )


def _program(name: str) -> str:
    """How the command was called: `python -m train.stage1` or `blip2rt-train stage1`."""
    module = f"{__package__}.{COMMANDS[name][0]}"
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {module}" if spec is not None and spec.name == module else f"{PROGRAM} {name}"


def _parser() -> Parser:
    parser = Parser(description="Train BLIP-2 and measure it; `blip2rt-train COMMAND --help` tells of each command.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, about) in COMMANDS.items():
        commands.add_parser(name, help=about)
    return parser
