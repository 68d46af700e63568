"""No command opens a socket, looks up a host, or writes outside of what it was told to write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import blip2rt

pytestmark = pytest.mark.long(15)

ROOT = Path(blip2rt.__file__).parents[1]
PHOTO = ROOT / "docs" / "photo.jpg"
COMMANDS = {
    "caption": ["-m", "blip2rt", "caption", str(PHOTO)],
    "ask": ["-m", "blip2rt", "ask", str(PHOTO), "what is it?"],
    "match": ["-m", "blip2rt", "match", str(PHOTO), "a cat"],
    "info": ["-m", "blip2rt", "info"],
    "verify": ["-m", "blip2rt", "verify", str(ROOT / "blip2rt" / "models" / "nano")],
    "doctor": ["-m", "blip2rt", "doctor"],
    "bench": ["-m", "blip2rt.bench", "--repeat", "1", "--new-tokens", "2", "--threads", "1", "--image", str(PHOTO)],
    "export": ["-c", "import export.checks.stepping"],
}


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that notes every socket and every look-up of the process that it is loaded into."""
    compiler = shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    library = tmp_path_factory.mktemp("watcher") / "no_network.so"
    source = ROOT / "tests" / "engines" / "native" / "no_network.cpp"
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return library


def watched(watcher: Path, folder: Path, command: list[str], **more: str) -> tuple[str, set[str]]:
    """Run it with a home of its own; return what was noted, and the files that it left in its home."""
    home, temporary, log = folder / "home", folder / "tmp", folder / "network.log"
    home.mkdir()
    temporary.mkdir()
    names = {"HOME": str(home), "TMPDIR": str(temporary), "NETWORK_LOG": str(log), "LD_PRELOAD": str(watcher)}
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    env = {**kept, **names, "PYTHONDONTWRITEBYTECODE": "1", **more}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {str(file.relative_to(folder)) for place in (home, temporary) for file in place.rglob("*")}
    return log.read_text() if log.exists() else "", files


@pytest.mark.parametrize("name", COMMANDS)
def test_no_socket_and_no_file(watcher: Path, tmp_path: Path, name: str) -> None:
    if name == "export":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("torch")
    noted, files = watched(watcher, tmp_path, COMMANDS[name])
    assert noted == ""
    assert files == set()


def test_the_watcher_sees_a_socket(watcher: Path, tmp_path: Path) -> None:
    code = "import socket, tempfile; socket.socket().close(); tempfile.mkdtemp()"
    noted, files = watched(watcher, tmp_path, ["-c", code])
    assert noted.startswith("socket") and len(files) == 1


@pytest.mark.parametrize(("given", "left"), [("0", "0"), (None, "1")])
def test_what_the_user_has_set_stays(tmp_path: Path, given: str | None, left: str) -> None:
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
