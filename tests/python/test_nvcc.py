"""CUDA sources with host code and host headers, which nvcc compiles."""

from __future__ import annotations

import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
from typing import Any

import forked
import pytest
import torch
from fake_cuda import wrapper_source

import opaq
from opaq import _runtime

NVCC = _runtime.doctor()["nvcc"]
needs_nvcc = pytest.mark.skipif(
    not NVCC["found"] or bool(NVCC["why_not"]), reason=f"nvcc: {NVCC['why_not']}"
)

# A launcher, and device code that needs a type which only the host has: NVRTC refuses it.
SOURCE = """
#include <string>
#include <vector>
struct Named { std::string name; };
template <class T> __global__ void scale(const T* x, T* y, long n, float factor) {
  static_assert(sizeof(Named) > 1);
  const long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * T(factor);
}
void launch(const std::vector<float*>& x, long n) { scale<<<1, 32>>>(x[0], x[1], n, 2.f); }
"""


def declare(unique: str, source: Any = SOURCE, **options: Any) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor x, float factor) -> (Tensor y)", outputs=opaq.like("x"))
    return op.cuda(
        source=source,
        entry="scale<{x.dtype}>",
        grid="ceil_div(x.numel(), 256)",
        block=256,
        args="x, y, x.numel(), factor",
        **options,
    )


def compile(op: opaq.Op, arch: str = "sm_90a", dtype: str = "float32") -> dict[str, Any]:
    return _runtime.compile(op.name, [(dtype, (64,), (1,), "cuda:0", 256), 2.0], arch, "cuda")


@needs_nvcc
def test_the_report_says_which_compiler_served(unique: str) -> None:
    op = declare(unique)
    made = compile(op)
    assert made["compiler"] == "nvcc" and made["resources"]["registers"] > 0
    (facts,) = [item for item in opaq.report().implementations if item.op == unique]
    assert facts.compiler == "nvcc"
    assert "nvcc" in str(opaq.report())


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_100a", "compute_90"])
def test_other_archs(unique: str, arch: str) -> None:
    assert compile(declare(unique), arch)["bytes"] > 0


@needs_nvcc
def test_a_file_with_headers_of_torch_compiles_as_it_is(unique: str) -> None:
    example = pathlib.Path(__file__).parents[1] / "examples" / "torch_kernel_file.py"
    made = runpy.run_path(str(example))
    by_nvcc = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    by_nvcc.cuda(
        source=made["SOURCE"],
        compiler="nvcc",
        entry="leaky_relu_kernel<opaq::torch_type<{x.dtype}>>",
        grid="ceil_div(x.numel(), 256)",
        block=256,
        args="x, y, x.numel(), 0.01",
    )
    argument = ("float16", (64,), (1,), "cuda:0", 256)
    for name, arguments, compiler in (
        (made["leaky_relu"].name, [argument, 0.5], "NVRTC"),
        (by_nvcc.name, [argument], "nvcc"),
    ):
        image = _runtime.compile(name, arguments, "sm_90a", "cuda")
        assert image["compiler"] == compiler
        assert image["entry"].endswith("torch_type<__half>>")


@needs_nvcc
def test_a_cpp_wrapper_holds_what_nvcc_made(unique: str) -> None:
    op = declare(unique)
    with opaq.lowering.options.use(archs=["sm_90a"]):
        source = wrapper_source(lambda x: op(x, 2.0) + 1, (4, 8), cpp=True, mixed=True)
    assert f"// {unique}(" in source and "_Z5scaleIfEvPKT_PS0_lf" in source


