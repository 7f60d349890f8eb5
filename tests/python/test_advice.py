"""opaq's advice on compiler errors is right: with each advised include and name in the source, it
compiles.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import re

import pytest

import opaq
from opaq import _runtime

NVRTC = _runtime.doctor()["nvrtc"]
FOLDERS = NVRTC["include_dirs"]
HAS_CCCL = any(os.path.exists(os.path.join(folder, "cuda/std/version")) for folder in FOLDERS)

pytestmark = [
    pytest.mark.skipif(
        not NVRTC["found"], reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc"
    ),
    pytest.mark.skipif(
        not FOLDERS, reason="CUDA's headers are not installed: pip install nvidia-cuda-runtime"
    ),
]
needs_cccl = pytest.mark.skipif(
    not HAS_CCCL, reason="CCCL is not installed: pip install nvidia-cuda-cccl"
)

_count = itertools.count()


def complaint(unique: str, includes: str, body: str) -> str:
    """opaq's error message for the source; "" if it compiles."""
    op = opaq.op(f"{unique}_{next(_count)}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    source = f"{includes}\n__global__ void k(float* y, const float* x) {{\n{body}\n}}\n"
    op.cuda(source=source, entry="k", args="y, x", grid=1, block=1, compiler="nvrtc")
    try:
        _runtime.compile(op.name, [("float32", (4,), (1,), "cuda:0", 256)], "sm_90a", "cuda")
    except opaq.CompileError as error:
        return str(error)
    return ""


def advised(message: str) -> str:
    return "\n".join(
        dict.fromkeys(
            re.findall(r"#include <[^>]+>", message.split("detected in", 1)[-1].rpartition("^")[2])
        )
    )


def as_told(body: str, message: str) -> str:
    """The body with each name replaced by what the message says to write in its place."""
    for old, new in re.findall(r"'([^']+)' needs an include: write ([^,\n]+), with", message):
        body = re.sub(rf"\b{old}\b", new.split(" or ")[0], body)
    for new in re.findall(r"write cuda::std::(\w+), with", message):
        body = re.sub(rf"(?<!cuda::)\bstd::{new}\b", f"cuda::std::{new}", body)
    for new in re.findall(r": write (\w+), which needs no include", message):
        body = re.sub(rf"(cuda::)?\bstd::{new}\b", new, body)
    return body


def follow(bodies: dict[str, str], unique: str) -> None:
    """One source with everything that the messages advise compiles. (One source for each would take
    long, because of CCCL's headers.)
    """
    includes, blocks = [], []
    for body in bodies.values():
        message = complaint(unique, "", body)
        if not message:
            continue  # this NVRTC knows the names
        assert advised(message) or "which needs no include" in message, message
        if any(f"<{header}> (it belongs to" in message for header in ("cuda_fp6.h", "cuda_fp4.h")):
            continue  # not in this version of CUDA, as the message says
        includes.append(advised(message))
        blocks.append(f"{{ {as_told(body, message)} }}")
    assert complaint(unique, "\n".join(includes), "\n".join(blocks)) == ""


BY_INCLUDE = {
    "half": "__half a = __float2half(x[0]); half2 b = __half2half2(a); half c = a; y[0] = "
    "__half2float(c);",
    "bfloat16": "__nv_bfloat16 a = __float2bfloat16(x[0]); nv_bfloat162 b; nv_bfloat16 c = a; "
    "y[0] = __bfloat162float(c);",
    "fp8": "__nv_fp8_e4m3 a; __nv_fp8x2_e5m2 b;",
    "fp6": "__nv_fp6_e2m3 a;",
    "fp4": "__nv_fp4_e2m1 a;",
    "complex": "cuComplex a; cuDoubleComplex b;",
    "pipeline": "__pipeline_commit();",
    "constants": "y[0] = CUDART_INF_F; y[1] = CUDART_NAN_F;",
    "cooperative groups": "auto block = cooperative_groups::this_thread_block();",
    "cuda::std": "y[0] = cuda::std::numeric_limits<float>::max();",
}


@needs_cccl
def test_names_without_their_includes(unique: str) -> None:
    follow(BY_INCLUDE, unique)


@needs_cccl
@pytest.mark.parametrize(
    "body", ["using Reduce = cub::BlockReduce<float, 128>;", "thrust::plus<float> plus;"]
)
def test_a_library_without_its_include(body: str, unique: str) -> None:
    includes = advised(complaint(unique, "", body))
    assert includes
    after = complaint(unique, includes, body)
    # those of CUDA 12.4 need a host compiler
    assert after == "" or "that header is for host code" in after, after


@pytest.mark.parametrize(
    "name",
    [
        "uchar",
        "bfloat16",
        "__shfl",
        "__shfl_up",
        "__shfl_down",
        "__shfl_xor",
    ],
)
def test_a_name_to_write_in_place_of_another(name: str, unique: str) -> None:
    if name.startswith("__"):
        write = lambda name, mask: f"y[0] = {name}({mask}1, 1);"
    else:
        write = lambda name, mask: f"{name} a;"
    message = complaint(unique, "", write(name, ""))
    (choices,) = re.findall(r": write ([^,\n]+?)(?:, |$)", message)
    for choice in choices.split(" or "):
        assert complaint(unique, advised(message), write(choice, "0xffffffff, ")) == ""


@pytest.mark.parametrize("name", ["__ballot", "__any", "__all"])
def test_votes_without_a_mask(name: str, unique: str) -> None:
    message = complaint(unique, "", f"y[0] = {name}(1);")
    assert (
        "write __ballot_sync, __any_sync or __all_sync, whose first argument is the mask of threads"
        in message
    )
    assert complaint(unique, "", f"y[0] = {name}_sync(0xffffffff, 1);") == ""


STD = {
    "tuple": "std::tuple<int, float> a;",
    "complex": "std::complex<float> a;",
    "optional": "std::optional<int> a;",
    "span": "std::span<int> a;",
    "atomic": "std::atomic<int>* a;",
}


@needs_cccl
def test_names_of_the_standard_library(unique: str) -> None:
    follow(STD, unique)


@needs_cccl
def test_members_that_this_cccl_lacks(unique: str) -> None:
    """The members are asked for with a header that brings others of cuda::std."""
    message = complaint(
        unique,
        "#include <cuda/std/cstddef>",
        "y[0] = cuda::std::fma(1.f, 2.f, 3.f); cuda::std::optional<int> a; cuda::std::mine(1);",
    )
    assert "cuda::std::fma is not there: write fma, which needs no include" in message
    assert (
        "cuda::std::optional is not there: write cuda::std::optional, with #include "
        "<cuda/std/optional>" in message
    )
    assert "mine is not there" not in message


def test_what_the_standard_library_has_and_cccl_does_not(unique: str) -> None:
    assert "std::vector is not there for device code: use pointers, arrays, and what" in complaint(
        unique, "", "std::vector<int> a;"
    )


def in_cccl(header: str) -> bool:
    return any(os.path.exists(os.path.join(folder, header)) for folder in FOLDERS)


@needs_cccl
def test_a_newer_cccl_is_given_by_include_dirs(unique: str, tmp_path: pathlib.Path) -> None:
    """include_dirs= go before the CCCL that opaq found."""
    (tmp_path / "cuda/std").mkdir(parents=True)
    (tmp_path / "cuda/std/limits").write_text("__device__ float newer() { return 1; }\n")
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    source = "#include <cuda/std/limits>\n__global__ void k(float* y) { y[0] = newer(); }"
    op.cuda(source=source, entry="k", args="y", include_dirs=[tmp_path])
    assert _runtime.compile(op.name, [("float32", (4,), (1,), "cuda:0", 256)], "sm_90a", "cuda")[
        "bytes"
    ]


def test_what_needs_no_include(unique: str) -> None:
    assert (
        complaint(
            unique,
            "",
            'assert(y); printf("%d", 1); memcpy(y, x, 4); memset(y, 0, 4); size_t n = 4; y[0] '
            "= isnan(x[0]) + n; free(malloc(4));",
        )
        == ""
    )


HEADERS = _runtime.doctor()["headers"]


@pytest.mark.parametrize(
    "header", [header for part in HEADERS if part["folder"] for header in part["examples"]]
)
def test_every_header_that_is_advised(header: str, unique: str) -> None:
    """Those that are installed: it compiles, or the message says which package brings the rest."""
    message = complaint(unique, f"#include <{header}>", "")
    if message:
        assert re.search(
            "it belongs to .*(`pip install|a newer CCCL has it|install that part of it)", message
        )


def test_each_part_of_the_headers_is_found_or_advised() -> None:
    named = {part["holds"]: part["folder"] or part["advice"] for part in HEADERS}
    assert set(named) == {
        "CCCL",
        "cuRAND",
        "the compiler's own headers",
        "the headers of CUDA's runtime",
        "PyTorch's headers for device code",
    }
    assert all(named.values()), named


@needs_cccl
@pytest.mark.parametrize(
    ("header", "advice"),
    [
        ("cuda/std/cstdio", "it belongs to CCCL, and the folder in use for that, "),
        ("cuda/std/vector", "has no such file"),
        ("cuda/std/optionel", "did you mean 'cuda/std/optional'?"),
        ("cub/block/block_redux.cuh", "did you mean 'cub/block/block_reduce.cuh'?"),
        ("cooperative_group.h", "did you mean 'cooperative_groups.h'?"),
    ],
)
def test_a_package_that_is_installed_is_not_advised(header: str, advice: str, unique: str) -> None:
    message = complaint(unique, f"#include <{header}>", "")
    assert advice in message
    assert "did you mean 'cuda/std/_" not in message
    assert "pip install" not in message


@needs_cccl
def test_a_header_of_a_newer_cccl(unique: str) -> None:
    message = complaint(unique, "#include <cuda/std/algorithm>", "")
    if in_cccl("cuda/std/algorithm"):
        assert message == ""
    else:
        assert (
            "'cuda/std/algorithm' was not found: it belongs to CCCL, and the folder in use for "
            "that, " in message
        )
        assert "has no such file; a newer CCCL has it: " in message


@pytest.mark.parametrize(
    ("header", "missing", "advice"),
    [
        (
            "curand_kernel.h",
            "curand_kernel.h",
            (
                "it belongs to cuRAND: `pip install "
                '"nvidia-curand"`, or give the folder that holds it in include_dirs='
            ),
        ),
        (
            "mma.h",
            "crt/mma.h",
            (
                "NVIDIA's own mma.h includes it; it belongs to the compiler's "
                'own headers: `pip install "nvidia-cuda-crt=='
            ),
        ),
    ],
)
def test_a_header_of_a_package_that_is_not_installed(
    header: str, missing: str, advice: str, unique: str
) -> None:
    if any(os.path.exists(os.path.join(folder, missing)) for folder in FOLDERS):
        assert complaint(unique, f"#include <{header}>", "") == ""
        return
    message = complaint(unique, f"#include <{header}>", "")
    assert f"'{missing}' was not found: " in message
    if "nvidia/cu13" in NVRTC["path"]:
        assert advice in message
        if "crt" in missing:
            major, minor, *_ = NVRTC["version"].split(".")
            assert f"nvidia-cuda-crt=={major}.{minor}.*" in message


def test_a_header_for_host_code(unique: str) -> None:
    message = complaint(unique, "#include <cuda.h>", "")
    if not message:
        pytest.skip("this NVRTC can read cuda.h")
    assert (
        "'stdlib.h' was not found: NVIDIA's own cuda.h includes it; that header is for host code"
        in message
    )
    assert "leave out its include" in message
    assert "use CCCL's" not in message


@pytest.mark.parametrize(
    "header",
    ["helpers.cuh", "cuda/helpers.cuh", "cuda_helpers.h", "../common.h", "limits_of_mine.h"],
)
def test_a_header_of_the_users_own(header: str, unique: str, tmp_path: pathlib.Path) -> None:
    message = complaint(unique, f'#include "{header}"', "")
    assert (
        f"'{header}' was not found: the folder of the source's file (where it came by "
        "opaq.file) and include_dirs= were searched; " in message
    )
    assert 'give the folder that holds it, as in include_dirs=["/path/to/folder"]' in message
    assert "pip install" not in message


def test_include_dirs_is_the_remedy(unique: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "helpers.cuh").write_text("__device__ float one() { return 1; }\n")
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    source = '#include "helpers.cuh"\nextern "C" __global__ void k(float* y) { y[0] = one(); }'
    op.cuda(source=source, entry="k", args="y", include_dirs=[tmp_path])
    assert _runtime.compile(op.name, [("float32", (4,), (1,), "cuda:0", 256)], "sm_90a", "cuda")[
        "bytes"
    ]
    op = opaq.op(f"{unique}_host(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cpu(source='#include "helpers.h"\nvoid f(float* y) { y[0] = 1; }', entry="f", args="y")
    with pytest.raises(
        opaq.CompileError,
        match=r"'helpers\.h' was not found: give the folder that holds it, as in include_dirs=",
    ):
        _runtime.compile(op.name, [("float32", (4,), (1,), "cpu", 256)], "", "cpu")


def test_types_of_torch_in_device_code(unique: str) -> None:
    assert "PyTorch's C++ headers need a host compiler, and NVRTC cannot read them" in complaint(
        unique, "", "at::Tensor a;"
    )


def test_a_kernel_that_launches_kernels(unique: str) -> None:
    assert "device code cannot launch kernels here: let the host launch them" in complaint(
        unique, "__global__ void inner(float* y) {}", "inner<<<1, 1>>>(y);"
    )


def test_a_template_argument_without_its_include(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cuda(
        source="template <class T> __global__ void k(T* y) { y[0] = T(1); }",
        entry="k<{x.dtype}>",
        args="y",
    )
    with pytest.raises(opaq.CompileError, match=r"needs an include: #include <cuda_fp16\.h>"):
        _runtime.compile(op.name, [("float16", (4,), (1,), "cuda:0", 256)], "sm_90a", "cuda")


def test_an_unknown_name_of_the_users_own_is_left_to_the_compiler(unique: str) -> None:
    message = complaint(unique, "", "y[0] = my_function(1);")
    assert message.endswith("^")
