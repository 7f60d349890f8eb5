"""Routing of a mixture of experts, with its gradient: declaration and reference.

moe_route(gate_logits, k, normalize=True) -> (weights, experts, counts, order, position)

gate_logits: [T, E], floating, k <= E
weights: [T, k], float32 (float64 for float64 logits): the k largest of softmax(gate_logits) of each
    token, the largest first; divided by their sum with normalize=True, as Mixtral and Qwen-MoE
    (norm_topk_prob) do; differentiable
experts: [T, k], int64: theirs; of equal logits the first expert comes first
counts: [E], int64: how many (token, choice) pairs each expert has
order: [T * k], int64: the pairs by expert, pair t * k + s being choice s of token t; those of one
    expert in the order of tokens
position: [T * k], int64: where each pair is in `order`

The rows of the tokens in the order of the experts are moe_permute(x, order, position); the experts'
results come back with moe_combine(rows, position, weights). Shazeer et al. 2017, arXiv:1701.06538;
Jiang et al. 2024, arXiv:2401.04088.
"""

import torch

import opaq

_FLOAT = "float64 if gate_logits.dtype == float64 else float32"
_PAIRS = "gate_logits.size(0) * max(0, k)"

moe_route = opaq.op(
    "opaq_kernels::moe_route(Tensor gate_logits, int k, bool normalize=True) "
    "-> (Tensor weights, Tensor experts, Tensor counts, Tensor order, Tensor position)",
    outputs={
        "weights": opaq.tensor("gate_logits.size(0), max(0, k)", dtype=_FLOAT),
        "experts": opaq.tensor("gate_logits.size(0), max(0, k)", dtype="int64"),
        "counts": opaq.tensor("gate_logits.size(1)", dtype="int64"),
        "order": opaq.tensor(_PAIRS, dtype="int64"),
        "position": opaq.tensor(_PAIRS, dtype="int64"),
    },
)
moe_route_backward = opaq.op(
    "opaq_kernels::moe_route_backward(Tensor grad_weights, Tensor gate_logits, Tensor weights, "
    "Tensor experts, bool normalize) -> (Tensor grad_logits)",
    outputs=opaq.like("gate_logits"),
)


def _requires(*dtypes: str) -> list[str]:
    return [
        " or ".join(f"gate_logits.dtype == {dtype}" for dtype in dtypes),
        "gate_logits.dim() == 2",
        "gate_logits.stride(1) == 1 or gate_logits.size(1) == 1",
    ]


def _requires_backward(float_type: str) -> list[str]:
    return [
        *(f"{name}.dtype == {float_type}" for name in ("grad_weights", "weights")),
        "experts.dtype == int64",
        *(
            f"{name}.dim() == 2 and {name}.size(0) == gate_logits.size(0) "
            "and experts.size(1) == weights.size(1)"
            for name in ("grad_weights", "weights", "experts")
        ),
        "grad_weights.size(1) == weights.size(1)",
        "grad_weights.is_contiguous() and weights.is_contiguous() and experts.is_contiguous()",
    ]


_CUDA_DTYPES = ("float32", "float16", "bfloat16")
_EACH = "next_power_of_2(ceil_div(gate_logits.size(1), 32))"  # experts of a lane
_BLOCKS = "ceil_div(gate_logits.size(0), 64)"
_SIZES = "gate_logits.size(0), gate_logits.size(1)"
_K = "k > 0 and k <= gate_logits.size(1)"

