"""`caption --ray` and `capfilt --ray` on Ray itself: the bytes of local runs, whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.gallery.helpers import POSIX, TIMEOUT
from tests.tiny.image_folders import fill

pytest.importorskip("ray")
pytestmark = POSIX
PORT = 6397
PHOTO = Path(__file__).parents[2] / "docs" / "photo.jpg"


@pytest.mark.long(20, "actors of a real Ray")
def test_nano_and_its_pool_caption_in_actors_as_locally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    shutil.copy(PHOTO, "photos/a.jpg")
    Image.open(PHOTO).rotate(180).save("photos/b.png")
    Path("photos/c.jpg").write_bytes(b"not a picture")
    written, command = [], "caption -r photos --min-confidence 0.5 --batch-size 1 --out t.jsonl".split()
    for ray in ([], ["--ray", "local"]):
        arguments = [sys.executable, "-m", "blip2rt", *command, *ray]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        written.append(Path("t.jsonl").read_bytes())
        Path("t.jsonl").unlink()
    assert written[0] == written[1] and written[0].count(b"\n") == 2


@pytest.fixture(scope="module")
def head():
    """A head node that all tests use."""
    command = [sys.executable, "-m", "ray.scripts.scripts"]
    start = ["start", "--head", "--num-cpus=2", "--object-store-memory=150000000", "--disable-usage-stats"]
    try:
        subprocess.run([*command, *start, "--include-dashboard=false", f"--port={PORT}"], check=True, timeout=TIMEOUT)
        yield f"127.0.0.1:{PORT}"
    finally:
        subprocess.run([*command, "stop"], check=True, timeout=TIMEOUT)


def caption(folder: Path, tiny: Path, *arguments: str) -> list[str]:
    common = ["--out", "t.jsonl", "--batch-size", "4", "--model", str(tiny), *arguments]
    return [sys.executable, "-m", "blip2rt", "caption", "-r", str(folder), *common]


def workers(name: str = "BatchWorker") -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"ray::{name}"], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
def test_killed_actor_and_driver_lose_nothing(tmp_path, tiny, head, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        fill(tmp_path / "album" / str(number), number)
    subprocess.run(caption(tmp_path / "album", tiny.path), check=False, timeout=TIMEOUT)
    local = Path("t.jsonl").read_bytes()
    Path("t.jsonl").unlink()
    driver = subprocess.Popen(caption(tmp_path / "album", tiny.path, "--ray", head))
    end = time.monotonic() + TIMEOUT
    while not (Path("t.jsonl").exists() and Path("t.jsonl").stat().st_size):
        assert driver.poll() is None and time.monotonic() < end, "the driver ended early"
        time.sleep(0.05)
    for pid in workers()[:1]:
        os.kill(pid, signal.SIGKILL)
    size = Path("t.jsonl").stat().st_size
    while driver.poll() is None and Path("t.jsonl").stat().st_size == size and time.monotonic() < end:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    subprocess.run(caption(tmp_path / "album", tiny.path, "--ray", head), check=False, timeout=TIMEOUT)
    assert Path("t.jsonl").read_bytes() == local


@pytest.mark.slow
def test_killed_capfilt_task_loses_nothing(tmp_path, tiny, head, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    for number in range(3):
        fill(tmp_path / "album" / str(number), number)
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as tar:
            for copy in range(8):
                tar.add(tmp_path / "album" / str(number) / "a.png", f"{copy}.png")
    command = [
        sys.executable,
        "-m",
        "blip2rt_train.prepare",
        "capfilt",
        "--data",
        "shards",
        "--captioner",
        str(tiny.path),
    ]
    subprocess.run([*command, "--batch-size", "1", "--out", "local"], check=True, timeout=TIMEOUT)
    driver = subprocess.Popen([*command, "--batch-size", "1", "--out", "cluster", "--ray", head])
    end = time.monotonic() + TIMEOUT
    while not any(file.stat().st_size for file in Path("cluster").glob("*.jsonl")):
        assert driver.poll() is None and time.monotonic() < end, "the driver ended early"
        time.sleep(0.02)
    for pid in workers("work")[:1]:
        os.kill(pid, signal.SIGKILL)
    assert driver.wait(TIMEOUT) == 0
    for file in Path("local").iterdir():
        assert (Path("cluster") / file.name).read_bytes() == file.read_bytes()
