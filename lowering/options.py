"""Settings of one compilation, current in a `with` block; part of Inductor's cache keys."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

from opaq import _runtime


@dataclasses.dataclass(frozen=True)
class Options:
    """How opaque ops are lowered.

    strict: a node that the op's first implementation for its device cannot serve is an error, not a
        decision in the log.
    archs: what to compile CUDA source for in a C++ wrapper or a package ("sm_90a", "compute_90" for
        PTX); empty: the device at hand.
    ptx: PTX too, of the lowest arch, so that newer devices can run the package.
    profile: the Python wrapper's launches are timed.
    check: "contract": each launch is held against its op's declaration and the traced graph; "" for
        none. OPAQ_CHECK gives the default.
    """

    strict: bool = False
    archs: tuple[str, ...] = ()
    ptx: bool = False
    profile: bool = False
    check: str = ""


_current: contextvars.ContextVar[Options] = contextvars.ContextVar(
    "opaq_lowering_options", default=Options(check=_runtime.settings()["check"])
)


def current() -> Options:
    return _current.get()


@contextlib.contextmanager
def use(**changes: Any) -> Iterator[Options]:
    """Makes the changed options current inside the block. TypeError: an option that does not exist,
    or a value of another type.
    """
    known = {field.name: type(field.default) for field in dataclasses.fields(Options)}
    for name, value in changes.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
            raise TypeError(
                f"lowering option `{name}` does not exist{hint} (options: {', '.join(known)})"
            )
        if known[name] is tuple and isinstance(value, list):
            value = changes[name] = tuple(value)
        if type(value) is not known[name]:
            raise TypeError(f"lowering option `{name}` is a {known[name].__name__}; got {value!r}")
    token = _current.set(dataclasses.replace(current(), **changes))
    try:
        yield current()
    finally:
        _current.reset(token)
