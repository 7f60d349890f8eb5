"""Small programs in processes of their own, for tests of what happens when they fork, are
interrupted, end early or find the machine in a bad state.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping

import forked
import pytest

from opaq import _runtime

LONG = os.environ.get("OPAQ_LIFE") == "long"
needs_nvrtc = pytest.mark.skipif(
    not _runtime.doctor()["nvrtc"]["found"],
    reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc",
)

# The start of every program. Compiling `slow(...)` takes seconds: it has 2 ** depth templates.
PRELUDE = """
import os, signal, sys, threading, time
# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch, opaq
from opaq import _runtime

TEMPLATES = '''
template <int N, int M> struct A { static constexpr long v = A<N - 1, 2 * M>::v + A<N - 1,
    2 * M + 1>::v; };
template <int M> struct A<0, M> { static constexpr long v = M; };
'''

def slow(name, depth=15, tag=""):
    op = opaq.op(f"life::{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    body = "{ if (A<%d, 1>::v) for (long i = 0; i < n; ++i) y[i] = x[i] + 1; }" % depth
    op.cpu(source=f"// {tag}" + TEMPLATES + "void f(const float* x, float* y, long n) " + body,
        entry="f", args="x, y, x.numel()")
    return op

def slow_cuda(name, depth=20, tag=""):
    op = opaq.op(f"life::{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    body = "__global__ void f(float* y) { y[0] = A<%d, 1>::v; }" % depth
    op.cuda(source=f"// {tag}" + TEMPLATES + body, entry="f", args="y", grid=1, block=1)
    return op

def compile_cuda(op):
    return _runtime.compile(op.name, [("float32", (1,), (1,), "cuda:0", 256)], "sm_90a", "cuda")

def plain(name, add=1):
    op = opaq.op(f"life::{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    head = "void f(const float* x, float* y, long n) "
    body = "{ for (long i = 0; i < n; ++i) y[i] = x[i] + %d; }" % add
    op.cpu(source=head + body, entry="f", args="x, y, x.numel()")
    return op

x = torch.ones(3)
"""


class Places:
    """Folders of one test: the cache's, and one for temporary files."""

    def __init__(self, cache: pathlib.Path, temporary: pathlib.Path) -> None:
        self.cache, self.temporary = cache, temporary

    def environment(self, extra: Mapping[str, str | None] = {}) -> dict[str, str]:  # noqa: B006
        chosen = {
            **os.environ,
            "OPAQ_CACHE_DIR": str(self.cache),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            **extra,
        }
        return {key: value for key, value in chosen.items() if value is not None}

    def left_behind(self) -> list[str]:
        """Temporary files and folders that opaq's compilers have left in either folder."""
        found = [str(path) for path in self.temporary.iterdir()]
        return found + [
            str(path)
            for path in (self.cache.iterdir() if self.cache.exists() else ())
            if path.name.startswith(".opaq-work-")
        ]


@pytest.fixture
def places(tmp_path: pathlib.Path) -> Iterator[Places]:
    # The forkserver of multiprocessing binds a socket in TMPDIR, and the path of a socket holds no
    # more than 107 characters.
    with tempfile.TemporaryDirectory(prefix="life") as temporary:
        yield Places(tmp_path / "cache", pathlib.Path(temporary))


def start(
    places: Places,
    program: str,
    *,
    environment: Mapping[str, str | None] = {},
    before: str = "",
    inductor: bool = False,
) -> forked.Process:  # noqa: B006
    text = before + PRELUDE + textwrap.dedent(program)
    return forked.start(
        [sys.executable, "-c", text],
        env=places.environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        inductor=inductor,
    )


def run(
    places: Places,
    program: str,
    *,
    environment: Mapping[str, str | None] = {},
    before: str = "",
    inductor: bool = False,
    timeout: float = 120,
) -> str:  # noqa: B006
    """The program's output. The test fails if it hangs or exits with an error."""
    process = start(places, program, environment=environment, before=before, inductor=inductor)
    return finish(process, timeout)


def finish(process: forked.Process, timeout: float = 120, code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"hangs:\n{output}")
    assert process.returncode == code, output
    return output


def wait_for(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def compilers(marker: str) -> list[int]:
    """Processes of this machine that have `marker` in their command line or environment: the
    compilers of a test's program.
    """
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if (
                marker.encode() in (folder / "environ").read_bytes()
                and b"cc1plus" in (folder / "cmdline").read_bytes()
            ) or (
                marker.encode() in (folder / "environ").read_bytes()
                and b"opaq-compile" in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
