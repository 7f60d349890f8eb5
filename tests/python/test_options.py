"""The options of backend="opaq", and what happens to Inductor's."""

from __future__ import annotations

import pytest
import torch

import opaq
from opaq import options

KNOWN = ["max_autotune", "epilogue_fusion", "triton.cudagraphs"]


def test_ours_are_split_from_inductors() -> None:
    ours, theirs = options.split({"strict": True, "max_autotune": True}, KNOWN)
    assert ours == {
        "strict": True,
        "archs": [],
        "ptx": False,
        "profile": False,
        "nvtx": False,
        "tune": "off",
        "check": "",
        "prefer": [],
        "substitute": ["all"],
        "lazy_gradients": True,
    }
    assert theirs == {"max_autotune": True}


def test_unknown_key_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(opaq.DeclarationError) as caught:
        options.split({"strikt": True}, KNOWN)
    message = str(caught.value)
    assert 'has no option "strikt"; did you mean "strict"?' in message
    assert "profile (bool, default False)" in message and "list_options()" in message


def test_wrong_value_names_what_is_accepted() -> None:
    with pytest.raises(
        opaq.DeclarationError,
        match=r'option "strict" of backend="opaq": got \'yes\'; expected True or False',
    ):
        options.split({"strict": "yes"}, KNOWN)


def test_no_patterns_and_names_of_patterns_are_not_mixed() -> None:
    options.check_patterns(["all", "rms_norm"])
    with pytest.raises(opaq.DeclarationError) as caught:
        options.check_patterns(["none", "rms_norm"])
    assert str(caught.value) == (
        'option "substitute" of backend="opaq": got [\'none\', \'rms_norm\']; "none" stands alone: '
        'give ["none"], or names of patterns'
    )
    with pytest.raises(opaq.DeclarationError, match='got \'zzz\'. Expected "all", "none" or'):
        options.check_patterns(["zzz"])


def test_backend_is_found_without_an_import_and_takes_options() -> None:
    assert "opaq" in torch.compiler.list_backends(exclude_tags=None)
    compiled = torch.compile(
        lambda x: x.sin() + 1, backend="opaq", options={"strict": True, "epilogue_fusion": False}
    )
    x = torch.randn(3)
    torch.testing.assert_close(compiled(x), x.sin() + 1)
    with pytest.raises(Exception, match="did you mean"):
        torch.compile(lambda x: x + 2, backend="opaq", options={"strickt": True})(x)


def test_strict_refuses_the_reference(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.reference(lambda x: x * 2)
    x = torch.randn(3)
    torch.testing.assert_close(torch.compile(lambda x: op(x), backend="opaq")(x), x * 2)
    torch.compiler.reset()
    with pytest.raises(Exception, match=f"{unique}"):
        torch.compile(lambda x: op(x), backend="opaq", options={"strict": True})(x)
