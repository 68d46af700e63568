"""The measurements of a bundle, run in a worker process. Each returns an object for JSON, with times in seconds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import EMBED, ENCODER, LLM, QFORMER, VISION, Bundle
from ..bundle import read as read_bundle
from ..image import to_pixels
from ..loading import load
from ..model import Model
from ..options import Options, merge
from .machine import LinearRead, peak_rss

WARM_UP = 2
STEPS = 8  # of each measured growth
ROWS, POSITIONS, IMAGES = (1, 2, 3, 4, 5, 8, 16), (33, 64, 128, 240, 480), (1, 2, 4, 8)
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
            model.pipeline.backend.session(component)  # type: ignore[attr-defined]
    loaded = time.perf_counter()
    model.caption(work.images(), **work.options())
    done = time.perf_counter()
    return {"load": loaded - begin, "first_caption": done - loaded, "peak_rss": peak_rss()}


class Generation:
    """A generation of a fixed length, repeated on the same image and prompt."""

    def __init__(self, model: Model, prefix_embeds: NDArray[np.float32], options: dict[str, Any], positions: int = 0):
        """prefix_embeds (B, Q, D). positions: of image and prompt, which more words fill."""
        language = model.pipeline.language
        prompt = language.caption_prompt(None)
        ids = language.encode(prompt)
        missing = max(0, positions - prefix_embeds.shape[1] - len(ids))
        prompts = [[*ids, *language.encode("a cup on a table and " * missing)[:missing]]] * len(prefix_embeds)
        self.backend = model.pipeline.backend
        self.given = prefix_embeds, prompts, language.settings("caption", merge(Options(**options), {}), [prompt])

    def begin(self) -> Any:
        """Begin a generation of all rows."""
        return self.backend.begin(*self.given)

    def steps(self) -> list[float]:
        """Return the seconds of each step: the first reads image and prompt, each later one adds a token."""
        spent, before = [], time.perf_counter()
        generation = self.begin()
        while not generation.done:
            generation.step()
            spent.append(time.perf_counter() - before)
            before = time.perf_counter()
        return spent


def generation_stages(generations: Sequence[Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Summarize the seconds of each step of several generations."""
    found = {"prefill": summary([steps[0] for steps in generations])}
    if later := [seconds for steps in generations for seconds in steps[1:]]:
        found["decode step"] = summary(later)
    return found


def measure_generation(generation: Generation, work: Workload) -> dict[str, dict[str, Any]]:
    """Measure generations and, between them, the limit of a step: a linear read of its weights."""
    read = LinearRead(step_files(read_bundle(work.bundle)), work.threads)
    turns = [(generation.steps(), read.seconds()) for _ in range(WARM_UP + work.repeat)][WARM_UP:]
    found = generation_stages([steps for steps, _ in turns])
    if step := found.get("decode step"):
        ratios = [float(np.median(steps[1:])) / seconds for steps, seconds in turns]
        step |= {"limit": float(np.median([seconds for _, seconds in turns])), "of_limit": float(np.median(ratios))}
    return found


def step_files(bundle: Bundle) -> list[Path]:
    """Return the files whose bytes a decode step reads: those of the language model's graph."""
    graph = bundle.graph(LLM)
    return sorted(graph.parent.glob(f"{graph.stem}.*"))


def _prefix_embeds(model: Model, work: Workload) -> NDArray[np.float32]:
    pixels = to_pixels(work.images(), model.bundle.manifest.image)
    return model.caption_prefix(model.pipeline.backend.vision(pixels))


def generation(work: Workload) -> dict[str, Any]:
    """Measure the language model alone."""
    model = work.load()
    measured = measure_generation(Generation(model, _prefix_embeds(model, work), work.options()), work)
    return {"stages": measured, "peak_rss": peak_rss()}


def stages(work: Workload) -> dict[str, Any]:
    """Measure each stage of a caption on the output of the one before, and the whole caption."""
    model = work.load()
    spec, backend, tokenizer = model.bundle.manifest.image, model.pipeline.backend, model.pipeline.language.tokenizer
    images = work.images()
    pixels = to_pixels(images, spec)
    vision_features = backend.vision(pixels)
    generation = Generation(model, model.caption_prefix(vision_features), work.options())
    [[(token_ids, _), *_], *_] = backend.generate(*generation.given)

    found = {
        "image": summary(repeat(lambda: to_pixels(images, spec), work.repeat)),
        "vision": summary(repeat(lambda: backend.vision(pixels), work.repeat)),
        "qformer": summary(repeat(lambda: model.caption_prefix(vision_features), work.repeat)),
        **measure_generation(generation, work),
        "detokenize": summary(repeat(lambda: [tokenizer.decode(token_ids) for _ in images], work.repeat)),
        "first token": summary(
            repeat(lambda: Generation(model, _prefix_embeds(model, work), work.options()).begin().step(), work.repeat)
        ),
        "caption": summary(repeat(lambda: model.caption(images, **work.options()), work.repeat)),
    }
    return {"stages": {name: found[name] for name in STAGES if name in found}, "peak_rss": peak_rss()}


def growth(work: Workload) -> dict[str, dict[int, float]]:
    """Measure how the times of a step, a prefill and the encoder grow: curve -> size -> median seconds."""
    model = work.load()
    prefix_embeds = _prefix_embeds(model, replace(work, batch=1))
    pixels = to_pixels(replace(work, batch=1).images(), model.bundle.manifest.image)
    options = {"num_beams": 1, "max_new_tokens": STEPS, "min_new_tokens": STEPS}

    def steps(rows: int, positions: int) -> tuple[float, float]:
        """Return the seconds of the prefill, and the median of the steps after it."""
        generation = Generation(model, np.repeat(prefix_embeds, rows, 0), options, positions)
        found = [generation.steps() for _ in range(1 + work.repeat)][1:]
        return float(np.median([each[0] for each in found])), float(np.median([each[1:] for each in found]))

    def encoder(images: int) -> float:
        many = np.repeat(pixels, images, 0)
        return summary(repeat(lambda: model.pipeline.backend.vision(many), work.repeat))["median"]

    room = model.pipeline.language.spec.max_positions - STEPS
    by_positions = {positions: steps(1, positions) for positions in POSITIONS if positions <= room}
    return {
        "decode step, by rows": {rows: steps(rows, 0)[1] for rows in ROWS},
        "decode step, by positions before it": {positions: step for positions, (_, step) in by_positions.items()},
        "prefill, by positions": {positions: prefill for positions, (prefill, _) in by_positions.items()},
        "vision encoder, by images": {images: encoder(images) for images in IMAGES},
    }
