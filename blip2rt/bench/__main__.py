"""`python -m blip2rt.bench` is `blip2rt-bench`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
