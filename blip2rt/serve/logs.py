"""Logs as JSON lines on stderr. Prompts, answers and images are not logged unless --log-prompts is given."""

import json
import logging
import sys
import time
import traceback
from typing import Any

from ..errors import printable

LOG = logging.getLogger("blip2rt.serve")


class JsonFormatter(logging.Formatter):
    """Write one object per line: time, level, logger, message, and the fields of `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return printable(json.dumps(line, ensure_ascii=False, default=str))


def set_up_logging() -> None:
    """Send all loggers to stderr as JSON lines: ours from INFO, others from WARNING, uvicorn from ERROR."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().handlers = [handler]
    for name, level in (("blip2rt", logging.INFO), ("uvicorn", logging.ERROR), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level)
    logging.getLogger("uvicorn.access").handlers = []
