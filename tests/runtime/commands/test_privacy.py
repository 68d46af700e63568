"""No command opens a socket, looks up a host, or writes anything but its output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.long(70, "whole commands under strace: sockets and files of real runs")

ROOT = Path(__file__).parents[3]
PHOTO = ROOT / "docs" / "photo.jpg"
COMMANDS = {
    "caption": ["-m", "blip2rt", "caption", str(PHOTO)],
    "ask": ["-m", "blip2rt", "ask", str(PHOTO), "what is it?"],
    "match": ["-m", "blip2rt", "match", str(PHOTO), "a cup"],
    "info": ["-m", "blip2rt", "info"],
    "verify": ["-m", "blip2rt", "verify", str(ROOT / "blip2rt" / "models" / "nano")],
    "doctor": ["-m", "blip2rt", "doctor"],
    "bench": ["-m", "blip2rt.bench", "--repeat", "1", "--new-tokens", "2", "--threads", "1", "--image", str(PHOTO)],
    "export": ["-c", "import blip2rt_export.checks.sessions"],
}


_UNSET = "ORT_DISABLE_TELEMETRY HF_HUB_DISABLE_TELEMETRY DISABLE_TELEMETRY DO_NOT_TRACK MPLCONFIGDIR".split()
_UNSET.append("TRANSFORMERS_OFFLINE")
# matplotlib, which plots the training loss, caches the list of fonts.
FONTS = {"home/.cache", "home/.cache/matplotlib", "home/.config", "home/.config/matplotlib"}


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that logs every socket and host look-up of a process."""
    compiler = shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    library = tmp_path_factory.mktemp("watcher") / "no_network.so"
    source = ROOT / "tests" / "engines" / "native" / "no_network.cpp"
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return library


def watched(watcher: Path, folder: Path, command: list[str], **more: str) -> tuple[str, set[str]]:
    """Run a command with a separate home; return the log, and the files that it left in home, tmp and its folder."""
    home, temporary, here, log = folder / "home", folder / "tmp", folder / "here", folder / "network.log"
    for place in (home, temporary, here):
        place.mkdir()
    names = {"HOME": str(home), "TMPDIR": str(temporary), "NETWORK_LOG": str(log), "LD_PRELOAD": str(watcher)}
    kept = {k: v for k, v in os.environ.items() if k not in _UNSET and not k.startswith(("XDG_", "HF_"))}
    env = {**kept, **names, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run([sys.executable, *command], cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {str(file.relative_to(folder)) for place in (home, temporary, here) for file in place.rglob("*")}
    return log.read_text() if log.exists() else "", files


@pytest.mark.parametrize("name", COMMANDS)
def test_no_socket_and_no_file(watcher: Path, tmp_path: Path, name: str) -> None:
    if name == "export":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("torch")
    noted, files = watched(watcher, tmp_path, COMMANDS[name])
    assert noted == ""
    assert files == set()


def export_command(made: Path, out: Path) -> list[str]:
    precision = ["--precision", "fp32"]  # random weights may not tolerate less
    exporter = ["-m", "tests.tiny.exporter", str(made / "traced")]
    return [*exporter, "--checkpoint", str(made / "hf"), "--out", str(out), *precision]


def convert_command(made: Path, out: Path) -> list[str]:
    return ["-m", "blip2rt_export.convert", str(made / "hf"), "--to", "hf", "--out", str(out)]


def train_command(made: Path, out: Path) -> list[str]:
    return ["-m", "blip2rt_train.stage1", *(made / "settings").read_text().split("\n"), "--out", str(out)]


def build_command(made: Path, out: Path) -> list[str]:
    return ["-m", "blip2rt.backends.trt.cli", str(made / "trt"), "--check", "--gpu", "SM86", "--cache", str(out)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, traced_folder: Path) -> Path:
    """Inputs of the tools: a checkpoint, the parts of a training, and a bundle for TensorRT."""
    for package in ("torch", "onnxscript", "timm"):
        pytest.importorskip(package)
    from tests.tiny import blip2, training
    from tests.tiny.bundle import write_trt_encoder

    folder = tmp_path_factory.mktemp("made")
    (folder / "traced").symlink_to(traced_folder)
    blip2.generative(folder / "hf", blip2.TEXT_CONFIGS["llama"]())
    (folder / "settings").write_text("\n".join(training.tiny_settings(folder)))
    write_trt_encoder(folder / "trt")
    return folder


@pytest.mark.parametrize("command", [export_command, convert_command, train_command, build_command])
def test_tools_write_to_their_output_only(
    watcher: Path, made: Path, tmp_path: Path, command: Callable[[Path, Path], list[str]]
) -> None:
    if command is build_command:
        pytest.importorskip("tensorrt_rtx")
    noted, files = watched(watcher, tmp_path, command(made, tmp_path / "out"))
    assert noted == ""
    assert {file for file in files - FONTS if not file.startswith("home/.cache/matplotlib/fontlist-")} == set()


def test_watcher_detects_sockets(watcher: Path, tmp_path: Path) -> None:
    code = "import socket, tempfile; socket.socket().close(); tempfile.mkdtemp()"
    noted, files = watched(watcher, tmp_path, ["-c", code])
    assert noted.startswith("socket") and len(files) == 1


@pytest.mark.parametrize(("given", "left"), [("0", "0"), (None, "1")])
def test_users_environment_is_kept(tmp_path: Path, given: str | None, left: str) -> None:
    code = (
        "import ctypes, blip2rt\n"
        "blip2rt.caption('docs/photo.jpg')\n"
        "getenv = ctypes.CDLL(None).getenv\n"
        "getenv.restype = ctypes.c_char_p\n"
        "print(getenv(b'ORT_DISABLE_TELEMETRY').decode())\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"HOME": str(tmp_path)}
    if given is not None:
        env["ORT_DISABLE_TELEMETRY"] = given
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == left, done.stderr
