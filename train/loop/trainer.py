"""The training loop of both stages: AdamW, warm-up and cosine, autocast, gradient accumulation, several processes.

Calls a loss function per micro-batch and does not know what it computes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import TrainableModel
from blip2rt.modeling.row_noise import RowNoise
from blip2rt.modeling.vision import layer_numbers, longest_list
from blip2rt.system import peak_memory

from ..progress import announce
from ..settings import BatchSettings, LoopSettings, OptimizerSettings, RunSettings
from . import checkpoint as checkpoints
from .logs import Log
from .memory import keep_freed_memory
from .parallel import full_tensor, this_process
from .rounding import Rounding, check_rounding
from .run_folder import require_same_run, run_id
from .signals import Interrupted, StopSignals

Losses = dict[str, torch.Tensor]


def learning_rate(step: int, peak: float, optimizer: OptimizerSettings) -> float:
    """Rise linearly to `peak`, then follow a cosine down to min_lr, scaled like `peak`, at the last step."""
    if step < optimizer.warmup:
        return peak * (step + 1) / optimizer.warmup
    progress = (step - optimizer.warmup) / max(1, optimizer.steps - optimizer.warmup)
    floor = optimizer.min_lr * peak / optimizer.lr
    return floor + (peak - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def vision_peaks(encoder: nn.Module | None, optimizer: OptimizerSettings) -> dict[str, float]:
    """Peak learning rates of a trained encoder's parameters, by their names in the model; {} without one.

    A layer's rate is lr * layer_decay ** (layers above it); everything after the last block counts as one layer.
    """
    if encoder is None:
        return {}
    numbers = layer_numbers(encoder)
    top = 1 + len(longest_list(encoder)[1])  # type: ignore[arg-type]
    return {f"vision.{name}": optimizer.lr * optimizer.layer_decay ** (top - n) for name, n in numbers.items()}


def parameter_groups(
    model: nn.Module, optimizer: OptimizerSettings, peaks: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Group trained parameters by weight decay (matrices only) and peak rate (`peaks`: by name or prefix)."""
    groups: dict[tuple[float, float], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.dim() < 2 or name.endswith(".bias") else optimizer.weight_decay
            prefixed = (value for prefix, value in peaks.items() if name.startswith(prefix))
            peak = peaks[name] if name in peaks else next(prefixed, optimizer.lr)
            groups.setdefault((peak, decay), []).append(parameter)
    return [
        {"params": params, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), params in groups.items()
    ]


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast_dtype(precision: str) -> torch.dtype:
    """Return the dtype of a `precision`; `auto` is bf16 if the hardware multiplies bf16, otherwise fp32."""
    if precision in PRECISIONS:
        return PRECISIONS[precision]
    if precision != "auto":
        raise Blip2rtError(f"precision is {precision!r}: choose auto, bf16, fp16 or fp32")
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    on_cpu = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if on_gpu or on_cpu else torch.float32


def _blocks(models: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield each model's blocks: the items of its outermost lists, such as an encoder's and a decoder's layers."""
    for model in models:
        for child in model.children():
            yield from child if isinstance(child, nn.ModuleList | nn.Sequential) else _blocks([child])


class Trainer:
    """Runs all steps, from the newest checkpoint in `out` if there is one. Call `prepare` first."""

    def __init__(
        self, model: TrainableModel, settings: LoopSettings, peaks: Mapping[str, float], record: Mapping[str, Any]
    ) -> None:
        """peaks: peak rates by parameter name or prefix, if not lr; record: all settings, for checkpoints."""
        keep_freed_memory()
        self.model, self.settings = model, settings
        self.parallel = this_process()
        self.device = self.parallel.device
        check_batch(settings.batch, self.parallel.world)
        check_rounding(model.config, settings.machine.shard)
        self.flops = 0.0  # of a step, in all processes
        self.tokens = 0  # of the texts of this process's newest step
        self.out = Path(settings.run.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.peaks, self.record = peaks, record
        self.dtype = autocast_dtype(settings.machine.precision)
        # With PyTorch's initial 2**16 the first steps overflow and are skipped; the scale grows by itself.
        self.scaler = torch.amp.GradScaler(self.device.type, 2.0**10, enabled=self.dtype == torch.float16)
        self.generator = torch.Generator(self.device)  # equal in all processes
        self.log = Log(self.out, self.parallel.main, settings.optimizer.steps)

    def prepare(self, layered: Sequence[nn.Module], frozen: Sequence[nn.Module | None]) -> None:
        """Compile or wrap layers as the settings say, load the newest checkpoint, and move the model to the device.

        Frozen parts are cast to the compute precision: they need no master weights, and autocast would cast them at
        every step. Adapters inside them keep theirs.
        """
        machine, optimizer = self.settings.machine, self.settings.optimizer
        own = {each.name for each in fields(RunSettings)}
        this_process().require_same("settings", {name: value for name, value in self.record.items() if name not in own})
        require_same_run(self.out)
        self.run_id = run_id(self.out)
        for part in frozen:
            if part is not None:
                learns = {parameter: parameter.data for parameter in part.parameters() if parameter.requires_grad}
                part.to(self.dtype)
                for parameter, values in learns.items():
                    parameter.data = values
        if self.parallel.main:
            announce(f"preparing the training on {self.device}, in {str(self.dtype).removeprefix('torch.')}")
        for block in _blocks(layered) if machine.recompute else ():  # keep its inputs only, until the backward pass
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if machine.compile:
            for block in _blocks(dict.fromkeys([*layered, *(part for part in frozen if part is not None)])):
                block.compile(dynamic=True)  # all share one compilation
        checkpoints.resume_weights(self.out, self.model)
        blocks = list(_blocks([part for part in frozen if part is not None]))
        self.wrapped = self.parallel.wrap(self.model, machine.shard, blocks)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, optimizer, self.peaks), betas=(optimizer.beta1, optimizer.beta2), fused=True
        )
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.rounding = Rounding(self.model)
        self.step = checkpoints.resume(self.out, self.model, self.optimizer, self.scaler)

    def run(
        self,
        batches: Iterable[tuple[int, Sequence[Any]]],
        loss: Callable[[Any], Losses],
        evaluate: Callable[[], dict[str, float]] | None = None,
        prepare: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    ) -> Path:
        """Train on `batches` (step, micro-batches) from `self.step` on. Return the last checkpoint's folder.

        prepare: makes each of several micro-batches see all of them, without gradients, before their losses.
        Raise Interrupted after a signal, once the current step is saved.
        """
        steps, log = self.settings.optimizer.steps, self.settings.log
        window: list[dict[str, float]] = []
        started = waiting = time.perf_counter()
        waited, signals = 0.0, StopSignals()
        if self.parallel.main:
            announce(f"training from step {self.step + 1}, the slowest, to {steps}")
        with self.log.running(self.step) as bar, signals.handled():
            for step, micros in batches:
                if step >= steps:
                    break
                waited += time.perf_counter() - waiting
                metrics = self._step(step, partial(self._backward, loss, micros, prepare))
                window.append(metrics | {"tokens": float(self.tokens)})
                self.step = step + 1
                bar.update()
                bar.set_postfix(loss=f"{metrics['loss']:.3f}", **self.log.speed)
                last, stop = self.step == steps, self.parallel.max(signals.received)
                if self.step % log.log_every == 0 or last or stop:
                    self._log_window(window, time.perf_counter() - started, waited)
                    window.clear()
                    started, waited = time.perf_counter(), 0.0
                paused = time.perf_counter()
                if evaluate and (last or (self.step % log.eval_every == 0 and not stop)):
                    self._evaluate(evaluate, bar)
                if self.step % log.save_every == 0 or last or stop:
                    self._save()
                started += time.perf_counter() - paused  # speed is that of the steps
                if stop and not last:
                    raise Interrupted(stop, str(self._newest()))
                waiting = time.perf_counter()
        return self._newest()

    def _newest(self) -> Path:
        """Return the newest checkpoint's folder, which only the main process must see."""
        return checkpoints.checkpoint_folder(self.out, self.step)

    def _seed(self, step: int) -> int:
        """Return the seed of all that a step draws, so that it repeats after a resume."""
        return self.settings.batch.seed * 1_000_003 + step

    def micro_rows(self) -> list[torch.Tensor]:
        """Return the numbers of each micro-batch's rows in the whole batch."""
        batch = self.settings.batch
        return list(self.parallel.own_rows(batch.batch_size // self.parallel.world).chunk(batch.accumulate))

    def noise(self, step: int) -> list[RowNoise]:
        """Return the random numbers of each micro-batch's rows in a step, for dropout."""
        return [RowNoise.of_rows(self._seed(step), rows) for rows in self.micro_rows()]

    def _step(self, step: int, backward: Callable[[], Losses]) -> dict[str, float]:
        """Update the weights once; `backward` accumulates gradients and returns the losses."""
        optimizer = self.settings.optimizer
        torch.manual_seed(self._seed(step) + self.parallel.rank * 2**40)
        self.generator.manual_seed(self._seed(step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, group["peak"], optimizer)
        with self.rounding.active():
            losses = backward()
        self.scaler.unscale_(self.optimizer)
        norm = full_tensor(nn.utils.clip_grad_norm_(self.trained, optimizer.clip or math.inf))
        self.scaler.step(self.optimizer)  # without fp16 this is optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: float(value) for name, value in losses.items()} | {"gradient_norm": float(norm)}

    def _backward(
        self,
        loss: Callable[[Any], Losses],
        micros: Sequence[Any],
        prepare: Callable[[Sequence[Any]], Sequence[Any]] | None,
    ) -> Losses:
        """Accumulate gradients of the mean loss over the micro-batches. Return the means of all reported values."""
        total: Losses = {}
        if prepare is not None and len(micros) > 1:
            with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                micros = self.wrapped(prepare, micros)
        for number, micro in enumerate(micros, 1):
            with self.parallel.accumulating(self.wrapped) if number < len(micros) else contextlib.nullcontext():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    losses = self.wrapped(loss, micro)
                self._check(losses["loss"])
                self.scaler.scale(losses["loss"] / len(micros)).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0.0) + value.detach() / len(micros)
        return total

    def _check(self, loss: torch.Tensor) -> None:
        """Raise Blip2rtError in all processes if a loss is not finite."""
        value = float(loss.detach())
        if not self.parallel.sum(not math.isfinite(value)):
            return
        raise Blip2rtError(f"the loss is {value} at step {self.step + 1}: lower lr or use --precision fp32")

    def _log_window(self, window: list[dict[str, float]], seconds: float, waited: float) -> None:
        """Log means over all processes and the steps since the last line."""
        sums = torch.tensor([sum(m[name] for m in window) for name in window[0]], dtype=torch.float64)
        means = (self.parallel.reduce(sums) / len(window) / self.parallel.world).tolist()
        optimizer = self.settings.optimizer
        rate = learning_rate(self.step - 1, optimizer.lr, optimizer)
        line = {"step": self.step, "lr": rate} | dict(zip(window[0], means, strict=True))
        self.log.write(
            line | self._speed(seconds / len(window), line.pop("tokens")) | {"waiting_for_data": waited / seconds}
        )

    def _speed(self, seconds: float, tokens: float) -> dict[str, float]:
        """Speed, and per device FLOPs and peak memory, of a step. seconds: its time. tokens: this process's text."""
        flops = self.flops / self.parallel.world / seconds
        speed = {
            "seconds_per_step": seconds,
            "images_per_second": self.settings.batch.batch_size / seconds,
            "tokens_per_second": tokens * self.parallel.world / seconds,
            "tflops_per_second": flops / 1e12,
        }
        if self.device.type != "cuda":
            return speed | {"peak_gb": peak_memory() / 1e9}
        return speed | {"peak_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}

    def _evaluate(self, evaluate: Callable[[], dict[str, float]], bar: tqdm[Any]) -> None:
        self.model.eval()
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.no_grad(), autocast, self.rounding.active():
            metrics = self.wrapped(evaluate)
        self.parallel.reshard(self.wrapped)
        self.model.train()
        if self.parallel.main:
            bar.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        self.log.write({"step": self.step} | {f"dev_{name}": value for name, value in metrics.items()})

    def _save(self) -> None:
        state = (self.model, self.optimizer, self.scaler)
        checkpoints.save(self.out, self.step, *state, record=self.record, keep=self.settings.log.keep, run=self.run_id)
        self.log.plot()
        self.parallel.barrier()


def check_batch(batch: BatchSettings, world: int) -> None:
    """Raise Blip2rtError if the batch does not divide evenly among processes and micro-batches."""
    parts = world * batch.accumulate
    if batch.accumulate < 1 or batch.batch_size % parts:
        raise Blip2rtError(
            f"batch_size {batch.batch_size} cannot be divided among {world} processes x accumulate "
            f"{batch.accumulate}: choose a multiple of {max(parts, 1)}"
        )