@needs_nvcc
def test_a_signature_that_does_not_fit_is_refused(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x", dtype="float16"))
    op.cuda(source=SOURCE, entry="scale<{x.dtype}>", args="x, y, x.numel(), 1.0")
    with pytest.raises(opaq.CompileError, match="float16"):
        _runtime.compile(op.name, [("float32", (64,), (1,), "cuda:0", 256)], "sm_90a", "cuda")


def test_nvrtc_by_request_is_not_followed_by_nvcc(unique: str) -> None:
    with pytest.raises(opaq.CompileError) as refused:
        compile(declare(unique, compiler="nvrtc", source="#include <no_such_header>" + SOURCE))
    assert "NVRTC could not compile" in str(refused.value)
    assert "nvcc could not" not in str(refused.value)


def test_the_compiler_is_checked_and_part_of_the_declaration(unique: str) -> None:
    with pytest.raises(opaq.DeclarationError) as refused:
        declare(unique, compiler="nvc")
    assert "compiler of" in str(refused.value)
    assert "got 'nvc'; expected one of auto, nvrtc, nvcc; did you mean 'nvcc'?" in str(
        refused.value
    )
    declare(unique, compiler="nvcc")
    with pytest.raises(opaq.DeclarationError, match="compiler: 'nvcc' before, 'nvrtc' now"):
        declare(unique, compiler="nvrtc")
    other = opaq.op(f"{unique}_b(Tensor x) -> Tensor", outputs=opaq.like("x"))
    with pytest.raises(opaq.DeclarationError, match="takes no compiler, got 'nvcc'; leave it out"):
        other.cuda(binary=b"\x7fELF", entry="k", args="x, out", compiler="nvcc")


def without_nvcc(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "/usr/bin:/bin", "OPAQ_NVCC": "/no/such/nvcc", "HOME": "/tmp"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_nvcc_the_message_says_how_to_get_it() -> None:
    done = without_nvcc(
        "import opaq\nfrom opaq import _runtime\n"
        'op = opaq.op("t::k(Tensor x) -> Tensor", outputs=opaq.like("x"))\n'
        'kernel = "__global__ void k(float* y, const float* x) { *y = sizeof(std::string); }"\n'
        'source = "#include <string>\\n" + kernel\n'
        'op.cuda(source=source, entry="k", args="out, x", grid=1, block=1)\n'
        'arguments = [("float32", (4,), (1,), "cuda:0", 256)]\n'
        'try: _runtime.compile(op.name, arguments, "sm_90a", "cuda")\n'
        "except opaq.CompileError as error: print(error)\n"
        "from opaq import doctor\n"
        'print(*[p.advice for p in doctor.examine() if p.name == "nvcc" and not p.found])'
    )
    assert "NVRTC could not compile" in done.stdout, done.stderr
    assert "nvcc compiles sources with headers and functions of the host" in done.stdout
    assert done.stdout.count("`pip install 'nvidia-cuda-nvcc==") == 2
    minor = torch.version.cuda
    assert minor is None or f"'nvidia-cuda-nvcc=={minor}.*'" in done.stdout


@needs_nvcc
def test_ctrl_c_ends_nvcc(unique: str, tmp_path: pathlib.Path) -> None:
    program = (
        "import opaq, signal\nfrom opaq import _runtime\n"
        # ignored if pytest is in the background
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        'op = opaq.op("t::k(Tensor x) -> Tensor", outputs=opaq.like("x"))\n'
        'op.cuda(source="#include <ATen/ATen.h>", entry="k", args="x, out", compiler="nvcc")\n'
        'print("ready", flush=True)\n'
        "try: _runtime.compile("
        'op.name, [("float32", (4,), (1,), "cuda:0", 256)], "sm_90a", "cuda")\n'
        'except KeyboardInterrupt: print("interrupted", flush=True)'
    )
    process = forked.start(
        [sys.executable, "-c", program],
        env={**os.environ, "OPAQ_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".opaq-work-*/tmpxft*")):  # nvcc's own files
        assert time.monotonic() < deadline, "nvcc has not started"
        time.sleep(0.05)
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "interrupted\n"
    assert time.monotonic() - started < 5
    assert not list(tmp_path.glob(".opaq-work-*"))


@needs_nvcc
def test_structs_by_value_of_a_kernel_in_an_unnamed_namespace(unique: str) -> None:
    source = """
    #include <string>
    struct Params { const float* x; long n; };
    namespace { __global__ void k(float* y, Params params) { *y = params.x[params.n]; } }
    """
    arguments = [("float32", (64,), (1,), "cuda:0", 256)]
    options: dict[str, Any] = {"source": source, "entry": "k", "grid": 1, "block": 1}
    for compiler, kept in (("nvcc", "nvcc"), ("nvrtc", "NVRTC")):
        op = opaq.op(f"{unique}_{compiler}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
        params = opaq.struct("Params", x="x", n="x.numel()")
        op.cuda(args=["y", params], compiler=compiler, **options)
        assert _runtime.compile(op.name, arguments, "sm_90a", "cuda")["compiler"] == kept
    other = opaq.op(f"{unique}_b(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    params = opaq.struct("Params", x="x", m="x.numel()")
    other.cuda(args=["y", params], compiler="nvcc", **options)
    with pytest.raises(opaq.CompileError, match="`Params`, which has no field `m`"):
        _runtime.compile(other.name, arguments, "sm_90a", "cuda")


@needs_nvcc
def test_random_numbers_of_a_kernel_of_a_pytorch_extension(unique: str) -> None:
    source = """
    #include <ATen/cuda/PhiloxUtils.cuh>
    #include <curand_kernel.h>
    __global__ void noise(const float* x, float* y, at::PhiloxCudaState state, long n) {
      auto [seed, offset] = at::cuda::philox::unpack(state);
      curandStatePhilox4_32_10_t numbers;
      const long i = blockIdx.x * 256L + threadIdx.x;
      curand_init(seed, i, offset, &numbers);
      if (i < n) y[i] = x[i] * curand_uniform(&numbers);
    }"""
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), effects="random")
    rng = {"ptr": "rng"}
    state = opaq.struct("at::PhiloxCudaState", ..., seed_=rng, offset_=rng, captured_=True)
    op.cuda(
        source=source,
        entry="noise",
        grid="ceil_div(x.numel(), 256)",
        block=256,
        scratch={"rng": opaq.philox(dtype="int64")},
        args=["x", "y", state, "x.numel()"],
    )
    report = op.check(torch.empty(1000, device="meta"), arch="sm_90a")
    assert report.ok, report


@needs_nvcc
def test_with_torch_headers_either_set_of_operators_of_half_serves(unique: str) -> None:
    """torch.utils.cpp_extension leaves CUDA's out; some projects undo that."""
    source = """
    #include <c10/util/Half.h>
    #include <cuda_fp16.h>
    template <class T> __global__ void scale(const T* x, T* y, long n, float factor) {
      y[0] = x[0] > x[1] ? x[0] * x[0] : x[1];
    }
    """
    arguments = [("float16", (64,), (1,), "cuda:0", 256)]
    for compiler, kept in (("nvcc", "nvcc"), ("nvrtc", "NVRTC")):
        cuda = declare(f"{unique}_{compiler}_a", source, compiler=compiler)
        assert compile(cuda, dtype="float16")["compiler"] == kept
        torch_types = opaq.op(
            f"{unique}_{compiler}_b(Tensor x) -> (Tensor y)", outputs=opaq.like("x")
        )
        torch_types.cuda(
            source=source,
            compiler=compiler,
            entry="scale<opaq::torch_type<{x.dtype}>>",
            grid=1,
            block=1,
            args="x, y, x.numel(), 1.0",
        )
        assert _runtime.compile(torch_types.name, arguments, "sm_90a", "cuda")["compiler"] == kept


@needs_nvcc
def test_folders_whose_names_nvcc_cannot_take(tmp_path: pathlib.Path) -> None:
    """nvcc passes paths through a shell, and a comma ends one."""
    folder = tmp_path / "it's a folder, $HOME"
    folder.mkdir()
    (folder / "size.h").write_text("#include <string>\nstruct Named { std::string name; };\n")
    (folder / "k.cu").write_text(
        '#include "size.h"\n#include <string>\n'
        "__global__ void k(float* y, const float* x) { *y = *x * sizeof(Named); }\n"
    )
    program = (
        "import sys, opaq\nfrom opaq import _runtime\n"
        'op = opaq.op("t::k(Tensor x) -> Tensor", outputs=opaq.like("x"))\n'
        'op.cuda(source=opaq.file(sys.argv[1]), entry="k", args="out, x", grid=1, block=1)\n'
        'arguments = [("float32", (4,), (1,), "cuda:0", 256)]\n'
        'print(_runtime.compile(op.name, arguments, "sm_90a", "cuda")["compiler"])\n'
    )
    done = forked.run(
        [sys.executable, "-c", program, str(folder / "k.cu")],
        env={**os.environ, "OPAQ_CACHE_DIR": str(folder / "cache"), "TMPDIR": str(folder)},
    )
    assert done.stdout == "nvcc\n", done.stderr
