"""Make `tests` and `benchmarks` importable without the root of the repository: `python tests/importable.py`.

The root would shadow the installed packages, which are what the tests judge.
"""

import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    for name in ("tests", "benchmarks"):
        shim = Path(sysconfig.get_path("purelib"), name, "__init__.py")
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f"__path__ = [{str(ROOT / name)!r}]\n")
