"""Every CUDA source of the shipped ops compiles for the GPUs from Ampere to Blackwell, and spills
no more registers than the table allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import opaq
from opaq import extern_kernels as kernels

ARCHS = [
    pytest.param("sm_80", marks=pytest.mark.life),
    "sm_90a",
    pytest.param("sm_100a", marks=pytest.mark.life),
]

# Bytes a thread that a kernel may spill, by op, where it may at all.
SPILLS = {
    "opaq_kernels::cross_entropy_mean_kept": 12,  # where rows are not aligned alike
    "opaq_kernels::cross_entropy_mean_kept_backward": 4,
    "opaq_kernels::cross_entropy_mean_with_gradient": 4,  # the kernel of the next
    "opaq_kernels::cross_entropy_with_gradient": 4,
    "opaq_kernels::layer_norm": 16,
    "opaq_kernels::rms_norm": 16,
    "opaq_kernels::rms_norm_float8": 16,  # eight packs a thread, several rows in a block
    "opaq_kernels::sort": 192,  # keys, indices and ranks of 32 elements a thread
}


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


F32, I64 = torch.float32, torch.int64
LOGITS = [(8, 1024), (8, 50257), (8, 151936)]
SOFTMAXES = [(64, 128), (64, 1024), (64, 4096), (64, 16384), (64, 32768), (64, 262144), (64, 4097)]
SOFTMAXES += [(64, 50257)]
OF_CLUSTERS = [(64, 50304), (64, 128256), (64, 202048), (64, 409600)]
NORMS = [(64, 128), (64, 4096), (64, 16384), (64, 65536), (64, 131072), (64, 262144), (64, 4097)]


SAMPLED = [(8, 1000), (8, 50257), (64, 128256)]


def rows(m: int) -> torch.Tensor:
    return tensor(m, dtype=F32)


CALLS: list[tuple[Any, list[Any]]] = [
    *[(kernels.cross_entropy_op, [tensor(m, n), tensor(m, dtype=I64), -100]) for m, n in LOGITS],
    *[
        (
            kernels.cross_entropy_backward,
            [rows(m), rows(m), tensor(m, n), tensor(m, dtype=I64), rows(m), rows(m), -100],
        )
        for m, n in LOGITS
    ],
    *[
        (
            kernels.cross_entropy_with_gradient,
            [tensor(m, n), tensor(m, dtype=I64), rows(1), -100],
        )
        for m, n in LOGITS
    ],
    *[
        (kernels.cross_entropy_mean_with_gradient, [tensor(m, n), tensor(m, dtype=I64), -100])
        for m, n in LOGITS
    ],
    *[
        (kernels.cross_entropy_mean_kept, [tensor(8, n), tensor(8, dtype=I64), True, *extras])
        for n, extras in ((30522, []), (50257, []), (50257, [-100, 0.1, 1e-4, 0.0]))
    ],
    *[
        (
            kernels.cross_entropy_mean_kept_backward,
            [
                *[rows(1), tensor(8, 50257), tensor(8, 50257), tensor(8, dtype=I64)],
                *[rows(8), rows(8), rows(1), added],
            ],
        )
        for added in (None, tensor(8, 50257))
    ],
    *[
        (op, [*given(m, n), *[None] * adds, *extras])
        for op, given, adds in (
            (kernels.cross_entropy_op, lambda m, n: [tensor(m, n), tensor(m, dtype=I64), -100], 0),
            (
                kernels.cross_entropy_backward,
                lambda m, n: [
                    *[rows(m), rows(m), tensor(m, n), tensor(m, dtype=I64)],
                    *[rows(m), rows(m), -100],
                ],
                1,
            ),
            (
                kernels.cross_entropy_with_gradient,
                lambda m, n: [tensor(m, n), tensor(m, dtype=I64), rows(1), -100],
                0,
            ),
            (
                kernels.cross_entropy_mean_with_gradient,
                lambda m, n: [tensor(m, n), tensor(m, dtype=I64), -100],
                0,
            ),
        )
        for m, n in LOGITS
        for extras in [(0.1, 1e-4, 0.0), (0.1, 1e-4, 30.0)]
    ],
    *[
        (kernels.cross_entropy_and_capped_op, [tensor(m, n), tensor(m, dtype=I64), 30.0])
        for m, n in LOGITS
    ],
    *[
        (
            kernels.cross_entropy_and_capped_backward,
            [rows(m), rows(m), grad, tensor(m, n), tensor(m, dtype=I64), rows(m), rows(m), 30.0],
        )
        for m, n in LOGITS
        for grad in (None, tensor(m, n))
    ],
    *[
        (kernels.sample, [tensor(m, n, dtype=dtype), 1.0, 50, 0.9, 0.05])
        for m, n in SAMPLED
        for dtype in (torch.bfloat16, F32)
    ],
    *[
        (kernels.penalize, [tensor(8, n, dtype=dtype), tensor(8, n, dtype=torch.int32), None, 1.1])
        for n in (128256, 50257)
        for dtype in (torch.bfloat16, F32)
    ],
    *[
        (
            kernels.penalize_tokens,
            [tensor(m, n, dtype=dtype), tensor(m, 70, dtype=I64), tensor(m, 900, dtype=I64), 1.1]
            + [0.1, 0.2, None, None, None, 1, wide],
        )
        for m, n in ((1, 128256), (64, 128256), (8, 50257))
        for dtype, wide in ((torch.bfloat16, False), (torch.bfloat16, True), (F32, False))
    ],
    (kernels.sample_with_uniform, [tensor(8, 50257), rows(8), 1.0, 50, 0.9, 0.05]),
    (kernels.sampling_probabilities, [tensor(8, 50257), 1.0, 50, 0.9, 0.05]),
    (kernels.sample_multinomial, [tensor(64, 128256), 1.0, 50, 0.9, 0.05]),
    *[(kernels.multinomial, [tensor(m, n, dtype=F32)]) for m, n in SAMPLED],
    *[(kernels.moe_route, [tensor(70, e), 4, True]) for e in (8, 64, 128, 512)],
    *[
        (
            kernels.moe_route_backward,
            [tensor(70, 4, dtype=F32), tensor(70, e), tensor(70, 4, dtype=F32)]
            + [tensor(70, 4, dtype=I64), False],
        )
        for e in (8, 64, 128, 512)
    ],
    *[
        (kernels.moe_route, [tensor(70, e, dtype=F32), 4, True, scoring, bias, *groups])
        for e in (64, 256, 512)
        for scoring in ("softmax", "sigmoid", "sqrt_softplus")
        for bias, *groups in ((None, 1, 1, 2, False, 1e-20), (tensor(e, dtype=F32), 4, 2))
    ],
    *[
        (
            kernels.moe_route_backward,
            [tensor(70, 4, dtype=F32), tensor(70, e, dtype=F32), tensor(70, 4, dtype=F32)]
            + [tensor(70, 4, dtype=I64), True, scoring, 1e-20],
        )
        for e in (64, 512)
        for scoring in ("softmax", "sigmoid", "sqrt_softplus")
    ],
    (kernels.moe_order, [tensor(70, 8, dtype=I64), 128]),
    (kernels.moe_permute, [tensor(8, 64), tensor(16, dtype=I64), tensor(16, dtype=I64)]),
    (kernels.moe_permute_backward, [tensor(16, 64), tensor(16, dtype=I64), 8]),
    (kernels.moe_combine, [tensor(16, 64), tensor(16, dtype=I64), tensor(8, 2, dtype=F32)]),
    (
        kernels.moe_combine_backward,
        [tensor(8, 64), tensor(16, 64), tensor(16, dtype=I64), tensor(8, 2, dtype=F32)],
    ),
    (kernels.scale_gradient, [tensor(8, 64), rows(1)]),
    (kernels.scale_gradient_, [tensor(8, 64), rows(1)]),
    (kernels.cross_entropy_with_gradient_, [tensor(8, 50257), tensor(8, dtype=I64), rows(1)]),
    (kernels.rms_norm, [tensor(512, 65536), tensor(65536)]),
    *[(kernels.rms_norm, [tensor(m, n), tensor(n), 1e-6]) for m, n in NORMS],
    *[
        (
            kernels.rms_norm_backward,
            [tensor(m, n), rows(m), tensor(m, n), tensor(n), rows(m)],
        )
        for m, n in NORMS
    ],
    *[
        (kernels.layer_norm, [tensor(m, n), tensor(n), tensor(n), 1e-5])
        for m, n in [*NORMS, (65536, 128), (65536, 4096), *[(4096, 32768 * k) for k in (1, 2, 4)]]
    ],
    *[
        (
            kernels.layer_norm_backward,
            [tensor(m, n), rows(m), rows(m), tensor(m, n), tensor(n), rows(m), rows(m)],
        )
        for m, n in [*NORMS, (64, 6144), (64, 8192), (64, 12288)]
    ],
    *[
        (op, [*arguments, tensor(m, n), *[tensor(n, dtype=F32)] * parameters, *more])
        for m, n in [*NORMS, (64, 12288)]
        for op, arguments, parameters, more in [
            (kernels.rms_norm, [], 1, [1e-6]),
            (kernels.rms_norm, [], 1, [1e-6, 1.0]),
            (kernels.add_rms_norm, [tensor(m, n)], 1, [1e-6]),
            (kernels.rms_norm_backward, [tensor(m, n), rows(m)], 1, [rows(m)]),
            (kernels.rms_norm_backward, [tensor(m, n), rows(m)], 1, [rows(m), tensor(m, n)]),
            (kernels.layer_norm, [], 2, [1e-5]),
            (kernels.layer_norm_backward, [tensor(m, n), rows(m), rows(m)], 1, [rows(m), rows(m)]),
        ]
    ],
    (kernels.layer_norm, [tensor(64, 768), None, tensor(768, dtype=F32), 1e-5]),
    (kernels.layer_norm, [tensor(400, 65536), *[tensor(65536, dtype=F32)] * 2, 1e-5]),
    *[(kernels.sum_of_blocks, [tensor(256, 2, n, dtype=F32), tensor(n)]) for n in (768, 7)],
    *[
        (
            kernels.rms_norm_backward,
            [tensor(m, n), rows(m), tensor(m, n), tensor(n), rows(m), tensor(m, n)],
        )
        for m, n in NORMS
    ],
    *[(kernels.add_rms_norm, [tensor(m, n), tensor(m, n), tensor(n), 1e-6]) for m, n in NORMS],
    *[
        (kernels.rms_norm_float8, [tensor(m, n), tensor(n), 1e-6, block])
        for m, n in [*NORMS, (4096, 4096), (4096, 8192), (4096, 16384)]
        for block in (0, 128)
        if not block or n % block == 0
    ],
    *[
        (kernels.rms_norm_float8, [tensor(4096, n), tensor(n), 1e-6, 0, rule])
        for n in (2048, 4096, 8192)
        for rule in (1, 2, 3)
    ],
    *[
        (kernels.silu_mul_float8, [tensor(64, n), tensor(64, n), block])
        for n in (128, 1024, 4096, 14336, 32768)
        for block in (0, 128)
    ],
    *[(kernels.softmax, [tensor(m, n), 1.0]) for m, n in SOFTMAXES],
    *[
        (kernels.softmax, [tensor(m, n), 1.0, tensor(n, dtype=dtype)])
        for m, n in SOFTMAXES
        for dtype in (torch.bfloat16, F32)
    ],
    *[(kernels.softmax, [tensor(m, n), 1.0]) for m, n in OF_CLUSTERS],
    *[(kernels.log_softmax, [tensor(m, n), 1.0]) for m, n in SOFTMAXES + OF_CLUSTERS],
    *[(kernels.softmax_backward, [tensor(m, n), tensor(m, n), 1.0]) for m, n in SOFTMAXES],
    *[(kernels.log_softmax_backward, [tensor(m, n), tensor(m, n), 1.0]) for m, n in SOFTMAXES],
    *[
        (kernels.embedding, [tensor(100, n), tensor(2, 8, dtype=index), -1])
        for n in (64, 65)
        for index in (I64, torch.int32)
    ],
    *[
        (kernels.embedding_backward, [tensor(16, n), tensor(16, dtype=index), table, -1])
        for n in (64, 65)
        for index in (I64, torch.int32)
        for table in (100, 32000)
    ],
    *[
        (kernels.index_add_rows, [tensor(table, n), tensor(16, dtype=I64), tensor(16, n)])
        for n in (64, 65)
        for table in (100, 32000)
    ],
    *[
        (kernels.cumsum, [tensor(m, n, dtype=dtype), False])
        for m, n in [(64, 64), (64, 1000), (8192, 4096), (8, 4097), (2, 1 << 23), (2, 50001)]
        + [(64, 128256), (64, 16384)]
        for dtype in (torch.bfloat16, F32, torch.int32, I64)
    ],
    *[
        (kernels.bincount, [tensor(n, dtype=dtype), bins])
        for n, bins in [(5000, 256), (5000, 1000), (5000, 12288), (1 << 24, 65536)]
        for dtype in (torch.int32, I64)
    ],
    *[
        (kernels.sort, [tensor(64, n, dtype=dtype), False])
        for n in (7, 1000, 4096, 16384)
        for dtype in (torch.bfloat16, F32)
    ],
    *[
        (op, [tensor(8, 64)] * tensors + [form])
        for op, tensors in ((kernels.gelu_mul, 2), (kernels.gelu_mul_backward, 3))
        for form in ("none", "tanh")
    ],
    (kernels.silu_mul, [tensor(8, 64), tensor(8, 64)]),
    (kernels.silu_mul_backward, [tensor(8, 64), tensor(8, 64), tensor(8, 64)]),
    *[
        (
            op,
            [tensor(2, 4, 8, n), tensor(2, 2, 8, n), *[tensor(2, 8, n, dtype=table)] * 2, pairs],
        )
        for op in (kernels.rope, kernels.rope_backward)
        for n in (128, 6)
        for table in (torch.bfloat16, F32)
        for pairs in (False, True)
    ],
    *[
        (
            kernels.rope_paged_,
            [tensor(8, 4, n), *[tensor(8, 2, n)] * 2, *[tensor(8, n)] * 2]
            + [*[tensor(3, 16, 2, n)] * 2, tensor(8, dtype=I64)],
        )
        for n in (128, 6)
    ],
]


def test_every_op_with_cuda_source_is_here() -> None:
    ops = [each for name in kernels.__all__ if isinstance(each := getattr(kernels, name), opaq.Op)]
    with_source = {
        op.name
        for op in ops
        if any(
            (each["kind"], each["device"]) == ("source", "cuda")
            for each in op.info["implementations"]
        )
    }
    assert with_source == {op.name for op, _ in CALLS}


@pytest.mark.parametrize(
    "op, arguments", CALLS, ids=[f"{op.name[14:]}-{n}" for n, (op, _) in enumerate(CALLS)]
)
@pytest.mark.parametrize("arch", ARCHS)
def test_it_compiles_and_does_not_spill(op: Any, arguments: list[Any], arch: str) -> None:
    found = op.check(*arguments, arch=arch)
    assert found.ok, found.problems
    compiled = [
        (each.entry, code["arch"], code["resources"]["spill_stores"])
        for each in found.implementations
        for code in each.code
        if code["arch"]
    ]
    assert {arch for _, arch, _ in compiled} == {arch}
    allowed = SPILLS.get(op.name, 0)
    assert [each for each in compiled if each[2] > allowed] == []