moe_route.cuda(
    source=opaq.file("route.cu"),
    scratch={
        "starts": opaq.tensor(f"gate_logits.size(1), {_BLOCKS}", dtype="int32"),
        "ticket": opaq.zeros(1, dtype="int32", once=True),
    },
    steps=[
        opaq.step(
            entry=f"moe_route<{{gate_logits.dtype}}, {{{_EACH}}}>",
            grid=_BLOCKS,
            block=1024,
            args=f"weights, experts, counts, starts, ticket, gate_logits, {_SIZES}, k, "
            "gate_logits.stride(0), normalize",
        ),
        opaq.step(
            entry="moe_place",
            grid=_BLOCKS,
            block=512,
            args=f"order, position, experts, counts, starts, {_SIZES}, k",
        ),
    ],
    requires=[
        *_requires(*_CUDA_DTYPES),
        _K,
        "k <= 32 and gate_logits.size(1) <= 512",
        "gate_logits.size(0) > 0 and gate_logits.size(0) * k < 2147483648",
    ],
)
moe_route_backward.cuda(
    source=opaq.file("route.cu"),
    entry=f"moe_route_backward<{{gate_logits.dtype}}, {{{_EACH}}}>",
    grid="ceil_div(gate_logits.size(0), 8)",
    block=256,
    args=f"grad_logits, grad_weights, gate_logits, weights, experts, {_SIZES}, weights.size(1), "
    "gate_logits.stride(0), normalize",
    requires=[
        *_requires(*_CUDA_DTYPES),
        *_requires_backward("float32"),
        "weights.size(1) <= 32 and gate_logits.size(1) <= 512",
    ],
)
moe_route.cpu(
    source=opaq.file("moe.cpp"),
    entry="moe_route<{gate_logits.dtype}>",
    args=f"weights, experts, counts, order, position, gate_logits, {_SIZES}, k, "
    "gate_logits.stride(0), normalize",
    requires=[*_requires("float32", "float64"), _K],
)
moe_route_backward.cpu(
    source=opaq.file("moe.cpp"),
    entry="moe_route_backward<{gate_logits.dtype}>",
    args=f"grad_logits, grad_weights, gate_logits, weights, experts, {_SIZES}, weights.size(1), "
    "gate_logits.stride(0), normalize",
    requires=[*_requires("float32", "float64"), *_requires_backward("gate_logits.dtype")],
)

# ---- meaning and gradient ------------------------------------------------------------------------


@moe_route.reference
def moe_route_reference(
    gate_logits: torch.Tensor, k: int, normalize: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    if gate_logits.dim() != 2:
        raise ValueError(
            f"moe_route: gate_logits have shape {tuple(gate_logits.shape)}; expected "
            "[tokens, experts]: flatten the leading dimensions first"
        )
    if gate_logits.size(1) == 0:
        raise ValueError(
            f"moe_route: gate_logits have shape {tuple(gate_logits.shape)}; expected at least one "
            "expert"
        )
    if not 0 < k <= gate_logits.size(1):
        raise ValueError(
            f"moe_route: k is {k}; expected 1 to {gate_logits.size(1)}, the number of experts of "
            f"gate_logits {tuple(gate_logits.shape)}"
        )
    wide = gate_logits.to(torch.promote_types(gate_logits.dtype, torch.float32))
    _, by_size = torch.sort(wide, dim=1, descending=True, stable=True)
    experts = by_size[:, :k].contiguous()
    weights = torch.softmax(wide, 1).gather(1, experts)
    if normalize:
        weights = torch.softmax(wide.gather(1, experts), 1)
    flat = experts.flatten()
    order = torch.sort(flat, stable=True)[1]
    position = torch.empty_like(order).scatter(
        0, order, torch.arange(flat.numel(), device=flat.device)
    )
    counts = torch.zeros(gate_logits.size(1), dtype=torch.int64, device=flat.device)
    return weights, experts, counts.scatter_add(0, flat, torch.ones_like(flat)), order, position


@moe_route_backward.reference
def moe_route_backward_reference(
    grad_weights: torch.Tensor,
    gate_logits: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    normalize: bool,
) -> torch.Tensor:
    dot = (grad_weights * weights).sum(1, keepdim=True)
    if normalize:
        start = torch.zeros(gate_logits.shape, dtype=weights.dtype, device=weights.device)
        add = weights * (grad_weights - dot)
    else:
        start = -dot * torch.softmax(gate_logits.to(weights.dtype), 1)
        add = weights * grad_weights
    return start.scatter_add(1, experts, add).to(gate_logits.dtype)


def _setup_context(ctx, inputs, output) -> None:
    gate_logits, _, ctx.normalize = inputs
    weights, experts, *others = output
    ctx.save_for_backward(gate_logits, weights, experts)
    ctx.mark_non_differentiable(experts, *others)


def _backward(ctx, grad_weights: torch.Tensor, *_):
    gate_logits, weights, experts = ctx.saved_tensors
    grad = moe_route_backward(
        grad_weights.contiguous(), gate_logits, weights, experts, ctx.normalize
    )
    return grad, None, None


moe_route.backward(_backward, setup_context=_setup_context)
