"""The processes of one training: who computes which rows, and what they tell each other.

One process needs no process group and no accelerate. Several are started by torchrun or `accelerate launch`; each has
the whole model, and gradients are averaged (DDP), or a part of it (FSDP). Knows modules and tensors, no losses.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from blip2rt.errors import Blip2rtError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # how long processes wait for one that computes features or indices


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


class Inside(nn.Module):
    """What DDP or FSDP wrap: all that is computed of the model is computed in this module's forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)


@cache
def here() -> Parallel:
    """This process, made once."""
    return Parallel()


class Parallel:
    """This process among `world`; `rank` counts them from 0."""

    def __init__(self) -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), 0
        self._scalars: set[str] = set()  # parameters that FSDP, which cannot divide them, has as vectors of one
        if self.world == 1:
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return
        from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
        from accelerate.utils import InitProcessGroupKwargs

        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        patient = InitProcessGroupKwargs(timeout=PATIENCE)
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp, patient])
        kind = self._accelerator.distributed_type
        if kind not in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            raise Blip2rtError(
                f"accelerate is set up for {kind.value}: choose multi-GPU in `accelerate config`, and for FSDP give "
                "--shard trained or --shard all"
            )
        self.rank, self.device = self._accelerator.process_index, self._accelerator.device

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wrap(self, model: nn.Module, shard: str, blocks: Sequence[nn.Module]) -> nn.Module:
        """The model on this process' device, Inside what averages its gradients over processes.

        shard: `none`: every process has all of it (DDP). FSDP: `trained`: of what is trained every process keeps a
        part, with its gradients and moments, and has the whole during a step; `all`: each of `blocks` is whole only
        while it computes, too. Parameters become other objects then.
        """
        module = Inside(model)
        if self.world == 1:
            return module.to(self.device)
        if shard == "none":
            return cast(nn.Module, self._accelerator.prepare_model(module))
        for name, parameter in list(model.named_parameters(recurse=False)):
            if not parameter.dim():
                self._scalars.add(name)
                setattr(model, name, nn.Parameter(parameter.detach()[None]))
        mesh = init_device_mesh(self.device.type, (self.world,))
        if shard == "all":
            for block in blocks:  # one after the other: all of them may be more than the device holds
                fully_shard(block, mesh=mesh)
        frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
        fully_shard(module.to(self.device), mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
        return module

    @contextlib.contextmanager
    def summing(self, module: nn.Module) -> Iterator[None]:
        """Inside, gradients of a wrapped module add up in each process alone: not the last micro-batch of a step."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(False)
            yield
            module.set_requires_gradient_sync(True)
        else:
            with contextlib.nullcontext() if self.world == 1 else module.no_sync():  # type: ignore[operator]
                yield

    def part(self, module: nn.Module) -> None:
        """Leave each process its part of a sharded module; without gradients that does not happen by itself."""
        if isinstance(module, FSDPModule):
            module.reshard()

    def collect(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors in the main process, none in the others, which have to call too."""
        found = {}
        for name, tensor in tensors.items():
            values = whole(tensor)
            if self.main:
                found[name] = values.reshape(()).cpu() if name in self._scalars else values.cpu()
        return found

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
        return [count / mean if mean else 0.0 for count in counts]

    def most(self, value: int) -> int:
        """The largest of all processes' values."""
        return value if self.world == 1 else int(self.reduce(torch.tensor(value), distributed.ReduceOp.MAX))

    def everyone(self, value: T) -> list[T]:
        """The values of all processes, in the order of ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def agree(self, fault: str = "") -> None:
        """Raise Blip2rtError in all processes where one has a fault, the first one's."""
        found = next(filter(None, self.everyone(fault)), "")
        if found:
            raise Blip2rtError(found)

    def same(self, what: str, value: object) -> None:
        """Raise Blip2rtError in all processes where a value is not the same in all of them."""
        ranks = [rank for rank, other in enumerate(self.everyone(value)) if other != value]
        fault = f"{what} of processes {ranks} are not those of process {self.rank}: give all the same"
        self.agree(fault if ranks else "")

    def wait(self) -> None:
        if self.world > 1:
            self._accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process does what is inside, then the first of each other node, then the others, who find its files
        where they share a disk. What one raises, all raise."""
        turn = 0 if self.main else 1 if os.environ.get("LOCAL_RANK", "0") == "0" else 2
        for _ in range(turn):
            self.agree()
        try:
            yield
        except Exception as error:
            if self.world > 1:
                self.agree(str(error) or type(error).__name__)
            raise
        for _ in range(turn, 3):
            self.agree()


def leave() -> None:
    """Destroy the process group.

    Its threads die with its last owner, which may be a model in a circle of references. A thread that is still at work
    when Python ends aborts the process.
    """
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def like(parameter: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Whole values in the parameter's form: its device, its memory format, this process' part of a sharded one."""
    if isinstance(parameter, DTensor):
        values = values.to(parameter.device).reshape(parameter.shape)
        return distribute_tensor(values, parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=values.dtype).copy_(values)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A value computed of sharded tensors, in a form that each process may read."""
    return value.full_tensor() if isinstance(value, DTensor) else value
