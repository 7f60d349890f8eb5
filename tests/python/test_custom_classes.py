"""Objects of classes that PyTorch takes as arguments of custom ops, through opaq.custom_op as
through torch.library.custom_op."""

from __future__ import annotations

import pytest
import torch
from torch._library import opaque_object

import opaq

if hasattr(opaque_object, "CustomClassBase"):
    Base = opaque_object.CustomClassBase
else:
    from torch._opaque_base import OpaqueBase as Base


class Shift(Base):
    def __init__(self, by: float) -> None:
        self.by = by


if hasattr(opaque_object, "register_custom_class"):
    opaque_object.register_custom_class(Shift, typ="symbolic")
else:
    opaque_object.register_opaque_type(Shift, typ="reference")


def shifted(x: torch.Tensor, shift: Shift) -> torch.Tensor:
    return x + shift.by


@pytest.mark.parametrize("maker", [torch.library.custom_op, opaq.custom_op])
def test_an_object_reaches_the_function(unique: str, maker) -> None:
    op = maker(unique, mutates_args=())(shifted)
    op.register_fake(lambda x, shift: torch.empty_like(x))
    x = torch.ones(3)
    assert torch.equal(op(x, Shift(5)), x + 5)
    for backend in ("aot_eager", "inductor", "opaq"):
        torch.compiler.reset()
        compiled = torch.compile(
            lambda x, shift: op(x * 2, shift) + 1, backend=backend, fullgraph=True
        )
        for by in (5, 7):
            assert torch.equal(compiled(x, Shift(by)), x * 2 + by + 1)


def test_a_kernel_cannot_take_one(unique: str) -> None:
    name = opaque_object.get_opaque_type_name(Shift)
    with pytest.raises(opaq.DeclarationError, match="unknown type .*opaq.custom_op, whose Python"):
        opaq.op(f"{unique}(Tensor x, {name} shift) -> (Tensor y)", outputs=opaq.like("x"))
