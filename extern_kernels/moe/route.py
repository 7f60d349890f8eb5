"""Routing of a mixture of experts, with its gradient: declaration and reference.

moe_route(gate_logits, k, normalize=True, scoring="softmax", correction_bias=None, groups=1,
          kept_groups=1, group_best=2, zero_dropped=False, eps=0.0, scale=1.0)
    -> (weights, experts, counts, order, position)

gate_logits: [T, E], floating, k <= E
scoring: the score of an expert is its softmax(gate_logits), with "sigmoid" its
    sigmoid(gate_logits), or with "sqrt_softplus" its sqrt(softplus(gate_logits)), as in
    DeepSeek-V4, in float32 (float64 for float64 logits)
correction_bias: [E], floating: added to the scores for the choice, not in the weights; it has no
    gradient
groups, kept_groups, group_best: the experts are so many groups of equal size, one after the other;
    a group has the score of its best expert (group_best=1), as in DeepSeek-V2, or the sum of its
    two best ones (group_best=2), as in DeepSeek-V3; only the best `kept_groups` remain
zero_dropped: for the choice, the experts of the other groups score 0 instead of -inf; so one of
    them is chosen where remaining ones have, with their bias, less
weights: [T, k], float32 (float64 for float64 logits): the scores of the k experts that are chosen
    for each token, the best choice first; divided by their sum + eps with normalize=True, as
    Mixtral and Qwen-MoE (norm_topk_prob) do; times scale (routed_scaling_factor); differentiable
experts: [T, k], int64: theirs; of equal ones the first expert comes first. Without correction_bias
    and groups, those with larger logits are better; else those with larger scores
counts: [E], int64: how many (token, choice) pairs each expert has
order: [T * k], int64: the pairs by expert, pair t * k + s being choice s of token t; those of one
    expert in the order of tokens
position: [T * k], int64: where each pair is in `order`

The rows of the tokens in the order of the experts are moe_permute(x, order, position); the experts'
results come back with moe_combine(rows, position, weights). Shazeer et al. 2017, arXiv:1701.06538;
Jiang et al. 2024, arXiv:2401.04088. Sigmoids, the bias and groups: DeepSeek-AI 2024,
arXiv:2405.04434, 2408.15664 and 2412.19437.
"""

import torch

import opaq

_FLOAT = "float64 if gate_logits.dtype == float64 else float32"
_PAIRS = "gate_logits.size(0) * max(0, k)"

