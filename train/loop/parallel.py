"""The processes of one training: which rows each computes, and how they communicate.

A single process needs neither a process group nor accelerate. torchrun or `accelerate launch` starts several; each has
the whole model and averages gradients (DDP), or a shard of it (FSDP).
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
TIMEOUT = timedelta(minutes=10)  # of a step's communication, after which another process has hung
PATIENCE = timedelta(days=7)  # of processes that wait for one that computes features or indices, or predicts


class _Gather(torch.autograd.Function):
    """Gather the rows of all processes by rank; a row's gradient is summed over all processes."""

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


class _Fetch(torch.autograd.Function):
    """Exchange rows: row i of the result is row wanted[i] of all processes' rows; its gradient returns to the owner."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, send: torch.Tensor, counts: list[list[int]]) -> torch.Tensor:
        """send: numbers of own rows, by the process that receives them; counts: rows sent to each, received of each."""
        ctx.save_for_backward(send)
        ctx.counts, ctx.total = counts, len(rows)
        found = rows.new_empty((sum(counts[1]), *rows.shape[1:]))
        distributed.all_to_all_single(found, rows[send].contiguous(), counts[1], counts[0])
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (send,) = ctx.saved_tensors
        returned = upstream[0].new_empty((len(send), *upstream[0].shape[1:]))
        distributed.all_to_all_single(returned, upstream[0].contiguous(), ctx.counts[0], ctx.counts[1])
        return returned.new_zeros((ctx.total, *returned.shape[1:])).index_add_(0, send, returned), None, None


class ForwardWrapper(nn.Module):
    """The module that DDP or FSDP wraps: every computation with the model runs in its forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)


@cache
def this_process() -> Parallel:
    """Return the one Parallel of this process."""
    return Parallel()


