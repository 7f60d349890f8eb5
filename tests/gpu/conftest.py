"""GPU tests share the fixtures of tests/python; without a GPU they skip, unless OPAQ_REQUIRE_GPU=1 says that one is expected."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    if os.environ.get("OPAQ_REQUIRE_GPU") == "1":
        raise pytest.UsageError("OPAQ_REQUIRE_GPU=1, but torch sees no GPU: torch.cuda.is_available() is False")
    collect_ignore_glob = ["test_*.py"]
