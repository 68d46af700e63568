"""blip2rt-export with cached traces: `python -m tests.tiny.exporter FOLDER ARGUMENTS...`; FOLDER is the cache."""

import sys
from pathlib import Path

from blip2rt_export import cli
from tests.tiny.trace_cache import cached_traces

if __name__ == "__main__":
    with cached_traces(Path(sys.argv[1])):
        sys.exit(cli.main(sys.argv[2:]))
