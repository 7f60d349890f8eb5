"""Launching on a GPU: sources, binaries, templates, launch attributes, streams, CUDA graphs, big
sizes, the generated wrapper.
"""

from __future__ import annotations

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import opaq

ADDMUL = """extern "C" __global__
void addmul(const float* a, const float* b, float* out, long long n) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] * b[i] + a[i];
}"""


def addmul(name: str, **code: object) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
    return op.cuda(
        **(code or {"source": ADDMUL}),
        entry="addmul",
        grid="ceil_div(a.numel(), 256)",
        block=256,
        args="a, b, out, a.numel()",
    )


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*shape, device="cuda"), torch.randn(*shape, device="cuda")


@pytest.mark.parametrize("shape", [(16, 256), (1,), (0, 4), (1023, 3)])
def test_source_in_eager(unique: str, shape: tuple[int, ...]) -> None:
    op = addmul(unique)
    a, b = pair(*shape)
    torch.testing.assert_close(op(a, b), a * b + a)
    torch.testing.assert_close(op.overload(a, b), a * b + a)
    torch.testing.assert_close(
        op(a.double().float().t() if a.dim() == 2 else a, b.t() if b.dim() == 2 else b),
        (a * b + a).t() if a.dim() == 2 else a * b + a,
    )


def test_cubin_and_ptx(unique: str) -> None:
    from torch.cuda._utils import _nvrtc_compile

    ptx, _ = _nvrtc_compile(ADDMUL, "addmul")
    ptx = ptx if isinstance(ptx, bytes) else ptx.encode()
    a, b = pair(8, 8)
    torch.testing.assert_close(addmul(unique, binary=ptx)(a, b), a * b + a)


