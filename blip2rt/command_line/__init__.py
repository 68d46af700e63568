"""What every command shares: one parser, and one policy from errors to exit status.

Exit status: 0 success, 1 some inputs failed, 2 a mistake (one line says which, and the fix), 130 interrupted.
"""

from .parser import Formatter as Formatter
from .parser import Parser as Parser
from .parser import UsageError as UsageError
from .parser import byte_size as byte_size
from .parser import nonempty as nonempty
from .parser import path as path
from .parser import positive_byte_size as positive_byte_size
from .parser import whole as whole
from .program import PACKAGES as PACKAGES
from .program import collect_garbage as collect_garbage
from .program import complain as complain
from .program import flags_named as flags_named
from .program import run as run
from .program import run_process as run_process
from .program import running as running
from .program import show as show
from .program import show_json as show_json
