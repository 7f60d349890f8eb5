"""Fixtures of all Python tests: unique op names and a compiler without memory. Where a GPU is
expected (OPAQ_REQUIRE_GPU=1), none is an error.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

if os.environ.get("OPAQ_REQUIRE_GPU") == "1" and not torch.cuda.is_available():
    raise pytest.UsageError(
        "OPAQ_REQUIRE_GPU=1, but torch sees no GPU: torch.cuda.is_available() is False"
    )

_counter = itertools.count()


@pytest.fixture
def unique() -> str:
    """An op name that no other test uses, since PyTorch keeps a schema until the process ends."""
    return f"opaq_test::op{next(_counter)}"


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()
