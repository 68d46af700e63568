"""What GPUs can do, and how much of it a training achieves. Does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """flops: dense matrix products in 16 bits per second; memory: bytes."""

    flops: float
    memory: float


GPUS = {
    "a100": Gpu(312e12, 40e9),
    "h100": Gpu(989e12, 80e9),
    "orin": Gpu(42.5e12, 64e9),
}  # A100 SXM, H100 SXM, AGX 64 GB


def gpu_named(device_name: str) -> Gpu | None:
    """Return the GPU of a driver's name, such as "NVIDIA A100-SXM4-80GB"."""
    return next((gpu for name, gpu in GPUS.items() if name in device_name.lower()), None)
