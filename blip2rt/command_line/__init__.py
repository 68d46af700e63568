"""What every command shares: one parser, and one policy from errors to exit status.

Exit status: 0 success, 1 some inputs failed, 2 a mistake (one line says which, and the fix), 130 interrupted.
"""

from .parser import Formatter, Parser, UsageError, byte_size, nonempty, path, positive_byte_size, whole
from .program import collect_garbage, complain, flags_named, run, run_process, run_script, running, show, show_json

__all__ = ["Formatter", "Parser", "UsageError", "byte_size", "collect_garbage", "complain", "flags_named", "nonempty"]
__all__ += ["path", "positive_byte_size", "run", "run_process", "run_script", "running", "show", "show_json", "whole"]
