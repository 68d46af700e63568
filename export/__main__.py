"""`python -m blip2rt_export` is `blip2rt-export`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
