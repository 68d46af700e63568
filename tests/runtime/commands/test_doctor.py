"""`blip2rt doctor` on this machine and on simulated ones."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from blip2rt.backends import ort
from blip2rt.backends.trt import gpu
from blip2rt.cli import doctor, main
from blip2rt.errors import BackendError, BundleError
from blip2rt.install_hints import pip_install

ORIN = gpu.Gpu("Orin", (8, 7), 8 << 30, (12, 6), True, 8)
H100 = gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30, (13, 0), False, 132)


def lines(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def test_doctor_describes_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    native = pytest.importorskip("blip2rt._native")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert native.processor_kernels()[0].startswith("attention ")
    assert all(kernel in text for kernel in native.processor_kernels())
    assert all(word in text for word in ("machine", "ONNX Runtime", "memory", "is captioned in", "captions run here"))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] is True and set(found["findings"][0]) == {"name", "state", "text", "mend", "needed"}
    assert {"machine", "captions"} <= {finding["name"] for finding in found["findings"]}


@pytest.mark.parametrize(("error", "state"), [(BackendError("none"), "missing"), (ImportError("GLIBCXX"), "broken")])
def test_missing_or_broken_core_is_reported(error: Exception, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "kernel_level", Mock(side_effect=error))
    found = doctor.examine()
    assert lines(found)["native core"].state == state
    text, code = doctor.report(found)
    assert code == 2 and f"-> {pip_install()} (building needs" in text


def test_missing_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_LIBRARIES", ("libnothing.so",))
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: version(package) if package == "onnxruntime" else None)
    found = lines(doctor.examine())
    assert list(found) == ["machine", "memory", "native core", "ONNX Runtime", "captions", "NVIDIA GPU"]
    assert "no NVIDIA driver" in found["NVIDIA GPU"].text
    assert "captions run here, on the CPU" in doctor.report(list(found.values()))[0]


def test_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The state after removing one of onnxruntime and onnxruntime-gpu."""
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    monkeypatch.setattr(ort, "_runtime", None)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)  # another test may have imported it
    monkeypatch.syspath_prepend(tmp_path)
    text, code = doctor.report(doctor.examine())
    assert code == 2 and "-> pip install --force-reinstall onnxruntime" in text and "libonnxruntime" in text
    assert "captioned" not in text


def test_damaged_model_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load", Mock(side_effect=BundleError("vision.onnx is missing")))
    text, code = doctor.report(doctor.examine())
    assert code == 2 and "vision.onnx is missing" in text and "blip2rt verify" in text


def test_missing_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_LIBRARIES", ("libnothing.so",))
    monkeypatch.setattr(doctor, "_version", lambda package: "1.0" if package != "onnxruntime-gpu" else None)
    found = lines(doctor.examine())
    assert found["driver"].state == "missing" and "libcuda" in found["driver"].text and "GPU" not in found


def test_jetson_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    monkeypatch.setattr(gpu, "_RELEASE", release)
    monkeypatch.setattr(gpu, "find", lambda: ORIN)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = lines(doctor.examine())
    assert "Jetson Linux 36.4.3" in found["machine"].text
    assert "SM87" in found["GPU"].text and "shared" in found["GPU"].text and "12.6" in found["driver"].text
    assert found["TensorRT"].state == "missing" and "python3-libnvinfer" in found["TensorRT"].fix


def test_tensorrt_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find", lambda: H100)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = lines(doctor.examine())["TensorRT"]
    assert found.state == "missing" and found.fix == "pip install tensorrt-cu13"
    for version, state in (("10.3.0", "ok"), ("8.6.1", "broken")):
        monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt", __version__=version))  # type: ignore[misc]
        found = lines(doctor.examine())["TensorRT"]
        assert found.state == state and version in found.text


def test_two_onnx_runtimes_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "onnxruntime-openvino"
    monkeypatch.setattr(doctor, "_version", lambda package: "1.0" if package in ("onnxruntime", other) else None)
    text, code = doctor.report(doctor.examine())
    assert code == 2 and "overwrite each other" in text
    assert f"-> pip uninstall -y onnxruntime {other} && pip install onnxruntime\n" in text


def test_little_memory_suggests_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"MemTotal": 4 << 30, "MemAvailable": 1 << 30, "SwapTotal": 0}
    monkeypatch.setattr(doctor, "proc_bytes", lambda file, key: sizes[key])
    assert "swapon" in lines(doctor.examine())["memory"].fix
