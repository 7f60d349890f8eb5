"""The ops that opaq ships, written with its public API alone. Importing this declares them; nothing
is compiled before the first call.
"""

import importlib
from pathlib import Path

from .cross_entropy.capped import (
    cross_entropy_and_capped,
    cross_entropy_and_capped_backward,
    cross_entropy_and_capped_op,
)
from .cross_entropy.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_op,
)
from .cross_entropy.kept import cross_entropy_mean_kept, cross_entropy_mean_kept_backward
from .cross_entropy.linear_mean import linear_cross_entropy
from .cross_entropy.mean import cross_entropy_mean, cross_entropy_mean_with_gradient
from .cross_entropy.with_gradient import (
    cross_entropy_with_gradient,
    cross_entropy_with_gradient_,
    scale_gradient,
    scale_gradient_,
)
from .embedding.embedding import embedding, embedding_backward, index_add_rows
from .gelu_mul.gelu_mul import gelu_mul, gelu_mul_backward
from .layer_norm.layer_norm import layer_norm, layer_norm_backward
from .matmul.float8 import scaled_linear, scaled_linear_float8
from .matmul.matmul import (
    bmm,
    gelu_grad,
    linear,
    linear_gelu,
    linear_gelu_h,
    linear_grad_weight,
    linear_grad_weight_bias,
    linear_grad_x,
    linear_relu,
)
from .matmul.mlp import mlp_gelu
from .moe.combine import (
    moe_combine,
    moe_combine_backward,
    moe_permute,
    moe_permute_backward,
)
from .moe.order import moe_order
from .moe.route import moe_route, moe_route_backward
from .rms_norm.add_rms_norm import add_rms_norm
from .rms_norm.float8 import rms_norm_float8
from .rms_norm.rms_norm import rms_norm, rms_norm_backward
from .rope.paged import rope_paged_
from .rope.rope import rope, rope_backward
from .sampling.multinomial import multinomial
from .sampling.penalize import penalize
from .sampling.penalize_tokens import penalize_tokens
from .sampling.sample import (
    sample,
    sample_multinomial,
    sample_with_uniform,
    sampling_probabilities,
)
from .scan.cumsum import cumsum
from .silu_mul.float8 import silu_mul_float8
from .silu_mul.silu_mul import silu_mul, silu_mul_backward
from .softmax.softmax import (
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)
from .sorting.bincount import bincount
from .sorting.sort import sort
from .sum_of_blocks.sum_of_blocks import sum_of_blocks

__all__ = [
    "add_rms_norm",
    "bincount",
    "bmm",
    "cross_entropy",
    "cross_entropy_and_capped",
    "cross_entropy_and_capped_backward",
    "cross_entropy_and_capped_op",
    "cross_entropy_backward",
    "cross_entropy_op",
    "cross_entropy_mean",
    "cross_entropy_mean_kept",
    "cross_entropy_mean_kept_backward",
    "cross_entropy_mean_with_gradient",
    "cross_entropy_with_gradient",
    "cross_entropy_with_gradient_",
    "cumsum",
    "embedding",
    "embedding_backward",
    "gelu_grad",
    "gelu_mul",
    "gelu_mul_backward",
    "index_add_rows",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_cross_entropy",
    "linear_gelu",
    "linear_gelu_h",
    "linear_grad_weight",
    "linear_grad_weight_bias",
    "linear_grad_x",
    "linear_relu",
    "log_softmax",
    "log_softmax_backward",
    "mlp_gelu",
    "moe_combine",
    "moe_combine_backward",
    "moe_order",
    "moe_permute",
    "moe_permute_backward",
    "moe_route",
    "moe_route_backward",
    "multinomial",
    "penalize",
    "penalize_tokens",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_float8",
    "rope",
    "rope_backward",
    "rope_paged_",
    "sample",
    "sample_multinomial",
    "sample_with_uniform",
    "sampling_probabilities",
    "scale_gradient",
    "scale_gradient_",
    "scaled_linear",
    "scaled_linear_float8",
    "silu_mul",
    "silu_mul_backward",
    "silu_mul_float8",
    "softmax",
    "softmax_backward",
    "sort",
    "sum_of_blocks",
]


def load_patterns() -> None:
    """Declares the patterns of each op that has any: `<op>/pattern.py`, `<op>/..._pattern.py`.

    Those of rope come first: where a rotation is normalized, its sum is not that of a residual.
    """
    paths = Path(__file__).parent.glob("*/*pattern.py")
    for path in sorted(paths, key=lambda path: (path.parent.name != "rope", path)):
        importlib.import_module(f".{path.parent.name}.{path.stem}", __name__)
