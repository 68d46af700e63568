"""engines/model accepts the manifests that blip2rt.bundle accepts, and reads damaged ones safely."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
from pathlib import Path
from typing import Any

from blip2rt import bundle as contract
from blip2rt.bundle.faults import manifest_faults
from blip2rt.bundle.manifest import from_json
from tests.c.build import build_sanitized
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    0.5,
    1e-9,
    1e30,
    2**53 - 1,  # the largest that C can tell from its neighbours
    10**7 + 1,
    "",
    "a",
    "../x",
    "/x",
    "x\\y",
    "trt",
]
VALUES += ["\u65e5", "x" * 100_001, [], [1], ["a"], {}, {"a": 1}, [0.1, 0.2, 0.3], "nearest", 100, 17_000]


# Fields that C does not read.
IGNORED = re.compile(r"sources|verification|\.precision|\.dtype|calibration\.(label|caption)")


def mutated(rng: random.Random, manifest: dict[str, Any]) -> dict[str, Any]:
    """A copy with one to three values changed, removed or added."""
    changed = copy.deepcopy(manifest)
    for _ in range(rng.randint(1, 3)):
        node: Any = changed
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = rng.choice(keys) if keys else None
            if key is None:
                break
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return changed


def python_faults(data: dict[str, Any]) -> str:
    """What blip2rt.bundle says, as reader.read puts it together."""
    version = data.get("format_version")
    if data.get("format") != contract.FORMAT or type(version) is not int or version != 1:
        return "other"
    try:
        return "; ".join(manifest_faults(from_json(data)))
    except ValueError as error:
        return str(error)


def test_manifests_are_accepted_and_rejected_as_in_python(tiny: Tiny, tmp_path: Path) -> None:
    rng = random.Random(new_seed())
    sources = [json.loads((folder / contract.MANIFEST).read_text()) for folder in (tiny.path, contract.embedded())]
    sources[1]["components"] = {name: sources[1]["components"][name] for name in ("vision", "qformer", "embed", "itm")}
    sources[0]["retrieval"]["pool"] = "tokenizer.json"
    for_trt = {**sources[0], "target": "trt"}
    without_end = {**sources[0], "llm": {**sources[0]["llm"], "eos_token_ids": []}}
    manifests = [*sources, for_trt, without_end, *(mutated(rng, rng.choice(sources)) for _ in range(800))]
    paths = [tmp_path / str(i) for i in range(len(manifests))]
    for path, manifest in zip(paths, manifests, strict=True):
        path.write_text(json.dumps(manifest))
    broken = [tmp_path / f"broken-{i}" for i in range(200)]
    for path in broken:
        data = bytearray(paths[0].read_bytes())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data)
    model = "engines/model/manifest*.cpp", "engines/model/options.cpp", "engines/search/options.cpp"
    text = "engines/base/json.cpp", "engines/base/unicode.cpp", "engines/base/utf8.cpp", "engines/base/system.cpp"
    media = "engines/media/*.cpp", "engines/kernels/resize/*.cpp"
    program = build_sanitized(tmp_path / "check", "tests/c/native/manifest_check.cpp", *model, *text, *media)
    names = "".join(f"{path}\n" for path in [*paths, *broken]).encode()
    done = subprocess.run([program], input=names, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    accepted = 0
    for path, manifest, line in zip(paths, manifests, lines, strict=False):
        faults = python_faults(manifest)
        if IGNORED.search(faults):
            continue
        expected = faults == "" and manifest.get("target") != "trt"  # C runs only the target ort
        assert (line == "ok") == expected, f"{path}: {line}, blip2rt.bundle: {faults}"
        accepted += line == "ok"
    assert "for the target 'trt', which this library cannot run" in lines[len(sources)]
    assert lines[len(sources) + 1].endswith("retrieval.pool is given without a language model or llm.eos_token_ids")
    assert len(lines) == len(paths) + len(broken) and 10 < accepted < len(paths)
