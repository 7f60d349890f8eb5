"""What tests of the shipped ops share: tolerances, gradients, comparison of compiled code with
eager, CUDA plans without a device.
"""

import importlib.util
import re

import pytest
import torch

from opaq import _runtime

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# In `life`: the second command compiles each source once, in test_shipped_kernels, which compiles
# for other architectures, too.
ARCHS = [pytest.param("sm_90a", marks=pytest.mark.life)]
HALVES = [torch.bfloat16, torch.float16]
# One for each CUDA kernel of norms, forward and backward: in registers, read ahead, wide, any.
NORM_LENGTHS = [64, 4096, 12288, 40000, 77]
# The same, and some for the kernels that hold more or less of a weight in registers.
WEIGHT_LENGTHS = [*NORM_LENGTHS, 1536, 6144, 8192]
# Packs of a row, for each way of the gradients of norms whose rows blocks share.
WIDE_BACKWARD = {
    "two-rows": [4097, 8192, 8193, 16384],
    "one-row": [8193, 16384],
    "one-row-96kb": [2049, 8192],
    "twice-96kb": [8193, 16384, 32768],
}
# of norms: narrow and wide rows, of packs and not, few and many, none
NORM_SHAPES = [
    (1, 1),
    (3, 7),
    (7,),
    (2, 5, 128),
    (37, 8),
    (300, 24),
    (5, 1000),
    (4, 4096),
    (2, 9000),
    (2100, 256),
    (1111, 1032),
    (515, 8192),
    (0, 16),
    (2, 0, 16),
]
_TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def close(
    actual: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype | None = None, scale: float = 1.0
) -> None:
    """`actual` is `exact` (float64) up to the rounding of `dtype`, its own unless given; `scale`
    widens the bound for long sums.
    """
    bound = _TOLERANCE[dtype or actual.dtype] * scale
    torch.testing.assert_close(
        actual.double(), exact.double(), rtol=bound, atol=bound, equal_nan=True
    )


def gradients(function, inputs, which):
    """Outputs of function(*inputs), and the gradients of sum(output * fixed weights) for the inputs
    at positions `which`.
    """
    leaves = [
        value.detach().requires_grad_(i in which) if isinstance(value, torch.Tensor) else value
        for i, value in enumerate(inputs)
    ]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    generator = torch.Generator().manual_seed(7)
    total = 0
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(
            device=output.device, dtype=output.dtype
        )
        total = total + (output * weights).sum(dtype=torch.float64)
    return [output.detach() for output in outputs], list(
        torch.autograd.grad(total, [leaves[i] for i in which])
    )


def gate_and_up(shape, dtype, device):
    generator = torch.Generator().manual_seed(len(shape))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).to(device, dtype)
        for _ in range(2)
    ]


def gated_agrees(op, exact, gate, up) -> None:
    """op(gate, up) and its gradients are those of exact(gate, up), in float64."""
    (y,), grads = gradients(op, (gate, up), [0, 1])
    (wide,), wide_grads = gradients(exact, (gate.double(), up.double()), [0, 1])
    assert (y.dtype, y.shape, y.is_contiguous()) == (gate.dtype, gate.shape, True)
    close(y, wide)
    for actual, expected in zip(grads, wide_grads):
        assert actual.dtype == gate.dtype
        close(actual, expected, scale=4)


def of_one_dtype(entry: str) -> str:
    """The entry of a norm whose parameters are of the dtype of its rows, which is given once."""
    return re.sub(r"<(\w+)", r"<\1, \1", entry)


def node_calls(op) -> int:
    return sum(
        node["calls"]
        for node in _runtime.node_stats()
        if node["op"] == op.name and node["implementation"] != "reference"
    )


def compiled_agrees(op, function, cases, which, dynamic: bool) -> None:
    """torch.compile(function) gives what function gives, gradients included, for every case in turn
    (sizes may differ when dynamic); op runs as a node of the compiled graph."""
    torch.compiler.reset()
    before = node_calls(op)
    compiled = torch.compile(function, dynamic=dynamic, fullgraph=True)
    for inputs in cases:
        expected_outputs, expected_grads = gradients(function, inputs, which)
        outputs, grads = gradients(compiled, inputs, which)
        for actual, expected in zip(outputs + grads, expected_outputs + expected_grads):
            torch.testing.assert_close(actual, expected, equal_nan=True)
    assert node_calls(op) >= before + len(cases)


def refuses(function, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    """function() raises, and the user sees `message`: in the exception, or, for calls through the
    dispatcher, in what torch prints.
    """
    with pytest.raises((ValueError, RuntimeError)) as raised:
        function()
    assert message in str(raised.value) + capfd.readouterr().err


def cuda(shape, dtype=torch.bfloat16, strides=None, alignment=256):
    """A tensor on a CUDA device as the planner sees it; the device need not exist."""
    if strides is None:
        strides = torch.empty(shape, device="meta").stride()
    return (str(dtype).removeprefix("torch."), tuple(shape), tuple(strides), "cuda:0", alignment)


def plan(op, *facts) -> dict:
    return _runtime.plan(op.name, facts)


def serving(op, facts, arch: str) -> tuple[str, dict]:
    """The CUDA implementation that serves a call on a device of this architecture, which need not
    exist, and its launch. It is compiled."""
    for each in op.info["implementations"]:
        if each["device"] != "cuda":
            continue
        found = _runtime.check_code(op.name, each["name"], facts, [arch])[0]
        if found["why_not"] or found["refused"]:
            continue
        assert not found["problem"] and [code["problem"] for code in found["code"]] == [""]
        return each["name"], found["launch"]
    raise ValueError(f"no CUDA implementation of {op.name} serves {facts} on {arch}")


def misfits(op, facts, arch: str, implementation: str) -> list[str]:
    """Why an implementation does not serve a call on a device of this architecture, which need not
    exist."""
    found = _runtime.check_code(op.name, implementation, facts, [arch])[0]
    return found["why_not"].split("; ")


def serves_on_many_multiprocessors(op, facts, implementation: str) -> str:
    """The entry of an implementation that lacks nothing on an H200, as far as a compiler knows."""
    reasons = misfits(op, facts, "sm_90a", implementation)
    assert len(reasons) == 1
    assert reasons[0].startswith("multiprocessors(x) >= 132 does not hold: ")
    return _runtime.compile(op.name, facts, "sm_90a", implementation)["entry"]


def is_served_by(op, facts, entry: str, otherwise: str = "cuda:wide") -> None:
    """cuda:pipelined, or another, serves a call on an H200 by this kernel, which compiles."""
    if "_pipelined<" in entry:
        assert serves_on_many_multiprocessors(op, facts, "cuda:pipelined") == entry
    else:
        assert len(misfits(op, facts, "sm_90a", "cuda:pipelined")) > 1
        name, launch = serving(op, facts, "sm_90a")
        assert (name, launch["entry"]) == (otherwise, entry)


def compiles(op, facts, arch: str, implementation: str) -> None:
    """NVRTC accepts the kernel and its argument list."""
    if not _runtime.doctor()["nvrtc"]["found"]:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    image = _runtime.compile(op.name, facts, arch, implementation)
    assert image["bytes"], f"{op.name} {implementation} {arch}: empty image"


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
