"""`ulimit -v` below what a caption takes ends in one line on standard error, not in silence."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CAPTION = [sys.executable, "-m", "blip2rt", "caption", str(ROOT / "docs" / "photo.jpg")]


@pytest.mark.parametrize("megabytes", [280, 400, 550])
def test_small_address_spaces_are_reported_in_one_line(megabytes: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    done = subprocess.run(CAPTION, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2, done
    assert done.stderr.startswith("blip2rt: error: ") and done.stderr.count("\n") == 1, done
    assert "memory" in done.stderr
