"""Random numbers for kernels on a GPU: the seed decides them, and each replay of a graph draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import opaq

SOURCE = """
__global__ void draw(const float* x, const unsigned long long* rng, long* drawn) {
  drawn[threadIdx.x] = rng[threadIdx.x];
}"""


@pytest.fixture
def op(unique: str) -> opaq.Op:
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor drawn)",
        outputs=opaq.tensor(2, dtype="int64"),
        effects="random",
    )
    rng = {"rng": opaq.philox()}
    return op.cuda(source=SOURCE, entry="draw", grid=1, block=2, scratch=rng, args="x, rng, drawn")


def expected(seed: int, count: int) -> list[list[int]]:
    torch.cuda.manual_seed(seed)
    return [torch.randint(0, 1 << 62, (2,), device="cuda").tolist() for _ in range(count)]


@pytest.mark.parametrize(
    "options", [None, {}, {"cpp_wrapper": True}, {"triton.cudagraphs": True}], ids=str
)
def test_numbers_are_those_of_the_generator(op: opaq.Op, options: dict[str, Any] | None) -> None:
    def model(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return op(x), op(x)

    compiled = model if options is None else torch.compile(model, fullgraph=True, options=options)
    x = torch.ones(4, device="cuda")
    for _ in range(3):  # warm-up, capture, replay
        torch.cuda.manual_seed(5)
        drawn = [value.tolist() for _ in range(2) for value in compiled(x)]
        assert len({tuple(value) for value in drawn}) == 4
    if not options or "triton.cudagraphs" not in options:  # whose graphs own their offsets
        assert drawn == expected(5, 4)


def test_each_replay_of_a_captured_graph_draws(op: opaq.Op) -> None:
    x = torch.ones(4, device="cuda")
    op.warmup(x)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        first, second = op(x), op(x)
    runs = []
    for seed in (1, 1, 2):
        torch.cuda.manual_seed(seed)
        runs.append([])
        for _ in range(3):
            graph.replay()
            runs[-1] += [tuple(first.tolist()), tuple(second.tolist())]
    assert runs[0] == runs[1] == [tuple(value) for value in expected(1, 6)]
    assert len({*runs[0], *runs[2]}) == 12


def test_a_state_of_a_pytorch_extension(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor drawn)",
        outputs=opaq.tensor(2, dtype="int64"),
        effects="random",
    )
    rng = {"ptr": "rng"}
    op.cuda(
        source="""
        struct State {  // at::PhiloxCudaState
          union Payload { unsigned long val; long* ptr; };
          Payload seed_, offset_;
          unsigned long offset_intragraph_;
          bool captured_;
        };
        __global__ void draw(const float* x, State s, long* drawn) {
          drawn[0] = s.captured_ ? *s.seed_.ptr : -1;
          drawn[1] = *s.offset_.ptr + s.offset_intragraph_;
        }""",
        entry="draw",
        grid=1,
        block=1,
        scratch={"rng": opaq.philox(dtype="int64")},
        args=["x", opaq.struct("State", ..., seed_=rng, offset_=rng, captured_=True), "drawn"],
    )
    torch.cuda.manual_seed(3)
    drawn = op(torch.ones(1, device="cuda")).tolist()
    assert drawn == [expected(3, 1)[0][0]] * 2


def test_package(op: opaq.Op, tmp_path: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return op(x), op(x)

    x = torch.ones(4, device="cuda")
    model = torch._inductor.aoti_load_package(
        opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    )
    torch.cuda.manual_seed(7)
    drawn = [value.tolist() for _ in range(2) for value in model(x)]
    assert drawn == expected(7, 4)


# ---- opaq.exponential ----------------------------------------------------------------------------

COPY = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
template <class T> __global__ void copy(const T* q, T* y, long n) {
  const long i = blockIdx.x * 256L + threadIdx.x;
  if (i < n) y[i] = q[i];
}"""
COUNTS = [1, 2, 1021, 64 * 128256, 64 * 128256 + 3]


def exponential(name: str, dtype: torch.dtype = torch.float32) -> opaq.Op:
    op = opaq.op(
        f"{name}(Tensor x) -> (Tensor y)",
        outputs=opaq.like("x", dtype=dtype),
        effects="random",
    )
    return op.cuda(
        source=COPY,
        entry="copy<{y.dtype}>",
        grid="ceil_div(y.numel(), 256)",
        block=256,
        scratch={"q": opaq.exponential("x.shape", dtype="y.dtype")},
        args="q, y, y.numel()",
    )


