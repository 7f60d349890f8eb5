"""Every property of a launch is the same in eager, in the Python wrapper, in the C++ wrapper and in
a package: results with each launch attribute, empty grids, captures, shared memory past 48 KB,
threads without a context, and the text of each error. More of them, on a fake driver: tests/cpp/
launch_everywhere_test.cpp.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import pytest
import torch

import opaq

FORMS = ["eager", "Python wrapper", "C++ wrapper", "package"]
Call = Callable[[int, int, int], torch.Tensor]

# Each block adds its own rank in its cluster, 10 x the cluster's size, and what it read back from
# the last of `held` floats of its shared memory.
SOURCE = """
#include <cooperative_groups.h>
extern "C" __global__ void ranks(const float* x, float* out, unsigned short held, float by) {
  extern __shared__ float kept[];
  auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) kept[held] = by;
  __syncthreads();
  if (threadIdx.x == 0) {
    out[blockIdx.x] = x[blockIdx.x] * kept[held] + cluster.block_rank() + 10 * cluster.num_blocks();
  }
}"""
ATTRIBUTES = {
    "plain": {},
    "cluster": {"cluster": 2},
    "cooperative": {"cooperative": True},
    "programmatic": {"programmatic": True},
}


class Model(torch.nn.Module):
    """Numbers that vary from call to call are sizes of tensors: all forms take these."""

    def __init__(self, op: opaq.Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor, held: torch.Tensor, threads: torch.Tensor) -> torch.Tensor:
        return self.op(x, held.size(0), threads.size(0))


def arguments(size: int, held: int, threads: int) -> tuple[torch.Tensor, ...]:
    x = torch.arange(size, dtype=torch.float32, device="cuda")
    return x, torch.empty(held, 0, device="cuda"), torch.empty(threads, 0, device="cuda")


def declare(name: str, attributes: dict[str, object]) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, SymInt held, SymInt threads) -> Tensor", outputs=opaq.like("x"))
    return op.cuda(
        source=SOURCE,
        entry="ranks",
        grid="x.numel()",
        block="threads",
        shared="4 * held + 4",
        args="x, out, held, 0.5",
        **attributes,
    )


def in_form(form: str, op: opaq.Op, folder_of: pytest.TempPathFactory) -> Call:
    model: Callable[..., torch.Tensor] = Model(op)
    if form == "package":
        dynamic = ({0: torch.export.Dim.DYNAMIC},) * 3
        program = torch.export.export(Model(op), arguments(6, 5, 32), dynamic_shapes=dynamic)
        path = opaq.package(program, folder_of.mktemp("package") / "model.pt2")
        # Otherwise a package asks about events, which a capture does not allow.
        model = torch._inductor.aoti_load_package(path, run_single_threaded=True)
    elif form != "eager":
        options = {"cpp_wrapper": form == "C++ wrapper"}
        model = torch.compile(model, fullgraph=True, dynamic=True, options=options)
    return lambda *numbers: model(*arguments(*numbers))


def expected(size: int, attribute: str) -> torch.Tensor:
    blocks = torch.arange(size, dtype=torch.float32, device="cuda")
    members = 2 if attribute == "cluster" else 1
    return blocks * 0.5 + blocks % members + 10 * members


@pytest.fixture(scope="module", params=[(form, name) for form in FORMS for name in ATTRIBUTES])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Call, str]:
    form, attribute = request.param
    name = f"gpu_everywhere::{attribute}{FORMS.index(form)}"
    call = in_form(form, declare(name, ATTRIBUTES[attribute]), tmp_path_factory)
    return call, attribute


def test_results_and_large_shared_memory(case: tuple[Call, str]) -> None:
    call, attribute = case
    for size, held, threads in [(6, 5, 32), (2, 9, 64), (10, 20_000, 32)]:
        torch.testing.assert_close(call(size, held, threads), expected(size, attribute))


def test_an_empty_grid_launches_nothing(case: tuple[Call, str]) -> None:
    call, _ = case
    assert call(0, 5, 2000).shape == (0,)  # 2000 threads would be refused


def test_in_another_thread_without_a_context(case: tuple[Call, str]) -> None:
    call, attribute = case
    results = []
    thread = threading.Thread(target=lambda: results.append(call(6, 5, 32)))
    thread.start()
    thread.join()
    torch.testing.assert_close(results[0], expected(6, attribute))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((6, 5, 2000), r"OP: block.x `threads` is 2000; it must be between 1 and 1024"),
        ((6, 70_000, 32), r"OP: argument 3 `held` is 70000, which does not fit the kernel's"),
        ((6, 60_000, 32), r"OP: shared `4 \* held \+ 4` is 240004 bytes, but cuda:0 allows"),
    ],
)
def test_errors_have_one_text(
    case: tuple[Call, str],
    numbers: tuple[int, int, int],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    call, attribute = case
    with pytest.raises(RuntimeError) as error:
        call(*numbers)
    # The loader of packages prints what its C interface cannot carry.
    text = re.sub(r"gpu_everywhere::\w+", "OP", str(error.value) + capfd.readouterr().err)
    assert re.search(message, text), text
    torch.testing.assert_close(call(6, 5, 32), expected(6, attribute))  # and nothing is lost


@pytest.mark.parametrize("form", ["eager", "package"])
def test_a_cold_kernel_under_capture(
    form: str,
    unique: str,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first launch may not load a kernel while a stream is captured; a later one can launch."""
    call = in_form(form, declare(unique, {}), tmp_path_factory)
    x = torch.arange(6, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError) as error, torch.cuda.graph(graph):
        call(6, 5, 32)
    assert "while a stream is captured" in str(error.value) + capfd.readouterr().err
    torch.cuda.synchronize()
    torch.testing.assert_close(call(6, 5, 32), x * 0.5 + 10)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(6, 5, 32)
    graph.replay()
    torch.testing.assert_close(out, x * 0.5 + 10)
