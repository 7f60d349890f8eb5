"""Matrix products by cuBLASLt, with what follows them: declarations, references and gradients.

linear(x, weight, bias=None) -> y = x weight^T + bias. x: (..., K); weight: (N, K); bias: (N); one
dtype, float16, bfloat16, float32 or float64; y: (..., N), row-major. linear_gelu and linear_relu
apply the activation (gelu in its tanh form) before y is rounded. bmm(a, b): (B, M, K), (B, K, N) ->
(B, M, N), transposed views as they lie.
"""

from __future__ import annotations

import torch

import opaq

_ROWS = opaq.tensor("x.shape[:-1], weight.size(0)", dtype="x.dtype")
_FLOAT = "x.dtype == float16 or x.dtype == bfloat16 or x.dtype == float32"
_SAME = ["weight.dtype == x.dtype", "weight.dim() == 2", "weight.size(1) == x.size(-1)"]
_BIAS = "not defined(bias) or (bias.dtype == x.dtype and bias.numel() == weight.size(0))"
_LINEAR = {"a": "x", "b": "weight.t()", "bias": "bias", "d": "y"}  # the roles
_FITS = [_FLOAT, *_SAME, _BIAS]
_ALGORITHMS = 8  # that opaq.tune chooses among
_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias=None"


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In float32 for smaller dtypes, as cuBLASLt accumulates and adds."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x, weight, bias = (None if t is None else t.float() for t in (x, weight, bias))
    return torch.nn.functional.linear(x, weight, bias)


