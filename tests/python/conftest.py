"""The devices that tests run on, and how Inductor's kernels for the CPU are compiled."""

from __future__ import annotations

import os
from collections.abc import Iterator

import fast_kernels
import pytest
import torch
import torch._inductor.config

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

_AS_USERS_HAVE_THEM = {
    name: value
    for name, value in torch._inductor.config.get_config_copy().items()
    if name in fast_kernels.SETTINGS
}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def _fast_kernels_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fast_kernels")
        of_worker = "PYTEST_XDIST_WORKER" in os.environ
        kept = folder.parent.parent / "fast_kernels" if of_worker else folder
        kept.mkdir(exist_ok=True)
        for name, value in fast_kernels.environment(str(folder), str(kept)).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def _fast_kernels(_fast_kernels_environment: None) -> Iterator[None]:
    """Inductor's CPU kernels are compiled as `fast_kernels` says, where they are most of what a
    test costs: on a machine without a GPU."""
    settings = {} if torch.cuda.is_available() else fast_kernels.SETTINGS
    with torch._inductor.config.patch(settings):
        yield


@pytest.fixture
def kernels_as_users_have_them(_fast_kernels: None) -> Iterator[None]:
    """Inductor's CPU kernels are its own: vectors, optimized. For tests of how exact they are, and
    for some programs of each kind."""
    with torch._inductor.config.patch(_AS_USERS_HAVE_THEM):
        yield
