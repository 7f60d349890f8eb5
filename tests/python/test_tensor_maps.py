"""Tensor maps in argument lists: declarations, checks without a GPU, and what C++ wrappers hold.
What is encoded is tested in tests/cpp/tensor_map_test.cpp, launches in tests/gpu.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig

import pytest
import tensor_map_kernel
import torch
from fake_cuda import cpp_part, wrapper_source
from test_arguments import declare
from torch.utils import cpp_extension

import opaq
from opaq import _runtime, lowering

KERNEL = """
#include <cuda.h>
struct Params { int n; CUtensorMap maps[2]; };
__global__ void k(const __grid_constant__ CUtensorMap m, const __grid_constant__ Params p,
                  float* y) {
  y[0] = static_cast<float>(reinterpret_cast<unsigned long long>(&m) + p.n); }
"""
MAP = 'tensor_map(x, box=[64, 32], swizzle="128B")'
BOXES = "box, shape, strides, element_strides, swizzle, interleave, l2_promotion, oob_fill, type"


def test_the_two_spellings_are_one() -> None:
    written = opaq.tensor_map("x", box=[64, 32], swizzle="128B")
    op = declare()
    op.cuda(source=KERNEL, entry="k", args=[written, "y"], grid=1, block=1)
    op.cuda(source=KERNEL, entry="k", args=f"{MAP}, y", grid=1, block=1)  # no other: no error
    every = opaq.tensor_map(
        "x",
        "n",
        shape=["x.numel()"],
        strides=1,
        element_strides=[2],
        swizzle="64B",
        interleave="none",
        l2_promotion="256B",
        oob_fill="nan",
        type="tfloat32",
    )
    assert str(every) == (
        "tensor_map(x, box=[n], shape=[x.numel()], strides=[1], element_strides=[2], "
        'swizzle="64B", interleave="none", l2_promotion="256B", oob_fill="nan", type="tfloat32")'
    )


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_a_kernel_that_moves_tiles_compiles(arch: str) -> None:
    op = tensor_map_kernel.declare(f"tensor_maps::compiles_for_{arch}")
    x = torch.empty(20, 5, 36, device="meta")
    report = op.check(x, 2.0, torch.empty(1, dtype=torch.int32), arch=arch)
    assert report.ok, report


def test_a_check_holds_the_map_against_the_example() -> None:
    op = tensor_map_kernel.declare("tensor_maps::checked")
    report = op.check(torch.empty(4, 35), 2.0, torch.empty(1, dtype=torch.int32), arch="sm_90a")
    assert "stride 0 of `x` is 35 elements of 4 bytes, but a tensor map needs a multiple" in str(
        report
    )


def test_a_check_names_devices_without_maps() -> None:
    op = declare()
    args = [opaq.tensor_map("x", box=8), "struct(n=1, ...)", "y"]
    op.cuda(source=KERNEL, entry="k", args=args, grid=1, block=1)
    old, new = op.check(torch.empty(64), arch=["sm_80", "sm_90"]).implementations[0].code
    assert not new["problem"]
    assert old["problem"] == (
        f"{op.name}: argument 1 `tensor_map(x, box=[8])`: tensor maps need compute capability 9.0, "
        "and sm_80 is older; declare another implementation for it, without them"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "tensor_map(x), y",
            (
                "takes box=[...], the tile that one copy moves: a number of elements for each "
                "dimension, in the order of the tensor's sizes"
            ),
        ),
        (
            "tensor_map(box=[64]), y",
            "takes the name of a tensor first, as in tensor_map(x, box=[64, 64]); got 'box=[64]'",
        ),
        (
            "tensor_map(x.numel(), box=[64]), y",
            "takes the name of a tensor first, as in tensor_map(x, box=[64, 64]); got 'x.numel()'",
        ),
        (
            "tensor_map(x, box=[64], swizle='128B'), y",
            f"'swizle='128B'' is no option; did you mean 'swizzle'?; the options are {BOXES}",
        ),
        (
            "tensor_map(x, box=[64], [1]), y",
            f"'[1]' is no option; the options are {BOXES}",
        ),
        ("tensor_map(x, box=[64], box=[8]), y", "option 'box' is given twice"),
        (
            "tensor_map(x, box=[64], swizzle='512B'), y",
            (
                'swizzle is \'512B\'; expected one of "none", "32B", "64B", "128B", '
                '"128B_atom_32B", "128B_atom_32B_flip_8B", "128B_atom_64B"'
            ),
        ),
        ("tensor_map(x, box=[300, 64]), y", "box has the item 300; expected 1 to 256"),
        (
            "tensor_map(x, box=[1, 1, 1, 1, 1, 1]), y",
            "box has 6 items; expected one for each dimension, 1 to 5",
        ),
        (
            "tensor_map(x, box=[64], shape=[64, 64]), y",
            "shape has 2 items, but box has 1",
        ),
        (
            "tensor_map(x, box=[8, 8, 8], interleave='32B'), y",
            'interleave="32B" needs swizzle="32B"',
        ),
    ],
)
def test_a_map_that_cannot_be(args: str, message: str) -> None:
    op = declare()
    with pytest.raises(opaq.DeclarationError) as error:
        op.cuda(source=KERNEL, entry="k", args=args, grid=1, block=1)
    item = args.removesuffix(", y")
    expected = f"args of {op.name}, implementation 'cuda': {item}: {message}"
    assert str(error.value) == expected


def test_only_kernels_take_maps() -> None:
    op = declare()
    with pytest.raises(opaq.DeclarationError) as error:
        op.cpu(source="void f(float*) {}", entry="f", args=f"struct(m=[{MAP}]), y")
    assert "tensor maps go to CUDA kernels, and this is C++ source; pass the tensor" in str(
        error.value
    )
    with pytest.raises(opaq.DeclarationError, match="this is a library; pass the tensor, and"):
        op.library("libm.so.6", symbol="f", args=f"{MAP}, y", device="cuda")


def test_arguments_of_tensor_map() -> None:
    with pytest.raises(opaq.DeclarationError, match=r"opaq.tensor_map\(...\): tensor: got 3"):
        opaq.tensor_map(3, box=[1])  # type: ignore[arg-type]
    with pytest.raises(opaq.DeclarationError, match=r"box: got \[None\] \(list\); expected an int"):
        opaq.tensor_map("x", box=[None])  # type: ignore[list-item]
    with pytest.raises(opaq.DeclarationError, match="swizzle: got 128"):
        opaq.tensor_map("x", box=[1], swizzle=128)  # type: ignore[arg-type]


@pytest.mark.parametrize("language", ["cpp", "package"])
def test_the_cpp_wrapper_makes_each_map(language: str) -> None:
    """Its code is valid C++: of a parameter, of fields, of an absent tensor."""
    op = opaq.op(
        f"tensor_maps::in_{language}(Tensor x, Tensor? b=None) -> (Tensor y)",
        outputs=opaq.like("x"),
    )
    maps = [opaq.tensor_map("y", [8, 8], shape=["x.numel() // 8", 8]), opaq.tensor_map("b", 8)]
    op.cuda(
        source=KERNEL,
        entry="k",
        args=[
            opaq.tensor_map("x", ["x.size(0) // 2", 16], swizzle="64B"),
            opaq.struct("Params", n=3, maps=maps),
            "y",
        ],
        grid=1,
        block=1,
    )
    lowering.activate()
    with (
        lowering.options.use(archs=("sm_90a",)),
        torch._inductor.config.patch(graph_partition=False),
    ):
        text = wrapper_source(
            lambda x: op.overload(op.overload(x), x.view(-1)),
            (8, 16),
            dynamic=True,
            **{language: True},
        )
    if language == "cpp":
        text = cpp_part(text)
    name = f"tensor_maps::in_{language}"
    assert (
        f'opaq_declared_map = {{"{name}: argument 1 `tensor_map(x, box=[x.size(0) // 2, 16], '
        'swizzle=\\"64B\\")`", "x", 0, 2, 0, 0};' in text
    )
    assert (
        "opaq_put_tensor_map(opaq_struct_0 + 0, opaq_map, opaq_declared_map, x, 7, {}, {}, "
        f"{{(opaq_place = \"args of {name}, implementation 'cuda': 'x.size(0) // 2'\", "
        "opaq_floor_div(x.size(0), 2)), 16}, {}, opaq_device);" in text
    )
    # CUDA 13 aligns a map to 128 bytes, CUDA 12 to 64
    assert re.search(
        r"opaq_put_tensor_map\(opaq_struct_1 \+ (256|192), opaq_map, opaq_declared_map, b, 7", text
    )
    cuda = [
        f"{cpp_extension.CUDA_HOME}/include",
        *_runtime.doctor()["nvrtc"]["include_dirs"],
    ]
    folders = [sysconfig.get_path("include"), *cpp_extension.include_paths(), *cuda]
    command = ["g++", "-std=c++20", "-fsyntax-only", "-DUSE_CUDA", "-x", "c++", "-"]
    command += [f"-I{folder}" for folder in folders]
    probe = subprocess.run(
        command, input=b"#include <cuda_runtime_api.h>", stderr=subprocess.DEVNULL, check=False
    )
    if probe.returncode:
        pytest.skip("CUDA's runtime headers are not whole here: install nvidia-cuda-crt")
    built = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
