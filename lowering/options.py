"""Settings of one compilation, current in a `with` block; part of Inductor's cache keys."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

from opaq import _runtime


def _option(default: Any, meaning: str, accepted: tuple[Any, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning, "accepted": accepted})


@dataclasses.dataclass(frozen=True)
class Options:
    """How opaque ops are lowered, and the options of torch.compile(backend="opaq"), whose error
    messages show the meanings. accepted: all values of an option, if they are few.
    """

    strict: bool = _option(
        False, "it is an error if the first implementation for the device cannot serve a node"
    )
    archs: tuple[str, ...] = _option(
        (),
        "what a C++ wrapper compiles CUDA source for, such as "
        '["sm_90a"]; empty: the device of this machine',
    )
    ptx: bool = _option(False, "with a C++ wrapper: PTX as well, for devices newer than archs")
    profile: bool = _option(
        False, "measure the host time of this graph's launches, for opaq.report()"
    )
    nvtx: bool = _option(
        False, "an NVTX range around each launch; captured kernels are annotated with its name"
    )
    check: str = _option(
        "",
        '"contract": check every launch against its op\'s declaration and the traced graph; "": '
        "do not",
        ("", "contract"),
    )
    tune: str = _option(
        "off",
        'which implementation serves a node: "off": the first that fits; "stored": the one that '
        'was measured to be the fastest (opaq.tune); "search": measured now where it was not; so, '
        "too, whether a part of the model is replaced",
        ("off", "stored", "search"),
    )
    prefer: tuple[str, ...] = _option(
        (),
        "implementations to try first, by op, whatever was measured: "
        '["mylib::op=cublaslt,cuda"]; "cuda" also means "cuda:vec4"',
    )

    substitute: tuple[str, ...] = _option(
        ("all",),
        'with backend="opaq", parts of the model that are replaced by opaque ops: "all": where an '
        'op was measured to be faster; "none"; names of patterns (opaq.pattern), which are used '
        'wherever they fit; or "all" and such names',
        ("all", "none"),
    )
    lazy_gradients: bool = _option(
        True,
        'with backend="opaq", a graph that returns a loss and a large result, such as logits, '
        "computes the gradient of that result only if it is asked for, in a run of its own",
    )

    def preferred(self, op: str) -> list[str]:
        """The names that `prefer` has for an op."""
        return next((names for name, names in map(preference, self.prefer) if name == op), [])


DEFAULT = Options(check=_runtime.settings()["check"])  # OPAQ_CHECK
_current: contextvars.ContextVar[Options] = contextvars.ContextVar(
    "opaq_lowering_options", default=DEFAULT
)


def preference(item: str) -> tuple[str, list[str]]:
    """(op, names) of an item of `prefer`; no names where it has no "="."""
    op, equals, names = item.partition("=")
    return op.strip(), [name.strip() for name in names.split(",")] if equals else []


def is_meant(implementation: str, name: str) -> bool:
    """Whether a preference for `name` is for the implementation: "cuda" is for "cuda:vec4", too."""
    return implementation == name or implementation.startswith(f"{name}:")


def accepted(option: str) -> tuple[Any, ...]:
    """The values of an option that takes few."""
    (field,) = (each for each in dataclasses.fields(Options) if each.name == option)
    return tuple(field.metadata["accepted"])


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
