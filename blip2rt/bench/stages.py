"""The measurements of a bundle, run in a worker process. Each returns an object for JSON, with times in seconds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import EMBED, ENCODER, LLM, QFORMER, VISION
from ..image import to_pixels
from ..loading import load
from ..model import Model
from ..options import Options, merge
from .machine import peak_rss

WARM_UP = 2
STAGES = ("image", "vision", "qformer", "prefill", "decode step", "detokenize", "first token", "caption")


@dataclass(frozen=True)
class Workload:
    """The work to measure, the same for every engine."""

    bundle: str
    image: str
    batch: int = 1
    beams: int = 1
    new_tokens: int = 20
    threads: int = 1
    repeat: int = 10
    backend: str = "auto"

    def load(self) -> Model:
        """Open the model."""
        if self.backend != "trt":
            return load(self.bundle, backend=self.backend, threads=self.threads)
        from ..backends.trt import PlanSizes

        # Without larger ones asked for, the sizes are those of blip2rt-build.
        return load(self.bundle, backend="trt", plan_sizes=PlanSizes(self.batch, max(self.beams, PlanSizes.max_beams)))

    def options(self) -> dict[str, Any]:
        """Options that force exactly new_tokens tokens, so that all engines do the same work."""
        return {"num_beams": self.beams, "max_new_tokens": self.new_tokens, "min_new_tokens": self.new_tokens}

    def images(self) -> list[bytes]:
        """The bytes of the image, `batch` distinct objects, so that each one is decoded."""
        data = Path(self.image).read_bytes()
        return [bytes(bytearray(data)) for _ in range(self.batch)]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(np.asarray(seconds), [10, 50, 90])
    return {"median": float(middle), "p10": float(low), "p90": float(high), "runs": len(seconds)}


def repeat(call: Callable[[], Any], runs: int) -> list[float]:
    """Return the seconds of each of `runs` calls, after warm-up calls."""
    spent = []
    for i in range(runs + WARM_UP):
        start = time.perf_counter()
        call()
        if i >= WARM_UP:
            spent.append(time.perf_counter() - start)
    return spent


def start(work: Workload) -> dict[str, Any]:
    """Measure loading every graph, the first caption and the peak memory of this fresh process."""
    begin = time.perf_counter()
    model = work.load()
    for component in (VISION, QFORMER, EMBED, ENCODER, LLM):
        if model.bundle.has(component):
            model.pipeline.backend._session(component)  # type: ignore[attr-defined]
    loaded = time.perf_counter()
    model.caption(work.images(), **work.options())
    done = time.perf_counter()
    return {"load": loaded - begin, "first_caption": done - loaded, "peak_rss": peak_rss()}


def stages(work: Workload) -> dict[str, Any]:
    """Measure each stage of a caption on the output of the one before, and the whole caption."""
    model = work.load()
    spec, backend, language = model.bundle.manifest.image, model.pipeline.backend, model.pipeline.language
    images = work.images()
    pixels = to_pixels(images, spec)
    vision_features = backend.vision(pixels)
    prefix_embeds = backend.prefix_embeds(vision_features)
    prompt = language.caption_prompt(None)
    prompts = [language.encode(prompt)] * work.batch
    settings = language.settings("caption", merge(Options(**work.options()), {}), [prompt])
    [[(token_ids, _), *_], *_] = backend.generate(prefix_embeds, prompts, settings)
    steps: dict[str, list[float]] = {"prefill": [], "decode step": []}

    def generate() -> None:
        """Step through a generation: the first step reads image and prompt, each later one adds a token."""
        before = time.perf_counter()
        generation = backend.begin(prefix_embeds, prompts, settings)
        name = "prefill"
        while not generation.done:
            generation.step()
            now = time.perf_counter()
            steps[name].append(now - before)
            name, before = "decode step", now

    def first_token() -> None:
        prefix = backend.prefix_embeds(backend.vision(to_pixels(images, spec)))
        backend.begin(prefix, prompts, settings).step()

    times = {
        "image": repeat(lambda: to_pixels(images, spec), work.repeat),
        "vision": repeat(lambda: backend.vision(pixels), work.repeat),
        "qformer": repeat(lambda: backend.prefix_embeds(vision_features), work.repeat),
    }
    repeat(generate, work.repeat)
    times["prefill"] = steps["prefill"][WARM_UP:]
    times["decode step"] = steps["decode step"][WARM_UP * (work.new_tokens - 1) :]
    times["detokenize"] = repeat(lambda: [language.tokenizer.decode(token_ids) for _ in images], work.repeat)
    times["first token"] = repeat(first_token, work.repeat)
    times["caption"] = repeat(lambda: model.caption(images, **work.options()), work.repeat)
    return {"stages": {name: summary(times[name]) for name in STAGES if times[name]}, "peak_rss": peak_rss()}
