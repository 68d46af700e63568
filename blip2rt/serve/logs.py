"""Logs as lines of JSON on stderr. What a request said or showed is in none, unless it is asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback

from ..errors import printable

LOG = logging.getLogger("blip2rt.serve")


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, and the fields of `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": moment, "level": record.levelname.lower(), "logger": record.name,
                "message": printable(record.getMessage()), **getattr(record, "fields", {})}  # fmt: skip
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up() -> None:
    """Let all loggers write JSON lines to stderr: ours tell of requests, those of others of what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().handlers = [handler]
    for name in ("blip2rt", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.access").handlers = []
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # it tells of every start, as we do
