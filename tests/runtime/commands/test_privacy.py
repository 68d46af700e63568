"""No command opens a socket, looks up a host, or writes anything but its output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiled import shared_library

pytestmark = pytest.mark.long(12, "whole commands under strace: sockets and files of real runs")

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


UNSET = "ORT_DISABLE_TELEMETRY HF_HUB_DISABLE_TELEMETRY DISABLE_TELEMETRY DO_NOT_TRACK TRANSFORMERS_OFFLINE".split()


@pytest.fixture(scope="module")
def watcher() -> Path:
    """A library that logs every socket and host look-up of a process."""
    if sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    return shared_library("no_network", "-O1", "-Wl,--no-as-needed", "-ldl")


def watched(watcher: Path, folder: Path, command: list[str]) -> tuple[str, set[str]]:
    """Run a command with a separate home; return the log, and the files that it left in home, tmp and its folder."""
    home, temporary, here, log = folder / "home", folder / "tmp", folder / "here", folder / "network.log"
    for place in (home, temporary, here):
        place.mkdir()
    names = {"HOME": str(home), "TMPDIR": str(temporary), "NETWORK_LOG": str(log), "LD_PRELOAD": str(watcher)}
    kept = {k: v for k, v in os.environ.items() if k not in UNSET and not k.startswith(("XDG_", "HF_"))}
    env = {**kept, **names, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {str(file.relative_to(folder)) for place in (home, temporary, here) for file in place.rglob("*")}
    return log.read_text() if log.exists() else "", files


@pytest.mark.parametrize("name", COMMANDS)
def test_no_socket_and_no_file(watcher: Path, tmp_path: Path, name: str) -> None:
    if name == "export":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("torch")
    assert watched(watcher, tmp_path, COMMANDS[name]) == ("", set())


def test_convert_writes_to_its_output_only(watcher: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.tiny import blip2

    blip2.generative(tmp_path / "hf", blip2.TEXT_CONFIGS["llama"]())
    # Users have no boto3, which comes with the tests' S3: accelerate imports it, and its HTTP client opens a socket.
    start = "import runpy, sys; sys.modules.update(boto3=None, botocore=None); "
    start += "runpy.run_module('blip2rt_export.convert', run_name='__main__')"
    command = ["-c", start, str(tmp_path / "hf"), "--to", "hf", "--out", str(tmp_path / "out")]
    assert watched(watcher, tmp_path, command) == ("", set())


def test_watcher_detects_sockets(watcher: Path, tmp_path: Path) -> None:
    code = "import socket, tempfile; socket.socket().close(); tempfile.mkdtemp()"
    noted, files = watched(watcher, tmp_path, ["-c", code])
    assert noted.startswith("socket") and len(files) == 1


def test_users_environment_is_kept(tmp_path: Path) -> None:
    code = (
        "import ctypes, blip2rt\n"
        "blip2rt.caption('docs/photo.jpg')\n"
        "getenv = ctypes.CDLL(None).getenv\n"
        "getenv.restype = ctypes.c_char_p\n"
        "print(getenv(b'ORT_DISABLE_TELEMETRY').decode())\n"
    )
    env = {**os.environ, "HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "0", done.stderr
