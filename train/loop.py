"""The optimisation loop of both stages: AdamW, warm-up and cosine, autocast, metrics, checkpoints, resume.

Knows a loss function of the step number; nothing about what it computes.
"""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoints import list_checkpoints, load_weights, save_model

from .settings import TrainSettings

Losses = dict[str, torch.Tensor]


def learning_rate(step: int, peak: float, settings: TrainSettings) -> float:
    """Linear warm-up to `peak`, then a cosine, every step, down to min_lr (in proportion to `peak`) at the last."""
    if step < settings.warmup:
        return peak * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    floor = settings.min_lr * peak / settings.lr
    return floor + (peak - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def parameter_groups(model: nn.Module, settings: TrainSettings, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Trained parameters by decay (matrices decay; biases, norms and scalars do not) and peak rate (by name prefix)."""
    groups: dict[tuple[float, float], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.dim() < 2 or name.endswith(".bias") else settings.weight_decay
            peak = next((value for prefix, value in peaks.items() if name.startswith(prefix)), settings.lr)
            groups.setdefault((peak, decay), []).append(parameter)
    return [
        {"params": params, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), params in groups.items()
    ]


def autocast_dtype(precision: str) -> torch.dtype:
    """bf16 where it is asked for, or `auto` and the device multiplies it in hardware; else fp32."""
    if precision not in ("auto", "bf16", "fp32"):
        raise Blip2rtError(f"precision is {precision!r}; choose auto, bf16 or fp32")
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    on_cpu = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if on_gpu or on_cpu else torch.float32


def keep_freed_memory() -> None:
    """Have glibc reuse freed blocks instead of returning them: every step allocates the same large tensors again, and
    fresh pages cost a third of a step on CPUs. Elsewhere than on glibc nothing changes."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mmap_max, trim_threshold = -4, -1  # malloc.h
        ctypes.CDLL(None).mallopt(mmap_max, 0)
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)


def compile_layers(*models: nn.Module) -> None:
    """torch.compile every block of the longest list of blocks in each model: one compilation serves all blocks."""
    for model in models:
        blocks = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
        for block in blocks:
            block.compile(dynamic=True)


class Trainer:
    """Runs steps until `settings.steps`, from the newest checkpoint in `settings.out` if there is one."""

    def __init__(self, model: Blip2, settings: TrainSettings, peaks: dict[str, float] | None = None) -> None:
        keep_freed_memory()
        self.model, self.settings = model, settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(self.device)
        self.out = Path(settings.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, settings, peaks or {}), betas=(settings.beta1, settings.beta2), fused=True
        )
        self.names = {p: n for n, p in model.named_parameters() if p.requires_grad}
        self.dtype = autocast_dtype(settings.precision)
        self.step = self._resume()

    def run(
        self,
        batches: Iterable[tuple[int, Any]],
        loss: Callable[[Any], Losses],
        evaluate: Callable[[], dict[str, float]] | None = None,
    ) -> Path:
        """Train on `batches` (step, batch) from `self.step` on; returns the last checkpoint's folder."""
        settings = self.settings
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", desc=self.out.name)
        window: list[dict[str, float]] = []
        started = time.perf_counter()
        for step, batch in batches:
            if step >= settings.steps:
                break
            metrics = self._step(step, partial(loss, batch))
            window.append(metrics)
            self.step = step + 1
            bar.update()
            bar.set_postfix(loss=f"{metrics['loss']:.3f}")
            last = self.step == settings.steps
            if self.step % settings.log_every == 0 or last:
                means = {name: sum(m[name] for m in window) / len(window) for name in metrics}
                means["seconds_per_step"] = (time.perf_counter() - started) / len(window)
                self._log({"step": self.step, "lr": self.optimizer.param_groups[0]["lr"]} | means)
                window.clear()
                started = time.perf_counter()
            if evaluate and (self.step % settings.eval_every == 0 or last):
                self._evaluate(evaluate, bar)
                started = time.perf_counter()
            if self.step % settings.save_every == 0 or last:
                self._save()
        bar.close()
        return list_checkpoints(self.out)[-1]

    def _step(self, step: int, loss: Callable[[], Losses]) -> dict[str, float]:
        torch.manual_seed(self.settings.seed * 1_000_003 + step)  # dropout and negatives repeat after a resume
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, group["peak"], self.settings)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            losses = loss()
        if not torch.isfinite(losses["loss"]):
            raise Blip2rtError(f"the loss is {losses['loss'].item()} at step {step}; lower lr or use --precision fp32")
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(list(self.names), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: float(value.detach()) for name, value in losses.items()} | {"gradient_norm": float(norm)}

    def _evaluate(self, evaluate: Callable[[], dict[str, float]], bar: tqdm[Any]) -> None:
        self.model.eval()
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            metrics = evaluate()
        self.model.train()
        bar.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        self._log({"step": self.step} | {f"dev_{name}": value for name, value in metrics.items()})

    def _log(self, line: dict[str, float]) -> None:
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        """A whole checkpoint under a temporary name, then its own; older ones than `keep` go afterwards."""
        final = self.out / f"step-{self.step:06d}"
        partial = self.out / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            save_model(self.model, partial)
            save_file(self._optimizer_state(), partial / "optimizer.safetensors")
            (partial / "trainer.json").write_text(json.dumps({"step": self.step, "settings": vars(self.settings)}))
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise Blip2rtError(
                f"checkpoint {final} cannot be written: {error}; earlier checkpoints are whole"
            ) from error
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in list_checkpoints(self.out)[: -self.settings.keep]:
            shutil.rmtree(old)
        plot_losses(self.out)

    def _optimizer_state(self) -> dict[str, torch.Tensor]:
        state = {}
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                state[f"{self.names[cast(nn.Parameter, parameter)]}|{key}"] = value
        return state

    def _resume(self) -> int:
        """Load the newest checkpoint, if any; returns the step to go on from."""
        found = list_checkpoints(self.out)
        if not found:
            return 0
        load_weights(self.model, found[-1])
        state = load_file(found[-1] / "optimizer.safetensors")
        for parameter, name in self.names.items():
            keys = [key for key in state if key.startswith(name + "|")]
            self.optimizer.state[parameter] = {key.split("|")[1]: state[key].to(parameter.device) for key in keys}
            self.optimizer.state[parameter]["step"] = state[f"{name}|step"]  # AdamW keeps it on the host
        step = int(json.loads((found[-1] / "trainer.json").read_text())["step"])
        self._drop_metrics_after(step)
        return step

    def _drop_metrics_after(self, step: int) -> None:
        """Lines of steps that will be run again."""
        path = self.out / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            path.write_text("".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # half a line of a killed run


def plot_losses(out: Path) -> None:
    """loss.png from metrics.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if "loss" in line]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in ("loss", "itc", "itm", "itg"):
        if train and name in train[0]:
            axes.plot([line["step"] for line in train], [line[name] for line in train], label=name, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "loss.png", dpi=120)
    pyplot.close(figure)