def _gelu(h: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(h, approximate="tanh")


# ---- linear --------------------------------------------------------------------------------------

linear = opaq.op(f"opaq_kernels::linear({_ARGUMENTS}) -> (Tensor y)", outputs=_ROWS)
linear.cublaslt(
    **_LINEAR,
    requires=_FITS,
    priority=1,
    algorithms=_ALGORITHMS,
)
linear.cublaslt(  # which has no epilogues in float64
    a="x",
    b="weight.t()",
    d="y",
    requires=["x.dtype == float64", *_SAME, "not defined(bias)"],
    name="cublaslt:float64",
)


@linear.reference
def _(x, weight, bias=None):
    return _product(x, weight, bias).to(x.dtype)


# The gradients of a linear layer, by what it got: grad_y (..., N), of y's dtype.
_GRAD = "(grad_y.dtype == float16 or grad_y.dtype == bfloat16)"
_GRADIENTS = f"{_GRAD} or grad_y.dtype == float32 or grad_y.dtype == float64"

linear_grad_x = opaq.op(
    "opaq_kernels::linear_grad_x(Tensor grad_y, Tensor weight) -> (Tensor grad_x)",
    outputs=opaq.tensor("grad_y.shape[:-1], weight.size(1)", dtype="grad_y.dtype"),
)
linear_grad_x.cublaslt(
    a="grad_y",
    b="weight",
    d="grad_x",
    requires=[_GRADIENTS, "weight.dtype == grad_y.dtype"],
    algorithms=_ALGORITHMS,
)


@linear_grad_x.reference
def _(grad_y, weight):
    return _product(grad_y, weight.t(), None).to(grad_y.dtype)


linear_grad_weight = opaq.op(
    "opaq_kernels::linear_grad_weight(Tensor grad_y, Tensor x) -> (Tensor grad_weight)",
    outputs=opaq.tensor("grad_y.size(-1), x.size(-1)", dtype="x.dtype"),
)
linear_grad_weight.cublaslt(
    a="grad_y.flatten(0, -2).t()",
    b="x.flatten(0, -2)",
    d="grad_weight",
    requires=[_GRADIENTS, "x.dtype == grad_y.dtype"],
    algorithms=_ALGORITHMS,
)


@linear_grad_weight.reference
def _(grad_y, x):
    rows = grad_y.flatten(0, -2), x.flatten(0, -2)
    return _product(rows[0].t(), rows[1].t(), None).to(x.dtype)


linear_grad_weight_bias = opaq.op(
    "opaq_kernels::linear_grad_weight_bias(Tensor grad_y, Tensor x) "
    "-> (Tensor grad_weight, Tensor grad_bias)",
    outputs={
        "grad_weight": opaq.tensor("grad_y.size(-1), x.size(-1)", dtype="x.dtype"),
        "grad_bias": opaq.tensor("grad_y.size(-1)", dtype="x.dtype"),
    },
)
linear_grad_weight_bias.cublaslt(
    a="grad_y.flatten(0, -2).t()",
    b="x.flatten(0, -2)",
    d="grad_weight",
    bias="grad_bias",
    epilogue="sum_a",
    requires=[_GRAD, "x.dtype == grad_y.dtype"],
)


@linear_grad_weight_bias.reference
def _(grad_y, x):
    rows = grad_y.flatten(0, -2)
    wide = rows.float() if x.dtype in (torch.float16, torch.bfloat16) else rows
    return linear_grad_weight(grad_y, x), wide.sum(0).to(x.dtype)


linear.backward([linear_grad_x, linear_grad_weight, linear_grad_weight_bias])


# ---- with an activation --------------------------------------------------------------------------

linear_relu = opaq.op(f"opaq_kernels::linear_relu({_ARGUMENTS}) -> (Tensor y)", outputs=_ROWS)
linear_relu.cublaslt(
    **_LINEAR,
    epilogue="relu",
    requires=_FITS,
)


@linear_relu.reference
def _(x, weight, bias=None):
    return _product(x, weight, bias).relu().to(x.dtype)


_linear_gelu = opaq.op(f"opaq_kernels::linear_gelu({_ARGUMENTS}) -> (Tensor y)", outputs=_ROWS)
_linear_gelu.cublaslt(
    **_LINEAR,
    epilogue="gelu",
    requires=_FITS,
)


@_linear_gelu.reference
def _(x, weight, bias=None):
    return _gelu(_product(x, weight, bias)).to(x.dtype)


# And h = x weight^T + bias, which the gradient needs.
linear_gelu_h = opaq.op(
    f"opaq_kernels::linear_gelu_h({_ARGUMENTS}) -> (Tensor y, Tensor h)",
    outputs={"y": _ROWS, "h": _ROWS},
)
linear_gelu_h.cublaslt(
    **_LINEAR,
    aux="h",
    epilogue="gelu",
    requires=[*_FITS, "weight.size(0) % 8 == 0"],  # the library's rows of h
)


@linear_gelu_h.reference
def _(x, weight, bias=None):
    h = _product(x, weight, bias)
    return _gelu(h).to(x.dtype), h.to(x.dtype)


# The gradient through a following product and the activation, in one: of
# z = gelu(h) weight^T, grad_h = (grad_z weight) gelu'(h), and the sums over its rows, which are the
# gradient of h's bias.
gelu_grad = opaq.op(
    "opaq_kernels::gelu_grad(Tensor grad_z, Tensor weight, Tensor h) "
    "-> (Tensor grad_h, Tensor grad_bias)",
    outputs={
        "grad_h": opaq.like("h"),
        "grad_bias": opaq.tensor("h.size(-1)", dtype="h.dtype"),
    },
)
gelu_grad.cublaslt(
    a="grad_z",
    b="weight",
    aux="h",
    bias="grad_bias",
    d="grad_h",
    epilogue="gelu_backward",
    requires=[
        "h.dtype == float16 or h.dtype == bfloat16",
        "grad_z.dtype == h.dtype",
        "weight.dtype == h.dtype",
        "h.size(-1) % 8 == 0",
    ],
)


@gelu_grad.reference
def _(grad_z, weight, h):
    grad_y = _product(grad_z, weight.t(), None)
    wide = h.to(grad_y.dtype)
    grad_h = torch.ops.aten.gelu_backward(grad_y, wide, approximate="tanh")
    return grad_h.to(h.dtype), grad_h.flatten(0, -2).sum(0).to(h.dtype)


def _of_inputs(ctx, inputs, output):
    x, weight, bias = inputs
    y = output[1] if isinstance(output, tuple) else output
    ctx.save_for_backward(x, weight, y)
    ctx.has_bias = bias is not None


def weight_gradients(grad, x, need_weight, need_bias):
    """(of the weight, of the bias) of a linear layer; None for what is not needed."""
    if need_bias:
        return linear_grad_weight_bias(grad, x)
    return linear_grad_weight(grad, x) if need_weight else None, None


def takes_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether a call with these arguments is one that a gradient may be asked of."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _gradients(ctx, grad_h):
    """Of a linear layer whose activation has been undone."""
    x, weight, _ = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad
    grad_x = linear_grad_x(grad_h, weight) if need_x else None
    return grad_x, *weight_gradients(grad_h, x, need_weight, ctx.has_bias and need_bias)


def _relu_backward(ctx, grad_y):
    return _gradients(ctx, torch.where(ctx.saved_tensors[2] > 0, grad_y, 0))


def _gelu_backward(ctx, grad_y, grad_h):
    through = torch.ops.aten.gelu_backward(grad_y, ctx.saved_tensors[2], approximate="tanh")
    return _gradients(ctx, through if grad_h is None else through + grad_h)


linear_relu.backward(_relu_backward, setup_context=_of_inputs)
linear_gelu_h.backward(_gelu_backward, setup_context=_of_inputs)


def linear_gelu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """gelu(x weight^T + bias), in its tanh form. x: (..., K); weight: (N, K); bias: (N). What the
    gradient needs is written only where one is taken."""
    if takes_gradient(x, weight, bias):
        return linear_gelu_h(x, weight, bias)[0]
    return _linear_gelu(x, weight, bias)


# ---- batches -------------------------------------------------------------------------------------

bmm = opaq.op(
    "opaq_kernels::bmm(Tensor a, Tensor b) -> (Tensor d)",
    outputs=opaq.tensor("a.size(0), a.size(1), b.size(2)", dtype="a.dtype"),
)
bmm.cublaslt(
    a="a",
    b="b",
    d="d",
    requires=[
        "a.dim() == 3 and b.dim() == 3",
        "a.size(0) == b.size(0) and a.size(2) == b.size(1)",
        "b.dtype == a.dtype",
        "a.dtype == float16 or a.dtype == bfloat16 or a.dtype == float32 or a.dtype == float64",
    ],
    algorithms=_ALGORITHMS,
)


@bmm.reference
def _(a, b):
    return torch.bmm(a, b)


def _save_both(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _bmm_backward(ctx, grad):
    a, b = ctx.saved_tensors
    return bmm(grad, b.mT), bmm(a.mT, grad)


bmm.backward(_bmm_backward, setup_context=_save_both)
