"""`opaq new`: what it prints is valid Python that declares an op for each kernel; where nothing had
to be guessed, it compiles.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import opaq
from opaq import _runtime, cli, skeleton

KERNELS = r"""
#include <cuda_fp16.h>
#define KERNEL __global__ void made_by_a_macro(int* x) {}
// __global__ void in_a_comment(int* x) {}
__constant__ char text[] = "__global__ void in_a_string(int* x) {}";

namespace deep { namespace er {
template <typename scalar_t, int VEC = 4, bool ADD = false>
__global__ void __launch_bounds__(512)
    rms_norm_kernel(scalar_t* __restrict__ out,          // [tokens, hidden]
                    const scalar_t* __restrict__ input,  // [tokens, hidden]
                    scalar_t const* weight, const float eps, unsigned int const hidden) {
  extern __shared__ float partial[];
  for (int i = threadIdx.x; i < hidden; i += blockDim.x)
    out[blockIdx.x * hidden + i] = input[blockIdx.x * hidden + i] * weight[i] * scalar_t(eps);
}
}}  // namespace

extern "C" __global__ void add_in_place(float *x, long long n) {
  long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
  if (i < n) x[i] += 1.0f;
}

namespace {
struct Params { int n; float scale; };
template <class T, typename index_t, int kBlock> __global__
void with_a_struct(const __grid_constant__ Params params, T const* lambda, T alpha, index_t n,
                   uint8_t in[], double* sums) {
  atomicAdd(&sums[blockIdx.y], 1.0);
  in[0] = alpha > T(0);
}
}

template <typename T> __global__ void declared_first(T* y, const T* x, int n = 3);
template <typename T> __global__ void declared_first(T* y, const T* x, int n) { y[0] = x[n]; }
template __global__ void declared_first<float>(float*, const float*, int);

__global__ void no_pointer(int n) {}
template <class T> struct Params2 {
  using other = int;
  T *from, *to;
  const void* __restrict__ weights;
  unsigned rows = 3, index;
  float scales[4];
  __device__ int twice() const { return 2 * rows; }
};
__global__ void in_a_struct(const Params2<float> p) { p.to[0] = p.from[p.rows]; }
__global__ void in_another(const Unknown p) {}
template <typename T> __global__ void in_out(T* d_in_out, T* state, T* moments, const T* x) {
  state[0] = load(moments + 1) + x[0];
}
__global__ void overloaded(float* y, const float* x) { *y = *x; }
__global__ void overloaded(double* y, const double* x) { *y = *x; }

void launch(float* y, const float* x) { overloaded<<<1, 1>>>(y, x); }
"""


@pytest.fixture
def made(tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the printed module defines, and its text."""
    monkeypatch.chdir(tmp_path)  # the module names the file as it is named here, in few characters
    Path("kernels.cu").write_text(KERNELS)
    text = skeleton.declarations("kernels.cu", unique.replace("::", "_"))
    namespace: dict[str, object] = {"__name__": "made", "text": text}
    exec(compile(text, "made.py", "exec"), namespace)
    return namespace


def test_what_is_printed_declares_each_kernel(made: dict[str, object]) -> None:
    ops = {name: op for name, op in made.items() if isinstance(op, opaq.Op)}
    assert list(ops) == [
        "rms_norm",
        "add_in_place",
        "with_a_struct",
        "declared_first",
        "in_a_struct",
        "in_out",
        "overloaded",
        "overloaded_2",
    ]
    schemas = [op.info["schema"].partition("::")[2] for op in ops.values()]
    with_a_struct = (
        "with_a_struct(Tensor lambda_, Tensor(a!) sums, int n, float scale, float alpha, "
        "int n_2) -> (Tensor in_)"
    )
    assert schemas == [
        "rms_norm(Tensor input, Tensor weight, float eps, int hidden) -> (Tensor out)",
        "add_in_place(Tensor(a!) x, int n) -> ()",
        with_a_struct,
        "declared_first(Tensor x, int n) -> (Tensor y)",
        "in_a_struct(Tensor(a!) from_, Tensor weights, int rows, int index) -> (Tensor to)",
        "in_out(Tensor(a!) d_in_out, Tensor(b!) moments, Tensor x) -> (Tensor state)",
        "overloaded(Tensor x) -> (Tensor y)",
        "overloaded_2(Tensor x) -> (Tensor y)",
    ]
    entries = [op.info["implementations"][0]["entry"] for op in ops.values()]
    assert entries == [
        "deep::er::rms_norm_kernel<{input.dtype}>",
        "add_in_place",
        "with_a_struct<{lambda_.dtype}, int, 1>",
        "declared_first<{x.dtype}>",
        "in_a_struct",
        "in_out<{x.dtype}>",
        "overloaded",
        "overloaded",
    ]


