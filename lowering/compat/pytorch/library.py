"""What torch.library and the dispatcher know of an operator."""

from __future__ import annotations

import os
import re
import types
from typing import Any

import torch
from torch._library import custom_ops, simple_registry

from .definitions import Definition

_STOCK = (
    "aten",
    "prims",
    "prim",
    "higher_order",
    "inductor",
    "inductor_prims",
    "_c10d_functional",
    "c10d",
    "quantized",
    "profiler",
)
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OPAQ = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep  # opaq.lowering
# The places at which kernels of the runtime and of opaq.lowering are registered.
_OURS = ("opaq:", _OPAQ)
_CUSTOM_OPS = os.path.join("torch", "_library", "custom_ops.py")
_KERNEL = re.compile(
    r"^(?P<key>\w+)(?P<alias>\[alias\])?( \(inactive\))?: registered at (?P<place>\S+)"
)
# Keys whose kernels are looked up at each call, so that compiled code does not depend on them.
_LIVE = ("CPU", "CUDA")


class Library:
    def op_names_in(self, module: types.ModuleType) -> set[str] | None:
        """The names that may be looked up in torch.ops, or in a namespace of it; None for any other
        module.
        """
        if isinstance(module, torch._ops._Ops):
            return {name.partition("::")[0] for name in torch._C._dispatch_get_all_op_names()}
        if isinstance(module, torch._ops._OpNamespace):
            prefix = f"{module.name}::"
            names = (name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names())
            return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        return None

    def know_overloads(self, name: str) -> None:
        """Lets calls of torch.ops.mylib.f find an overload that was defined a moment ago, if the
        others have been looked up before."""
        namespace, _, name = name.partition("::")
        packet = vars(getattr(torch.ops, namespace)).get(name.partition(".")[0])
        if packet is not None:
            torch._ops._refresh_packet(packet)

    def is_stock(self, name: str) -> bool:
        """Whether PyTorch itself defines the op."""
        return name.partition("::")[0] in _STOCK

    def rules(self, name: str) -> dict[str, Any]:
        """What was registered with torch.library for an op and decides what a compiled graph looks
        like, by role: functions, dtypes, names of device types.

        "fake" decides the layouts of results, "kernels" and "disabled" which devices are served;
        the others decide what the op is traced into.
        """
        entry = simple_registry.singleton.find(name)
        kernel = entry.fake_impl.kernel
        found = {
            "fake": kernel and _without_check(kernel.func),
            "dispatch": dict(entry.torch_dispatch_rules._data),
        }
        definition = custom_ops.OPDEFS.get(name)
        if definition is not None:
            found |= {
                "dispatch": dict(definition._torch_dispatch_fns),
                "vmap": definition._vmap_fn,
                "autocast": [
                    getattr(definition, f"_autocast{part}_dtype", None)
                    for part in ("", "_cpu", "_cuda")
                ],
            }
        if definition is not None and not isinstance(definition, Definition):
            found |= {
                "fake": definition._abstract_fn,
                "kernels": sorted(map(str, definition._backend_fns)),
                "disabled": sorted(map(str, definition._disabled_kernel)),
                "backward": definition._backward_fn,
                "setup_context": definition._setup_context_fn,
            }
        return found

    def kernels(self, name: str) -> list[tuple[str, str]]:
        """(dispatch key, where it was registered) of every kernel, except opaq's own and those in
        rules()."""
        found = map(_KERNEL.match, torch._C._dispatch_dump(name).splitlines())
        places = [(line["key"], line["place"]) for line in found if line]
        return [
            (key, place)
            for key, place in places
            if _CUSTOM_OPS not in place and not place.startswith(_OURS)
        ]

    def own_kernels(self, name: str) -> list[tuple[str, str]]:
        """Those of self.kernels() that opaq has registered through torch.library; to be called
        when opaq has just declared the op."""
        return [(key, place) for key, place in self.kernels(name) if place.startswith(_TORCH)]

    def is_live(self, key: str) -> bool:
        """Whether kernels for this key are looked up at each call, also from compiled code."""
        return key in _LIVE

    def in_python(self, name: str) -> bool:
        """Whether someone outside PyTorch has registered a Python function for the op, so that
        tracing it may call any op."""
        return (
            any(".py:" in place and not place.startswith(_TORCH) for _, place in self.kernels(name))
            or name in custom_ops.OPDEFS
        )


def _without_check(function: Any) -> Any:
    """The function itself, where torch.library has wrapped it: the wrapper remembers whether it was
    called, and would differ from itself before the first call.
    """
    if getattr(function, "__qualname__", "") != "_check_pystubs_once.<locals>.inner":
        return function
    cells = dict(zip(function.__code__.co_freevars, function.__closure__))
    return cells["func"].cell_contents
