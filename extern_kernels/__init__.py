"""The ops that opaq ships, written with its public API alone. Importing this declares them; nothing
is compiled before the first call.
"""

from .cross_entropy.cross_entropy import cross_entropy, cross_entropy_backward, cross_entropy_mean
from .rms_norm.rms_norm import rms_norm, rms_norm_backward
from .rope.rope import rope, rope_backward
from .silu_mul.silu_mul import silu_mul, silu_mul_backward

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_mean",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_backward",
    "silu_mul",
    "silu_mul_backward",
]
