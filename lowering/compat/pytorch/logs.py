"""torch's logging: TORCH_LOGS and torch._logging.set_logs; the structured trace of compilations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch._logging
from torch._logging._internal import register_log


class Logs:
    def logger(self, name: str) -> logging.Logger:
        """A logger that TORCH_LOGS and set_logs(modules={name: level}) know by its name.

        torch reads TORCH_LOGS while it is imported, before anybody can register a name: it takes a
        name that it does not know for that of a module, which opaq's is.
        """
        register_log(name, name)
        return logging.getLogger(name)

    def trace_artifact(self, name: str, content: Callable[[], Any]) -> None:
        """Adds an artifact to the structured trace (TORCH_TRACE) of the compilation that runs.
        content(): data for JSON; only called where a trace is written.
        """
        torch._logging.trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": name, "encoding": "json"},
            payload_fn=content,
        )
