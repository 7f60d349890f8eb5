"""What all Python tests share: unique op names, a compiler without memory, long tests first, a
cache of Inductor's for each worker. Where a GPU is expected (OPAQ_REQUIRE_GPU=1), none is an error.
"""

from __future__ import annotations

import getpass
import itertools
import os
import tempfile

import pytest
import torch

if os.environ.get("OPAQ_REQUIRE_GPU") == "1" and not torch.cuda.is_available():
    raise pytest.UsageError(
        "OPAQ_REQUIRE_GPU=1, but torch sees no GPU: torch.cuda.is_available() is False"
    )

# Workers that make the same package at once would write the same files of Inductor's cache: torch
# packed one that another worker had just opened, and was still empty.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    folder = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, worker)

_counter = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the mark `long` come first: if the last test that runs is one of them, all other
    cores wait for it."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def unique() -> str:
    """An op name that no other test uses, since PyTorch keeps a schema until the process ends."""
    return f"opaq_test::op{next(_counter)}"


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()
