"""Matrix products of float8 by cuBLASLt.

scaled_linear(x, weight, x_scale, weight_scale, bias=None, *, dtype=bfloat16) ->
y = (x * x_scale) (weight * weight_scale)^T + bias. x: (..., K), weight: (N, K), float8_e4m3fn or
float8_e5m2; y: (..., N), bfloat16 or float16. Scales are float32, by their sizes:
  one number each;
  one for each row: x_scale (..., 1), weight_scale (N, 1), or flat;
  one for each 128 values of a row of x, (M, K/128) with strides (1, M), and one for each 128 x 128
  block of weight, (N/128, K/128), whose rows begin at multiples of 4, or each 128 values of its
  rows, (N, K/128) with strides (1, N). K, and for blocks N, are multiples of 128, M of 4. These
  are the layouts of torch.nn.functional.scaled_mm; devices of 9.0 and later.
scaled_linear_float8 gives float8(y_scale * (...)) in one launch; scales are one number each.
"""

from __future__ import annotations

import torch

import opaq

_SCALED = "Tensor x, Tensor weight, Tensor x_scale, Tensor weight_scale, Tensor? bias=None"
_NARROW = "x.dtype == float8_e4m3fn or x.dtype == float8_e5m2"
_FLOAT8 = [
    f"({_NARROW}) and (weight.dtype == float8_e4m3fn or weight.dtype == float8_e5m2)",
    "not (x.dtype == float8_e5m2 and weight.dtype == float8_e5m2)",
    "x.stride(-1) == 1 and weight.stride(-1) == 1",  # K is contiguous in both
    "x.size(-1) % 16 == 0 and weight.size(0) % 16 == 0 and weight.size(1) == x.size(-1)",
    "x_scale.dtype == float32 and weight_scale.dtype == float32",
    "not defined(bias) or bias.numel() == weight.size(0)",
]
_ONE = "x_scale.numel() == 1 and weight_scale.numel() == 1"
_EACH_ROW = "x_scale.numel() == x.numel() / x.size(-1) and weight_scale.numel() == weight.size(0)"
_PARTS = [  # of 128 values
    "x.size(-1) % 128 == 0",
    "x_scale.dim() == 2 and x_scale.size(0) == x.numel() / x.size(-1)",
    "x_scale.size(1) == x.size(-1) / 128 and x_scale.size(0) % 4 == 0",
    "x_scale.stride(0) == 1 and x_scale.stride(1) == x_scale.size(0)",
    "weight_scale.dim() == 2 and weight_scale.size(1) == x.size(-1) / 128",
]

scaled_linear = opaq.op(
    f"opaq_kernels::scaled_linear({_SCALED}, *, ScalarType dtype=bfloat16) -> (Tensor y)",
    outputs=opaq.tensor("x.shape[:-1], weight.size(0)", dtype="dtype"),
)
_ROLES = {
    "a": "x",
    "b": "weight.t()",
    "a_scale": "x_scale",
    "b_scale": "weight_scale",
    "bias": "bias",
    "d": "y",
}
_FITS = [
    *_FLOAT8,
    "dtype == bfloat16 or dtype == float16",
    "not defined(bias) or bias.dtype == dtype",
]
scaled_linear.cublaslt(**_ROLES, requires=[*_FITS, _ONE], algorithms=8)
scaled_linear.cublaslt(
    **_ROLES,
    a_scale_mode="row",
    b_scale_mode="row",
    requires=[*_FITS, _EACH_ROW],
    priority=-1,
    name="cublaslt:rows",
)
scaled_linear.cublaslt(
    **_ROLES,
    a_scale_mode="vec128",
    b_scale_mode="block128",
    requires=[
        *_FITS,
        *_PARTS,
        "weight_scale.size(0) * 128 == weight.size(0)",
        "weight_scale.stride(1) == 1",
        "weight_scale.stride(0) == ceil_div(weight_scale.size(1), 4) * 4",
    ],
    priority=-2,
    name="cublaslt:blocks",
)
scaled_linear.cublaslt(
    **_ROLES,
    a_scale_mode="vec128",
    b_scale_mode="vec128",
    requires=[
        *_FITS,
        *_PARTS,
        "weight_scale.size(0) == weight.size(0)",
        "weight_scale.stride(0) == 1 and weight_scale.stride(1) == weight_scale.size(0)",
    ],
    priority=-2,
    name="cublaslt:parts",
)


def _times(tensor, scale):
    """tensor * scale in float32, where scale has one number for equal parts of each dimension."""
    if scale.numel() == 1:
        return tensor.float() * scale.reshape(())
    rows, columns = tensor.flatten(0, -2).shape
    if scale.numel() == rows:
        scale = scale.reshape(rows, 1)
    for dim, size in enumerate((rows, columns)):
        scale = scale.repeat_interleave(size // scale.size(dim), dim)
    return tensor.float() * scale.reshape(tensor.shape)


def _scaled(x, weight, x_scale, weight_scale, bias):
    return torch.nn.functional.linear(
        _times(x, x_scale),
        _times(weight, weight_scale),
        None if bias is None else bias.float(),
    )


@scaled_linear.reference
def _(x, weight, x_scale, weight_scale, bias=None, *, dtype=torch.bfloat16):
    return _scaled(x, weight, x_scale, weight_scale, bias).to(dtype)


scaled_linear.backward(None)

# The same with a float8 result: y = float8(y_scale * (...)).
scaled_linear_float8 = opaq.op(
    "opaq_kernels::scaled_linear_float8(Tensor x, Tensor weight, Tensor x_scale, Tensor "
    "weight_scale, Tensor y_scale, Tensor? bias=None) -> (Tensor y)",
    outputs=opaq.tensor("x.shape[:-1], weight.size(0)", dtype="float8_e4m3fn"),
)
scaled_linear_float8.cublaslt(
    **_ROLES,
    d_scale="y_scale",
    requires=[
        *_FLOAT8,
        _ONE,
        "y_scale.numel() == 1 and y_scale.dtype == float32",
        "not defined(bias) or bias.dtype == bfloat16",
    ],
)


@scaled_linear_float8.reference
def _(x, weight, x_scale, weight_scale, y_scale, bias=None):
    y = _scaled(x, weight, x_scale, weight_scale, bias) * y_scale.reshape(1)
    most = torch.finfo(torch.float8_e4m3fn).max
    return y.clamp(-most, most).to(torch.float8_e4m3fn)


scaled_linear_float8.backward(None)