def test_what_must_be_completed_is_marked(made: dict[str, object], unique: str) -> None:
    text = str(made["text"]).replace(unique.replace("::", "_"), "kernels")
    assert "shared=0,  # FILL IN: bytes of dynamic shared memory, an expression" in text
    assert "block=512,  # FILL IN: threads of a block, at most 512 by its launch bounds" in text
    assert "# FILL IN: index_t = int, kBlock = 1" in text
    assert "args=[  # FILL IN: the other fields of params, if there are any" in text
    assert 'opaq.struct(\n            "Params",\n            ...,\n            n="n",' in text
    assert '**{"from": "from_"},' in text
    assert "# FILL IN: sums: taken for arguments that are written" in text
    assert 'outputs=opaq.like("lambda_", dtype="uint8"),  # FILL IN: shape and dtype' in text
    assert "# no_pointer, line 38, takes no pointer: declare it by hand." in text
    assert ", takes structs that are not in this file (p): declare it by hand." in text
    assert max(len(line) for line in text.splitlines() if "FILL IN" not in line) <= 100


@pytest.mark.skipif(not _runtime.doctor()["nvrtc"]["found"], reason="NVRTC is not installed")
def test_what_is_complete_compiles(tmp_path: Path, unique: str) -> None:
    kernels = KERNELS[: KERNELS.index("namespace {\nstruct")]
    (tmp_path / "kernels.cu").write_text(kernels)
    text = skeleton.declarations(str(tmp_path / "kernels.cu"), unique.replace("::", "_"))
    namespace: dict[str, object] = {"__name__": "made"}
    exec(compile(text, "made.py", "exec"), namespace)
    x = torch.empty(8, 64, device="meta")
    report = namespace["rms_norm"].check(x, x[0], 1e-6, 64, arch="sm_90a")
    assert report.ok, report
    assert report.implementations[0].launch["grid"] == [8, 1, 1]
    assert namespace["add_in_place"].check(x, 512, arch="sm_90a").ok


def test_tensor_maps_are_made_from_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tma.cu").write_text(
        "struct alignas(64) CUtensorMap { long long opaque[16]; };\n"
        "struct P { CUtensorMap weight; int n; };\n"
        "__global__ void tiles(const __grid_constant__ CUtensorMap x, const __grid_constant__ P p,"
        " float* y) { y[0] = p.n; }"
    )
    text = skeleton.declarations("tma.cu", "skeleton_of_maps")
    assert '"skeleton_of_maps::tiles(Tensor x, Tensor weight, int n) -> (Tensor y)"' in text
    assert 'weight=opaq.tensor_map("weight", box=[64, 64]),' in text
    assert "if there are any; box and swizzle of x, weight" in text
    namespace: dict[str, object] = {"__name__": "made"}
    exec(compile(text, "made.py", "exec"), namespace)
    x = torch.empty(128, 64, device="meta")
    report = namespace["tiles"].check(x, x, 4, arch="sm_90a")
    assert report.ok, report


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "k.cu").write_text('extern "C" __global__ void k(float* y, const float* x) {}')
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "k.cu", "--namespace", "theirs"]) == 0
    out, err = capsys.readouterr()
    assert 'SOURCE = opaq.file("k.cu")' in out and '"theirs::k(Tensor x) -> (Tensor y)"' in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.cu"], "missing.cu: No such file or directory; give a file with CUDA C++ source"),
        (["empty.cu"], "empty.cu: it has no __global__ function outside of macros; give the file"),
        (["empty.cu", "--namespace", "a-b"], "--namespace: got 'a-b'; expected a name such as"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty.cu").write_text("#define K __global__ void k() {}\nvoid host() {}\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
