"""The processes of one training: who computes which rows, and what they tell each other.

One process needs no process group and no accelerate. Several are started by torchrun or `accelerate launch`; each has
the whole model, and gradients are averaged (DDP). Knows tensors, nothing about models or losses.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from blip2rt.errors import Blip2rtError

T = TypeVar("T")


class _Gather(torch.autograd.Function):
    """Rows of all processes, in the order of ranks; a row's gradient is the sum of what all processes have for it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, rank: int, world: int) -> torch.Tensor:
        ctx.own = slice(rank * len(rows), (rank + 1) * len(rows))
        parts = [torch.empty_like(rows) for _ in range(world)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total = upstream[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[ctx.own], None, None


@cache
def here() -> Parallel:
    """The one of this process."""
    return Parallel()


class Parallel:
    """This process among `world`; `rank` counts them from 0."""

    def __init__(self) -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), 0
        if self.world == 1:
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return
        from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType

        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp])
        kind = self._accelerator.distributed_type
        if kind not in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            raise Blip2rtError(f"accelerate is set up for {kind.value}; choose multi-GPU (DDP) in `accelerate config`")
        self.rank, self.device = self._accelerator.process_index, self._accelerator.device

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over processes."""
        return module if self.world == 1 else self._accelerator.prepare_model(module)

    def no_sync(self, module: nn.Module) -> Any:
        """While active, gradients of a wrapped module add up in each process alone."""
        return contextlib.nullcontext() if self.world == 1 else module.no_sync()  # type: ignore[operator]

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """This process' part of the rows of a step."""
        each = len(rows) // self.world
        return rows[self.rank * each : (self.rank + 1) * each]

    def own(self, count: int) -> torch.Tensor:
        """Where this process' `count` rows are among everyone's: (count) indices."""
        return torch.arange(self.rank * count, (self.rank + 1) * count, device=self.device)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """(b, ...) of each process -> (world * b, ...), with gradients."""
        if self.world == 1:
            return rows
        gathered: torch.Tensor = _Gather.apply(rows, self.rank, self.world)
        return gathered

    def gather_padded(self, rows: torch.Tensor) -> torch.Tensor:
        """(b, L) of each process, L unequal -> (world * b, greatest L), zeros on the right."""
        if self.world == 1:
            return rows
        length = int(self.reduce(torch.tensor(rows.shape[1]), distributed.ReduceOp.MAX))
        return self.gather(nn.functional.pad(rows, (0, length - rows.shape[1])))

    def reduce(self, values: torch.Tensor, operation: Any = None) -> torch.Tensor:
        """The sum (or another operation) of each process' values, on the host."""
        if self.world == 1:
            return values
        reduced = values.to(self.device)
        distributed.all_reduce(reduced, operation or distributed.ReduceOp.SUM)
        return reduced.cpu()

    def total(self, value: float) -> float:
        return value if self.world == 1 else float(self.reduce(torch.tensor(value, dtype=torch.float64)))

    def shares(self, counts: Sequence[int]) -> list[float]:
        """Each micro-batch's count over the mean of all micro-batches and processes: weights of their mean losses under
        which everything counted weighs alike."""
        mean = self.total(sum(counts)) / (len(counts) * self.world)
        return [count / mean for count in counts]

    def wait(self) -> None:
        if self.world > 1:
            self._accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process does what is inside, then the others, who find its files."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()