def drawn_by_torch(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(count, dtype=dtype, device="cuda").exponential_()


@pytest.mark.parametrize("options", [None, {}, {"cpp_wrapper": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponential_numbers_are_those_of_exponential_(
    dtype: torch.dtype, options: dict[str, Any] | None, unique: str
) -> None:
    op = exponential(unique, dtype)
    function = op if options is None else torch.compile(op, fullgraph=True, options=options)
    for count in COUNTS:
        x = torch.ones(count, device="cuda")
        function(x)
        torch.cuda.manual_seed(5)
        found = [function(x), torch.rand(3, device="cuda"), function(x)]
        torch.cuda.manual_seed(5)
        expected = [
            drawn_by_torch(count, dtype),
            torch.rand(3, device="cuda"),
            drawn_by_torch(count, dtype),
        ]
        for value, wanted in zip(found, expected, strict=True):
            assert torch.equal(value, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_exponential_numbers_of_16_bits(dtype: torch.dtype, unique: str) -> None:
    op, x = exponential(unique, dtype), torch.ones(1021, device="cuda")
    for function in (op, torch.compile(op, fullgraph=True, options={"cpp_wrapper": True})):
        function(x)
        torch.cuda.manual_seed(5)
        found = function(x)
        torch.cuda.manual_seed(5)
        assert torch.equal(found, drawn_by_torch(1021, dtype))


@pytest.mark.parametrize("count", COUNTS)
def test_each_replay_of_a_captured_graph_draws_exponential_numbers(count: int, unique: str) -> None:
    op, x = exponential(unique), torch.ones(count, device="cuda")
    op.warmup(x)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        first, second = op(x), op(x)
    for seed in (1, 2):
        torch.cuda.manual_seed(seed)
        found = []
        for _ in range(2):
            graph.replay()
            found += [first.clone(), second.clone()]
        torch.cuda.manual_seed(seed)
        expected = [drawn_by_torch(count) for _ in range(4)]
        for value, wanted in zip(found, expected, strict=True):
            assert torch.equal(value, wanted)


def test_cuda_graphs_of_a_compiled_model_draw_on(unique: str) -> None:
    op, x = exponential(unique), torch.ones(1021, device="cuda")
    compiled = torch.compile(op, fullgraph=True, options={"triton.cudagraphs": True})
    torch.cuda.manual_seed(5)
    found = [tuple(compiled(x).tolist()) for _ in range(5)]  # warm-up, capture, replays
    assert len(set(found)) == 5
    assert all(0.8 < sum(values) / len(values) < 1.2 for values in found)


@pytest.mark.parametrize("options", [None, {}, {"cpp_wrapper": True}], ids=str)
def test_a_kernel_draws_the_tokens_of_torch_multinomial(
    options: dict[str, Any] | None, unique: str
) -> None:
    op = opaq.op(
        f"{unique}(Tensor p) -> (Tensor token)",
        outputs=opaq.tensor("p.size(0), 1", dtype="int64"),
        effects="random",
    )
    op.cuda(
        source="""
        __global__ void draw(const float* p, const float* q, long* token, long n) {
          p += blockIdx.x * n, q += blockIdx.x * n;
          long found = 0;
          for (long i = 1; i < n; ++i)
            if (p[i] / q[i] > p[found] / q[found]) found = i;
          token[blockIdx.x] = found;
        }""",
        entry="draw",
        grid="p.size(0)",
        block=1,
        scratch={"q": opaq.exponential("p.shape")},
        args="p, q, token, p.size(1)",
    )
    function = op if options is None else torch.compile(op, fullgraph=True, options=options)
    p = torch.randn(64, 1021, device="cuda").softmax(-1)
    function(p)
    torch.cuda.manual_seed(5)
    tokens = [function(p) for _ in range(10)]
    torch.cuda.manual_seed(5)
    expected = [torch.multinomial(p, 1) for _ in range(10)]
    assert torch.equal(torch.stack(tokens), torch.stack(expected))


def test_exponential_numbers_of_a_package(unique: str, tmp_path: Any) -> None:
    op, x = exponential(unique), torch.ones(1021, device="cuda")

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return op(x), op(x)

    model = torch._inductor.aoti_load_package(
        opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    )
    torch.cuda.manual_seed(7)
    found = [value for _ in range(2) for value in model(x)]
    torch.cuda.manual_seed(7)
    for value in found:
        assert torch.equal(value, drawn_by_torch(1021))


def test_exponential_numbers_on_another_stream(unique: str) -> None:
    op, x = exponential(unique), torch.ones(1021, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda.manual_seed(7)
        found = op(x)
        torch.cuda.manual_seed(7)
        expected = drawn_by_torch(1021)
    stream.synchronize()
    assert torch.equal(found, expected)
