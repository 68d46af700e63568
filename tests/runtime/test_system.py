"""What only POSIX systems have is in blip2rt/system.py, and the rest works without it."""

import ast
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

import blip2rt
from blip2rt import system
from tests.tiny.bundle import tiny_bundle

ROOT = Path(__file__).parents[2]
POSIX_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
POSIX_CALLS = "chown fchmod fork forkpty geteuid getpgid getuid killpg mkfifo pread register_at_fork".split()
POSIX_CALLS += "sched_getaffinity sched_setaffinity statvfs sysconf wait4".split()

# Hides what Windows does not have, then runs the program in sys.argv.
HIDE = f"""
import os, sys
for name in {POSIX_MODULES!r}: sys.modules[name] = None
flags = ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "posix_fadvise")
for name in (*{POSIX_CALLS!r}, *flags): vars(os).pop(name, None)
"""


def posix_uses(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in POSIX_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            found += [node.attr] if node.attr in POSIX_CALLS else []
    return found


@pytest.mark.long(4, "every module of the packages, parsed")
def test_only_one_module_uses_what_posix_alone_has() -> None:
    paths = [path for folder in ("blip2rt", "train", "export") for path in (ROOT / folder).rglob("*.py")]
    uses = {path.relative_to(ROOT).as_posix(): posix_uses(path.read_text()) for path in paths}
    assert [path for path, found in uses.items() if found] == ["blip2rt/system.py"]


@pytest.mark.parametrize("line", ["caption album/a.png", "caption -r album --write txt", "index album --out index"])
def test_commands_run_without_it(line: str, tiny, tmp_path: Path, photo) -> None:
    (tmp_path / "album").mkdir()
    for name in ("a", "b"):
        Image.fromarray(photo()).save(tmp_path / "album" / f"{name}.png")
    code = f"{HIDE}\nfrom blip2rt.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *line.split(), "--model", str(tiny.path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout or any(path.suffix == ".txt" or path.name == "index" for path in tmp_path.rglob("*"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86-64")
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64")
@pytest.mark.parametrize("processor", ["Nehalem", "SandyBridge"])
def test_processors_without_avx2_caption_alike(processor: str, tmp_path: Path) -> None:
    seed = 5  # of one bundle, whose tokens are never nearly tied
    bundle = tiny_bundle(tmp_path / "bundle", seed).path
    command = [sys.executable, "-m", "blip2rt", "caption", str(ROOT / "docs" / "photo.jpg"), "--model", str(bundle)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS")}
    both = [
        subprocess.run([*runner, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
        for runner in ([], ["qemu-x86_64", "-cpu", processor])
    ]
    assert both[0] == both[1] != "\n"


def test_every_function_has_an_answer_without_it() -> None:
    code = (
        f"{HIDE}\nfrom blip2rt import system\n"
        f"with open({__file__!r}) as file: assert system.read_range(file.fileno(), 4, 3) == b'What'\n"
        "system.at_fork(print, print)\n"
        "print(system.lock_file(sys.stdin), len(system.usable_cpus()) > 0, system.is_address_space_limited(),"
        " system.peak_memory(), system.total_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True False 0 0\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_a_locked_file_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a", "w") as one, open(tmp_path / "a", "w") as two:
        assert system.lock_file(one) and not system.lock_file(two)
    with open(tmp_path / "a", "w") as three:
        assert system.lock_file(three), "closing a file unlocks it"


def test_a_processor_without_the_baseline_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from blip2rt import native
    from blip2rt.cli import main

    assert native.native.missing_instructions() == ""
    monkeypatch.setattr(native, "native", Mock(missing_instructions=lambda: "SSE4.2"))
    assert main(["caption", "x.png"]) == 2
    assert capsys.readouterr().err.startswith("blip2rt: error: this processor has no SSE4.2, which NumPy and ONNX")
    with pytest.raises(blip2rt.BackendError, match=r"SSE4\.2"):
        _ = blip2rt.load
