"""Speed, memory and size of a bundle on this machine: `python -m benchmarks.nano [--model BUNDLE]`, or `make bench`.

Times are wall clock in milliseconds, median (p10 to p90). Cold starts and the peak of memory are of fresh processes.
The goals printed beside them are for the embedded model on two cores.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import blip2rt
from blip2rt.bundle import embedded
from blip2rt.image import to_pixels
from blip2rt.options import Options

COLD = """
import sys, blip2rt
caption = blip2rt.load({bundle!r}).caption({image!r})
try:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
print(peak)
"""
IMPORT = "import time; start = time.perf_counter(); import blip2rt; print(time.perf_counter() - start)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", metavar="BUNDLE", help="a bundle's folder (default: the embedded model)")
    parser.add_argument("--image", metavar="FILE", help="the picture to caption (default: one that is made up)")
    parser.add_argument("--runs", type=int, default=40, help="warm captions to time (default: 40)")
    args = parser.parse_args()
    bundle = str(args.model or embedded())
    image = args.image or str(_make_picture(Path(os.environ.get("TMPDIR", "/tmp")) / "blip2rt-bench.jpg"))
    print(f"{bundle}: {os.cpu_count()} cores, blip2rt {blip2rt.__version__}")
    _report("size on disk", f"{_folder_size(Path(bundle)) / 1e6:.1f} MB", "110 MB")
    _report("import blip2rt", _line([1000 * float(_python(IMPORT)[0]) for _ in range(5)]), "200 ms")
    cold = [_python(COLD.format(bundle=bundle, image=image)) for _ in range(5)]
    _report("cold process to first caption", _line([1000 * seconds for _, seconds in cold]), "1500 ms")
    _report("peak resident memory", f"{max(int(peak) for peak, _ in cold) / 1024:.0f} MiB", "500 MB")
    model = blip2rt.load(bundle)
    print(f"caption of {image}: {model.caption(image)!r}")
    _report("warm caption", _line(_time(lambda: model.caption(image), args.runs)), "200 ms")
    for name, milliseconds in _stages(model, image, args.runs).items():
        _report(f"  {name}", _line(milliseconds), "")


def _stages(model: blip2rt.Model, image: str, runs: int) -> dict[str, list[float]]:
    """The parts of a caption, each timed by itself on what the one before it gave."""
    spec, backend = model.bundle.manifest.image, model._backend
    pixels = to_pixels([image], spec)
    vision_features = backend.vision(pixels)
    prefix_embeds = backend.prefix_embeds(vision_features)
    prompt = model._language.caption_prompt(None)
    prompt_ids = model._language.encode(prompt)
    settings = model._language.settings("caption", Options(), [prompt])
    [[(token_ids, _), *_]] = backend.generate(prefix_embeds, [prompt_ids], settings)
    prefill = {**settings, "max_new_tokens": 1, "min_new_tokens": 0}
    return {
        "decode and preprocess": _time(lambda: to_pixels([image], spec), runs),
        "vision": _time(lambda: backend.vision(pixels), runs),
        "qformer": _time(lambda: backend.prefix_embeds(vision_features), runs),
        "prefill": _time(lambda: backend.generate(prefix_embeds, [prompt_ids], prefill), runs),
        f"prefill + decode ({len(token_ids)} tokens, {settings['num_beams']} beams)": _time(
            lambda: backend.generate(prefix_embeds, [prompt_ids], settings), runs
        ),
    }


def _time(call: Callable[[], Any], runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls, after two that do not count."""
    spent = []
    for i in range(runs + 2):
        start = time.perf_counter()
        call()
        if i >= 2:
            spent.append(1000 * (time.perf_counter() - start))
    return spent


def _python(code: str) -> tuple[str, float]:
    """What a fresh Python prints, and the seconds it lived."""
    start = time.perf_counter()
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    return output.strip(), time.perf_counter() - start


def _make_picture(path: Path) -> Path:
    """A photograph-sized JPEG, 500 x 375, of smooth colours and some noise."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 8, (375, 500, 3))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(colours) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    path.write_bytes(buffer.getvalue())
    return path


def _folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _line(milliseconds: list[float]) -> str:
    low, high = np.percentile(milliseconds, [10, 90])
    return f"{statistics.median(milliseconds):.1f} ms ({low:.1f} to {high:.1f})"


def _report(name: str, value: str, goal: str) -> None:
    print(f"{name:44s} {value}{f'   goal {goal}' if goal else ''}", flush=True)


if __name__ == "__main__":
    main()
