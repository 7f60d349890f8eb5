"""What can be registered for an op that is declared, under the names of torch.library: an
`opaq.op` takes all methods of what torch.library.custom_op returns, and torch.library's functions
take the op, its name or its overload.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from . import _runtime, validate
from .autograd import Gradient
from .declaring import declaring
from .formulas import quoted
from .implementations import Implementations
from .lowering.compat import pytorch
from .python_function import define as define_python
from .reference import Returning
from .vmap import BatchRule

if TYPE_CHECKING:

    class Definition:
        """The methods that are PyTorch's own, as type checkers see them."""

        def adopt(self, overload: Any) -> torch.library.Library: ...

        def cast_in_autocast(self, device_type: str, dtype: torch.dtype) -> Any: ...

        def register_torch_dispatch(
            self, torch_dispatch_class: Any, fn: Callable[..., Any] | None = None, /
        ) -> Any: ...

else:
    from .lowering.compat.pytorch import Definition

_Function = TypeVar("_Function", bound=Callable[..., Any])

# The implementation that register_kernel adds for a device; it comes before all others.
_KERNEL = "register_kernel:{device}"
_PRIORITY = (1 << 31) - 1
_DEVICES = ("cpu", "cuda")


def refuse_to_cast(where: str, written: Sequence[str]) -> None:
    """Raises DeclarationError for autocast of an op that writes to arguments."""
    if written:
        raise _runtime.DeclarationError(
            f"{where}: the op writes to {quoted(written)}, of which autocast would make a copy, "
            "so that the write would be lost; cast the others in the function that calls the op"
        )


class Registrations(Implementations, Definition):
    """The methods. register_torch_dispatch is PyTorch's."""

    overload: Any
    gradient: Gradient
    fake: Callable[..., Any]
    largest: Callable[..., Any]
    _changed: Callable[[], None]

    def _forget_registrations(self) -> None:
        """For a new declaration. Also makes torch.library know the op."""
        library = self.adopt(self.overload)
        self._vmap = BatchRule(self)
        pytorch.register_vmap_kernels(
            library, self.overload, self._vmap, lambda: self.effects == "random"
        )
        self._kernels: dict[str, Returning] = {}  # of register_kernel, by device type
        self._unused: set[str] = set()  # device types for which it is disabled

    @property
    def tags(self) -> tuple[torch.Tag, ...]:
        """The op's tags, pt2_compliant_tag among them."""
        return tuple(self.overload.tags)

    @property
    def device_types(self) -> tuple[str, ...]:
        """The device types for which the op has implementations, such as ("cpu", "cuda"). Its
        reference, which serves every device, is not counted.
        """
        served = {each["device"] for each in self.info["implementations"]}
        return tuple(device for device in _DEVICES if device in served)

    def register_kernel(
        self, device_types: str | Iterable[str] | None, fn: _Function | None = None, /
    ) -> Any:
        """Adds a Python function that computes the op on these devices ("cpu", "cuda" or both; None
        for both): called with the op's arguments, it returns new tensors, the results. Also a
        decorator. It comes before the op's other implementations there, and replaces the function
        that was registered before.

        The results are copied into memory that Inductor has planned; a function that fills given
        results (`python`) needs no copy. Packages have the op's next implementation instead.
        Raises opaq.DeclarationError; a call raises opaq.LaunchError if a result's shape or dtype is
        not that of the output rule.
        """
        where = f"{self.name}: .register_kernel(...)"
        if device_types is None:
            devices = list(_DEVICES)
        else:
            given = [device_types] if isinstance(device_types, str) else list(device_types)
            devices = [validate.device_type(where, device) for device in given]

        def register(function: _Function) -> _Function:
            validate.function(
                where, "fn", function, "a function of the op's arguments that returns its results"
            )
            for device in devices:
                self._kernels[device] = Returning(
                    self.info, function, self.largest, f"the kernel for {device}"
                )
                self._use_kernel(device, True)
            return function

        return register if fn is None else register(fn)

    @contextlib.contextmanager
    def set_kernel_enabled(self, device_type: str, enabled: bool = True) -> Iterator[None]:
        """A context in which the function of `register_kernel` for a device is used or, with
        enabled=False, passed over: the op's other implementations serve its calls, then its
        reference. Raises opaq.DeclarationError if there is no such function.
        """
        where = f"{self.name}: .set_kernel_enabled(...)"
        if device_type not in self._kernels:
            known = ", ".join(self._kernels) or "none"
            validate.refuse(
                where, "device_type", device_type, f"one given to register_kernel: {known}"
            )
        before = device_type not in self._unused
        self._use_kernel(device_type, validate.flag(where, "enabled", enabled))
        try:
            yield
        finally:
            self._use_kernel(device_type, before)

    def _use_kernel(self, device: str, enabled: bool) -> None:
        (self._unused.discard if enabled else self._unused.add)(device)
        name = _KERNEL.format(device=device)
        with declaring:
            define_python(self.info, name, self._kernels[device].fill)
        self._implement(
            name=name,
            device=device,
            requires=() if enabled else "false",
            priority=_PRIORITY,
            kind="python",
            replace=True,
        )

    def register_vmap(self, func: _Function | None = None) -> Any:
        """Gives the rule for torch.vmap, as torch.library.register_vmap: func(info, in_dims, *args,
        **kwargs) returns (results, out_dims). Also a decorator. Without a rule, an op with
        tags=torch.Tag.pointwise takes the batch as one more dimension of its tensors; any other is
        called once for each sample, which is warned of once.
        """

        def register(function: _Function) -> _Function:
            where = f"{self.name}: .register_vmap(...)"
            validate.function(where, "func", function, "a function (info, in_dims, *args)")
            self._vmap.function = self._vmap_fn = function
            return function

        return register if func is None else register(func)

    def register_autocast(self, device_type: str, cast_inputs: torch.dtype) -> Any:
        """Casts floating-point tensors to `cast_inputs` where the op is called under autocast of
        this device type ("cuda", "cpu"), as torch.library.register_autocast. Not for an op that
        writes to arguments. Raises opaq.DeclarationError.
        """
        where = f"{self.name}: .register_autocast(...)"
        validate.device_type(where, device_type)
        refuse_to_cast(where, pytorch.written_names(self.overload))
        if not isinstance(cast_inputs, torch.dtype) or not cast_inputs.is_floating_point:
            validate.refuse(where, "cast_inputs", cast_inputs, "a dtype such as torch.float16")
        kernel = self.cast_in_autocast(device_type, cast_inputs)
        self._changed()
        return kernel

    def register_fake(self, fn: Any = None, /) -> Any:
        """Raises opaq.DeclarationError: the output rules (`outputs` of opaq.op) are the op's fake
        implementation.
        """
        if pytorch.is_recorded_fake(fn):
            return fn  # not needed: the rules give the same
        raise _runtime.DeclarationError(
            f"{self.name}: .register_fake(...) is not taken: the rules in opaq.op(..., outputs=) "
            "say how results are made, and are the fake implementation; change these rules, or "
            "make the op with opaq.custom_op"
        )
