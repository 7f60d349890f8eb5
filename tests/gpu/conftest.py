"""Fixtures of the GPU tests; without a GPU they are not collected, unless OPAQ_REQUIRE_GPU=1 says that one is expected: then that is an error."""

from __future__ import annotations

import itertools
import os

import pytest
import torch

if not torch.cuda.is_available():
    if os.environ.get("OPAQ_REQUIRE_GPU") == "1":
        raise pytest.UsageError("OPAQ_REQUIRE_GPU=1, but torch sees no GPU: torch.cuda.is_available() is False")
    collect_ignore_glob = ["test_*.py"]

_counter = itertools.count()


@pytest.fixture
def unique() -> str:
    """An op name that no other test uses; PyTorch keeps a schema for the process's life."""
    return f"opaq_gpu_test::op{next(_counter)}"


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()
