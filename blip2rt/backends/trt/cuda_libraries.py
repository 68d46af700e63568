"""Loads NVIDIA's libraries from pip's packages (nvidia/*/lib), for a library that needs them and cannot find them."""

import contextlib
import ctypes
import importlib.util
from pathlib import Path

# What ONNX Runtime's CUDA provider is linked with.
NEEDED = ("cudart", "nvrtc", "nvJitLink", "cublasLt", "cublas", "cufft", "curand", "cudnn")


def preload() -> list[Path]:
    """Load those of NEEDED that are installed, each after those that it needs. Return what was loaded.

    Libraries that the system finds by itself are not touched: what fails to load is reported where it is needed.
    """
    found = [file for name in NEEDED for folder in _folders() for file in sorted(folder.glob(f"lib{name}*.so.*"))]
    pending, loaded = list(dict.fromkeys(found)), []
    for _ in range(len(pending)):
        for file in tuple(pending):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
                loaded.append(file)
                pending.remove(file)
    return loaded


def _folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")  # finds, does not import
    places = [] if spec is None else spec.submodule_search_locations or []
    return [folder for place in places for folder in sorted(Path(place).glob("*/lib"))]
