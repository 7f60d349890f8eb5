"""Chooses the adapter class for a torch: there is a subclass for each minor version that differs; a
minor version without one uses the class of the nearest older one.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable

Minor = tuple[int, int]

OLDEST: Minor = (2, 11)
NEWEST: Minor = (2, 15)  # that opaq is tested with


def nearest(known: Iterable[Minor], torch_version: str) -> Minor:
    """The newest of `known` that is not newer than torch.__version__. `known` holds OLDEST.
    ImportError for a torch that is older than that.
    """
    minor = supported_minor(torch_version)
    return max(each for each in known if each <= minor)


@functools.cache  # so that the warning is given once
def supported_minor(torch_version: str) -> Minor:
    match = re.match(r"(\d+)\.(\d+)", torch_version)
    minor = (int(match[1]), int(match[2])) if match else (0, 0)
    if minor < OLDEST:
        raise ImportError(
            f"opaq lowers ops for torch {_text(OLDEST)} and newer; got torch {torch_version}: "
            "upgrade torch"
        )
    if minor > NEWEST:
        warnings.warn(
            f"torch {torch_version} is newer than the newest that opaq is tested with, "
            f"{_text(NEWEST)}; going on as for {_text(NEWEST)}. "
            f"If a compilation fails inside opaq.lowering, look for a newer opaq",
            stacklevel=2,
        )
    return minor


def _text(minor: Minor) -> str:
    return f"{minor[0]}.{minor[1]}"