class Parallel:
    """This process, number `rank` of `world`."""

    def __init__(self) -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), 0
        self._scalars: set[str] = set()  # parameters that FSDP, which cannot shard them, holds as vectors of one
        if self.world == 1:
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return
        from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
        from accelerate.utils import InitProcessGroupKwargs

        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        timeout = InitProcessGroupKwargs(timeout=TIMEOUT)
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp, timeout])
        kind = self._accelerator.distributed_type
        if kind not in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            raise Blip2rtError(
                f"accelerate is set up for {kind.value}: choose multi-GPU in `accelerate config`, and for FSDP give "
                "--shard trained or --shard all"
            )
        self.rank, self.device = self._accelerator.process_index, self._accelerator.device
        self._patient: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)  # for objects

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wrap(self, model: nn.Module, shard: str, blocks: Sequence[nn.Module]) -> nn.Module:
        """Move the model to the device and wrap it so that gradients are averaged over processes.

        shard: `none` replicates everything (DDP). `trained` (FSDP) shards trained parameters with their gradients and
        moments, and gathers them for a step; `all` also gathers each of `blocks` only while it computes. FSDP replaces
        the parameter objects.
        """
        module = ForwardWrapper(model)
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
            for block in blocks:  # one by one: the device may not hold all of them
                fully_shard(block, mesh=mesh)
        frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
        fully_shard(module.to(self.device), mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
        return module

    @contextlib.contextmanager
    def accumulating(self, module: nn.Module) -> Iterator[None]:
        """Inside, accumulate gradients without synchronizing; for all but the last micro-batch of a step."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(False)
            yield
            module.set_requires_gradient_sync(True)
        else:
            with contextlib.nullcontext() if self.world == 1 else module.no_sync():  # type: ignore[operator]
                yield

    def reshard(self, module: nn.Module) -> None:
        """Shard a gathered module again, which FSDP does by itself only in a backward pass."""
        if isinstance(module, FSDPModule):
            module.reshard()

    def gather_full(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return full tensors in the main process and none in the others; all must call it."""
        found = {}
        for name, tensor in tensors.items():
            values = full_tensor(tensor)
            if self.main:
                found[name] = values.reshape(()).cpu() if name in self._scalars else values.cpu()
        return found

    def take_share(self, rows: Sequence[T]) -> Sequence[T]:
        """Return this process's part of a step's rows."""
        each = len(rows) // self.world
        return rows[self.rank * each : (self.rank + 1) * each]

    def own_rows(self, count: int) -> torch.Tensor:
        """Return the indices (count) of this process's rows among the gathered ones."""
        return torch.arange(self.rank * count, (self.rank + 1) * count, device=self.device)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """(b, ...) of each process -> (world * b, ...), with gradients."""
        if self.world == 1:
            return rows
        gathered: torch.Tensor = _Gather.apply(rows, self.rank, self.world)
        return gathered

    def fetch(self, rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """(b, ...) of each process -> (w, ...), the rows that this process wants, with gradients.

        wanted (world, w): the numbers of the rows that each process wants, among the rows of all, ordered by rank.
        """
        if self.world == 1:
            return rows[wanted[0]]
        owner, row = wanted // len(rows), wanted % len(rows)  # (world, w)
        send = [row[rank][owner[rank] == self.rank] for rank in range(self.world)]
        received = torch.bincount(owner[self.rank], minlength=self.world).tolist()
        found: torch.Tensor = _Fetch.apply(rows, torch.cat(send), [[len(each) for each in send], received])
        order = torch.argsort(owner[self.rank], stable=True)  # they arrive by owner
        return found[torch.argsort(order)]

    def gather_padded(self, rows: torch.Tensor) -> torch.Tensor:
        """(b, L) of each process -> (world * b, largest L), padded with zeros on the right."""
        if self.world == 1:
            return rows
        length = int(self.reduce(torch.tensor(rows.shape[1]), distributed.ReduceOp.MAX))
        return self.gather(nn.functional.pad(rows, (0, length - rows.shape[1])))

    def reduce(self, values: torch.Tensor, operation: Any = None) -> torch.Tensor:
        """Reduce the values of all processes, by default to their sum; the result is on the CPU."""
        if self.world == 1:
            return values
        reduced = values.to(self.device)
        distributed.all_reduce(reduced, operation or distributed.ReduceOp.SUM)
        return reduced.cpu()

    def sum(self, value: float) -> float:
        return value if self.world == 1 else float(self.reduce(torch.tensor(value, dtype=torch.float64)))

    def loss_weights(self, counts: Sequence[int]) -> list[float]:
        """Weigh micro-batches by their token counts, relative to the mean over all micro-batches and processes."""
        mean = self.sum(sum(counts)) / (len(counts) * self.world)
        return [count / mean if mean else 0.0 for count in counts]

    def max(self, value: int) -> int:
        """Return the maximum over all processes."""
        return value if self.world == 1 else int(self.reduce(torch.tensor(value), distributed.ReduceOp.MAX))

    def gather_objects(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value, self._patient)
        return found

    def raise_together(self, fault: str = "") -> None:
        """Raise Blip2rtError in all processes if one reports a fault."""
        found = next(filter(None, self.gather_objects(fault)), "")
        if found:
            raise Blip2rtError(found)

    def require_same(self, what: str, value: object) -> None:
        """Raise Blip2rtError in all processes if their values differ."""
        ranks = [rank for rank, other in enumerate(self.gather_objects(value)) if other != value]
        fault = f"{what} of processes {ranks} differ from process {self.rank}: give all processes the same"
        self.raise_together(fault if ranks else "")

    def barrier(self) -> None:
        if self.world > 1:
            self._accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the first process, then in the first of each other node, then in the rest.

        Later processes find the files of earlier ones on a shared disk. If one raises, all raise.
        """
        turn = 0 if self.main else 1 if os.environ.get("LOCAL_RANK", "0") == "0" else 2
        for _ in range(turn):
            self.raise_together()
        try:
            yield
        except Exception as error:
            if self.world > 1:
                self.raise_together(str(error) or type(error).__name__)
            raise
        for _ in range(turn, 3):
            self.raise_together()


def destroy_process_group() -> None:
    """Destroy the process group.

    Its threads end with its last owner, which may sit in a reference cycle; a thread that still runs at exit aborts the
    process.
    """
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def match_sharding(parameter: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Convert full values to the parameter's device, memory format and sharding."""
    if isinstance(parameter, DTensor):
        values = values.to(parameter.device).reshape(parameter.shape)
        return distribute_tensor(values, parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter, dtype=values.dtype).copy_(values)


def full_tensor(value: torch.Tensor) -> torch.Tensor:
    """Gather a value computed from sharded tensors."""
    return value.full_tensor() if isinstance(value, DTensor) else value
