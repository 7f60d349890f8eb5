"""Wrong declarations, as newcomers write them: opaq.DeclarationError says op and parameter, what
was given, and what is accepted.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import opaq
from opaq import options

SOURCE = "void f(float* y) { y[0] = 1; }"
KERNEL = 'extern "C" __global__ void k(float* y) { y[0] = 1; }'


def declare(name: str, **changes: Any) -> opaq.Op:
    return opaq.op(f"{name}(Tensor x) -> (Tensor y)", **{"outputs": opaq.like("x"), **changes})


CPU = {"source": SOURCE, "entry": "f", "args": "y"}
CUDA = {"source": KERNEL, "entry": "k", "args": "y"}


@pytest.mark.parametrize("method", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("options", "-O3", "got '-O3' (str); expected a list of str; write options=['-O3']"),
        ("options", ["-O3", 3], "got ['-O3', 3] (list); expected a list of str"),
        ("options", b"-O3", "got b'-O3' (bytes); expected a list of str"),
        ("options", None, "got None; expected a list of str"),
        ("options", {"-O": 3}, "got {'-O': 3} (dict); expected a list of str"),
        (
            "include_dirs",
            "/usr/include",
            (
                "got '/usr/include' (str); expected a list of folders "
                "(str or pathlib.Path); write include_dirs=['/usr/include']"
            ),
        ),
        ("include_dirs", pathlib.Path("/usr"), "write include_dirs=['/usr']"),
        ("include_dirs", [3], "got [3] (list); expected a list of folders"),
        ("requires", 1, "got 1 (int); expected a list of str"),
        ("requires", [True], "got [True] (list); expected a list of str"),
        ("priority", "high", "got 'high' (str); expected an int of 32 bits"),
        ("priority", True, "got True (bool); expected an int of 32 bits"),
        ("priority", 1 << 40, "got 1099511627776 (int); expected an int of 32 bits"),
        ("priority", 1.5, "got 1.5 (float); expected an int of 32 bits"),
        ("name", 3, "got 3 (int); expected a str"),
        ("name", None, "got None; expected a str"),
        ("entry", b"k", "got b'k' (bytes); expected a str"),
        (
            "entry",
            opaq.file("/k.cu"),
            "got '/k.cu' (File); expected text; a file is for source=, binary= and libraries",
        ),
        ("entry", None, "got None; expected a str"),
        ("args", None, "got None; expected an int, an expression (a str), or a list of them"),
        (
            "args",
            {"y": "y"},
            "got {'y': 'y'} (dict); expected an int, an expression (a str), or a list of them",
        ),
        (
            "args",
            ["y", 0.5],
            "got ['y', 0.5] (list); expected an int, an expression (a str), or a list of them",
        ),
        ("args", "y\ud800", "expected text that UTF-8 can hold"),
        ("source", KERNEL.encode(), "expected a str"),
        (
            "source",
            "norm.cu",
            (
                "got 'norm.cu' (str); expected code as text, or a file; write "
                "source=opaq.file('norm.cu')"
            ),
        ),
        ("source", "../kernels/norm.cpp", "write source=opaq.file('../kernels/norm.cpp')"),
        ("source", "/my kernels (new)/norm.CU", "source=opaq.file('/my kernels (new)/norm.CU')"),
        ("source", "kernels/norm.cu.in", "write source=opaq.file('kernels/norm.cu.in')"),
        ("source", pathlib.Path("norm.cu"), "write source=opaq.file('norm.cu')"),
        ("source", 7, "got 7 (int); expected a str"),
        ("source", None, "takes"),
        (
            "source",
            opaq.file("/no/such/k.cu"),
            "cannot read /no/such/k.cu: No such file or directory",
        ),
        ("source", opaq.file("/usr"), "cannot read /usr: Is a directory"),
    ],
)
def test_a_wrong_value_of_an_implementation(
    method: str, parameter: str, value: Any, message: str, unique: str
) -> None:
    op = declare(unique)
    with pytest.raises(opaq.DeclarationError) as raised:
        getattr(op, method)(**{**(CPU if method == "cpu" else CUDA), parameter: value})
    assert str(raised.value).startswith(f"{unique}: .{method}(...): ")
    assert message in str(raised.value)
    if not message.startswith(("cannot", "takes")):
        assert f": {parameter}: " in str(raised.value)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("grid", 1.5, "got 1.5 (float); expected an int, an expression (a str), or a list of them"),
        ("grid", None, "got None; expected an int, an expression"),
        ("grid", True, "got True (bool); expected an int"),
        ("grid", [1, None], "got [1, None] (list); expected an int"),
        ("grid", lambda x: 1, "(function); expected an int"),
        ("grid", torch.tensor(3), "got tensor(3) (Tensor); expected an int"),
        ("grid", {"x": 1}, "got {'x': 1} (dict); expected an int"),
        ("grid", [], "has 0 items; expected 1 to 3"),
        ("grid", (1, 2, 3, 4), "has 4 items; expected 1 to 3"),
        ("block", 256.0, "got 256.0 (float); expected an int"),
        ("block", 0, "'0' is less than 1"),
        ("block", 2048, "a block has at most 1024"),
        ("shared", 1.5, "got 1.5 (float); expected an int"),
        ("shared", -1, "is negative"),
        ("cluster", math.inf, "got inf (float); expected an int"),
        ("cooperative", "yes", "got 'yes' (str); expected True or False"),
        ("cooperative", 1, "got 1 (int); expected True or False"),
        ("programmatic", None, "got None; expected True or False"),
    ],
)
def test_a_wrong_launch(parameter: str, value: Any, message: str, unique: str) -> None:
    with pytest.raises(opaq.DeclarationError) as raised:
        declare(unique).cuda(**{**CUDA, parameter: value})
    assert unique in str(raised.value) and parameter in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("k.cubin", "write binary=opaq.file('k.cubin')"),
        (pathlib.Path("k.cubin"), "write binary=opaq.file('k.cubin')"),
        ("ELF", "expected the bytes of a cubin, fatbin, PTX or LTO-IR, or opaq.file(path)"),
        (7, "got 7 (int); expected the bytes of a cubin"),
        (b"", "empty"),
    ],
)
def test_a_wrong_binary(value: Any, message: str, unique: str) -> None:
    with pytest.raises(opaq.DeclarationError, match=unique) as raised:
        declare(unique).cuda(binary=value, entry="k", args="y")
    assert message in str(raised.value)


def test_source_that_is_no_text(unique: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "k.cu").write_bytes(b"\x7fELF\xff\xfe")
    with pytest.raises(
        opaq.DeclarationError,
        match=r"k\.cu is not UTF-8 text: byte 4; give a compiled kernel as binary=",
    ):
        declare(unique).cuda(source=opaq.file(tmp_path / "k.cu"), entry="k", args="y")
    with pytest.raises(opaq.DeclarationError, match=r"takes either source= or binary=; got both"):
        declare(unique).cuda(source=KERNEL, binary=b"x", entry="k", args="y")


def test_forms_that_can_mean_one_thing_are_taken(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, float by) -> (Tensor y)", outputs=opaq.like("x"))
    op.cuda(
        source='extern "C" __global__ void k(float* y, const float* x, float by) { '
        "y[threadIdx.x] = x[threadIdx.x] * by; }",
        entry="k",
        args=["y", "x", "by"],
        grid=(1, "x.numel()"),
        block=np.int64(32),
        shared=np.int32(0),
        requires="x.numel() > 0",
        options=("-lineinfo",),
        include_dirs=[pathlib.Path("/usr/include")],
        priority=np.int8(3),
    )
    (found,) = op.info["implementations"]
    assert found["priority"] == 3 and [item["text"] for item in found["requires"]] == [
        "x.numel() > 0"
    ]
    op.cpu(
        source="void f(float* y, const float* x, double by) { y[0] = x[0] * by; }",
        entry="f",
        args=("y", "x", "by"),
        options=["-O1"],
    )
    assert op(torch.full((1,), 3.0), 2.0).item() == 6.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: opaq.like(3),
            (
                r"opaq.like(...): argument: got 3 (int); expected the name of a "
                r"tensor argument"
            ),
        ),
        (lambda: opaq.like(torch.ones(1)), r"(Tensor); expected the name of a tensor argument"),
        (
            lambda: opaq.like("x", dtype=float),
            (
                "got <class 'float'> (type); expected a "
                "torch.dtype, its name, or an expression such as 'x.dtype'; "
                "write dtype='float'"
            ),
        ),
        (lambda: opaq.like("x", dtype=np.float32), "write dtype='float32'"),
        (lambda: opaq.like("x", dtype=np.dtype("int8")), "write dtype='int8'"),
        (
            lambda: opaq.like("x", dtype=None),
            "opaq.like(...): dtype: got None; expected a torch.dtype",
        ),
        (
            lambda: opaq.like("x", shape=2.5),
            "opaq.like(...): shape: got 2.5 (float); expected an int",
        ),
        (lambda: opaq.like("x", shape=None), "opaq.like(...): shape: got None; expected an int"),
        (
            lambda: opaq.like("x", strides=[1.0]),
            "opaq.like(...): strides: got [1.0] (list); expected an int",
        ),
        (
            lambda: opaq.tensor(["x.size(0)", None], dtype="float32"),
            "opaq.tensor(...): shape: got ['x.size(0)', None] (list)",
        ),
        (
            lambda: opaq.tensor("1", dtype=7),
            "opaq.tensor(...): dtype: got 7 (int); expected a torch.dtype",
        ),
        (
            lambda: opaq.tensor("1", dtype="float32", device=torch.device("cpu")),
            (
                "opaq.tensor(...): device: got device(type='cpu') (device); "
                "expected the name of the tensor argument"
            ),
        ),
        (lambda: opaq.file(3), "opaq.file(...): path: got 3 (int); expected a path"),
        (lambda: opaq.file(b"k.cu"), "opaq.file(...): path: got b'k.cu' (bytes); expected a path"),
        (lambda: opaq.file(""), "opaq.file(...): path: got '' (str); expected the path of a file"),
        (
            lambda: opaq.file("void f() {\n}"),
            "expected the path of a file; code itself is given as source=",
        ),
        (lambda: opaq.op(3), "opaq.op(...): schema: got 3 (int); expected a str"),
        (
            lambda: opaq.op(b"a::b() -> ()"),
            "opaq.op(...): schema: got b'a::b() -> ()' (bytes); expected a str",
        ),
        (
            lambda: opaq.op("de::w1(Tensor x) -> Tensor", outputs="x"),
            "de::w1: outputs: got 'x' (str); expected opaq.like(...), opaq.tensor(...)",
        ),
        (
            lambda: opaq.op("de::w2(Tensor x) -> Tensor", outputs=[opaq.like("x")]),
            "de::w2: outputs: got [Output(",
        ),
        (
            lambda: opaq.op("de::w3(Tensor x) -> Tensor", outputs={"y": opaq.like("x")}),
            "no output is named 'y'; outputs of de::w3 are out",
        ),
        (
            lambda: opaq.op("de::w4(Tensor x) -> Tensor", outputs={3: opaq.like("x")}),
            "de::w4: outputs: got {3: Output(",
        ),
        (
            lambda: opaq.op("de::w5(Tensor x) -> Tensor", outputs=opaq.like),
            "de::w5: outputs: got <function like",
        ),
        (
            lambda: opaq.op("de::w6(Tensor x) -> Tensor", outputs=opaq.like("x"), replace="yes"),
            "de::w6: replace: got 'yes' (str); expected True or",
        ),
        (lambda: opaq.op("de::w7(Tensor x) -> Tensor"), "de::w7"),
        (
            lambda: opaq.op(
                "de::w8(Tensor x) -> Tensor",
                outputs=opaq.tensor("1", dtype="float32", device="cuda"),
            ),
            "'cuda' is for an op without tensors",
        ),
        (
            lambda: opaq.op("de::w9(Tensor x) -> Tensor", outputs=opaq.like("X")),
            "did you mean 'x'?",
        ),
        (
            lambda: opaq.custom_op(3, mutates_args=()),
            "opaq.custom_op(...): name: got 3 (int); expected a str",
        ),
        (
            lambda: opaq.custom_op("de::c1", mutates_args="x"),
            "mutates_args: got 'x' (str); expected a list of str; write mutates_args=['x']",
        ),
        (
            lambda: opaq.custom_op("de::c2", mutates_args=3),
            "opaq.custom_op('de::c2'): mutates_args: got 3 (int); expected a list of str",
        ),
        (
            lambda: opaq.custom_op("de::c3", 5, mutates_args=()),
            "opaq.custom_op('de::c3'): fn: got 5 (int); expected a Python function",
        ),
        (
            lambda: opaq.custom_op("de::c4", lambda x: x, mutates_args=()),
            "opaq.custom_op('de::c4'): ",
        ),
        (
            lambda: opaq.package(torch.nn.Linear(1, 1), "m.pt2"),
            "opaq.package(...): exported: got Linear(in_features=1",
        ),
        (
            lambda: options.split(["strict"], []),
            "torch.compile(backend=\"opaq\"): options: got ['strict'] (list); expected a dict",
        ),
    ],
)
def test_a_wrong_call(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(opaq.DeclarationError) as raised:
        make()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"path": "model.zip"},
            (
                "path: got 'model.zip' (str); expected the path of the file to write, which ends "
                "in .pt2"
            ),
        ),
        ({"path": None}, "path: got None; expected the path"),
        (
            {"archs": "sm_90a"},
            "archs: got 'sm_90a' (str); expected a list of str; write archs=['sm_90a']",
        ),
        ({"archs": [90]}, "archs: got [90] (list); expected a list of str"),
        ({"ptx": "yes"}, "ptx: got 'yes' (str); expected True or False"),
        ({"strict": 1}, "strict: got 1 (int); expected True or False"),
        (
            {"inductor_configs": "x"},
            "inductor_configs: got 'x' (str); expected a dict of Inductor's options",
        ),
    ],
)
def test_a_wrong_package(arguments: dict[str, Any], message: str) -> None:
    exported = torch.export.export(torch.nn.ReLU(), (torch.ones(1),))
    with pytest.raises(opaq.DeclarationError) as raised:
        opaq.package(exported, **{"path": "m.pt2", **arguments})
    assert str(raised.value).startswith("opaq.package(...): ")
    assert message in str(raised.value)


def test_a_wrong_reference_or_gradient(unique: str) -> None:
    op = declare(unique)
    for call, message in (
        (lambda: op.reference(3), ".reference(...): function: got 3 (int); expected a function"),
        (
            lambda: op.backward(3),
            ".backward(...): formula: got 3 (int); expected the name of a backward op",
        ),
        (lambda: op.backward("no::op"), "no op is named 'no::op'"),
        (
            lambda: op.backward(lambda ctx, grad: grad, setup_context=3),
            ".backward(...): setup_context: got 3 (int); expected a function",
        ),
        (
            lambda: op.backward(lambda ctx, grad: grad, saves="x"),
            ".backward(...): saves: got 'x' (str); expected none with a function",
        ),
        (
            lambda: op.backward(unique, setup_context=print),
            ".backward(...): setup_context: got <built-in function print>",
        ),
        (
            lambda: op.backward(unique, saves=3),
            ".backward(...): saves: got 3 (int); expected a list of str",
        ),
    ):
        with pytest.raises(opaq.DeclarationError) as raised:
            call()
        assert message in str(raised.value)


def test_advice_to_replace_an_implementation_works(unique: str) -> None:
    source = "void a(float* y) { y[0] = 1; } void b(float* y) { y[0] = 2; }"
    op = declare(unique).cpu(source=source, entry="a", args="y")
    with pytest.raises(opaq.DeclarationError) as raised:
        op.cpu(source=source, entry="b", args="y")
    assert (
        "declare the op anew with opaq.op(..., replace=True) and its implementations after it"
        in str(raised.value)
    )
    assert "name='cpu:2'" in str(raised.value)
    op.cpu(source=source, entry="b", args="y", name="cpu:2")
    again = declare(unique, replace=True).cpu(source=source, entry="b", args="y")
    assert again(torch.zeros(1)).item() == 2.0
