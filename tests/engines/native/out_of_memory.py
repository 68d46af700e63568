"""`python -m tests.engines.native.out_of_memory FOLDER SEED MOST`: every request for memory of the core fails once.

FOLDER holds the graphs of tests/tiny/bundle.py. Each piece of work is done again and again: once its first request
fails, once its second, and so on, alone or with all that follow. It ends with MemoryError or the right result, and
what comes after it is right. MOST: number of requests of each piece of work, chosen at random; 0 takes all.

tests/engines/native/allocations.cpp is preloaded.
"""

import ctypes
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.engines.native import Chat, Generator, Session, Vocabulary, graphs, runtime
from tests.tiny.bundle import HEAD_DIM, WORDS, D

_library = ctypes.CDLL(None)
fail, allocations = _library.fail_allocation, _library.allocations
allocations.restype = ctypes.c_long
Work = Callable[[], Any]


def works(folder: Path) -> dict[str, Work]:
    """Pieces of work by name; each gives something that == compares."""
    rng = np.random.default_rng(1)
    prefix = rng.normal(size=(2, 3, D)).astype(np.float32)
    vocabulary = Vocabulary([word.encode() for word in WORDS])

    def generator() -> Generator:
        embed, llm = (Session(runtime(), str(folder / f"{name}.onnx"), 1) for name in ("embed", "llm"))
        return Generator(embed, llm, 1, 1, HEAD_DIM, D, len(WORDS))

    loaded = generator()
    asked: dict[str, dict[str, Any]] = {
        "greedy": {"max_new_tokens": 6, "stop_strings": [b"dog", b"a c"], "vocabulary": vocabulary},
        "beams": {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "no_repeat_ngram_size": 2},
        "sampling": {"do_sample": True, "top_k": 5, "top_p": 0.9, "num_return_sequences": 2, "seed": 3},
    }
    asked["sampling"] |= {"bad_words_ids": [[3], [4, 5]], "repetition_penalty": 1.2, "max_new_tokens": 6}

    def answers(options: dict[str, Any]) -> Work:
        return lambda: loaded.generate(prefix, [[2, 3], [4]], options)

    def steps() -> Any:
        begun = loaded.begin(prefix, [[2], []], {"max_new_tokens": 5})
        while not begun.done:
            begun.step()
        return begun.results()

    def talk() -> Any:
        chat, said = Chat(loaded, prefix[:1], 2, 40), []
        for prompt in ([3], [4, 5]):
            answer = chat.ask(prompt, {"max_new_tokens": 4})
            while not answer.done:
                answer.step()
            said.append(answer.results())
        return said

    def words() -> Any:
        return bytes(Vocabulary([word.encode() for word in WORDS]).bytes)

    found: dict[str, Work] = {"load": lambda: generator().generate(prefix, [[2], [3]], {"max_new_tokens": 2})}
    found |= {name: answers(options) for name, options in asked.items()}
    found |= {"steps": steps, "talk": talk, "words": words}
    for name, shape in (("int4", (3,)), ("int8", (2, graphs.DEFAULT.positions))):
        x = rng.standard_normal((*shape, graphs.DEFAULT.k)).astype(np.float32)
        path = folder / f"{name}.onnx"
        path.write_bytes(graphs.GRAPHS[name](rng).SerializeToString())
        product = Session(runtime(), str(path), 1, custom_int8=True)
        assert product.custom_kernels

        def multiply(product: Session = product, x: np.ndarray = x) -> Any:
            return product.run({"x": x})["y"].tolist()

        found[name] = multiply
    return found


def counted(work: Work) -> int:
    fail(0, 0)
    try:
        work()
    finally:
        number = allocations(ctypes.byref(ctypes.c_long()))
    return int(number)


def main(folder: Path, seed: int, most: int) -> None:
    rng = random.Random(seed)
    total = 0
    for name, work in works(folder).items():
        want = work()
        count = counted(work)
        assert count > 0, name
        numbers = range(1, count + 1) if not most or most >= count else sorted(rng.sample(range(1, count + 1), most))
        for number in numbers:
            for persistent in (0, 1):
                print(name, number, persistent, flush=True)  # the last line tells what ended the process
                failed, got = ctypes.c_long(), None
                fail(number, persistent)
                try:
                    got = work()
                except MemoryError:
                    pass
                finally:
                    allocations(ctypes.byref(failed))
                assert got is None or got == want, (name, number, persistent)
                assert failed.value or got == want, (name, number, persistent)
                total += failed.value > 0
            assert work() == want, (name, number, "the work after it")
        print(f"{name}: {count} requests, {len(numbers)} of them failed", flush=True)
    print(f"in all {total} failures", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as copied:
        for file in Path(sys.argv[1]).glob("*.onnx"):
            (Path(copied) / file.name).write_bytes(file.read_bytes())
        main(Path(copied), int(sys.argv[2]), int(sys.argv[3]))
