"""Test wheels as users get them: new environments, no compiler, no network, a read-only home.

    python packages/test_wheels.py dist                       # every Python that this machine has
    python packages/test_wheels.py dist --python 3.13 --replace onnxruntime-openvino

Each environment installs blip2rt's wheel for its Python and blip2rt-nano's; only this step may use the network. Then a
photograph is captioned with a PATH that has only the environment, in a network namespace of its own where `unshare`
may make one, and with a home that cannot be written.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pythons import VERSIONS, find_python

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "docs" / "photo.jpg"
EXPECTED = "a cup of coffee sitting on a table"
SIZE_LIMIT = 4_000_000  # bytes of a blip2rt wheel


def main() -> None:
    parser = argparse.ArgumentParser(description="Test wheels outside their build environment.")
    parser.add_argument("folder", type=Path, help="the wheels")
    parser.add_argument("--python", nargs="+", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--replace", metavar="PACKAGE", help="use this package in place of onnxruntime")
    args = parser.parse_args()
    wheels = sorted(args.folder.glob("blip2rt-*.whl"))
    if large := [wheel.name for wheel in wheels if wheel.stat().st_size >= SIZE_LIMIT]:
        sys.exit(f"{', '.join(large)}: larger than {SIZE_LIMIT:,} bytes")
    tested = 0
    for version in args.python:
        python = find_python(version)
        if python is None:
            print(f"Python {version}: not on this machine", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(f"Python {version}: {check(python, args.folder, Path(folder), args.replace)}", flush=True)
        tested += 1
    if not tested:
        sys.exit("no Python was tested: name one with --python")


def check(python: str, wheels: Path, folder: Path, replace: str | None) -> str:
    """Install into a new environment and caption. Return what was tested. Raises CalledProcessError."""
    environment = folder / "environment"
    run(python, "-m", "venv", environment)
    pip = [environment / "bin" / "python", "-m", "pip"]
    # Our packages from the folder only, their dependencies from the index.
    run(*pip, "install", "-q", "--no-index", "--no-deps", "--find-links", wheels, "--pre", "blip2rt", "blip2rt-nano")
    run(*pip, "install", "-q", "--only-binary", ":all:", "blip2rt[nano]")
    if replace is not None:
        run(*pip, "uninstall", "-q", "-y", "onnxruntime")
        run(*pip, "install", "-q", "--only-binary", ":all:", replace)
    else:
        run(*pip, "check")
    home = folder / "home"
    home.mkdir(mode=0o500)
    env = {"PATH": str(environment / "bin"), "HOME": str(home), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*isolation(), environment / "bin" / "blip2rt"]
    said = run(*command, "caption", PHOTO, env=env, cwd=folder).strip()
    assert said == EXPECTED, said
    report = run(*command, "doctor", env=env, cwd=folder)
    found = [line.split("ok", 1)[1].strip() for line in report.splitlines() if line.startswith("ONNX Runtime")]
    return f"{said} ({', '.join(found)}; {'no network' if isolation() else 'network not blocked'})"


def isolation() -> list[str]:
    """The command prefix that takes away the network and root's right to write anywhere; [] where that is forbidden."""
    unshare = shutil.which("unshare")
    command = [unshare or "unshare", "--net", "--"]
    if unshare is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        return []
    if os.getuid() == 0 and (setpriv := shutil.which("setpriv")):
        command += [setpriv, "--bounding-set", "-dac_override", "--"]
    return command


def run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    main()
