"""Ops for those functions of torch.library that take what torch.library.custom_op returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._library import custom_ops, fake_profile, simple_registry
from torch._library.effects import EffectType
from torch.amp.autocast_mode import _cast
from torch.fx.node import _side_effectful_functions


class Definition(custom_ops.CustomOpDef):
    """A base of opaq's ops, which PyTorch has not made: torch.library's functions take them, and
    `register_torch_dispatch` is PyTorch's own.
    """

    def cast_in_autocast(self, device_type: str, dtype: torch.dtype) -> Any:
        """As PyTorch's register_autocast, but casts keyword-only arguments too, where that raises,
        and takes another dtype later. Returns the kernel.
        """
        key = f"Autocast{torch._C._dispatch_key_for_device(device_type)}"
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(_: Any, *args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                to = self._autocast_dtype[device_type]
                return self._opoverload(
                    *_cast(args, device_type, to), **_cast(kwargs, device_type, to)
                )

        if device_type not in self._autocast_dtype:
            self._lib.impl(self._name, kernel, key, with_keyset=True)
        self._autocast_dtype[device_type] = dtype
        return kernel

    def adopt(self, overload: Any) -> torch.library.Library:
        """Makes this object the definition of an op that exists. Called again, it forgets what was
        registered before. Returns the library whose registrations that ends.
        """
        namespace, name = overload.name().split("::")
        self._namespace, self._name = namespace, name.removesuffix(".default")
        self._opoverload = overload
        self._schema = str(overload._schema).removeprefix(overload.name())
        self._init_fn = self._abstract_fn = self._backward_fn = self._setup_context_fn = None
        self._is_inplace = self._is_out = False
        self._out_kwarg_names: tuple[str, ...] = ()
        self._used_triton_kernels: list[Any] = []
        self._backend_fns: dict[str | None, Any] = {}
        self._disabled_kernel: set[str] = set()
        self._torch_dispatch_fns: dict[type, Any] = {}
        self._vmap_fn = None
        self._autocast_dtype: dict[str, Any] = {}
        self._autocast_cpu_dtype = self._autocast_cuda_dtype = None  # torch 2.11
        self._lib = custom_ops.get_library_allowing_overwrite(self._namespace, self._name)
        custom_ops.OPDEFS[self._qualname] = self
        return self._lib


class Definitions:
    def is_recorded_fake(self, function: Any) -> bool:
        """Whether a fake implementation is one that torch.export.draft_export makes of the shapes
        that it has seen, and registers while it exports."""
        return getattr(function, "__module__", "") == fake_profile.__name__

    def is_ordered(self, effect: Any) -> bool:
        """Whether an effect, as torch.library's register_effect takes it, keeps calls in order."""
        return effect is EffectType.ORDERED

    def before_fake(self, name: str, call: Callable[[], None], source: str) -> None:
        """Has call() run before the fake implementation of an op that torch.library.custom_op made,
        also before one that PyTorch generates. source: "file.py:12", where the op was made.
        """
        kernel = simple_registry.singleton.find(name).fake_impl.kernel
        fake = kernel.func

        def after_call(*args: Any, **kwargs: Any) -> Any:
            call()
            return fake(*args, **kwargs)

        kernel.func, kernel.source = after_call, source

    def set_tags(self, overload: Any, tags: Iterable[torch.Tag]) -> None:
        """Gives an op exactly these tags, and the one of all ops that torch.compile may put into
        graphs.
        """
        was_random = torch.Tag.nondeterministic_seeded in overload._tags
        overload._tags = list(dict.fromkeys((torch.Tag.pt2_compliant_tag, *tags)))
        random = torch.Tag.nondeterministic_seeded in overload._tags
        overload._nondeterministic_seeded = random
        # torch.fx asks this set about ops that are called through auto_functionalized
        if random:
            _side_effectful_functions.add(overload)
        elif was_random:
            _side_effectful_functions.discard(overload)
