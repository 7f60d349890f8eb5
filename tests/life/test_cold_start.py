"""Processes that start together with an empty cache, as the ranks of a job do: one compiles, the
others wait for it.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import time

import pytest
from programs import Places, finish, needs_nvrtc, places, start, wait_for  # noqa: F401

RANKS = 4
# Appends a line for each source that it is given.
COMPILER = """#!/bin/sh
case "$*" in *source.cpp*) echo "$OPAQ_RANK" >> {log};; esac
exec {cxx} "$@"
"""
# All compile at the same time, when all have declared their op.
TOGETHER = """
open({ready!r} + "/" + os.environ["OPAQ_RANK"], "w").close()
while len(os.listdir({ready!r})) < {ranks}: time.sleep(0.01)
"""


@pytest.fixture
def compiler(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "compiler"
    cxx = os.environ.get("OPAQ_CXX") or shutil.which("c++") or "g++"
    path.write_text(COMPILER.format(log=tmp_path / "log", cxx=cxx))
    path.chmod(0o700)
    return path


def together(
    places: Places,  # noqa: F811
    tmp_path: pathlib.Path,
    before: str,
    after: str,
    **more: str,
) -> list[str]:
    ready = tmp_path / "ready"
    ready.mkdir()
    program = before + TOGETHER.format(ready=str(ready), ranks=RANKS) + after
    ranks = [
        start(places, program, environment={**more, "OPAQ_RANK": str(rank)})
        for rank in range(RANKS)
    ]
    return [finish(rank) for rank in ranks]


@pytest.mark.parametrize(("size", "times"), [("1G", 1), ("0", RANKS)])
def test_cpp_is_compiled_once(
    places: Places,  # noqa: F811
    tmp_path: pathlib.Path,
    compiler: pathlib.Path,
    size: str,
    times: int,
) -> None:
    environment = {"OPAQ_CXX": str(compiler), "OPAQ_CACHE_SIZE": size}
    values = together(
        places, tmp_path, 'op = plain("cold", add=2)\n', "print(op(x).tolist())", **environment
    )
    assert values == ["[3.0, 3.0, 3.0]\n"] * RANKS
    assert len((tmp_path / "log").read_text().splitlines()) == times


@needs_nvrtc
def test_cuda_is_compiled_once(places: Places, tmp_path: pathlib.Path) -> None:  # noqa: F811
    printed = together(
        places,
        tmp_path,
        'op = slow_cuda("cold", depth=10)\n',
        'compile_cuda(op); print(_runtime.doctor()["compile"]["compiled"])',
    )
    assert sorted(printed) == ["0\n"] * (RANKS - 1) + ["1\n"]


def test_a_killed_owner_blocks_nobody(
    places: Places,  # noqa: F811
    tmp_path: pathlib.Path,
    compiler: pathlib.Path,
) -> None:
    log = tmp_path / "log"
    program = 'print(slow("killed", depth=13)(x).tolist())'
    ranks = []
    for rank in range(2):
        environment = {"OPAQ_CXX": str(compiler), "OPAQ_RANK": str(rank)}
        ranks.append(start(places, program, environment=environment))
        assert wait_for(log.exists)
    os.kill(ranks[0].pid, signal.SIGKILL)
    finish(ranks[0], code=-signal.SIGKILL)
    begun = time.monotonic()
    assert finish(ranks[1]) == "[2.0, 2.0, 2.0]\n"
    assert time.monotonic() - begun < 60
    assert "1" in log.read_text().splitlines()
