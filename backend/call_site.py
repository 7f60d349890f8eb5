"""The line of user code that called an op or raised an error, for messages. The runtime asks for it
when it reports a violation of a contract.
"""

from __future__ import annotations

import os
import re
import sys
import traceback

import torch

from . import lowering

_OURS = tuple(
    os.path.join(os.path.dirname(os.path.abspath(module)), "")
    for module in (__file__, lowering.__file__, torch.__file__)
)


def find() -> str:
    """ "model.py:12, in forward": the innermost frame that is neither opaq's nor torch's; "" if
    there is none.
    """
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith((*_OURS, "<frozen")):
            return text(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    return ""


def of_trace(stack_trace: str | None) -> str:
    """The same from the stack trace that torch records for a graph node."""
    found = ""
    for line in (stack_trace or "").splitlines():
        head, separator, rest = line.strip().partition('", line ')
        if separator and head.startswith('File "') and not head[6:].startswith(_OURS):
            number, _, function = rest.partition(", in ")
            found = text(head[6:], number, function)
    return found


def of_error(error: BaseException) -> str:
    """The same from where an error was raised."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith((*_OURS, "<")):
            found = text(file, line, frame.f_code.co_name)
    return found


def causes(error: BaseException) -> list[BaseException]:
    """The error and those that led to it, the nearest first."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        found = queue.pop(0)
        if found is not None and found not in seen:
            seen.append(found)
            # `inner_exception` is of the exceptions of torch.compile
            queue += [found.__cause__, found.__context__, getattr(found, "inner_exception", None)]
    return seen


def text(file: str, line: int | str, function: str) -> str:
    # torch.compile calls the rest of a function after a graph break torch_dynamo_resume_in_f_at_12
    resumed = re.fullmatch(r"(?:torch_dynamo_resume_in_)+(.+?)(?:_at_\d+)+", function)
    return f"{file}:{line}, in {resumed[1] if resumed else function}"