@pytest.mark.parametrize("backend", ["inductor", "opaq"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_launches_directly(unique: str, backend: str, dynamic: bool) -> None:
    op = addmul(unique)

    def model(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return op(op(a.sin(), b), b.relu()).cos()

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    code = ""
    for shape in ((16, 256), (7, 5), (0, 5)):
        a, b = pair(*shape)
        result, codes = run_and_get_code(compiled, a, b)
        code = code or codes[0]
        torch.testing.assert_close(result, model(a, b))
    assert "torch.ops.opaq" not in code and "opaq_graph.launch(" in code and "stream0)" in code


def test_templates_follow_dtype_and_size(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> Tensor", outputs=opaq.tensor("x.shape[:-1]", dtype="float32")
    )
    op.cuda(
        source="""
        #include <cuda_fp16.h>
        #include <cuda_bf16.h>
        template <class T, int N> __global__ void row_sum(const T* x, float* out) {
          float sum = 0;
          for (int i = threadIdx.x; i < N; i += 32) sum += float(x[blockIdx.x * N + i]);
          for (int k = 16; k; k /= 2) sum += __shfl_xor_sync(~0u, sum, k);
          if (threadIdx.x == 0) out[blockIdx.x] = sum;
        }""",
        entry="row_sum<{x.dtype}, {x.size(-1)}>",
        grid="x.numel() / x.size(-1)",
        block=32,
        args="x, out",
    )
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for size in (3, 64):
            x = torch.randn(5, size, device="cuda").to(dtype)
            torch.testing.assert_close(op(x), x.float().sum(-1), rtol=1e-3, atol=1e-3)


def test_dynamic_shared_memory_past_48_kb(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cuda(
        source="""extern "C" __global__ void reverse(const float* x, float* out, int n) {
          extern __shared__ float kept[];
          for (int i = threadIdx.x; i < n; i += blockDim.x) kept[i] = x[i];
          __syncthreads();
          for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = kept[n - 1 - i];
        }""",
        entry="reverse",
        block=1024,
        shared="x.numel() * x.itemsize",
        args="x, out, x.numel()",
    )
    for n in (100, 20000, 50000):
        x = torch.randn(n, device="cuda")
        torch.testing.assert_close(op(x), x.flip(0))
    with pytest.raises(RuntimeError, match="shared"):
        op(torch.randn(100_000, device="cuda"))


def test_cluster_and_cooperative(unique: str) -> None:
    cluster = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    cluster.cuda(
        source="""
        #include <cooperative_groups.h>
        extern "C" __global__ void ranks(const float* x, float* out) {
          auto cluster = cooperative_groups::this_cluster();
          if (threadIdx.x == 0) out[
              blockIdx.x] = x[blockIdx.x] + cluster.block_rank() + 100 * cluster.num_blocks();
        }""",
        entry="ranks",
        grid="x.numel()",
        block=32,
        cluster=2,
        args="x, out",
    )
    x = torch.zeros(6, device="cuda")
    assert cluster(x).tolist() == [200, 201, 200, 201, 200, 201]
    grid = opaq.op(f"{unique}_grid(Tensor x) -> Tensor", outputs=opaq.like("x"))
    grid.cuda(
        source="""
        #include <cooperative_groups.h>
        extern "C" __global__ void neighbour(const float* x, float* out, int n) {
          if (threadIdx.x == 0) out[blockIdx.x] = x[blockIdx.x] + 1;
          cooperative_groups::this_grid().sync();
          float next = out[(blockIdx.x + 1) % n];
          cooperative_groups::this_grid().sync();
          if (threadIdx.x == 0) out[blockIdx.x] = next;
        }""",
        entry="neighbour",
        grid="x.numel()",
        block=32,
        args="x, out, x.numel()",
        cooperative=True,
    )
    x = torch.arange(8.0, device="cuda")
    torch.testing.assert_close(grid(x), (x + 1).roll(-1))


def test_the_current_stream_is_used(unique: str) -> None:
    op = addmul(unique)
    a, b = pair(1 << 20)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        c = a + 1
        result = op(c, b)
    torch.cuda.current_stream().wait_stream(side)
    torch.testing.assert_close(result, (a + 1) * b + a + 1)


def test_cuda_graphs(unique: str) -> None:
    op = addmul(unique)
    a, b = pair(64)
    compiled = torch.compile(lambda a, b: op(op(a, b), b), mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(compiled(a, b).clone(), op(op(a, b), b))

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(a, b)
    a.copy_(torch.randn_like(a))
    graph.replay()
    torch.testing.assert_close(out, a * b + a)


def test_a_cold_kernel_under_capture_is_a_typed_error(unique: str) -> None:
    op = addmul(unique)
    a, b = pair(64)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match=r"(?s)while a stream is captured.*warmup"),
        torch.cuda.graph(graph),
    ):
        op(a, b)
    torch.cuda.synchronize()
    opaq.warmup(op, a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(a, b)
    graph.replay()
    torch.testing.assert_close(out, a * b + a)


def test_more_than_2_to_the_31_elements(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cuda(
        source="""extern "C" __global__
        void invert(const unsigned char* x, unsigned char* out, long long n) {
          for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n;
              i += (long long)gridDim.x * blockDim.x) out[i] = ~x[i];
        }""",
        entry="invert",
        grid=4096,
        block=512,
        args="x, out, x.numel()",
    )
    x = torch.randint(0, 256, (2**31 + 17,), dtype=torch.uint8, device="cuda")
    assert torch.equal(op(x), ~x)


def test_mutation_in_a_compiled_graph(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) cache, Tensor x) -> ()")
    op.cuda(
        source='extern "C" __global__ void add(float* cache, const float* x, int n) { int i = '
        "threadIdx.x; if (i < n) cache[i] += x[i]; }",
        entry="add",
        block=64,
        args="cache, x, x.numel()",
    )

    @torch.compile(fullgraph=True)
    def step(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        op(cache, x * 2)
        return cache.sum()

    cache, x = torch.zeros(64, device="cuda"), torch.randn(64, device="cuda")
    for count in (1, 2):
        total = step(cache, x)
        torch.testing.assert_close(cache, 2 * count * x)
        torch.testing.assert_close(total, cache.sum())


def test_a_wrong_signature_is_refused_when_it_is_compiled(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
    op.cuda(source=ADDMUL, entry="addmul", grid=1, block=256, args="a, b, out")
    a, b = pair(4)
    with pytest.raises(RuntimeError, match=r"takes 4 parameters .*args lists 3: a, b, out"):
        op(a, b)
    half = addmul(unique + "_half")
    with pytest.raises(RuntimeError, match=r"`a` is float16, but parameter 1 is `float const\*`"):
        half(a.half(), b.half())
    ok = half(a, b)
    torch.testing.assert_close(ok, a * b + a)
    with pytest.raises(RuntimeError, match=r"`a` is float64, but parameter 1 is `float const\*`"):
        half(a.double(), b.double())


def test_no_context_on_declaration() -> None:
    import subprocess
    import sys

    script = f"""
import torch, opaq
op = opaq.op("t::f(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
op.cuda(source={ADDMUL!r}, entry="addmul", args="a, b, out, a.numel()")
op.explain(torch.empty(4, device="meta"), torch.empty(4, device="meta"))
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
state, flags = ctypes.c_int(-1), ctypes.c_uint()
cuda.cuInit(0)
device = ctypes.c_int()
cuda.cuDeviceGet(ctypes.byref(device), 0)
cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(state))
print(state.value)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "0", done.stdout + done.stderr


@pytest.mark.parametrize("tags", [(), torch.Tag.cudagraph_unsafe], ids=["in", "out"])
def test_a_tag_keeps_an_op_out_of_cuda_graphs(unique: str, tags: object) -> None:
    """What replays a graph calls no Python function."""
    calls = []
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"), tags=tags)

    @op.register_kernel("cuda")
    def _(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * 2

    x = torch.randn(1000, device="cuda")
    call = torch.compile(
        lambda x: op(x.sin() + 1).cos(),
        options={"triton.cudagraphs": True, "graph_partition": True},
    )
    for _ in range(4):
        call(x)
    calls.clear()
    for _ in range(3):
        torch.testing.assert_close(call(x), ((x.sin() + 1) * 2).cos())
    assert len(calls) == (3 if tags else 0)
