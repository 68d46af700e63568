"""Runs a plan: an execution context, and the memory through which small inputs and the logits pass."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

from ...errors import BackendError
from .cuda import Buffer, Device

ALIGNMENT = 256  # bytes; TensorRT requires it of every address
Tensor = tuple[str, int, tuple[int, ...]]  # name, address, shape
_log = logging.getLogger("blip2rt")


class Runner:
    """An execution context with one profile, and its staging memory. Its caller holds the device."""

    def __init__(self, plan: Any, profile: int) -> None:
        """plan: the engine.Plan that makes the context."""
        self.profile, self.failed = profile, False
        self._plan, self._device = plan, plan.device
        self._context = plan.context(profile)
        self._inputs, self._outputs = _Staging(plan.device), _Staging(plan.device)
        self._graph: Any = None
        self._runs = 0

    def set_inputs(self, tensors: Sequence[Tensor], on_device: tuple[str, ...]) -> None:
        """Bind inputs: names that begin with one of on_device by address, others through the staging memory."""
        self.drop_graph()
        for name, _, shape in tensors:
            if not self._context.set_input_shape(name, shape):
                raise BackendError(f"{self._plan.component}: TensorRT rejects {name} of shape {shape}{self._reason()}")
        self._bind(self._inputs, tensors, on_device)

    def set_outputs(self, tensors: Sequence[Tensor], on_device: tuple[str, ...]) -> None:
        """Bind outputs. Those that nobody reads end in the staging memory."""
        unread = [(name, 0, self.shape(name)) for name in self._plan.unbound([name for name, _, _ in tensors])]
        for name, _, shape in tensors:
            if self.shape(name) != tuple(shape):
                raise BackendError(
                    f"{self._plan.component}: the plan returns {name} of shape {self.shape(name)}, not {tuple(shape)}: "
                    "build the plans again"
                )
        self._bind(self._outputs, [*tensors, *unread], on_device)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, once every input is bound."""
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise BackendError(f"{self._plan.component}: the plan has no output {name} of a known shape: {shape}")
        return shape

    def run(self) -> None:
        """Run, and wait for the outputs. Raises BackendError; the next run is then like the first."""
        if self.failed:
            self.drop_graph()
        self.failed = True
        self._inputs.fill()
        self._launch()
        self._outputs.download()
        self._device.wait()
        self._outputs.empty()
        self.failed = False

    def drop_graph(self) -> None:
        if self._graph is not None:
            self._device.destroy_graph(self._graph)
        self._graph, self._runs = None, 0

    def _launch(self) -> None:
        """Enqueue the first run, since TensorRT initializes in it, capture the second one, and replay it later."""
        self._runs += 1
        if self._runs == 2 and self._plan.capturable:
            try:
                self._graph = self._device.capture(self._enqueue)
            except BackendError as error:
                self._plan.capturable = False
                _log.warning(
                    "%s cannot be captured as a CUDA graph and will be enqueued: %s", self._plan.component, error
                )
        if self._graph is None:
            self._enqueue()
        else:
            self._device.launch(self._graph)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._device.stream)):
            raise BackendError(f"{self._plan.component}: TensorRT cannot run the plan{self._reason()}")

    def _bind(self, staging: _Staging, tensors: Sequence[Tensor], on_device: tuple[str, ...]) -> None:
        staged = [each for each in tensors if not each[0].startswith(on_device or ("\0",))]
        places = staging.place([(host, self._plan.bytes_of(name, shape)) for name, host, shape in staged])
        addresses = {name: address for name, address, _ in tensors}
        addresses |= {name: place for (name, _, _), place in zip(staged, places, strict=True)}
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"{self._plan.component}: TensorRT rejects the address of {name}{self._reason()}")

    def _reason(self) -> str:
        return self._plan.reason()


class _Staging:
    """Memory of the device beside page-locked memory of the host, through which tensors pass. It grows."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._host: Buffer | None = None
        self._own: Buffer | None = None
        self._parts: list[tuple[int, int, int]] = []  # host address, offset, bytes
        self._size = 0

    def place(self, tensors: Sequence[tuple[int, int]]) -> list[int]:
        """(host address or 0, bytes) of each -> its address on the device. Those without a host address come last."""
        offsets, end, self._parts, self._size = [], 0, [], 0
        for host, size in tensors:
            offsets.append(end)
            if host:
                self._parts.append((host, end, size))
                self._size = end + size
            end += -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        if self._own is None or self._own.size < end:
            self._own = self._host = None  # frees both
            self._own, self._host = Buffer(self._device, max(end, 1)), Buffer(self._device, max(end, 1), on_host=True)
        return [self._own.address + offset for offset in offsets]

    def fill(self) -> None:
        """Copy the host's tensors to the device."""
        assert self._own is not None and self._host is not None
        for host, offset, size in self._parts:
            ctypes.memmove(self._host.address + offset, host, size)
        if self._size:
            self._device.upload(self._own.address, self._host.address, self._size)

    def download(self) -> None:
        """Start to copy the device's tensors to the host."""
        assert self._own is not None and self._host is not None
        if self._size:
            self._device.download(self._host.address, self._own.address, self._size)

    def empty(self) -> None:
        """Hand over what was downloaded."""
        assert self._host is not None
        for host, offset, size in self._parts:
            ctypes.memmove(host, self._host.address + offset, size)
