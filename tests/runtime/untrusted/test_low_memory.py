"""`ulimit -v` below what a caption takes ends in one line on standard error, not in silence."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from blip2rt.untrusted.library_tokenizer import ABORTED

ROOT = Path(__file__).parents[3]
CAPTION = [sys.executable, "-m", "blip2rt", "caption", str(ROOT / "docs" / "photo.jpg")]
ABORT = """
import os
from blip2rt.untrusted import library_tokenizer
class Aborting:
    from_buffer = staticmethod(lambda data: os.abort())
library_tokenizer.Tokenizer = Aborting
library_tokenizer.LibraryTokenizer(b"{}", "b")
"""


@pytest.mark.parametrize("megabytes", [280, 400, 550])
def test_small_address_spaces_are_reported_in_one_line(megabytes: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    done = subprocess.run(CAPTION, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2, done
    assert done.stderr.startswith("blip2rt: error: ") and done.stderr.count("\n") == 1, done
    assert "memory" in done.stderr


def test_an_abort_while_a_tokenizer_is_read_is_reported() -> None:
    """Rust aborts if a small allocation fails; its own message is hidden with its panics."""
    done = subprocess.run([sys.executable, "-c", ABORT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -6 and done.stderr == ABORTED
