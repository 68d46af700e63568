"""What `cmake --install` installs: programs of other projects build against it and run without Python."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blip2rt.backends.ort import find_library
from tests.c.build import ROOT, dist, run

pytestmark = pytest.mark.long(30, "CMake builds and installs the library, and a program links it")

PHOTO = ROOT / "docs" / "photo.jpg"
EXAMPLES = ROOT / "examples" / "c"
CAPTION = "a cup of coffee sitting on a table"
STRICT = "-Wall", "-Wextra", "-pedantic", "-Werror"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` packs: the library with ONNX Runtime, and all that they load."""
    return dist(find_library(), tmp_path_factory.mktemp("dist"))


def bare(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program without any environment."""
    return subprocess.run([str(part) for part in command], env={}, capture_output=True, text=True)


def compiled(prefix: Path, source: Path, program: Path, *options: str) -> Path:
    """Compile with the flags of pkg-config, and a run path."""
    compiler = ["cc", "-std=c99"] if source.suffix == ".c" else ["c++", "-std=c++17"]
    [file] = prefix.rglob("blip2rt.pc")
    env = {**os.environ, "PKG_CONFIG_PATH": str(file.parent)}
    flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "blip2rt"], env=env, text=True).split()
    run(*compiler, *STRICT, str(source), "-o", str(program), *options, *flags, f"-Wl,-rpath,{file.parents[1]}")
    return program


def test_the_header_is_short_and_strict_c99(prefix: Path, tmp_path: Path) -> None:
    header = prefix / "include" / "blip2rt.h"
    assert len(header.read_text().splitlines()) < 200
    (tmp_path / "only.c").write_text("#include <blip2rt.h>\nint main(void) { return blip2rt_abi_version() != 1; }\n")
    assert bare(compiled(prefix, tmp_path / "only.c", tmp_path / "only")).returncode == 0


def test_only_the_api_is_exported(prefix: Path) -> None:
    [library] = prefix.rglob("libblip2rt.so")
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    found = sorted(line.split()[-1] for line in symbols.stdout.splitlines())
    assert found == (ROOT / "tests" / "c" / "symbols.txt").read_text().split()
    declared = re.findall(r"BLIP2RT_API [\w *]+?\b(blip2rt_\w+)\(", (prefix / "include" / "blip2rt.h").read_text())
    assert {name.partition("@")[0] for name in found} - {"BLIP2RT_1"} == set(declared)
    assert "SONAME" in subprocess.run(["objdump", "-p", library], capture_output=True, text=True).stdout
    assert library.stat().st_size < 4 << 20


def test_programs_of_the_installation_run_without_an_environment(prefix: Path) -> None:
    program = prefix / "bin" / "blip2rt-c"
    done = bare(program, "caption", PHOTO, ROOT / "docs" / "nano" / "coffee.jpg")
    assert done.stdout.splitlines() == [CAPTION, CAPTION] and not done.stderr
    assert bare(program, "ask", PHOTO, "what is in the cup?", "what colour is the cup?").stdout.count("\n") == 2
    cup, dog = bare(program, "match", PHOTO, "a cup", "a dog").stdout.splitlines()
    assert float(cup.split("\t")[0]) > float(dog.split("\t")[0])
    captions = bare(program, "caption", PHOTO, "-o", "num_captions=2", "-o", "num_beams=2", "-o", "threads=1")
    assert captions.returncode == 0 and captions.stdout.count("\n") == 2
    done = bare(program, "-o", "max_new_tokens=3", "caption", "/nothing.jpg", PHOTO)
    assert done.returncode == 1 and done.stdout == "a cup of\n" and "no such file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw", "x"], "no such command: choose from caption, tag, ask, match, sees, choose; not draw"),
        (["caption", "-o", "beams=3", str(PHOTO)], "unknown option beams: choose from num_captions, num_beams"),
        (["caption", "-o", "num_beams=0", str(PHOTO)], "num_beams is 0: give a whole number from 1 to 100"),
        (["caption", "/nothing.jpg"], "no such file: '/nothing.jpg'"),
        (["caption", "--model", "/nothing", str(PHOTO)], "no bundle at /nothing: there is no such folder"),
        (["caption", "-o", str(PHOTO)], f"-o without KEY=VALUE: {PHOTO}"),
        (["caption", str(PHOTO), "-o"], "a value is missing after -o"),
        (["caption", str(PHOTO), "--beams", "3"], "unknown option: choose from --model, -o; not --beams"),
        (["caption", "--", "-o"], "no such file: '-o'"),
    ],
)
def test_wrong_arguments_are_one_line(prefix: Path, arguments: list[str], message: str) -> None:
    done = bare(prefix / "bin" / "blip2rt-c", *arguments)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("blip2rt-c: error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_graphs_run_without_onnxruntime_where_none_is_found(prefix: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(prefix, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("libonnxruntime*"))
    done = bare(copy / "bin" / "blip2rt-c", "caption", PHOTO)
    assert (done.stdout, done.stderr) == (CAPTION + "\n", "")
    done = bare(copy / "bin" / "blip2rt-c", "caption", "-o", "runtime=onnxruntime", "-o", "onnxruntime=/no.so", PHOTO)
    assert done.returncode == 2 and "cannot load ONNX Runtime: " in done.stderr


def test_examples_in_c_and_cpp(prefix: Path, tmp_path: Path) -> None:
    done = bare(compiled(prefix, EXAMPLES / "caption.c", tmp_path / "caption"), PHOTO, "what is in the cup?")
    *captions, answer = done.stdout.splitlines()
    assert captions[0].endswith(CAPTION) and len(captions) == 3 and answer
    done = bare(tmp_path / "caption", "/nothing.jpg", "what?")
    assert done.returncode == 1 and done.stderr == "no such file: '/nothing.jpg'\n"
    camera = compiled(prefix, EXAMPLES / "camera.cpp", tmp_path / "camera")
    assert bare(camera, "/dev/no-camera").stderr == "camera: /dev/no-camera: No such file or directory\n"


def test_example_for_ros_compiles_with_stand_ins(prefix: Path, tmp_path: Path) -> None:
    for name in ("sensor_msgs/msg/image.hpp", "std_msgs/msg/string.hpp"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    include = f"-I{tmp_path}", f"-I{ROOT / 'tests' / 'c' / 'native'}"
    compiled(prefix, EXAMPLES / "ros2_node.cpp", tmp_path / "node", *include)


def test_example_in_rust(prefix: Path, tmp_path: Path) -> None:
    if not shutil.which("rustc"):
        pytest.skip("needs rustc")
    [library] = prefix.rglob("libblip2rt.so")
    linked = f"-L native={library.parent} -C link-arg=-Wl,-rpath,{library.parent}".split()
    run("rustc", "--edition", "2021", str(EXAMPLES / "caption.rs"), "-o", str(tmp_path / "caption"), *linked)
    assert bare(tmp_path / "caption", PHOTO).stdout.splitlines()[0].endswith(CAPTION)
    assert bare(tmp_path / "caption", "/nothing.jpg").stderr == "no such file: '/nothing.jpg'\n"


NVDA = """
import sys, types
for name, content in {
    "api": "getNavigatorObject = lambda: types.SimpleNamespace(location=(0, 0, 4, 2))",
    "globalPluginHandler": "GlobalPlugin = object",
    "screenBitmap": "ScreenBitmap = lambda w, h: types.SimpleNamespace(captureImage=lambda *a: bytes(4 * w * h))",
    "scriptHandler": "script = lambda **_: lambda method: method",
    "ui": "message = print",
}.items():
    sys.modules[name] = module = types.ModuleType(name)
    exec(content, {"types": types}, module.__dict__)
import screen_reader
plugin = screen_reader.GlobalPlugin()
plugin.captioner = screen_reader.Captioner(sys.argv[1])
plugin.script_describe(None)
"""


def test_screen_reader_says_what_is_on_the_screen(prefix: Path) -> None:
    [library] = prefix.rglob("libblip2rt.so")
    said = bare(sys.executable, "-I", EXAMPLES / "screen_reader.py", library, PHOTO)
    assert said.stdout == f"{CAPTION}\n", said.stderr
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    in_nvda = subprocess.run([sys.executable, "-c", NVDA, library], env=env, capture_output=True, text=True)
    assert in_nvda.stdout.strip() and not in_nvda.stderr


def test_cmake_finds_the_package(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.21)\nproject(app C)\nfind_package(blip2rt REQUIRED)\n"
        f"add_executable(app {EXAMPLES / 'caption.c'})\ntarget_link_libraries(app blip2rt::blip2rt)\n"
    )
    run("cmake", "-S", str(tmp_path), "-B", str(tmp_path / "b"), f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", str(tmp_path / "b"))
    assert CAPTION in bare(tmp_path / "b" / "app", PHOTO, "what?").stdout
