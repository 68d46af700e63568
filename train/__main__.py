"""`python -m blip2rt_train` is `blip2rt-train`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