moe_route = opaq.op(
    "opaq_kernels::moe_route(Tensor gate_logits, int k, bool normalize=True, "
    "str scoring='softmax', Tensor? correction_bias=None, int groups=1, int kept_groups=1, "
    "int group_best=2, bool zero_dropped=False, float eps=0.0, float scale=1.0) "
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
    "Tensor experts, bool normalize, str scoring='softmax', float eps=0.0, float scale=1.0) "
    "-> (Tensor grad_logits)",
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
_CPU_DTYPES = ("float32", "float64")
_EACH = "next_power_of_2(ceil_div(gate_logits.size(1), 32))"  # experts of a lane
_BLOCKS = "ceil_div(gate_logits.size(0), 64)"
_SIZES = "gate_logits.size(0), gate_logits.size(1)"
_K = "k > 0 and k <= gate_logits.size(1)"
# as kSoftmax, ... of the kernels
_SCORING = "(0 if scoring == 'softmax' else 1 if scoring == 'sigmoid' else 2)"
_SCORINGS = ("softmax", "sigmoid", "sqrt_softplus")

# What the CUDA kernels without a choice of scores compute; a gradient is the same for any choice.
_PLAIN_WEIGHTS = ["scoring == 'softmax'", "eps == 0", "scale == 1"]
_PLAIN = [*_PLAIN_WEIGHTS, "not defined(correction_bias)", "groups == 1", "kept_groups == 1"]
_KNOWN_SCORING = " or ".join(f"scoring == '{each}'" for each in _SCORINGS)
_GROUPS = [
    "groups > 0 and kept_groups > 0 and kept_groups <= groups",
    "gate_logits.size(1) % max(1, groups) == 0",
    "group_best == 1 or group_best == 2",
    "groups == 1 or gate_logits.size(1) >= groups * group_best",
]
_CHOICE = "groups, kept_groups, group_best, zero_dropped, eps, scale"


def _requires_scored(bias_type: str) -> list[str]:
    bias = f"correction_bias.dtype == {bias_type} and correction_bias.is_contiguous()"
    return [
        _KNOWN_SCORING,
        f"not defined(correction_bias) or {bias}",
        "not defined(correction_bias) or correction_bias.dim() == 1",
        "not defined(correction_bias) or correction_bias.numel() == gate_logits.size(1)",
        *_GROUPS,
    ]


def _declare_route(
    name: str, kernel: str, threads: int | str, bias: str, args: str, requires: list[str]
) -> None:
    """bias: what follows the logits among the arguments; args: what comes last."""
    moe_route.cuda(
        name=name,
        source=opaq.file("route.cu"),
        scratch={
            "starts": opaq.tensor(f"gate_logits.size(1), {_BLOCKS}", dtype="int32"),
            "ticket": opaq.zeros(1, dtype="int32", once=True),
        },
        steps=[
            opaq.step(
                entry=kernel,
                grid=_BLOCKS,
                block=threads,
                args=f"weights, experts, counts, starts, ticket, gate_logits, {bias}{_SIZES}, k, "
                f"gate_logits.stride(0), normalize{args}",
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
            *requires,
        ],
    )


_declare_route("cuda", f"moe_route<{{gate_logits.dtype}}, {{{_EACH}}}>", 1024, "", "", _PLAIN)
_THREADS = f"(1024 if {_EACH} <= 8 else 512)"  # which have registers enough
_GIVEN = f"{{{_SCORING}}}, {{defined(correction_bias)}}, {{kept_groups < groups}}"
_declare_route(
    "cuda:scored",
    f"moe_route_scored<{{gate_logits.dtype}}, {{{_EACH}}}, {{{_THREADS}}}, {_GIVEN}>",
    _THREADS,
    "correction_bias, ",
    f", {_CHOICE}",
    [*_requires_scored("float32"), "groups <= 32"],
)


_OF_GRADIENT = f"{_SIZES}, weights.size(1), gate_logits.stride(0), normalize"


def _declare_backward(name: str, kernel: str, plain: bool) -> None:
    kept = "weights, " if plain else ""
    requires = _PLAIN_WEIGHTS if plain else [_KNOWN_SCORING]
    given = f"grad_logits, grad_weights, gate_logits, {kept}experts, {_OF_GRADIENT}"
    moe_route_backward.cuda(
        name=name,
        source=opaq.file("route.cu"),
        entry=f"{kernel}<{{gate_logits.dtype}}, {{{_EACH}}}{'' if plain else f', {{{_SCORING}}}'}>",
        grid="ceil_div(gate_logits.size(0), 8)",
        block=256,
        args=given if plain else f"{given}, eps, scale",
        requires=[
            *_requires(*_CUDA_DTYPES),
            *_requires_backward("float32"),
            "weights.size(1) <= 32 and gate_logits.size(1) <= 512",
            *requires,
        ],
    )


_declare_backward("cuda", "moe_route_backward", plain=True)
_declare_backward("cuda:scored", "moe_route_scored_backward", plain=False)

moe_route.cpu(
    source=opaq.file("moe.cpp"),
    entry="moe_route<{gate_logits.dtype}>",
    args=f"weights, experts, counts, order, position, gate_logits, correction_bias, {_SIZES}, k, "
    f"gate_logits.stride(0), normalize, {_SCORING}, {_CHOICE}",
    requires=[*_requires(*_CPU_DTYPES), _K, *_requires_scored("gate_logits.dtype")],
)
moe_route_backward.cpu(
    source=opaq.file("moe.cpp"),
    entry="moe_route_backward<{gate_logits.dtype}>",
    args=f"grad_logits, grad_weights, gate_logits, experts, {_OF_GRADIENT}, {_SCORING}, eps, scale",
    requires=[
        *_requires(*_CPU_DTYPES),
        *_requires_backward("gate_logits.dtype"),
        _KNOWN_SCORING,
    ],
)

# ---- meaning and gradient ------------------------------------------------------------------------


def _check(
    gate_logits: torch.Tensor,
    k: int,
    scoring: str,
    correction_bias: torch.Tensor | None,
    groups: int,
    kept_groups: int,
    group_best: int,
) -> None:
    shape = tuple(gate_logits.shape)
    if gate_logits.dim() != 2:
        raise ValueError(
            f"moe_route: gate_logits have shape {shape}; expected [tokens, experts]: flatten the "
            "leading dimensions first"
        )
    experts = gate_logits.size(1)
    if experts == 0:
        raise ValueError(f"moe_route: gate_logits have shape {shape}; expected at least one expert")
    if not 0 < k <= experts:
        raise ValueError(
            f"moe_route: k is {k}; expected 1 to {experts}, the number of experts of gate_logits "
            f"{shape}"
        )
    if scoring not in _SCORINGS:
        raise ValueError(
            f"moe_route: scoring is {scoring!r}; expected 'softmax', 'sigmoid' or 'sqrt_softplus'"
        )
    bias = correction_bias
    if bias is not None and (bias.shape != (experts,) or not bias.is_floating_point()):
        raise ValueError(
            f"moe_route: correction_bias is {bias.dtype} of shape {tuple(bias.shape)}; expected a "
            f"floating-point dtype and shape ({experts},), a number for each expert"
        )
    if groups < 1 or experts % groups:
        raise ValueError(
            f"moe_route: groups is {groups}; expected a divisor of {experts}, the number of experts"
        )
    if not 0 < kept_groups <= groups:
        raise ValueError(
            f"moe_route: kept_groups is {kept_groups}; expected 1 to {groups}, the number of groups"
        )
    if group_best not in (1, 2) or groups > 1 and experts < groups * group_best:
        raise ValueError(
            f"moe_route: group_best is {group_best}; expected 1 or 2, and no more than the "
            f"{experts // groups} experts of a group"
        )


def _scores(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    if scoring == "sqrt_softplus":
        return torch.nn.functional.softplus(logits).sqrt()
    return torch.softmax(logits, 1) if scoring == "softmax" else torch.sigmoid(logits)


def _slope(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    """Of the logarithm of a score that depends on one logit."""
    if scoring == "sigmoid":
        return torch.sigmoid(-logits)
    # torch's softplus(v) is v above 20; it is exp(v) far below 0, where that may be 0
    known = torch.sigmoid(logits) / torch.nn.functional.softplus(logits)
    known = torch.where(logits > 20, logits.reciprocal(), known)
    return 0.5 * torch.where(logits < -40, 1.0, known)


@moe_route.reference
def moe_route_reference(
    gate_logits: torch.Tensor,
    k: int,
    normalize: bool = True,
    scoring: str = "softmax",
    correction_bias: torch.Tensor | None = None,
    groups: int = 1,
    kept_groups: int = 1,
    group_best: int = 2,
    zero_dropped: bool = False,
    eps: float = 0.0,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    _check(gate_logits, k, scoring, correction_bias, groups, kept_groups, group_best)
    wide = gate_logits.to(torch.promote_types(gate_logits.dtype, torch.float32))
    scores, by = _scores(wide, scoring), wide
    if correction_bias is not None:
        by = scores + correction_bias.to(wide.dtype)
    elif groups > 1:
        by = scores
    if groups > 1:
        of_group = by.unflatten(1, (groups, -1)).sort(2, descending=True)[0][..., :group_best]
        best = torch.sort(of_group.sum(2), dim=1, descending=True, stable=True)[1]
        dropped = torch.ones_like(best, dtype=torch.bool).scatter(1, best[:, :kept_groups], False)
        dropped = dropped.repeat_interleave(gate_logits.size(1) // groups, 1)
        by = by.masked_fill(dropped, 0.0 if zero_dropped else -torch.inf)
    experts = torch.sort(by, dim=1, descending=True, stable=True)[1][:, :k].contiguous()
    weights = scores.gather(1, experts)
    if normalize:
        weights = weights / (weights.sum(1, keepdim=True) + eps)
    flat = experts.flatten()
    order = torch.sort(flat, stable=True)[1]
    position = torch.empty_like(order).scatter(
        0, order, torch.arange(flat.numel(), device=flat.device)
    )
    counts = torch.zeros(gate_logits.size(1), dtype=torch.int64, device=flat.device)
    counts = counts.scatter_add(0, flat, torch.ones_like(flat))
    return weights * scale, experts, counts, order, position


@moe_route_backward.reference
def moe_route_backward_reference(
    grad_weights: torch.Tensor,
    gate_logits: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    normalize: bool,
    scoring: str = "softmax",
    eps: float = 0.0,
    scale: float = 1.0,
) -> torch.Tensor:
    wide = gate_logits.to(weights.dtype)
    scores = _scores(wide, scoring)
    share, of_all = scores.gather(1, experts), 0
    if normalize:
        share = share / (share.sum(1, keepdim=True) + eps)
        of_all = (grad_weights * share).sum(1, keepdim=True)
    add = scale * share * (grad_weights - of_all)  # the gradient for the logarithm of the scores
    grad = torch.zeros_like(scores)
    if scoring != "softmax":
        add = add * _slope(wide, scoring).gather(1, experts)
    elif not normalize or eps:  # else the sum is 0
        grad = -add.sum(1, keepdim=True) * scores
    return grad.scatter_add(1, experts, add).to(gate_logits.dtype)


def _setup_context(ctx, inputs, output) -> None:
    gate_logits, _, normalize, scoring, *_, eps, scale = inputs
    weights, experts, *others = output
    ctx.how = normalize, scoring, eps, scale
    ctx.inputs = len(inputs)
    ctx.save_for_backward(gate_logits, weights, experts)
    ctx.mark_non_differentiable(experts, *others)


def _backward(ctx, grad_weights: torch.Tensor, *_):
    gate_logits, weights, experts = ctx.saved_tensors
    grad = moe_route_backward(grad_weights.contiguous(), gate_logits, weights, experts, *ctx.how)
    return grad, *[None] * (ctx.inputs - 1)


moe_route.backward(_backward, setup_context=_setup_context)
