"""The line of user code that called an op, for messages of the contract check. The runtime asks for
it when it reports a violation.
"""

from __future__ import annotations

import os
import sys

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
            return f"{code.co_filename}:{frame.f_lineno}, in {code.co_name}"
        frame = frame.f_back
    return ""


def of_trace(stack_trace: str | None) -> str:
    """The same from the stack trace that torch records for a graph node."""
    found = ""
    for line in (stack_trace or "").splitlines():
        head, separator, rest = line.strip().partition('", line ')
        if separator and head.startswith('File "') and not head[6:].startswith(_OURS):
            number, _, function = rest.partition(", in ")
            found = f"{head[6:]}:{number}, in {function}"
    return found
