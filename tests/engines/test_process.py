"""The core at the end of the interpreter, after a fork, with two threads in one generation, and out of memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.engines.native import Chat, Generator, Session, library_path, runtime
from tests.seeds import new_seed
from tests.tiny.bundle import HEAD_DIM, WORDS, D, Q, Tiny

pytestmark = pytest.mark.long(8, "forks and threads of real processes")

ROOT = Path(__file__).parents[2]
LOAD = """
import os, sys, threading, time
import numpy as np
import blip2rt
model = blip2rt.load(sys.argv[1], threads=1)
image = np.random.default_rng(int(sys.argv[2])).integers(0, 256, (20, 30, 3), dtype=np.uint8)
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)


def test_daemon_threads_do_not_crash_the_process(tiny: Tiny) -> None:
    script = f"""{LOAD}
model.caption(image)
kept, large = [], np.zeros((300, 800, 3), np.uint8)
def keep(*token):
    kept.append(token)
    time.sleep(0.0005)
def work(call):
    while True:
        call()
for call in (
    lambda: model.caption(image, max_new_tokens=9),
    lambda: model.caption(image, on_token=keep, num_beams=1),
    lambda: model.prepare(large),
    lambda: blip2rt.load(sys.argv[1], threads=1).caption(image),
):
    threading.Thread(target=work, args=[call], daemon=True).start()
time.sleep(float(sys.argv[3]))
"""
    rng = np.random.default_rng(new_seed())
    for _ in range(6):
        done = run(script, tiny.path, rng.integers(1000), rng.uniform(0.01, 0.3))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


CORE = """
import os, sys
import numpy as np
from blip2rt._native import Chat, Generator, Runtime, Session
library, folder, *geometry = sys.argv[1:]
layers, heads, head_dim, d, words = map(int, geometry)
rt = Runtime(library)
embed, llm = (Session(rt, f"{folder}/{name}.onnx", 1) for name in ("embed", "llm"))
generator = Generator(embed, llm, layers, heads, head_dim, d, words)
prefix = np.ones((1, 3, d), np.float32)
"""
GEOMETRY = [1, 1, HEAD_DIM, D, len(WORDS)]


def test_a_fork_after_loading_is_rejected(tiny: Tiny) -> None:
    script = f"""{CORE}
begun, chat = generator.begin(prefix, [[2]]), Chat(generator, prefix, 1, 40)
begun.step()
child = os.fork()
if child == 0:
    for call in (
        lambda: generator.generate(prefix, [[2]]),
        lambda: generator.begin(prefix, [[2]]),
        lambda: begun.step(),
        lambda: chat.ask([3]),
        lambda: embed.run(dict(token_ids=np.zeros((1, 1), np.int64))),
    ):
        try:
            call()
        except RuntimeError as error:
            print(error, flush=True)
    sys.exit(0)  # frees everything, and waits for no thread of the parent's
assert os.waitpid(child, 0)[1] == 0
begun.step()
"""
    done = run(script, library_path(), tiny.path, *GEOMETRY)
    assert (done.returncode, done.stderr) == (0, "")
    fix = "load it in the child, or start processes by spawn"
    assert done.stdout == f"this process was forked after the model was loaded: {fix}\n" * 5


PLACES = "PIL.Image.open", "blip2rt.language.read_tokenizer", "blip2rt.pipeline.Language", "blip2rt.pipeline.normalize"


@pytest.mark.parametrize("place", PLACES)
def test_a_fork_during_the_first_call_finds_no_lock(tiny: Tiny, tmp_path: Path, place: str) -> None:
    """Another thread is opening an image, reading the tokenizer, setting up, or computing features for the cache."""
    script = f"""{LOAD}
import importlib, signal
from PIL import Image
Image.fromarray(image).save(sys.argv[3])
model = blip2rt.load(sys.argv[1], threads=1, cache_bytes=1 << 20)
module, name = importlib.import_module(sys.argv[4]), sys.argv[5]
original, inside = getattr(module, name), threading.Event()
def slow(*arguments, **options):
    inside.set()
    time.sleep(1)
    return original(*arguments, **options)
setattr(module, name, slow)
threading.Thread(target=model.caption, args=[sys.argv[3]]).start()
inside.wait()
child = os.fork()
if child == 0:
    setattr(module, name, original)
    signal.alarm(60)
    try:
        model.caption(sys.argv[3])
    except blip2rt.BackendError as error:
        assert "forked" in str(error)
        blip2rt.load(sys.argv[1], threads=1).caption(sys.argv[3])
        print("finished", file=sys.stderr, flush=True)
    os._exit(0)
os._exit(os.waitpid(child, 0)[1] != 0)
"""
    module, _, name = place.rpartition(".")
    done = run(script, tiny.path, new_seed(), tmp_path / "a.png", module, name)
    assert (done.returncode, done.stderr) == (0, "finished\n")


@pytest.mark.parametrize("end", ["sys.exit(0)", "model.close(); sys.exit(0)", "del model; gc.collect(); os._exit(0)"])
def test_a_fork_of_a_batching_process_exits(tiny: Tiny, end: str) -> None:
    """Only the parent has the thread that takes the steps. It may be waiting or working when the process forks."""
    script = f"""{LOAD}
import gc, threading
model = blip2rt.load(sys.argv[1], threads=1, batching=True)
stop = threading.Event()
def work():
    while not stop.is_set():
        model.caption(image)
worker = threading.Thread(target=work)
worker.start()
for _ in range(4):
    child = os.fork()
    if child == 0:
        {end}
    assert os.waitpid(child, 0)[1] == 0
    if stop.is_set():
        break
    stop.set()
    worker.join()
"""
    done = run(script, tiny.path, new_seed())
    assert (done.returncode, done.stderr) == (0, "")


def test_impossible_sizes_are_a_memory_error(tiny: Tiny) -> None:
    embed, llm = (Session(runtime(), str(tiny.path / f"{name}.onnx"), 1) for name in ("embed", "llm"))
    generator = Generator(embed, llm, *GEOMETRY)
    prefix = np.ones((1, Q, D), np.float32)
    for rows, capacity in ((2**31 - 1, 2**31 - 1), (2**30, 1), (1, 2**31 - 1)):
        with pytest.raises(MemoryError):
            Chat(generator, prefix, rows, capacity)
