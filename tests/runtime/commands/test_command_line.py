"""Every command's help, version and mistakes have one form; the parser and the error policy by themselves."""

import gc
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import blip2rt
from blip2rt import command_line
from blip2rt.cli import main
from blip2rt.command_line import Parser, UsageError, nonempty, path, run, whole
from blip2rt.errors import ImageError, OptionError
from blip2rt.install_hints import pip_install

ROOT = Path(__file__).parents[3]

# How each command is called, and an option with a choice: None where it has none.
COMMANDS: dict[str, tuple[str, ...] | None] = {
    "blip2rt": ("captions",),
    "blip2rt caption": ("a.png", "--backend", "onnx"),
    "blip2rt ask": ("a.png", "who?", "--backend", "gpu"),
    "blip2rt match": ("a.png", "a dog", "--backend", "tensorrt"),
    "blip2rt fill": ("s.json", "a.png", "--backend", "tensorrt"),
    "blip2rt tag": ("x.jpg", "--backend", "onnx"),
    "blip2rt index": ("photos", "--out", "x", "--backend", "onnx"),
    "blip2rt merge": ("x", "--out", "y", "--backend", "onnx"),
    "blip2rt pool": ("build", "x", "--out", "y", "--backend", "onnx"),
    "blip2rt search": ("x", "a dog", "--backend", "onnx"),
    "blip2rt duplicates": ("x", "--backend", "onnx"),
    "blip2rt serve": ("--backend", "onnx"),
    "blip2rt stdio": ("--backend", "onnx"),
    "blip2rt help": ("captions",),
    "blip2rt-bench": ("--geometry", "huge"),
    "blip2rt-build": None,
    "blip2rt-export": ("--checkpoint", "x", "--out", "y", "--target", "onnx"),
    "blip2rt-convert": ("x", "--out", "y", "--to", "lavis"),
    "blip2rt-train": ("stage3",),
    "blip2rt-train prepare": ("shard",),
    "blip2rt-train prepare capfilt": ("--data", "x", "--out", "y", "--precision", "int8"),
    "blip2rt-train evaluate": ("captions",),
    "blip2rt-train evaluate caption": ("--data", "x", "--precision", "int8"),
    "blip2rt-train evaluate vqa": ("--data", "x", "--precision", "int8"),
    "blip2rt-train evaluate retrieval": ("--data", "x", "--precision", "int8"),
}
WITHOUT_CHOICE = "prepare shards, prepare index, stage1, stage2, questions, recipes, self-critical, calibrate, average"
COMMANDS |= {f"blip2rt {name}": None for name in "info verify pull doctor".split()}
COMMANDS |= {f"blip2rt-train {name}": None for name in WITHOUT_CHOICE.split(", ")}
# What a package's commands import.
HEAVY = {"blip2rt_export": "onnxscript", "blip2rt_train": "torch", "benchmarks": "onnxscript"}


def scripts() -> dict[str, str]:
    """Name -> module:function of pyproject's scripts."""
    text = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.scripts]\n")[2].partition("\n\n")[0]
    return dict(re.findall(r'^(\S+) = "(\S+)"$', text, re.MULTILINE))


def main_of(called: str) -> tuple[Callable[[list[str]], int], list[str]]:
    """The function behind a command's name, and the subcommands that the name holds."""
    name, *subcommands = called.removeprefix("python -m ").split()
    where, _, function = scripts().get(name, f"{name}:main").partition(":")
    package = where.partition(".")[0]
    if package in HEAVY:
        pytest.importorskip(HEAVY[package])
    where += ".__main__" if (ROOT / where.replace(".", "/") / "__main__.py").exists() else ""
    return getattr(importlib.import_module(where), function), subcommands


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command by its name in this process: exit code, stdout, stderr."""

    def call(called: str, *arguments: str) -> tuple[int, str, str]:
        function, subcommands = main_of(called)
        words = [*subcommands, *arguments]
        monkeypatch.setattr(sys, "argv", [called.split()[0], *words])  # which a main() without arguments reads
        capsys.readouterr()
        code = function() if called.startswith("python -m benchmarks.") else function(words)
        return code, *capsys.readouterr()

    return call


def refusal(called: str, ended: tuple[int, str, str]) -> str:
    """The one line of a mistake, after the program's name and before where to read on."""
    code, out, err = ended
    program = called if called.startswith(("blip2rt-train ", "python")) else called.split()[0]
    program = " ".join(program.split()[:2]) if called.startswith("blip2rt-train ") else program
    assert (code, out, err.count("\n")) == (2, "", 1), ended
    assert err.startswith(f"{program}: error: "), err
    return err.removeprefix(f"{program}: error: ").rstrip("\n")


