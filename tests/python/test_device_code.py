"""Kernel files as people write them for nvcc compile with NVRTC: standard headers, names that need
no include, functions of the host and PyTorch's headers for them.
"""

from __future__ import annotations

import itertools
import os
import pathlib

import pytest

import opaq
from opaq import _runtime

NVRTC = _runtime.doctor()["nvrtc"]
FOLDERS = NVRTC["include_dirs"]
ARCHS = ["sm_80", "sm_90a", "sm_100a"]

pytestmark = [
    pytest.mark.skipif(
        not NVRTC["found"], reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc"
    ),
    pytest.mark.skipif(
        not FOLDERS, reason="CUDA's headers are not installed: pip install nvidia-cuda-runtime"
    ),
]

_count = itertools.count()


def is_there(header: str) -> bool:
    return any(os.path.exists(os.path.join(folder, header)) for folder in FOLDERS)


def needs(header: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not is_there(header), reason=f"<{header}> is not installed")


def compile_cuda(
    unique: str,
    source: object,
    entry: str = "k",
    args: object = "y, x",
    arch: str = "sm_90a",
    **options: object,
) -> dict[str, object]:
    op = opaq.op(f"{unique}_{next(_count)}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cuda(source=source, entry=entry, args=args, grid=1, block=1, compiler="nvrtc", **options)
    fake = ("float32", (4,), (1,), "cuda:0", 256)
    return _runtime.compile(op.name, [fake], arch, "cuda")


EXTENSION = r"""
#include <torch/extension.h>
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime.h>
#include <iostream>
#include <vector>
#include <string>
#include <cstdint>
#include <cmath>
#include <limits>

#define CHECK_INPUT(x) TORCH_CHECK(x.is_cuda(), #x " must be a CUDA tensor {")
#define CUDA_CHECK(call)                                                      \
  do {                                                                        \
    cudaError_t error = call;                                                 \
    if (error != cudaSuccess) {                                               \
      fprintf(stderr, "%s:%d %s\n", __FILE__, __LINE__,                       \
              cudaGetErrorString(error));                                     \
      exit(EXIT_FAILURE);                                                     \
    }                                                                         \
  } while (0)

constexpr int kThreads = 256;

torch::Tensor relu(torch::Tensor x, double limit);  // the launcher, below

static inline int ceil_div(int64_t a, int b) { return (a + b - 1) / b; }  // for both sides

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) relu_kernel(
    scalar_t* __restrict__ out, const scalar_t* __restrict__ in, const int64_t n,
    const float limit) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  const float value = static_cast<float>(in[i]);
  out[i] = std::isnan(value) ? std::numeric_limits<float>::quiet_NaN()
                             : std::min(std::max(value, 0.f), limit);
  if (ceil_div(n, 2) < 0) printf("never {");
}

torch::Tensor relu(torch::Tensor x, double limit) {
  CHECK_INPUT(x);
  const at::cuda::OptionalCUDAGuard device_guard(device_of(x));
  auto out = torch::empty_like(x);
  const dim3 blocks(ceil_div(x.numel(), kThreads));
  cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND_HALF(x.scalar_type(), "relu", ([&] {
    relu_kernel<scalar_t><<<blocks, kThreads, 0, stream>>>(
        out.data_ptr<scalar_t>(), x.data_ptr<scalar_t>(), x.numel(), limit);
  }));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

std::vector<std::string> names() { return {"relu", R"(a } in " a raw string)"}; }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("relu", &relu, "ReLU (CUDA)");
}
"""

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <assert.h>
#include <math.h>
#include <float.h>
#include <chrono>
#include <random>
#include <cuda_fp16.h>

typedef unsigned int word;
float* host_data = nullptr;
std::mt19937 generator(42);

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#endif

real square(real x) { return x * x; }

__global__ void k(real* y, const real* x) {
  assert(blockDim.x > 0);
  const word i = threadIdx.x;
  real best = -FLT_MAX;
  if (x[i] > best) best = x[i];
  y[i] = square(best) + sin(M_PI) + pow(best, 2) + sqrt(i) + INT_MAX;
}

void k_cpu(real* y, const real* x, int n) {
  for (int i = 0; i < n; i++) y[i] = (float)rand() / RAND_MAX + x[i];
}

// compares { the two
int main(int argc, const char** argv) {
  srand(0);
  const auto start = std::chrono::steady_clock::now();
  real* y; real* x;
  cudaMalloc(&y, 4 * sizeof(real));
  cudaMalloc(&x, 4 * sizeof(real));
  k<<<1, 4>>>(y, x);
  cudaDeviceSynchronize();
  printf("}%s", argc > 1 ? argv[1] : "");
  return EXIT_SUCCESS;
}
"""

NO_INCLUDE = r"""
template <typename T>
struct Sum {
  T value;
  Sum(T start = T(0)) : value{start} {}
  void add(T x) { value += x; }
};

__global__ void k(float* y, const float* x) {
  Sum<float> sum(INFINITY);
  sum.add(NAN);
  uint i = threadIdx.x; ushort s = 3; int64_t n = INT64_MAX; uint8_t b = UCHAR_MAX; size_t z = 1;
  y[0] = sum.value + FLT_MAX + DBL_EPSILON + M_PI + std::max(1, 2) + std::abs(x[i]) + s + n + b + z;
  y[1] = std::numeric_limits<int>::max() + std::is_same<float, float>::value;
  y[2] = std::exp(x[0]) + std::pow(x[0], 2.f) + std::move(x[1]);
  if (x[0] > 3) abort();
}
"""


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("source", "entry", "args"),
    [
        (EXTENSION, "relu_kernel<{x.dtype}>", "y, x, 4, 6.0"),
        (PROGRAM, "k", "y, x"),
        (NO_INCLUDE, "k", "y, x"),
    ],
    ids=["extension", "program", "no_include"],
)
def test_a_file_for_nvcc(source: str, entry: str, args: str, arch: str, unique: str) -> None:
    assert compile_cuda(unique, source, entry, args, arch)["bytes"]


def test_a_warning_names_the_line_of_the_file(unique: str) -> None:
    """Lines count as in the file, though functions before were left out."""
    lines = EXTENSION.split("\n")
    at = next(i for i, line in enumerate(lines) if "never {" in line)
    lines[at] = "  int unused_number = 3;"
    made = compile_cuda(unique, "\n".join(lines), "relu_kernel<{x.dtype}>", "y, x, 4, 6.0")
    assert f'({at + 1}): warning #177-D: variable "unused_number"' in made["log"]


def test_an_error_in_the_kernel_is_the_only_one_told(unique: str) -> None:
    source = EXTENSION.replace("printf(", "prinft(")
    with pytest.raises(opaq.CompileError) as raised:
        compile_cuda(unique, source, "relu_kernel<{x.dtype}>", "y, x, 4, 6.0")
    assert 'identifier "prinft" is undefined' in str(raised.value)
    assert str(raised.value).count(": error:") == 1


def test_device_code_that_needs_a_function_of_the_host(unique: str) -> None:
    source = """
    float one() { return std::string("1").size(); }
    __global__ void k(float* y, const float* x) { y[0] = one(); }
    """
    with pytest.raises(opaq.CompileError, match="opaq left 'one' out as a function of the host"):
        compile_cuda(unique, source)


def test_an_error_in_a_helper_that_device_code_needs(unique: str) -> None:
    source = """
    float one() { return nope; }
    __global__ void k(float* y, const float* x) { y[0] = one(); }
    """
    with pytest.raises(opaq.CompileError, match='identifier "nope" is undefined'):
        compile_cuda(unique, source)


def test_functions_of_the_host_in_headers(unique: str, tmp_path: pathlib.Path) -> None:
    """The file's own headers, beside it and below include_dirs=, hold launchers too."""
    (tmp_path / "detail").mkdir()
    (tmp_path / "detail" / "one.h").write_text("#pragma once\n__device__ float one(float x);\n")
    (tmp_path / "detail" / "launch.h").write_text(
        '#pragma once\n#include "one.h"\n#include <torch/all.h>\n'
        "torch::Tensor f(const torch::Tensor& x);\n"
        "void check(cudaError_t e) { if (e != cudaSuccess) throw std::runtime_error(``); }\n"
        "__device__ float one(float x) { return x; }\n".replace("`", '"')
    )
    (tmp_path / "k.cu").write_text(
        '#include "detail/launch.h"\n'
        "__global__ void k(float* y, const float* x) { y[0] = one(x[0]); }\n"
        "torch::Tensor f(const torch::Tensor& x) { k<<<1, 1>>>(0, 0); return x; }\n"
    )
    assert compile_cuda(unique, opaq.file(tmp_path / "k.cu"))["bytes"]
    source = (tmp_path / "k.cu").read_text()
    assert compile_cuda(unique, source, include_dirs=[tmp_path])["bytes"]


def test_a_condition_on_a_macro_of_torch_is_not_taken_as_false(unique: str) -> None:
    source = """
    #include <torch/extension.h>
    #if AT_PARALLEL_OPENMP
    #define VALUE 1
    #endif
    __global__ void k(float* y, const float* x) {}
    """
    with pytest.raises(
        opaq.CompileError, match=r"'torch/\w+\.h' was not found: .*condition \(#if\)"
    ):
        compile_cuda(unique, source)


def test_a_condition_on_the_version_of_torch(unique: str) -> None:
    source = """
    #include <torch/extension.h>
    #if TORCH_VERSION_MAJOR >= 2 && defined(C10_HOST_DEVICE)
    __global__ void k(float* y, const float* x) {}
    #endif
    """
    assert compile_cuda(unique, source)["bytes"]


TORCH_TYPES = """
#include <ATen/AccumulateType.h>
#include <ATen/OpMathType.h>
#include <ATen/cuda/Atomic.cuh>
#include <ATen/cuda/DeviceUtils.cuh>
#include <ATen/cuda/NumericLimits.cuh>
#include <ATen/cuda/detail/KernelUtils.h>
#include <torch/extension.h>

template <typename T>
__global__ void k(T* y, const T* x, int n) {
  using acc_t = at::acc_type<T, true>;
  using math_t = at::opmath_type<T>;
  static_assert(std::is_same_v<math_t, acc_t> || std::is_integral_v<T>);
  CUDA_KERNEL_LOOP(i, n) {
    acc_t sum = x[i];
    if (x[i] > T(0)) sum += static_cast<acc_t>(x[i] * x[i]);
    if constexpr (sizeof(T) > 1) sum += static_cast<acc_t>(at::numeric_limits<T>::lower_bound());
    gpuAtomicAdd(reinterpret_cast<float*>(y), WARP_SHFL_DOWN(float(sum), 1));
    y[i] = static_cast<T>(sum);
  }
}
torch::Tensor f(torch::Tensor x) {
  AT_DISPATCH_ALL_TYPES(x.scalar_type(), "f", [&] {
    k<scalar_t><<<1, 1>>>(x.data_ptr<scalar_t>(), x.data_ptr<scalar_t>(), x.numel());
  });
  return x;
}
"""


@pytest.mark.parametrize(
    "entry",
    [
        "k<opaq::torch_type<{x.dtype}>>",
        "k<float>",
        "k<c10::Half>",
        "k<c10::BFloat16>",
        "k<c10::Float8_e4m3fn>",
        "k<int64_t>",
    ],
)
def test_the_number_types_of_torch(unique: str, entry: str) -> None:
    args: list[object] = ["y", "x", "x.numel()"]
    if "torch_type" not in entry:
        pointee = entry[2:-1]
        args[:2] = [opaq.cast(f"{pointee}*", "y"), opaq.cast(f"const {pointee}*", "x")]
    assert compile_cuda(unique, TORCH_TYPES, entry, args)["bytes"]


STANDARD = sorted(
    str(path.relative_to(folder))
    for folder in [pathlib.Path(_runtime.__file__).parent / "device_headers"]
    for path in folder.rglob("*")
    if path.is_file() and not path.name.startswith("torch_")
)


def test_every_header_of_the_standard_library_compiles(unique: str) -> None:
    """All of them together, twice, in both orders, and with what CCCL has of them."""
    order = [name for name in STANDARD if not name.startswith("cub/")]
    includes = "".join(f"#include <{name}>\n" for name in order + order[::-1])
    kernel = "__global__ void k(float* y, const float* x) { y[0] = INFINITY; }\n"
    assert compile_cuda(unique, includes + kernel)["log"] == ""
    if is_there("cuda/std/version"):
        cccl = "#include <cuda/std/cmath>\n#include <cuda/std/array>\n#include <cuda/std/limits>\n"
        assert compile_cuda(unique, includes + cccl + kernel)["log"] == ""
        assert compile_cuda(unique, cccl + includes + kernel)["log"] == ""


MEMBERS = {
    "algorithm": "int a[3] = {3, 1, 2}; y[0] = std::max({1, 2, 3}) + std::clamp(5, 1, 3) + "
    "*std::max_element(a, a + 3) + std::minmax(1, 2).first; std::fill(a, a + 3, 0); "
    "std::swap(a[0], a[1]); std::copy(a, a + 3, y); y[1] = std::lower_bound(a, a + 3, 2) - a;",
    "array": "std::array<float, 3> a{1, 2, 3}; for (float v : a) y[0] += v; y[1] = std::get<1>(a) "
    "+ a.size() + a.back(); std::array b{1, 2}; y[2] = b[1];",
    "bit": "y[0] = std::bit_cast<float>(1u);",
    "cmath": "y[0] = std::sqrt(x[0]) + std::sqrt(4) + std::pow(x[0], 2) + std::pow(2, 3) + "
    "std::fmod(x[0], 2.0) + std::abs(-1) + std::hypot(x[0], x[1]) + std::lround(x[0]) + M_SQRT2 + "
    "HUGE_VALF + std::isinf(x[0]) + floor(3) + std::lerp(1.f, 2.f, 3.f) + std::atan2(x[0], 1) + "
    "log(2) + std::copysign(1.f, x[0]); constexpr float infinite = -INFINITY; y[1] = infinite;",
    "cstddef": "y[0] = offsetof(float4, z) + std::size_t(1) + sizeof(std::nullptr_t); "
    "static_assert(offsetof(float4, z) == 8);",
    "cstdint": "std::uint64_t a = UINT64_MAX; int_fast32_t b = INT32_C(3); y[0] = a + b;",
    "cstdio": 'std::printf("%d", 1);',
    "cstdlib": "y[0] = std::abs(-3) + EXIT_FAILURE; std::free(std::malloc(4));",
    "cstring": "char a[4]; std::memset(a, 0, 4); std::memcpy(a, x, 4); y[0] = std::strlen(a) + "
    "std::memcmp(a, x, 4);",
    "cfloat": "y[0] = FLT_EPSILON + DBL_MAX + FLT_DIG;",
    "climits": "y[0] = CHAR_BIT + LLONG_MAX + UINT_MAX + SHRT_MIN;",
    "functional": "y[0] = std::plus<float>()(1, 2) + std::less<>()(1, 2.f);",
    "iterator": "int a[3]; y[0] = std::size(a) + (std::end(a) - std::begin(a));",
    "limits": "y[0] = std::numeric_limits<float>::infinity() + "
    "std::numeric_limits<int64_t>::lowest() + std::numeric_limits<unsigned char>::digits; "
    "static_assert(std::numeric_limits<int>::max() == INT_MAX); "
    "static_assert(std::numeric_limits<double>::max() == DBL_MAX);",
    "memory": "y[0] = *std::addressof(y[1]);",
    "numbers": "y[0] = std::numbers::pi_v<float> + std::numbers::e;",
    "numeric": "int a[3]; std::iota(a, a + 3, 0); y[0] = std::gcd(12, 18) + std::lcm(4, 6) + "
    "std::accumulate(a, a + 3, 0);",
    "type_traits": "static_assert(std::is_same_v<std::decay_t<const int&>, int>); "
    "static_assert(std::is_same_v<std::common_type_t<int, float>, float>); "
    "static_assert(std::is_same_v<std::make_unsigned_t<const int>, const unsigned int>); "
    "static_assert(std::is_convertible<int, float>::value); "
    "static_assert(!std::is_convertible_v<int*, int>); "
    "static_assert(std::is_trivially_copyable_v<float4>); "
    "static_assert(std::is_floating_point_v<const double>); "
    "static_assert(std::is_same_v<std::conditional_t<false, int, char>, char>); "
    "static_assert(std::is_function_v<void()> && !std::is_function_v<int>); "
    "static_assert(std::is_same_v<std::decay_t<int[3]>, int*> && std::is_pointer_v<int* const>); "
    "static_assert(std::extent_v<int[3][4], 1> == 4 && std::rank_v<int[3][4]> == 2); "
    "auto f = [](int a) { return a * 2.f; }; "
    "static_assert(std::is_same_v<std::invoke_result_t<decltype(f), int>, float>); "
    "static_assert(!std::is_invocable_v<decltype(f), float4>); y[0] = f(1);",
    "utility": "std::pair<int, float> a{1, 2}; auto [b, c] = a; y[0] = b + c + std::exchange(b, 3) "
    "+ std::make_index_sequence<5>::size(); auto d = std::make_pair(1, 2); y[1] = std::get<1>(d);",
}
OF_CCCL = {
    "atomic": "std::atomic<int>* a; y[0] = std::memory_order_relaxed == std::memory_order_seq_cst;",
    "bit": "y[0] = std::popcount(7u) + std::countl_zero(1u);",
    "complex": "std::complex<float> a(1, 2); y[0] = std::abs(a) + (a * a).real();",
    "optional": "std::optional<int> a = 3; y[0] = *a;",
    "span": "std::span<float> a(y, 3); y[0] = a[1];",
    "tuple": "std::tuple<int, float> a{1, 2}; auto [b, c] = a; int d; "
    "std::tie(d, std::ignore) = std::make_tuple(1, 2); y[0] = std::get<0>(a) + b + c + d;",
}


def members(bodies: dict[str, str]) -> str:
    """One kernel that includes the headers in turn and uses each."""
    includes = "".join(f"#include <{header}>\n" for header in bodies)
    blocks = "\n".join(f"{{ {body} }}" for body in bodies.values())
    return f"{includes}__global__ void k(float* y, const float* x) {{\n{blocks}\n}}\n"


def test_members_of_the_standard_library(unique: str) -> None:
    assert compile_cuda(unique, members(MEMBERS))["bytes"]


@needs("cuda/std/version")
def test_members_that_cccl_has(unique: str) -> None:
    bodies = {name: body for name, body in OF_CCCL.items() if is_there(f"cuda/std/{name}")}
    assert compile_cuda(unique, members({**bodies, "array": MEMBERS["array"]}))["bytes"]


def test_a_standard_header_of_the_users_own_goes_first(unique: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "limits").write_text("__device__ float mine() { return 1; }\n")
    source = "#include <limits>\n__global__ void k(float* y, const float* x) { y[0] = mine(); }"
    assert compile_cuda(unique, source, include_dirs=[tmp_path])["bytes"]


LIBRARIES = {
    "cooperative_groups.h": "auto b = cooperative_groups::this_thread_block(); b.sync();",
    "cuda/barrier": "__shared__ cuda::barrier<cuda::thread_scope_block> b; init(&b, 1);",
    "cuda/pipeline": "auto p = cuda::make_pipeline(); p.producer_acquire();",
    "mma.h": "nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> a; "
    "nvcuda::wmma::fill_fragment(a, 0.f);",
    "curand_kernel.h": "curandState s; curand_init(1, 2, 3, &s); y[0] = curand_normal(&s);",
    "cuda_fp8.h": "y[0] = float(__nv_fp8_e4m3(x[0]));",
    "cuda_fp6.h": "y[0] = float(__nv_fp6_e2m3(x[0]));",
    "cuda_fp4.h": "y[0] = float(__nv_fp4_e2m1(x[0]));",
    "cuda_runtime.h": "float4 a = make_float4(1, 2, 3, 4); y[0] = a.x;",
    "cuda.h": "CUtensorMap* map = nullptr; y[0] = map != nullptr;",
    "cublas_v2.h": "y[0] = __half2float(__half(1));",
    "cub/cub.cuh": "typedef cub::BlockReduce<float, 128> R; __shared__ typename R::TempStorage t; "
    "typedef cub::WarpScan<int> S; y[0] = R(t).Sum(x[0]); typedef cub::BlockRadixSort<int, 32, 4> "
    "Q; y[1] = sizeof(typename Q::TempStorage) + sizeof(typename S::TempStorage);",
}


@pytest.mark.parametrize("header", LIBRARIES)
def test_a_library_of_cuda(header: str, unique: str) -> None:
    part = "crt/mma.h" if header == "mma.h" else "cuda/std/version" if "coop" in header else header
    if not is_there(part):
        pytest.skip(f"<{part}> is not installed")
    kernel = f"__global__ void k(float* y, const float* x) {{ {LIBRARIES[header]} }}\n"
    assert compile_cuda(unique, f"#include <{header}>\n{kernel}")["bytes"]
