"""Bundles by name: hf://user/repo against a stand-in of the hub on this machine, in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

import blip2rt
from blip2rt.bundle import MANIFEST, verify
from blip2rt.bundle.checksum import KEY, sha256_of
from blip2rt.bundle.hub import HubName
from blip2rt.errors import BundleError

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'blip2rt[hub]'")

FIRST, SECOND = "1" * 40, "2" * 40


class Hub:
    """The routes of the hub that a download uses. `commits`: commit -> folder."""

    def __init__(self, cache: Path) -> None:
        self.commits: dict[str, Path] = {}
        self.main = FIRST
        self.cut_after: int | None = None  # bytes of a file after which the connection ends
        self.requests: list[tuple[str, str]] = []  # method, path
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.env = {**os.environ, "HF_ENDPOINT": url, "XDG_CACHE_HOME": str(cache), "HF_HOME": str(cache / "hf")}
        self.env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        for name in ("BLIP2RT_OFFLINE", "BLIP2RT_MODELS", "HF_HUB_OFFLINE"):
            self.env.pop(name, None)

    def answer(self, call: BaseHTTPRequestHandler) -> None:
        asked, path = call.headers.get("Range"), call.path.partition("?")[0]
        self.requests.append((call.command, path))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            if parts[2:4] != ["user", "repo"] or parts[5] not in ("main", FIRST, SECOND):
                return self.send(call, 404, b"{}")
            paths = list(self.commits[FIRST].iterdir())
            files = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": FIRST} for path in paths]
            about = {"id": "user/repo", "sha": self.main, "siblings": [{"rfilename": path.name} for path in paths]}
            return self.send(call, 200, json.dumps(files if parts[4] == "tree" else about).encode())
        file = self.commits[parts[3]].joinpath(*parts[4:])
        if not file.is_file():
            return self.send(call, 404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        headers = {"ETag": f'"{sha256_of(file).hex()}"', "X-Repo-Commit": parts[3]}
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        return self.send(call, 206 if first else 200, data[first:], headers)

    def send(self, call: BaseHTTPRequestHandler, status: int, body: bytes, headers: Any = None) -> None:
        call.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **(headers or {})}.items():
            call.send_header(name, value)
        call.end_headers()
        if call.command == "HEAD":
            return
        cut = self.cut_after is not None and len(body) > self.cut_after
        call.wfile.write(body[: self.cut_after] if cut else body)
        call.close_connection = cut

    def run(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        self.requests.clear()
        command = [sys.executable, "-m", "blip2rt", *map(str, arguments)]
        return subprocess.run(command, env={**self.env, **env}, capture_output=True, text=True, check=False)

    def folder(self, commit: str) -> Path:
        return Path(self.env["XDG_CACHE_HOME"]) / "blip2rt" / "models" / "user--repo" / commit


@pytest.fixture
def hub(tiny: Any, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "cache")
    for commit in (FIRST, SECOND):
        shutil.copytree(tiny.path, tmp_path / commit)
        hub.commits[commit] = tmp_path / commit
    yield hub
    hub.server.shutdown()


@pytest.fixture
def photograph(tmp_path: Path, photo: Any) -> Path:
    Image.fromarray(photo()).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.splitlines()[-1].startswith("blip2rt: error: ") and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def test_a_model_is_downloaded_once_and_then_read_without_network(hub: Hub, tiny: Any, photograph: Path) -> None:
    expected = blip2rt.load(tiny.path).caption(str(photograph))
    done = hub.run("caption", photograph, "--model", "hf://user/repo")
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr
    assert verify(hub.folder(FIRST)) and not (hub.folder(FIRST) / ".cache").exists()
    for env in ({}, {"BLIP2RT_OFFLINE": "1"}):
        done = hub.run("caption", photograph, "--model", "hf://user/repo", **env)
        assert (done.stdout, hub.requests) == (f"{expected}\n", [])
    done = hub.run("info", f"hf://user/repo@{FIRST}")
    assert done.returncode == 0 and hub.requests == [], done.stderr


def test_a_name_keeps_its_commit_until_it_is_pulled(hub: Hub) -> None:
    assert hub.run("pull", "hf://user/repo").stdout == f"{hub.folder(FIRST)}\n"
    hub.main = SECOND
    assert str(hub.folder(FIRST)) in hub.run("verify", "hf://user/repo").stdout
    assert hub.run("pull", "hf://user/repo").stdout == f"{hub.folder(SECOND)}\n"
    assert str(hub.folder(SECOND)) in hub.run("verify", "hf://user/repo").stdout
    assert str(hub.folder(FIRST)) in hub.run("verify", f"hf://user/repo@{FIRST}").stdout


def test_an_altered_file_is_rejected_and_removed(hub: Hub) -> None:
    file = hub.commits[FIRST] / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    said = error_line(hub.run("pull", "hf://user/repo"))
    assert "hf://user/repo was rejected and removed" in said and "sha256 of tokenizer.json" in said
    assert [path.name for path in hub.folder(FIRST).parent.iterdir()] == [".lock"]


def test_an_interrupted_download_resumes(hub: Hub) -> None:
    largest = max(hub.commits[FIRST].iterdir(), key=lambda path: path.stat().st_size)
    hub.cut_after = largest.stat().st_size - 100
    said = error_line(hub.run("pull", "hf://user/repo"))
    assert said.endswith(": run it again to resume") and not hub.folder(FIRST).exists()
    hub.cut_after, partial = None, hub.folder(FIRST).with_name(f".{FIRST}.partial")
    complete = {path.name for path in partial.iterdir() if path.is_file()}
    assert MANIFEST in complete
    done = hub.run("pull", "hf://user/repo")
    assert done.returncode == 0 and verify(hub.folder(FIRST)), done.stderr
    fetched = {path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "resolve" in path}
    assert largest.name in fetched and not fetched & complete, "complete files are not downloaded again"


def test_a_full_disk_is_one_line_before_the_download(hub: Hub) -> None:
    file = hub.commits[FIRST] / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest[KEY]
    manifest["files"]["tokenizer.json"]["size"] = 1 << 60
    file.write_text(json.dumps(manifest))
    assert "bytes free, and 1,152,9" in error_line(hub.run("pull", "hf://user/repo"))
    assert not any("tokenizer" in path for _, path in hub.requests)


def test_offline_is_one_line_without_a_request(hub: Hub) -> None:
    for command in (("pull", "hf://user/repo"), ("info", "hf://user/repo")):
        said = error_line(hub.run(*command, BLIP2RT_OFFLINE="1"))
        assert "hf://user/repo is not in the cache, and BLIP2RT_OFFLINE is set: unset it" in said and not hub.requests


def test_a_missing_repository_and_a_bad_commit_are_one_line(hub: Hub) -> None:
    assert "cannot download hf://user/nothing: " in error_line(hub.run("pull", "hf://user/nothing"))
    hub.main = "../../etc"
    assert "which is not one: try again later" in error_line(hub.run("pull", "hf://user/repo"))


def test_bad_names_are_rejected() -> None:
    for text in ("hf://", "hf://a", "hf://a/b/c", "hf://a/../b", "hf://a/b@", "hf://a/b@../c", "hf://-a/b"):
        with pytest.raises(BundleError, match="give hf://USER/REPOSITORY"):
            HubName.parse(text)
