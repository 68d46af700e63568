"""Run trainings in several processes, and compare two trainings."""

import importlib
import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from blip2rt.modeling.checkpoint import list_checkpoints
from tests.seeds import new_seed
from tests.train.arguments import options

ROOT = Path(__file__).parents[2]
TIMEOUT = 1800  # seconds after which processes have hung, however busy the machine is
FIVE_STEPS = options(
    steps=5, warmup=2, dropout=0.1, query_dropout=0.1, attention_dropout=0.1, batch_size=8, save_every=2, keep=9
)


def make_distinct(folder: Path) -> None:
    """Give pictures and texts distinct embeddings: if all are alike, rounding decides which query is the most similar,
    and so where the gradient goes."""
    rng = np.random.default_rng(new_seed())
    for path in (folder / "images").iterdir():
        Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize((48, 48)).save(path)
    weights = folder / "bert" / "model.safetensors"
    state = {name: 5 * t if t.dim() > 1 else t for name, t in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def train_together(module: str, arguments: list[str], folder: Path, processes: int = 2, code: int = 0) -> list[str]:
    """Train as torchrun does, but import torch once. Return the logs of all processes, which must exit with `code`."""
    running, logs = start_together(module, arguments, folder, processes)
    return end_together(running, logs, code)


def start_together(module: str, arguments: list[str], folder: Path, processes: int = 2) -> tuple[list[Any], list[Path]]:
    """Start processes, forked by a server that has imported torch. Return them and their log files. {rank} in an
    argument becomes the process's rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["blip2rt_train.stage1", "blip2rt_train.stage2", "accelerate"])
    shared = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    logs = [folder / f"log-{rank}.txt" for rank in range(processes)]
    running = []
    for rank, file in enumerate(logs):
        given = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        own = [argument.replace("{rank}", str(rank)) for argument in arguments]
        running.append(context.Process(target=_train, args=(module, own, given, file)))
        running[-1].start()
    return running, logs


def end_together(running: list[Any], logs: list[Path], code: int = 0) -> list[str]:
    """Wait for processes, which must exit with `code`. Return their logs."""
    for process, file in zip(running, logs, strict=True):
        process.join(TIMEOUT)
        assert process.exitcode == code, file.read_text()[-3000:]
    return [file.read_text() for file in logs]


def _train(module: str, arguments: list[str], environment: dict[str, str], logs: Path) -> None:
    """Train in one process of several."""
    with open(logs, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(importlib.import_module(module).main(arguments))


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "loss" in line]


def assert_same_training(left: Path, right: Path, tolerance: float = 1e-4) -> None:
    assert len(lines(left)) == len(lines(right)) == 5
    for mine, theirs in zip(lines(left), lines(right), strict=True):
        for name in mine.keys() & {"loss", "itc", "itm", "itg", "itm_accuracy", "gradient_norm", "query_cosine"}:
            assert mine[name] == pytest.approx(theirs[name], abs=tolerance, rel=tolerance), (name, mine["step"])
    one, other = (load_file(list_checkpoints(run)[-1] / "model.safetensors") for run in (left, right))
    assert one.keys() == other.keys()
    for name in one:
        if name.endswith("key.bias"):  # no effect on a softmax: Adam turns its rounding noise into steps
            continue
        apart = (one[name] - other[name]).abs()
        logs = f"{name}: {apart.max():.2g}, {apart.median():.2g}"
        # Adam divides a gradient by its own size: where one crosses zero, rounding makes a step. In some trainings that
        # happens at one element of a large tensor; a wrong gradient moves all of a tensor.
        assert (apart > tolerance).sum() <= apart.numel() // 1000, logs
        torch.testing.assert_close(one[name], other[name], atol=100 * tolerance, rtol=0, msg=logs)


def assert_same_moments(left: Path, right: Path, tolerance: float = 1e-4) -> None:
    mine, theirs = (load_file(list_checkpoints(run)[-1] / "optimizer.safetensors") for run in (left, right))
    torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=0)
