"""An environment as users have it: our wheels and their dependencies, without checkout and compiler."""

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "wheels"  # written by the Makefile
OURS = ("blip2rt", "tests", "benchmarks", "register_blip2rt")  # what the links to other packages leave out
TIMEOUT = 900  # seconds


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the folder in which its commands run."""

    scripts: Path
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """Everything that the commands inherit."""
        own = {"PATH": str(self.scripts), "HOME": str(self.folder / "home"), "LANG": "C.UTF-8"}
        return own | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a script of the environment, or its `python`."""
        pipe, command = subprocess.PIPE, [str(self.scripts / words[0]), *words[1:]]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.variables, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *words: str, stdin: str = "") -> str:
        """The standard output of a command that succeeds."""
        process = self.start(*words)
        out, err = process.communicate(stdin, TIMEOUT)
        assert process.returncode == 0 and "Traceback" not in err, f"{' '.join(words)}: {out}{err}"
        return out


def make_environment(folder: Path) -> Environment:
    """Install the wheels into a new environment. Other packages are links to those of this process's environment."""
    venv.create(folder / "environment", symlinks=True)
    environment = Environment(folder / "environment" / "bin", folder / "work")
    (environment.folder / "home").mkdir(parents=True)
    for packages in (Path(entry) for entry in sys.path if entry.endswith("site-packages")):
        link(packages, folder / "packages")
    [site] = (folder / "environment" / "lib").glob("*/site-packages")
    (site / "packages.pth").write_text(f"{folder / 'packages'}\n")
    optimum = environment.scripts / "optimum-cli"
    optimum.write_text(f"#!{environment.scripts / 'python'}\nfrom optimum.commands.optimum_cli import main\nmain()\n")
    optimum.chmod(0o755)
    wheels = [str(wheel) for wheel in sorted(WHEELS.glob("*.whl"))]
    assert len(wheels) == 2, f"{WHEELS} has {wheels}: run make test"
    environment.run("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *wheels)
    return environment


def link(source: Path, target: Path) -> None:
    """Link everything in `source` but our packages. Our command in optimum's folder is left out, too."""
    target.mkdir(exist_ok=True)
    for entry in source.iterdir():
        inner = target / entry.name
        if entry.name in ("optimum", "commands", "register"):
            link(entry, inner)
        elif entry.suffix != ".pth" and not entry.name.startswith(OURS) and not inner.is_symlink():
            inner.symlink_to(entry)
