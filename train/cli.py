"""`blip2rt-train COMMAND ...`, equal to `python -m train.COMMAND ...`.

Exit status: 0 on success, 2 for a user error or a missing package (one line names it), 130 after Ctrl-C, 143 after
SIGTERM.
"""

import importlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from blip2rt.command_line import Parser, run, running

from .loop.signals import Interrupted, interrupted_by_sigterm

PROGRAM = "blip2rt-train"
COMMANDS = {  # name -> module, help; a module is imported when its command runs
    "recipes": ("recipe_files", "list the recipes that ship with blip2rt, or copy one"),
    "prepare": ("prepare", "prepare data: tables, shards, captions by CapFilt"),
    "stage1": ("stage1", "representation learning: align the Q-Former's queries with text"),
    "stage2": ("stage2", "generative learning: feed the Q-Former's output to a language model"),
    "evaluate": ("evaluate", "measure a model: captions, answers, retrieval"),
    "questions": ("extras.questions", "generate questions and answers from captions by rule"),
    "self-critical": ("extras.self_critical", "train captions by the CIDEr of sampled ones"),
    "calibrate": ("extras.calibrate", "fit the weights of Match.score, and probabilities"),
    "average": ("extras.average", "average the weights of checkpoints"),
}
# What checks a command's arguments before its module, and with it torch, is imported.
_CHECKS = dict.fromkeys(("stage1", "stage2", "self-critical"), "early_checks")
_CHECKS["calibrate"] = "extras.arguments"


def main(argv: list[str] | None = None) -> int:
    """Run `blip2rt-train` with `argv`, by default the process's arguments; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return _run(PROGRAM, lambda: run_command(_parser().parse_args(words[:1]).command, words[1:]))


def run_command(name: str, argv: list[str] | None = None) -> int:
    """Import a command and call its main(); a package missing at import is reported in one line."""

    def work() -> int:
        if name in _CHECKS:
            importlib.import_module(f"{__package__}.{_CHECKS[name]}").check(name, argv)
        code: int = importlib.import_module(f"{__package__}.{COMMANDS[name][0]}").main(argv)
        return code

    def work_until_sigterm() -> int:
        try:
            with interrupted_by_sigterm():
                return work()
        except Interrupted as end:  # while importing
            return _report(end, running(), argv)

    return _run(_program(name), work_until_sigterm if _CHECKS.get(name) == "early_checks" else work)


def run_main(work: Callable[[], object], argv: list[str] | None = None) -> int:
    """Do a command's work with the error handling that all commands share; return the exit status.

    argv: the arguments of main().
    """
    name = running() or PROGRAM

    def finish() -> int:
        code = 0
        try:
            work()
        except Interrupted as end:
            code = _report(end, name, argv)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from .loop.parallel import destroy_process_group  # imports torch, which not every command needs

            destroy_process_group()
        return code

    return _run(name, finish)


def _report(end: Interrupted, program: str, argv: list[str] | None) -> int:
    """Print how to resume a training, and return its exit status."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{program}: {end}; resume: {_resume_command(program, argv)}", file=sys.stderr)
    return end.code


def _resume_command(program: str, argv: list[str] | None) -> str:
    """Return the command that resumes: this one, or that of torchrun or accelerate if one of them started it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        try:
            words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
            return shlex.join(os.fsdecode(word) for word in words if word)
        except OSError:
            return "the same command on every node"
    return shlex.join([*program.split(), *(sys.argv[1:] if argv is None else argv)])


def _run(program: str, work: Callable[[], int]) -> int:
    message = "interrupted; the same command resumes from what was saved"
    return run(program, work, extra="train", interrupted=message)


def _program(name: str) -> str:
    """Return how the command was called: `python -m train.stage1` or `blip2rt-train stage1`."""
    module = f"{__package__}.{COMMANDS[name][0]}"
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {module}" if spec is not None and spec.name == module else f"{PROGRAM} {name}"


def _parser() -> Parser:
    parser = Parser(description="Train and evaluate BLIP-2; `blip2rt-train COMMAND --help` describes a command.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, about) in COMMANDS.items():
        commands.add_parser(name, help=about)
    return parser
