"""The whole mission with what users install: train both stages, export, convert, build, measure, caption, serve.

The models are tiny. What `make dist` packs is tested in tests/c/test_install.py.
"""

import base64
import json
import re
import signal
import urllib.request
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

from tests.seeds import new_seed
from tests.shipped.environment import TIMEOUT, Environment
from tests.tiny import blip2
from tests.tiny.training import NANO_STAGE2, llm_folder, tiny_settings

pytestmark = pytest.mark.long(150, "installed wheels: each script as a process, from training to captions")

TRAINING = "--steps 2 --warmup 1 --save-every 2 --eval-every 2 --views 1"
FLOAT = "vision=fp32,qformer=fp32,llm=int8w,retrieval=fp32"
# A job of each installed command, in order, and a file that it writes. SETTINGS are those of a tiny training.
JOBS = [
    (f"blip2rt-train stage1 SETTINGS {TRAINING} --out runs/stage1", "runs/stage1/loss.png"),
    (
        f"blip2rt-train stage2 SETTINGS {TRAINING} {' '.join(NANO_STAGE2)} --stage1 runs/stage1 --llm-source llm "
        "--end <|end|> --out runs/stage2",
        "runs/stage2/loss.png",
    ),
    (
        f"blip2rt-export --checkpoint runs/stage2 --retrieval-checkpoint runs/stage1 --precision {FLOAT} --out tiny",
        "tiny/blip2rt.json",
    ),
    ("blip2rt-convert tiny --to ours --out unpacked", "unpacked/stage2/config.json"),
    ("blip2rt-convert hf --to hf --out converted", "converted/model.safetensors"),
    ("optimum-cli export blip2rt --model converted plans --target trt --no-verify", "plans/blip2rt.json"),
    ("blip2rt-build plans --check", ""),
    ("blip2rt-bench --repeat 1 --new-tokens 2 --json bench.json", "bench.json"),
    ("blip2rt caption -r images --model tiny --out captions.jsonl", "captions.jsonl"),
]
IMPORTED = """
import sys, blip2rt, blip2rt_train, blip2rt_export
from importlib.util import find_spec
print(*(module.__path__[0] for module in (blip2rt, blip2rt_train, blip2rt_export)))
print(*filter(find_spec, ("tests", "train", "export", "benchmarks")))
"""


@dataclass
class Walk:
    """The environment, the settings of a tiny training, and the number of jobs that have run."""

    environment: Environment
    settings: list[str]
    done: int = 0

    def to(self, last: int) -> Environment:
        """Run the jobs up to `last`, each once."""
        while self.done <= last:
            job, written = JOBS[self.done]
            words = [part for word in job.split() for part in (self.settings if word == "SETTINGS" else [word])]
            self.environment.run(*words)
            assert (self.environment.folder / written).exists(), job
            self.done += 1
        return self.environment


@pytest.fixture(scope="module")
def walk(shipped: Environment) -> Walk:
    """The environment with the models and pictures that the jobs start from."""
    settings = tiny_settings(shipped.folder)
    llm_folder(shipped.folder / "llm")
    torch.manual_seed(new_seed())
    blip2.retrieval(shipped.folder / "hf")
    return Walk(shipped, settings)


@pytest.fixture
def walked(walk: Walk) -> Environment:
    """The environment after all jobs."""
    return walk.to(len(JOBS) - 1)


@pytest.mark.parametrize("job", range(len(JOBS)), ids=["-".join(job.split()[:2]) for job, _ in JOBS])
def test_each_job_writes_its_output(walk: Walk, job: int) -> None:  # a test each, which says where it fails
    walk.to(job)


def test_every_installed_command_has_a_job() -> None:
    jobs = {job.split()[0] for job, _ in JOBS} - {"optimum-cli"}
    declared = distribution("blip2rt").entry_points
    assert {each.name for each in declared} == jobs and {each.group for each in declared} == {"console_scripts"}


def test_nothing_is_imported_from_the_checkout(shipped: Environment) -> None:
    packages, checkout = shipped.run("python", "-c", IMPORTED).splitlines()
    assert checkout == "" and all(Path(found).is_relative_to(shipped.scripts.parent) for found in packages.split())


def test_stdio_answers_a_line_with_a_line(walked: Environment) -> None:
    requests = [{"id": 1, "task": "caption"}, {"id": 2, "task": "match", "texts": ["a dog"]}]
    lines = "".join(json.dumps({**request, "image": "images/0.jpg"}) + "\n" for request in requests)
    found = [json.loads(line) for line in walked.run("blip2rt", "stdio", "--model", "tiny", stdin=lines).splitlines()]
    assert {line["id"] for line in found if "error" not in line} == {1, 2}, found


def test_server_captions(walked: Environment) -> None:
    server = walked.start("blip2rt", "serve", "--port", "0", "--drain-delay", "0", "--model", "tiny")
    try:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.findall(r"http://[\d.]+:\d+", line)))
        next(line for line in server.stderr if "ready" in line)
        image = base64.b64encode((walked.folder / "images" / "0.jpg").read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}}]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            assert isinstance(json.load(response)["choices"][0]["message"]["content"], str)
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=TIMEOUT)
        assert server.returncode == 0
    finally:
        server.kill()
