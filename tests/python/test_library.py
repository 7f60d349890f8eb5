"""`Op.library`: a C function of a shared library, eager, in both wrappers and in packages."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import forked
import pytest
import torch

import opaq

SOURCE = """
#include <stdint.h>
void scale(const float* x, float by, float* out, int32_t n) {
  for (int32_t i = 0; i < n; ++i) out[i] = x[i] * by;
}
void wide(const float* x, double by, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * by;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("library")
    (folder / "scale.c").write_text(SOURCE)
    path = folder / "libscale.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, folder / "scale.c"], check=True)
    return path


def declared(name: str, library: pathlib.Path, args: str = "x, by, out, x.numel()") -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    return op.library(
        library,
        symbol="scale",
        args=args,
        device="cpu",
        signature="void(const float*, float, float*, int32_t)",
    )


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=["python", "cpp"])
def test_compiled_graphs_call_it_as_eager_does(
    unique: str, library: pathlib.Path, options: dict[str, bool]
) -> None:
    op = declared(unique, library)
    x = torch.randn(6, 5)
    torch.testing.assert_close(op(x), x * 2)
    torch.testing.assert_close(op(x.t(), 3.0), x.t() * 3)  # strides are not read: it is copied
    compiled = torch.compile(
        lambda x, by: op(op(x), by), backend="opaq", dynamic=True, options=options
    )
    for size in (6, 9):
        x = torch.randn(size, 5)
        torch.testing.assert_close(compiled(x, 1.5), x * 3)
    nodes = [node for node in opaq.report().nodes if node.op == unique]
    assert {node.implementation for node in nodes} == {"library"}
    assert sum(node.calls for node in nodes) == 4


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=["python", "cpp"])
def test_a_number_that_does_not_fit_the_signature_is_an_error(
    unique: str, library: pathlib.Path, options: dict[str, bool]
) -> None:
    op = declared(unique, library, args="x, by, out, x.numel() * 1000000000")
    text = (
        rf"{unique}: argument 4 `x.numel\(\) \* 1000000000` is 3000000000, which does not fit the "
        "kernel's parameter `int`"
    )
    with pytest.raises(opaq.LaunchError, match=text):
        op(torch.ones(3))
    with pytest.raises(RuntimeError, match=text):
        torch.compile(lambda x: op(x), dynamic=True, backend="opaq", options=options)(torch.ones(3))


def test_without_a_signature_the_arguments_tell_the_types(
    unique: str, library: pathlib.Path
) -> None:
    op = opaq.op(f"{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    op.library(library, symbol="wide", args="x, by, out, x.numel()", device="cpu")
    torch.testing.assert_close(op(torch.ones(4)), torch.full((4,), 2.0))


def test_a_tensor_of_another_dtype_is_an_error(unique: str, library: pathlib.Path) -> None:
    op = declared(unique, library)
    with pytest.raises(opaq.CompileError, match=r"argument 1 `x`.*float64.*`float const\*`"):
        op(torch.ones(3, dtype=torch.float64))


def test_a_package_holds_the_library(
    unique: str, library: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    mine = tmp_path / "libmine.so"
    mine.write_bytes(library.read_bytes())
    op = declared(unique, mine)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x, 4.0)

    exported = torch.export.export(Model(), (torch.ones(8),))
    path = opaq.package(exported, tmp_path / "model.pt2")
    mine.unlink()
    program = (
        "import torch; model = torch._inductor.aoti_load_package(r'"
        + str(path)
        + "'); print(model(torch.ones(8)).sum().item())"
    )
    done = forked.run([sys.executable, "-c", program], check=True, inductor=True)
    assert done.stdout.split() == ["32.0"]


def test_a_relative_path_is_that_of_the_declaration(
    unique: str, library: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(library.parent)
    op = declared(unique, pathlib.Path("./libscale.so"))  # pathlib drops the "./"
    other = opaq.op(f"{unique}_2(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    other.library("./libscale.so", symbol="wide", args="x, by, out, x.numel()", device="cpu")
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(other(torch.ones(4)), torch.full((4,), 2.0))
    with pytest.raises(opaq.MissingError, match="`library` cannot be loaded: libscale.so.*ldd"):
        op(torch.ones(3))


def test_mistakes_are_refused_by_name(unique: str, library: pathlib.Path) -> None:
    op = opaq.op(f"{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))

    def refused(text: str, **changed: object) -> None:
        given = {"path": library, "symbol": "scale", "args": "x, out", "device": "cpu", **changed}
        with pytest.raises(opaq.DeclarationError) as error:
            op.library(**given)  # type: ignore[arg-type]
        assert text in str(error.value)

    where = f"{unique}: .library(...): "
    refused(where + "path: got 3 (int); expected the path of a shared library", path=3)
    refused(where + "path: got '' (str); expected the path of a shared library", path="")
    refused(where + 'device: got \'cuda:0\' (str); expected "cuda" or "cpu"', device="cuda:0")
    refused(where + "symbol: got ' ' (str); expected the name of the function", symbol=" ")
    refused(
        f"signature of {unique}, implementation 'library': 'int(void*, void*)' is not of the form "
        "void(types of the parameters), such as void(const float*, float*, int64_t)",
        signature="int(void*, void*)",
    )
    refused("has 1 parameters; args lists 2", signature="void(void*)")
    refused(
        "on CUDA the function is called with the stream last",
        signature="void(void*, int)",
        device="cuda",
    )
    op.library(library, symbol="scael", args="x, by, out, x.numel()", device="cpu")
    with pytest.raises(opaq.DeclarationError, match="libscale.so has no symbol `scael`; declare"):
        op(torch.ones(3))
