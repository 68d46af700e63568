"""Describes this machine's NVIDIA GPU through the driver library, without the CUDA toolkit or Python packages."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR, _INTEGRATED, _MULTIPROCESSORS = 75, 76, 18, 16  # CUdevice_attribute
_RELEASE = Path("/etc/nv_tegra_release")  # Jetson's L4T, e.g. "# R36 (release), REVISION: 4.3, ..."


@dataclass(frozen=True)
class Gpu:
    """The first device."""

    name: str
    compute_capability: tuple[int, int]
    memory: int  # total bytes
    driver: tuple[int, int]  # newest CUDA version that the driver supports
    integrated: bool  # shares the host's memory, as on Jetson
    multiprocessors: int

    @property
    def sm(self) -> str:
        """ "SM86" for compute capability 8.6."""
        return f"SM{self.compute_capability[0]}{self.compute_capability[1]}"


def find() -> Gpu | str:
    """The first GPU, or a message that says why there is none."""
    library = _load()
    if library is None:
        return "no NVIDIA driver is installed (libcuda.so.1 is not found)"
    try:
        return _first(library)
    except OSError as error:
        return f"the NVIDIA driver is installed but {error}"


def l4t_release() -> str | None:
    """Jetson's L4T release, e.g. "36.4.3"; None on other machines."""
    try:
        words = _RELEASE.read_text(encoding="utf-8", errors="replace").replace(",", " ").split()
    except OSError:
        return None
    major = next((word[1:] for word in words if word[:1] == "R" and word[1:].isdigit()), None)
    minor = words[words.index("REVISION:") + 1] if "REVISION:" in words[:-1] else "0"
    return None if major is None else f"{major}.{minor}"


def _load() -> ctypes.CDLL | None:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _first(cuda: ctypes.CDLL) -> Gpu:
    def call(function: str, *arguments: object) -> None:
        code = getattr(cuda, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            cuda.cuGetErrorString(code, ctypes.byref(text))
            reason = (text.value or b"unknown error").decode(errors="replace")
            raise OSError(f"{function} fails with error {code} ({reason})")

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    call("cuInit", 0)
    version, device, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    call("cuDriverGetVersion", ctypes.byref(version))
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    name = ctypes.create_string_buffer(256)
    call("cuDeviceGetName", name, len(name), device)
    return Gpu(
        name.value.decode(errors="replace"),
        (attribute(_MAJOR), attribute(_MINOR)),
        memory.value,
        (version.value // 1000, version.value % 1000 // 10),
        bool(attribute(_INTEGRATED)),
        attribute(_MULTIPROCESSORS),
    )