def shown(help_text: str) -> dict[str, str]:
    """Option, or options, of a help page -> what is said of it, in one line."""
    blocks = re.findall(r"^  (-\S.*(?:\n {4,}\S.*)*)", help_text, re.MULTILINE)
    names = [" ".join(re.findall(r"(?<![\w-])--?\w[\w-]*", block.split("  ")[0])) for block in blocks]
    return dict(zip(names, (" ".join(block.split()) for block in blocks), strict=True))


def test_every_command_is_in_the_table() -> None:
    from blip2rt_train.cli import COMMANDS as TRAINING

    programs = {called.removeprefix("python -m ").split()[0] for called in COMMANDS}
    modules = {where.partition(":")[0] for where in scripts().values()}
    modules |= {name for name in programs if name not in scripts()}
    modules |= {f"train.{module}" for module, _ in TRAINING.values()}
    modules = {name.replace("blip2rt_export", "export").replace("blip2rt_train", "train") for name in modules}
    # Workers that another program starts.
    workers = ("blip2rt.bench.worker", "blip2rt.bench.torch_peer", "blip2rt.bench.llama_peer")
    for package in ("blip2rt", "train", "export", "benchmarks"):
        for file in (ROOT / package).rglob("*.py"):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if '__name__ == "__main__"' in file.read_text("utf-8") and not name.startswith(workers):
                assert file.name == "__main__.py" or name in modules, name
    assert set(scripts()) <= programs
    assert {called.split()[1] for called in COMMANDS if called.startswith("blip2rt-train ")} == set(TRAINING)


