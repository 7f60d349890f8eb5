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
