"""Which adapter serves which torch: one file per minor that renamed something; a minor in between
is served by the nearest older file.
"""

from __future__ import annotations

import functools
import re
import warnings

ADAPTERS = {(2, 11): "torch_2_11", (2, 15): "torch_2_15"}


@functools.cache  # so that the warning is given once
def adapter_name(torch_version: str) -> str:
    """The adapter's module name for torch.__version__. ImportError for a torch older than the
    oldest adapter.
    """
    match = re.match(r"(\d+)\.(\d+)", torch_version)
    minor = (int(match[1]), int(match[2])) if match else (0, 0)
    oldest, newest = min(ADAPTERS), max(ADAPTERS)
    if minor < oldest:
        raise ImportError(
            f"opaq lowers ops for torch {_text(oldest)} and newer; got torch {torch_version}: "
            "upgrade torch"
        )
    if minor > newest:
        warnings.warn(
            f"torch {torch_version} is newer than the newest that opaq is tested with, "
            f"{_text(newest)}; going on as for {_text(newest)}. "
            f"If a compilation fails inside opaq.lowering, look for a newer opaq",
            stacklevel=2,
        )
    return ADAPTERS[max(known for known in ADAPTERS if known <= minor)]


def _text(minor: tuple[int, int]) -> str:
    return f"{minor[0]}.{minor[1]}"
