"""`python -m blip2rt` is `blip2rt`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
