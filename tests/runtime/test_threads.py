"""Many threads on one model for minutes: results equal those of one thread, and memory stays bounded.

BLIP2RT_STRESS_SECONDS sets how long; tests/engines/native/stress.cpp does the same below Python, under sanitizers.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blip2rt
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny

pytest.importorskip("blip2rt._native")
THREADS = 32
SECONDS = float(os.environ.get("BLIP2RT_STRESS_SECONDS", "120"))
GROWTH = 64 * 2**20  # bytes of growth after a quarter of the time, for malloc's arenas


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def jobs_of(model: blip2rt.Model, images: list[np.ndarray]) -> list[Callable[[], Any]]:
    """Calls of every kind with reproducible results."""

    def chat(image: np.ndarray, beams: int) -> list[str]:
        talk = model.chat(image, num_beams=beams)
        return [talk.ask(question, max_new_tokens=4) for question in ("what is red", "who runs")]

    def first_piece(image: np.ndarray) -> str:
        for piece in model.stream(image, max_new_tokens=8):
            return piece
        return ""

    jobs: list[Callable[[], Any]] = [
        lambda: model.match(images[0], ["a dog", "a cat"]),
        lambda: [round(float(value), 3) for value in model.embed_image(images[1])[0]],
    ]
    for number, image in enumerate(images):
        drawn = {"do_sample": True, "seed": number, "temperature": 2.0, "max_new_tokens": 8}
        jobs += [
            lambda image=image: model.caption(image, num_beams=1),
            lambda image=image: model.caption([image, *images], num_beams=4, num_captions=2, length_penalty=0.5),
            lambda image=image, drawn=drawn: model.caption(image, num_captions=3, **drawn),
            lambda image=image, drawn=drawn: model.caption(image, num_beams=3, top_k=6, **drawn),
            lambda image=image: model.ask(image, ["what is red", "who runs"], repetition_penalty=1.5),
            lambda image=image: "".join(model.stream(image, question="who runs", stop_strings="dog")),
            lambda image=image: first_piece(image),
            lambda image=image, number=number: chat(image, 1 + number % 3),
        ]
    return jobs


@pytest.mark.slow
def test_threads_get_the_same_results(tiny: Tiny, photo: Callable[..., np.ndarray]) -> None:
    model = blip2rt.load(tiny.path, threads=1)
    jobs = jobs_of(model, [photo(*size) for size in ((5, 7), (20, 30), (9, 9))])
    want = [job() for job in jobs]
    seed = new_seed()
    end = time.monotonic() + SECONDS
    done, wrong = [0] * THREADS, []

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        while time.monotonic() < end and not wrong:
            job = rng.randrange(len(jobs))
            try:
                got = jobs[job]()
            except Exception as error:
                got = error
            if got != want[job]:
                wrong.append(f"job {job}: {got!r}, not {want[job]!r}")
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(SECONDS / 4)
    warm = resident()
    for thread in threads:
        thread.join()
    assert not wrong, f"{wrong[0]}"
    assert all(done) and sum(done) > THREADS
    assert resident() - warm < GROWTH
    print(f"{sum(done)} calls, {(resident() - warm) / 2**20:+.1f} MiB")