@pytest.mark.parametrize("called", COMMANDS)
def test_help(called: str, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call(called, "--help")
    assert not [line for line in out.splitlines() if len(line) > 80]
    if called.startswith("blip2rt "):
        assert call("blip2rt help", called.split()[1]) == (code, out, err)
    assert (code, err) == (0, "") and call(called, "-h") == (code, out, err)
    assert out.startswith(f"usage: {called} "), out
    subcommands = re.findall(
        r"^    (\w+) {2,}\S", out.partition("positional arguments:")[2].partition("\n\n")[0], re.MULTILINE
    )
    assert all(f"{called} {name}" in COMMANDS for name in subcommands), "a new subcommand must be tested, too"
    options = shown(out)
    assert "-h --help" in options and "-V --version" in options
    for option, about in options.items():
        assert "_" not in option, about
        assert about.count("default") <= 1 and not re.search(r"\[[^\]]*\]$", about), about
        assert "default" not in about or re.search(r"\(default: [^)]+\)", about), about
        assert " of sampling: " not in about and len(about.split()) > 1, about


@pytest.mark.parametrize("called", COMMANDS)
def test_version_and_unknown_options(called: str, call: Callable[..., tuple[int, str, str]]) -> None:
    """An unknown option is reported before what is missing, with the nearest one and the help of the subcommand."""
    assert call(called, "--version") == (0, f"blip2rt {blip2rt.__version__}\n", "")
    line = refusal(called, call(called, "--verzion"))
    assert line == f"unknown option --verzion: did you mean --version? (see {called} --help)"
    assert refusal(called, call(called, "--not-at-all=3")).startswith("unknown option --not-at-all")


@pytest.mark.parametrize("called", [called for called, choice in COMMANDS.items() if choice])
def test_wrong_choice(called: str, call: Callable[..., tuple[int, str, str]]) -> None:
    arguments = COMMANDS[called]
    assert arguments is not None
    line = refusal(called, call(called, *arguments))
    assert repr(arguments[-1]) in line and "choose from " in line and line.endswith(f"(see {called} --help)"), line


@pytest.mark.parametrize(
    ("called", "arguments"),
    [
        ("blip2rt caption", "a.png --model ''"),
        ("blip2rt ask", "a.png who? --model ''"),
        ("blip2rt match", "a.png 'a dog' --model ''"),
        ("blip2rt info", "''"),
        ("blip2rt-bench", "--model ''"),
        ("blip2rt-build", "''"),
        ("blip2rt-export", "--checkpoint '' --out x"),
        ("blip2rt-export", "--checkpoint x --out ''"),
        ("blip2rt-export", "--checkpoint x --out y --retrieval-checkpoint ''"),
        ("blip2rt-convert", "'' --to hf --out x"),
        ("blip2rt-convert", "x --to hf --out ''"),
        ("blip2rt-train evaluate caption", "--model '' --data x"),
        ("blip2rt-train calibrate", "'' --data x --images y --out z"),
        ("blip2rt-train average", "a '' --out z"),
        ("blip2rt-train questions", "--data x --images y --out ''"),
    ],
)
def test_an_empty_value_is_a_mistake(called: str, arguments: str, call: Callable[..., tuple[int, str, str]]) -> None:
    assert " is '': give a value, or leave it out" in refusal(called, call(called, *shlex.split(arguments)))


def test_renamed_options_are_accepted_but_hidden(call: Callable[..., tuple[int, str, str]]) -> None:
    """Both spellings fail alike behind the parser, because /none does not exist."""
    paths = "--images x --out y"
    for called, old, new in (
        ("blip2rt-export", "--ckpt /none --out y", "--checkpoint /none --out y"),
        ("blip2rt-convert", "--ckpt /none --to hf --out y", "--checkpoint /none --to hf --out y"),
        ("blip2rt-train questions", f"--table /none {paths} --per_image 1", f"--data /none {paths} --per-image 1"),
        ("blip2rt-train prepare shards", "--data /none --out y --per_shard 5", "--data /none --out y --per-shard 5"),
        ("blip2rt-train calibrate", f"--ckpt /none --data x {paths}", f"/none --data x {paths}"),
        ("blip2rt-train evaluate caption", "--ckpt x --data /none --num-beams 2", "--model x --data /none --beams 2"),
    ):
        before = refusal(called, call(called, *old.split()))
        after = refusal(called, call(called, *new.split()))
        assert "/none" in before and before == after
        page = shown(call(called, "--help")[1])
        assert not [word for word in old.split() if word.startswith("--") and word not in new.split() and word in page]


def test_errors_name_options_as_they_were_given(call: Callable[..., tuple[int, str, str]]) -> None:
    for value in ("0", "x"):  # rejected by the core, and by the parser
        for name in ("--num-beams", "--num_beams", "--beams"):
            error = refusal("blip2rt caption", call("blip2rt caption", "a.png", name, value))
            assert f"{name.replace('_', '-')} is {value if value == '0' else repr(value)}" in error


def parser() -> Parser:
    made = Parser("tool", renamed={"--width": "--beams", "--file": ""})
    made.add_argument("file", type=path, metavar="FILE")
    made.add_argument("--beams", type=whole(1, 9), default=3, metavar="N", help="beam width")
    made.add_argument("--max-tokens", type=int, default=0, metavar="N", help="longest text")
    made.add_argument("--name", type=nonempty)
    made.add_argument("--rate", type=float, default=0.0, help="rate in %%")
    made.add_argument("--kind", choices=("ort", "trt"), required=True)
    return made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("f --kind ort --beams 0", "--beams is '0': give a whole number from 1 to 9"),
        ("f --kind ort --beams=1e3", "--beams is '1e3': give a whole number from 1 to 9"),
        ("f --kind ort --max_tokens x", "--max-tokens is 'x': give a whole number"),
        ("f --kind ort --rate fast", "--rate is 'fast': give a number"),
        ("f --kind ort --name=", "--name is '': give a value, or leave it out"),
        ("f --kind trtx", "--kind is 'trtx': did you mean trt? choose from ort, trt"),
        ("f", "missing: --kind"),
        ("--beems 3", "unknown option --beems: did you mean --beams?"),
        ("--widht=3", "unknown option --widht: did you mean --beams?"),
        ("f --kind TRT", "--kind is 'TRT': did you mean trt? choose from ort, trt"),
        ("f g --kind ort", "unexpected 'g': leave it out"),
        ("-v", "unknown option -v: did you mean -V?"),
        ("-f.jpg", "unknown option -f.jpg: if it is a file, put -- before it"),
        ("-hf.jpg", "-h/--help: unexpected 'f.jpg' after it: put -- before a file's name"),
        ("f -qx 3", "unknown option -qx"),
        ("f --kind ort --beams", "--beams: expected one argument"),
    ],
)
def test_mistakes_name_value_choices_and_fix(words: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parser().parse_args(words.split())
    assert str(raised.value) == f"{message} (see tool --help)"


def test_spellings_of_one_option() -> None:
    want = vars(parser().parse_args("f --kind ort --beams 2 --max-tokens 5".split()))
    for words in (
        "f --kind ort --width 2 --max_tokens 5",
        "--file f --kind=ort --beams=2 --max_tokens=5",
        "--file=f --kind ort --width=2 --max-tok 5",
        "--kind ort --beams 2 --max-tokens 5 -- f",
    ):
        assert vars(parser().parse_args(words.split())) == want, words
    assert parser().parse_args(["--kind", "ort", "--", "--max_tokens"]).file == Path("--max_tokens")


def test_options_before_between_and_after_arguments() -> None:
    made = Parser("tool")
    made.add_argument("first")
    made.add_argument("others", nargs="*")
    made.add_argument("-n", "--count", type=int)
    made.add_argument("-r", action="store_true")
    made.add_argument("--some", nargs="*", default=[])
    made.add_argument("--size", nargs=2, type=float)
    made.add_argument("--bare", nargs="?", const=1, type=int)
    for words, first, others, options in (
        ("a -n 3 b -r c", "a", ["b", "c"], {"count": 3, "r": True}),
        ("-n3 a -r b --bare", "a", ["b"], {"bare": 1}),
        ("a --coun=3 b", "a", ["b"], {"count": 3}),
        ("a --size -1 2 b c", "a", ["b", "c"], {"size": [-1, 2]}),
        ("a b --some c d", "a", ["b"], {"some": ["c", "d"]}),
        ("--some c -- a -n", "a", ["-n"], {"some": ["c"]}),
        ("a --count -5 -- -r --x", "a", ["-r", "--x"], {"count": -5}),
        ("a --some c -r b", "a", ["b"], {"some": ["c"]}),
    ):
        found = vars(made.parse_args(words.split()))
        assert (found["first"], found["others"]) == (first, others), words
        assert found == found | options, words
    mistakes = {"a -n": "-n/--count: expected one argument", "a -z": "unknown option -z", "-r": "missing: first"}
    for words, message in mistakes.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            made.parse_args(words.split())
    made = Parser("tool")
    made.add_argument("text", metavar="TEXT")
    with pytest.raises(UsageError, match="unexpected 'dog': quote a text of several words"):
        made.parse_args(["a", "dog"])
    assert made.parse_args(["-5"]).text == "-5" and made.parse_args(["--", "-a"]).text == "-a"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ImageError("no such file: 'a.png'"), 2, "error: no such file: 'a.png'"),
        (ModuleNotFoundError(name="torch"), 2, f"error: torch is not installed: {pip_install('train')}"),
        (KeyboardInterrupt(), 130, "half of it is kept"),
        (OSError(13, "Permission denied", "out.json"), 2, "error: out.json: Permission denied"),
        (ConnectionError("the hub\ncannot be reached"), 2, "error: the hub cannot be reached"),
        (MemoryError(), 2, "error: not enough memory: close other programs, or give less at once"),
        (RuntimeError("(os error 28)"), 2, "error: no space left on the disk: free some and run again"),
    ],
)
def test_error_policy(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tool", Mock(side_effect=error), extra="train", interrupted="half of it is kept") == code
    assert capsys.readouterr() == ("", f"tool: {said}\n")


@pytest.mark.parametrize("error", [ModuleNotFoundError(name="blip2rt_train.nothing"), RuntimeError("a bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run("tool", Mock(side_effect=error))


def test_exit_status_is_that_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run("tool", lambda code=code: code) for code in (None, 0, 1, 2)] == [0, 0, 1, 2]  # type: ignore[misc]
    assert run("tool", lambda: run("inner", lambda: 1)) == 1
    with pytest.raises(SystemExit) as left:
        run("tool", lambda: sys.exit(143))  # as on SIGTERM
    assert left.value.code == 143 and capsys.readouterr() == ("", "")


def test_errors_name_flags_for_fields() -> None:
    flags = {"max_beams": "--max-beams", "capacity": "--capacity"}
    message = "^--max-beams is 9: give 1 to 3; --capacity is 0: a capacity is above 0$"
    with pytest.raises(OptionError, match=message), command_line.flags_named(flags):
        raise OptionError("max_beams is 9: give 1 to 3; capacity is 0: a capacity is above 0")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_during_imports_is_one_line(tmp_path: Path) -> None:
    # A signal just before a long sleep would be seen only after it.
    waiting = "import time\nprint('importing', flush=True)\nwhile True:\n    time.sleep(0.1)\n"
    (tmp_path / "torch.py").write_text(waiting)
    (tmp_path / "a.tsv").write_text("image\tcaption\na.tsv\ta dog\n")
    arguments = ["--out", str(tmp_path / "o"), "--train-table", str(tmp_path / "a.tsv"), "--images", str(tmp_path)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "cwd": ROOT}
    command = [sys.executable, "-m", "blip2rt_train", "stage1", *arguments]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    said = "blip2rt-train stage1: interrupted; the same command resumes from what was saved\n"
    assert (process.communicate(timeout=900)[1], process.returncode) == (said, 130)


@pytest.mark.parametrize("program", ["blip2rt-bench", "blip2rt-train"])
def test_python_m_is_the_script(program: str) -> None:
    module = program.replace("-", "." if "bench" in program else "_")
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {program} "), done


def test_only_a_process_of_its_own_is_tuned() -> None:
    """A program that calls main() keeps its environment; numpy reads the variable when it is imported."""
    code = """if True:
        import atexit, gc, os, sys
        from blip2rt import cli

        class Left:
            def __del__(self):
                print("freed, and not by the system")

        def run(*_):
            found.extend([gc.isenabled(), os.environ.get("OPENBLAS_THREAD_TIMEOUT")])
            atexit.register(print, found)
            return 3

        left, found, cli.run = Left(), ["numpy" in sys.modules], run
        cli.main(["--version"])
        cli.main()"""
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (3, f"{[False, True, None, False, '4']}\n"), done


def test_garbage_is_collected_once_a_model_is_loaded(tiny: Any) -> None:
    gc.disable()
    try:
        assert main(["ask", "missing.jpg", "what is this?", "--model", str(tiny.path)]) == 2
        assert gc.isenabled() and gc.get_freeze_count()
    finally:
        gc.enable()
        gc.unfreeze()
