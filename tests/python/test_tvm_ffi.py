"""`Op.tvm_ffi`: a function exported through TVM-FFI, eager, in both wrappers and in packages."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import forked
import pytest
import torch
import tvm_ffi
from fake_cuda import cpp_part, wrapper_source

import opaq
from opaq import lowering

SOURCE = """
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/tvm_ffi.h>

namespace ffi = tvm::ffi;

void scale(ffi::TensorView x, double by, bool negative, ffi::Optional<ffi::TensorView> bias,
           ffi::TensorView y) {
  if (x.ndim() == 3) TVM_FFI_THROW(ValueError) << "x has " << x.ndim() << " dimensions";
  for (int i = 0; i < x.ndim(); ++i)
    TVM_FFI_ICHECK(x.size(i) == y.size(i) && x.stride(i) == y.stride(i));
  TVM_FFI_ICHECK(x.device().device_type == kDLCPU && (x.dtype() == DLDataType{kDLFloat, 32, 1}));
  const float* from = static_cast<const float*>(x.data_ptr());
  const float* add = bias ? static_cast<const float*>((*bias).data_ptr()) : nullptr;
  float* to = static_cast<float*>(y.data_ptr());
  for (int64_t i = 0; i < x.numel(); ++i)
    to[i] = (negative ? -by : by) * from[i] + (add ? add[i] : 0);
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(scale, scale);

// The dtype of x, its strides, and whether a stream is set.
void facts(ffi::TensorView x, int64_t n, ffi::TensorView out) {
  int64_t* to = static_cast<int64_t*>(out.data_ptr());
  to[0] = x.dtype().code, to[1] = x.dtype().bits, to[2] = x.dtype().lanes;
  to[3] = x.stride(0), to[4] = x.stride(1), to[5] = n;
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(facts, facts);

int64_t returns(ffi::TensorView x) { return 1; }
TVM_FFI_DLL_EXPORT_TYPED_FUNC(returns, returns);
"""
FORMS = ["eager", "dispatcher", "Python wrapper", "C++ wrapper", "package"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tvm_ffi")
    (folder / "scale.cpp").write_text(SOURCE)
    path = folder / "libscale.so"
    found = pathlib.Path(tvm_ffi.__file__).parent
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{found / 'include'}"]
    subprocess.run(
        [*command, "-o", path, folder / "scale.cpp", f"-L{found / 'lib'}", "-ltvm_ffi"], check=True
    )
    return path


def declared(name: str, library: pathlib.Path, args: str = "x, by, negative, bias, y") -> opaq.Op:
    op = opaq.op(
        f"{name}(Tensor x, Tensor? bias=None, float by=2.0, bool negative=False) -> (Tensor y)",
        outputs=opaq.like("x"),
    )
    return op.tvm_ffi(library, "scale", args=args, device="cpu")


class Model(torch.nn.Module):
    def __init__(self, op: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.op(self.op(x), bias, 3.0, True)


@pytest.mark.parametrize("form", FORMS)
def test_results(form: str, unique: str, library: pathlib.Path, tmp_path: Any) -> None:
    op = declared(unique, library)
    model: Callable[..., Any] = Model(op if form != "dispatcher" else op.overload)
    x, bias = torch.randn(6, 4), torch.randn(6, 4)
    if form == "package":
        dynamic = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
        program = torch.export.export(Model(op), (x, bias), dynamic_shapes=dynamic)
        model = torch._inductor.aoti_load_package(opaq.package(program, tmp_path / "model.pt2"))
    elif form.endswith("wrapper"):
        options = {"cpp_wrapper": form == "C++ wrapper"}
        model = torch.compile(model, fullgraph=True, dynamic=True, options=options)
    for size in (6, 9):
        x, bias = torch.randn(size, 4), torch.randn(size, 4)
        torch.testing.assert_close(model(x, bias), -6 * x + bias)
        if form == "package":
            continue  # which takes strides as they were when it was made
        x, bias = torch.randn(4, size).t(), torch.randn(size, 8)[:, ::2]
        torch.testing.assert_close(model(x, bias), -6 * x + bias)  # copied: row-major


@pytest.mark.parametrize("options", [None, {}, {"cpp_wrapper": True}], ids=str)
def test_the_error_of_the_function(
    unique: str, library: pathlib.Path, options: dict[str, Any] | None
) -> None:
    op = declared(unique, library)
    function = op if options is None else torch.compile(lambda x: op(x), options=options)
    expected = f"{unique}: its function `scale` threw: ValueError: x has 3 dimensions"
    with pytest.raises(RuntimeError if options else opaq.LaunchError, match=expected):
        function(torch.ones(2, 2, 2))
    torch.testing.assert_close(function(torch.ones(2, 2)), torch.full((2, 2), 2.0))


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (torch.bool, [6, 8, 1]),
        (torch.uint8, [1, 8, 1]),
        (torch.int64, [0, 64, 1]),
        (torch.bfloat16, [4, 16, 1]),
        (torch.float64, [2, 64, 1]),
        (torch.complex64, [5, 64, 1]),
        (torch.float8_e4m3fn, [10, 8, 1]),
        (torch.float8_e5m2, [12, 8, 1]),
    ],
    ids=str,
)
def test_tensors_are_passed_with_dtypes_and_strides(
    unique: str, library: pathlib.Path, dtype: torch.dtype, code: list[int]
) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.tensor(6, dtype="int64"))
    reads_strides = "x.stride(0) >= 0"
    op.tvm_ffi(library, "facts", args="x, x.numel() / 2, out", device="cpu", requires=reads_strides)
    x = torch.zeros(3, 4).to(dtype).t()
    assert x.__dlpack_device__()[0] == 1
    for options in (None, {}, {"cpp_wrapper": True}):
        function = op if options is None else torch.compile(lambda x: op(x), options=options)
        assert function(x).tolist() == [*code, 1, 4, 6]


def test_a_function_that_returns_a_value_is_an_error(unique: str, library: pathlib.Path) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) x) -> ()")
    op.tvm_ffi(library, "returns", args="x", device="cpu")
    with pytest.raises(
        opaq.LaunchError,
        match="its function `returns` threw: it returned a value; a function of an op returns "
        "nothing, and writes the results that args gives it",
    ):
        op(torch.ones(2))


def test_scratch_memory(unique: str, library: pathlib.Path) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    scratch = {"zero": opaq.zeros("x.shape", dtype="float32")}
    op.tvm_ffi(library, "scale", args="x, 3.0, False, zero, y", device="cpu", scratch=scratch)
    x = torch.randn(5, 2)
    for options in (None, {}, {"cpp_wrapper": True}):
        function = op if options is None else torch.compile(lambda x: op(x), options=options)
        torch.testing.assert_close(function(x), 3 * x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"function": " "}, "function: got ' ' .str.; expected the name with which the function"),
        ({"module": 3}, "module: got 3 .int.; expected the path of a shared library"),
        ({"device": "xpu"}, 'device: got \'xpu\' .str.; expected "cuda" or "cpu"'),
        (
            {"args": "x, x if negative else y"},
            "'x if negative else y': functions of TVM-FFI take tensors by their names",
        ),
        (
            {"args": ["x", opaq.struct("P", x="x")]},
            "a function of TVM-FFI does not tell how its fields lie in memory; give source",
        ),
        (
            {"args": ["y", opaq.cast("void*", "x")]},
            r"functions of TVM-FFI take tensors with their dtypes, and no pointers; pass x",
        ),
    ],
)
def test_declarations_that_are_refused(
    unique: str, library: pathlib.Path, fields: dict[str, Any], message: str
) -> None:
    schema = f"{unique}(Tensor x, bool negative, float by) -> (Tensor y)"
    op = opaq.op(schema, outputs=opaq.like("x"))
    given = {"module": library, "function": "scale", "args": "x, y", "device": "cpu", **fields}
    with pytest.raises(opaq.DeclarationError, match=message):
        op.tvm_ffi(given.pop("module"), given.pop("function"), **given)


def test_a_tensor_is_needed(unique: str, library: pathlib.Path) -> None:
    op = opaq.op(f"{unique}(Tensor x, float by) -> ()", effects="ordered")
    with pytest.raises(
        opaq.DeclarationError,
        match="no tensor is passed, through which a function of TVM-FFI finds its device",
    ):
        op.tvm_ffi(library, "scale", args="by", device="cpu")


def test_modules_are_given_by_path(unique: str, library: pathlib.Path) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) x) -> ()")
    with pytest.raises(
        opaq.DeclarationError,
        match=r"module: got .*; expected the path of the module's library, which "
        r"tvm_ffi.cpp.build\(...\) returns",
    ):
        op.tvm_ffi(tvm_ffi.load_module(str(library)), "scale", args="x", device="cpu")


def test_what_is_missing_is_named(unique: str, library: pathlib.Path, tmp_path: Any) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) x) -> ()")
    op.tvm_ffi(library, "scales", args="x", device="cpu")
    report = op.check(torch.ones(2))
    assert not report.ok
    expected = (
        f"{unique}: {library} has no symbol `__tvm_ffi_scales`; export the function by "
        "TVM_FFI_DLL_EXPORT_TYPED_FUNC(scales, ...), and check the name with `nm -D`"
    )
    assert report.problems == [expected]
    with pytest.raises(opaq.DeclarationError) as error:
        op(torch.ones(2))
    assert str(error.value) == expected
    op = opaq.op(f"{unique}_file(Tensor(a!) x) -> ()")
    op.tvm_ffi(tmp_path / "libnone.so", "f", args="x", device="cpu")
    with pytest.raises(opaq.MissingError, match="the library of implementation `tvm_ffi` cannot"):
        op(torch.ones(2))


@pytest.mark.long
def test_the_runtime_library_is_loaded_without_the_package(library: pathlib.Path) -> None:
    program = f"""
import sys, torch, opaq
op = opaq.op("tvm_ffi_tests::alone(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
op.tvm_ffi({str(library)!r}, "scale", args="x, 2.0, False, 0, y", device="cpu")
try:
    print(op(torch.ones(3)).tolist())
except opaq.LaunchError as error:
    print(error)
print("tvm_ffi" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    shown = forked.run(command, check=True)
    assert shown.stdout.splitlines()[-1] == "False"
    assert "its function `scale` threw: TypeError: " in shown.stdout  # 0 is no tensor


def test_what_a_node_on_cuda_prints(unique: str, library: pathlib.Path) -> None:
    op = opaq.op(f"{unique}(Tensor x, float by) -> (Tensor y)", outputs=opaq.like("x"))
    op.tvm_ffi(library, "scale", args="x, by, True, y", device="cuda")
    lowering.activate()
    cpp = cpp_part(wrapper_source(lambda x: op.overload(x, 3.0), (8, 4), cpp=True))
    package = wrapper_source(lambda x: op.overload(x, 3.0), (8, 4), package=True)
    tensor = "opaq_dl_tensor(x, {2, 32, 1}, {opaq::standalone::kDlCuda, opaq_device}, "
    for line in (
        "opaq_context(opaq::standalone::kLinkedDriver, opaq_device);",
        f'opaq_function("{unique}", "scale", opaq_call, true);',
        f"opaq_values[0] = opaq::standalone::TvmValue({tensor}opaq_tensors[0]));",
        "[&] { opaq_function(opaq_values, 4, opaq_device, opaq_stream); }",
    ):
        assert line in cpp, cpp
        assert line in package, package
