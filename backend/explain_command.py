"""`opaq explain FILE_OR_MODULE:function`: explains the model that a function returns."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch

from . import user_file
from .explain import Explanation
from .explain import run as explained
from .user_file import WrongTarget


def run(target: str, archs: Sequence[str], device: str = "") -> Explanation:
    """device: where the function makes its tensors; they are then fake ones, which need no memory
    and no GPU. "": as the function makes them. What the model prints goes to stderr. Raises
    WrongTarget, and Error if the model cannot be compiled.
    """
    with contextlib.redirect_stdout(sys.stderr):
        model, args, kwargs = user_file.model_of(target, _call(target, device))
        return explained(model, args, kwargs, archs)


def _call(target: str, device: str) -> Any:
    from .lowering.compat.inductor import inductor  # costs seconds

    function = user_file.function_in(target, user_file.MODEL)
    try:
        with contextlib.ExitStack() as stack:
            if device:
                stack.enter_context(inductor.fake_run().mode)
                stack.enter_context(torch.device(device))
            return function()
    except (Exception, SystemExit) as error:
        place = user_file.line_of(error, target)
        what = (str(error).strip().splitlines() or [""])[0]
        raise WrongTarget(f"{place}{target} raised {type(error).__name__}: {what}") from error
