"""Tests that CI may skip, and why. Any other skip is an error there: a missing package would hide what it tests."""

import re

ALLOWED = {  # a pattern of the skip's reason -> why
    r"this processor has ": "kernels of other processors are tested under emulation or on other runners",
    r"without kernels ONNX Runtime maps": "as above",
    r"this root user cannot drop|capabilities cannot be dropped": "containers may forbid it",
    r"needs rustc": "half a gigabyte to compile one example",
    r"this ONNX Runtime has no option against overflow": "older releases, which CI also installs",
    r"compares with Pillow 13|Pillow lends pixels from": "older releases, which Python 3.10 has",
}


def fault(reason: str) -> str | None:
    """Why a skip with this reason is an error in CI; None: it is allowed."""
    if any(re.search(pattern, reason) for pattern in ALLOWED):
        return None
    return f"skipped in CI ({reason}): install it (.ci/packages, pyproject.toml), or list it in tests/skips.py"
