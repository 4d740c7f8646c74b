"""The processes of the tests of sessions as files: each opens the path by itself."""

from __future__ import annotations

import json
import logging
import logging.config
from typing import Any

from shardstore import jsonl


def write_lines(path: str, name: str, count: int, gate: Any) -> None:
    """Write `count` numbered lines: alone, in two halves, or three by one call (which must stay together)."""
    gate.wait(60)
    with jsonl.open(path, "a") as file:
        for number in range(count):
            line = json.dumps({"name": name, "number": number, "pad": "x" * (number % 50 * 37)})
            if number % 3 == 0:
                file.write(line + "\n")
            elif number % 3 == 1:
                file.write(line[: number % len(line)])
                print(line[number % len(line) :], file=file)
            else:
                file.write(f'{line}\n{{"follows": "{name}"}}\n{{"follows": "{name}"}}\n')


def log_lines(path: str, name: str, count: int, gate: Any) -> None:
    """Log `count` numbered messages through a configured handler."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"format": '{"level": "%(levelname)s", "name": "%(name)s", "number": %(message)s}'}},
            "handlers": {"file": {"class": "shardstore.jsonl.FileHandler", "filename": path, "formatter": "json"}},
            "loggers": {"gateway": {"level": "INFO", "handlers": ["file"], "propagate": False}},
        }
    )
    logger = logging.getLogger(f"gateway.{name}")
    gate.wait(60)
    for number in range(count):
        logger.info("%d", number)
    logging.shutdown()
