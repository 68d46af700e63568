"""Memory of a busy server: `python -m benchmarks.server_memory --minutes 20 --callers 64`.

Starts `blip2rt serve` with nano and a cache so small that it fills at once. Callers send random pictures to every kind
of route, one request after another; every tenth stream is abandoned. Prints the server's resident memory, its
threads and open files as the requests go by, and the growth from the second quarter's median to the last quarter's:
the first quarter fills caches and threads' heaps. Linux only.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from blip2rt.command_line import Parser, run, whole
from blip2rt.errors import Blip2rtError

_WORDS = "dog cat red blue man woman street tree small old table car water hat house two bird".split()
_SIDES = (64, 900)  # pixels
_ABANDONED = 0.1  # share of the streams


def _picture(rng: random.Random) -> str:
    """A data URI of a JPEG of blotches, of a random size."""
    size = (rng.randint(*_SIDES), rng.randint(*_SIDES))
    data = io.BytesIO()
    Image.frombytes("RGB", (8, 8), rng.randbytes(192)).resize(size).save(data, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A path, and a body that has not been sent before."""
    image, text = _picture(rng), " ".join(rng.choices(_WORDS, k=rng.randint(1, 12)))
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": f"what is the {text}?"}]
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "stream": rng.random() < 0.7}
    if rng.random() < 0.3:
        chat |= {"temperature": 1.0, "seed": rng.getrandbits(31)}
    choices: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", chat),
        ("/v1/caption", {"image": image, "scores": True}),
        ("/v1/ask", {"image": image, "question": f"is there a {text}?"}),
        ("/v1/match", {"image": image, "texts": [text, rng.choice(_WORDS)]}),
        ("/v1/tags", {"image": image, "labels": rng.sample(_WORDS, 8)}),
        ("/v1/embeddings", {"input": [text, image]}),
        ("/api/chat", {"model": "nano", "messages": [{"role": "user", "content": text, "images": [image[23:]]}]}),
        ("/v1/caption", {"image": image[:200]}),  # rejected
    ]
    return rng.choice(choices)


def _call(port: int, seed: int, end: float, statuses: Counter[str]) -> None:
    """Send requests until `end`, in time.monotonic()."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        path, body = _request(rng)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            abandoned = body.get("stream") and rng.random() < _ABANDONED
            response.read(1 if abandoned else None)
            statuses["abandoned" if abandoned else str(response.status)] += 1
            if response.status == 429:
                time.sleep(1)
        except (OSError, http.client.HTTPException) as error:
            statuses[type(error).__name__] += 1
        finally:
            connection.close()


def _resident(pid: int) -> tuple[float, int, int]:
    """Resident megabytes, threads and open files of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(fields["VmRSS"].split()[0]) / 1e3, int(fields["Threads"]), files


def _measure(args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "blip2rt", "serve", "--port", "0", "--cache", args.cache, "--threads", "2"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        lines = (json.loads(line) for line in server.stderr if line.startswith("{"))
        url = next((line["message"] for line in lines if line["message"].startswith("http")), None)
        if url is None:
            raise Blip2rtError("the server did not start: `blip2rt serve` says why")
        next(line for line in lines if line["message"] == "ready")
        threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()
        _load(args, server.pid, int(url.rpartition(":")[2]))
    finally:
        server.terminate()
        server.wait()


def _load(args: argparse.Namespace, pid: int, port: int) -> None:
    begin, statuses, memory = time.monotonic(), Counter[str](), []
    end = begin + 60 * args.minutes
    callers = [threading.Thread(target=_call, args=(port, seed, end, statuses)) for seed in range(args.callers)]
    for caller in callers:
        caller.start()
    while time.monotonic() < end:
        time.sleep(min(args.interval, max(end - time.monotonic(), 0)))
        megabytes, threads, files = _resident(pid)
        memory.append(megabytes)
        seconds = time.monotonic() - begin
        counts = f"{threads} threads {files:4d} files {sum(statuses.values()):7d} requests"
        print(f"{seconds:6.0f} s {megabytes:7.1f} MB {counts}", flush=True)
    for caller in callers:
        caller.join()
    quarter = max(len(memory) // 4, 1)
    second, last = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    print(
        f"{dict(statuses)}\nmedian of the second quarter {second:.1f} MB, of the last {last:.1f}: {last - second:+.1f}"
    )


def main() -> int:
    parser = Parser(prog="python -m benchmarks.server_memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=whole(1), default=20, metavar="N", help="time under load")
    parser.add_argument("--callers", type=whole(1), default=64, metavar="N", help="threads that call")
    parser.add_argument("--cache", default="8M", metavar="BYTES", help="as blip2rt serve has it")
    parser.add_argument("--interval", type=whole(1), default=30, metavar="SECONDS", help="between two lines")
    return run("python -m benchmarks.server_memory", lambda: _measure(parser.parse_args()), extra="serve")


if __name__ == "__main__":
    sys.exit(main())
