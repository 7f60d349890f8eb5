"""opaq.extern_kernels.moe_route, moe_permute, moe_combine: against PyTorch in float64, equal and
invalid logits, layouts, gradients, compiled graphs, CUDA plans.
"""

import pytest
import torch
from kernel_checks import (
    ARCHS,
    DTYPES,
    close,
    compiled_agrees,
    compiles,
    cuda,
    gradients,
    plan,
    refuses,
)

import opaq
from opaq.extern_kernels import (
    moe_combine,
    moe_combine_backward,
    moe_order,
    moe_permute,
    moe_permute_backward,
    moe_route,
    moe_route_backward,
)
from opaq.extern_kernels.moe import combine, route
from opaq.extern_kernels.moe import order as ordering

# (tokens, experts, k): within a block of 64 tokens, beyond one and beyond 32 of them
ROUTES = [
    (1, 1, 1),
    (5, 8, 2),
    (64, 60, 4),
    (65, 64, 8),
    (130, 128, 8),
    (33, 33, 32),
    (2200, 16, 3),
    (9, 512, 10),
]


def make(tokens, experts, dtype, device):
    generator = torch.Generator().manual_seed(tokens * 1000 + experts)
    logits = torch.randn(tokens, experts, generator=generator, dtype=torch.float64)
    return logits.to(device, dtype)


def exact(logits, k, normalize):
    wide = logits.double()
    probabilities = torch.softmax(wide, 1)
    experts = torch.sort(wide, dim=1, descending=True, stable=True)[1][:, :k]
    weights = probabilities.gather(1, experts)
    return (weights / weights.sum(1, keepdim=True) if normalize else weights), experts


def check(logits, k, normalize):
    (weights, *indices), (grad,) = gradients(
        lambda x: moe_route(x, k, normalize)[:1] + tuple(map(float_of, moe_route(x, k)[1:])),
        (logits,),
        [0],
    )
    experts, counts, order, position = (each.long() for each in indices)
    (wide,), (wide_grad,) = gradients(lambda x: exact(x, k, normalize)[0], (logits.double(),), [0])
    wide_experts = exact(logits, k, normalize)[1]
    assert weights.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert torch.equal(experts, wide_experts)
    close(weights, wide)
    close(grad, wide_grad, logits.dtype, scale=2)
    flat = experts.flatten()
    assert torch.equal(counts, torch.bincount(flat, minlength=logits.size(1)))
    assert torch.equal(order, torch.sort(flat, stable=True)[1])
    assert torch.equal(order[position], torch.arange(len(flat), device=flat.device))


def float_of(indices):
    return indices.double().detach()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", ROUTES, ids=str)
def test_routes(shape, normalize, dtype, device):
    tokens, experts, k = shape
    check(make(tokens, experts, dtype, device), k, normalize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_logits(dtype, device):
    logits = make(40, 24, dtype, device)
    expanded = logits[:1].expand(9, 24)
    for view in (logits[::3], logits[:, 3:17], logits.t(), logits[:, ::2], expanded):
        check(view, 3, True)


def test_equal_logits_go_to_the_first_experts(device):
    logits = torch.zeros(100, 64, device=device)
    logits[:, ::2] = -0.0
    weights, experts, counts, order, position = moe_route(logits, 4)
    assert experts.unique(dim=0).tolist() == [[0, 1, 2, 3]]
    assert counts.tolist() == [100] * 4 + [0] * 60
    assert (weights == 0.25).all()
    assert order[:100].tolist() == list(range(0, 400, 4))


def test_masked_and_invalid_logits(device):
    logits = make(4, 8, torch.float32, device)
    logits[0, 1:] = -torch.inf
    logits[1] = -torch.inf
    logits[2, 3] = torch.nan
    weights, experts, counts, order, _ = moe_route(logits, 2)
    assert experts[0, 0] == 0 and weights[0].tolist() == [1, 0]
    assert experts[1].tolist() == [0, 1] and weights[1].isnan().all()
    assert experts[2, 0] == 3 and weights[2].isnan().all()
    assert weights[3].isfinite().all()
    assert counts.sum() == 8 and order.sort()[0].tolist() == list(range(8))


# experts, k, and what else is given: as DeepSeek-V3, GLM-4.5 (one group), MiniMax-M2, LFM2,
# DeepSeek-V2 and Ernie 4.5 have it; groups of two; a bias below 0, so that 0 wins
SCORED = [
    (64, 6, dict(scoring="sigmoid", bias=1, groups=8, kept_groups=3, eps=1e-20, scale=2.5)),
    (24, 3, dict(scoring="sigmoid", bias=1, eps=1e-20, scale=1.5)),
    (40, 4, dict(scoring="sigmoid", bias=1)),
    (40, 4, dict(scoring="sigmoid", eps=1e-2, normalize=True, scale=0.5)),
    (8, 2, dict(scoring="sigmoid", normalize=False)),
    (256, 6, dict(scoring="sqrt_softplus", bias=1, eps=1e-20, scale=1.5)),
    (40, 4, dict(scoring="sqrt_softplus", normalize=False)),
    (64, 6, dict(scoring="sqrt_softplus", bias=1, groups=8, kept_groups=3)),
    (12, 3, dict(groups=3, kept_groups=2, group_best=1, normalize=False, scale=16.0)),
    (12, 3, dict(groups=3, kept_groups=2, zero_dropped=True, eps=1e-2)),
    (33, 2, dict(bias=0.1, eps=1e-2)),
    (33, 2, dict(bias=0.1, normalize=False)),
    (40, 8, dict(scoring="sigmoid", bias=0.5, groups=20, kept_groups=7, scale=0.0)),
    (512, 32, dict(scoring="sigmoid", bias=1, groups=32, kept_groups=32)),
    (16, 4, dict(scoring="sigmoid", bias=-1, groups=4, kept_groups=1, zero_dropped=True)),
]


def scored_call(experts, given, dtype, device):
    """The arguments of moe_route after k, by name."""
    given = dict(given)
    size = given.pop("bias", None)
    bias = None
    if size is not None:
        bias = make(1, experts, torch.float64, device)[0].abs().mul(size)
        bias = bias.to(torch.promote_types(dtype, torch.float32))
    return {"normalize": True, **given, "correction_bias": bias}


def routed_exactly(logits, k, normalize, correction_bias, scoring="softmax", **given):
    """As transformers' DeepSeek-V2 and V3 do it, in float64."""
    scores = {
        "softmax": lambda: logits.softmax(-1),
        "sigmoid": logits.sigmoid,
        "sqrt_softplus": lambda: torch.nn.functional.softplus(logits).sqrt(),
    }[scoring]()
    by = scores if correction_bias is None else scores + correction_bias
    if (groups := given.get("groups", 1)) > 1:
        of_group = by.view(len(by), groups, -1).topk(given.get("group_best", 2), dim=-1)[0].sum(-1)
        kept = of_group.topk(given["kept_groups"], dim=-1)[1]
        mask = torch.zeros_like(of_group).scatter_(1, kept, 1)
        mask = mask.repeat_interleave(by.size(1) // groups, 1)
        by = by.masked_fill(~mask.bool(), 0.0 if given.get("zero_dropped") else -torch.inf)
    experts = by.sort(dim=-1, descending=True, stable=True)[1][:, :k]
    weights = scores.gather(1, experts)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + given.get("eps", 0.0))
    return weights * given.get("scale", 1.0), experts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SCORED, ids=str)
def test_routes_by_scores(case, dtype, device):
    experts_there, k, given = case
    logits = make(70, experts_there, dtype, device)
    given = scored_call(experts_there, given, dtype, device)
    bias = given["correction_bias"]
    wide_given = {**given, "correction_bias": None if bias is None else bias.double()}

    (weights,), (grad,) = gradients(lambda x: moe_route(x, k, **given)[0], (logits,), [0])
    (wide,), (wide_grad,) = gradients(
        lambda x: routed_exactly(x, k, **wide_given)[0], (logits.double(),), [0]
    )
    experts, counts, order, position = moe_route(logits, k, **given)[1:]
    wide_experts = routed_exactly(logits.double(), k, **wide_given)[1]
    if dtype in (torch.float32, torch.float64):  # of others there are equal scores
        assert torch.equal(experts, wide_experts)
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    scale = max(1.0, given.get("scale", 1.0))
    close(weights, wide, scale=scale)
    if dtype in (torch.float32, torch.float64):
        close(grad, wide_grad, dtype, scale=2 * scale)
    for actual, expected in zip((counts, order, position), moe_order(experts, experts_there)):
        assert torch.equal(actual, expected)
    for actual, expected in zip(
        (weights, experts, counts, order, position), route.moe_route_reference(logits, k, **given)
    ):
        torch.testing.assert_close(actual, expected)
    how = {name: given[name] for name in ("scoring", "eps", "scale") if name in given}
    args = (torch.randn_like(weights), logits, weights, experts, given["normalize"])
    torch.testing.assert_close(
        moe_route_backward(*args, **how), route.moe_route_backward_reference(*args, **how)
    )


def test_equal_scores_and_groups_go_to_the_first(device):
    logits = torch.zeros(70, 16, device=device)
    bias = torch.zeros(16, device=device)
    given = {"scoring": "sigmoid", "correction_bias": bias, "groups": 4, "kept_groups": 2}
    assert moe_route(logits, 3, **given)[1].unique(dim=0).tolist() == [[0, 1, 2]]
    bias[9] = 0.5
    assert moe_route(logits, 3, **given)[1].unique(dim=0).tolist() == [[9, 0, 1]]
    # More than the experts of one group: of the others, the first.
    given["kept_groups"] = 1
    assert moe_route(logits, 5, **given)[1].unique(dim=0).tolist() == [[9, 8, 10, 11, 0]]
    # Sigmoids that are equal, of logits that are not.
    logits = torch.arange(50.0, 66.0, device=device).expand(3, 16)
    assert moe_route(logits, 2, scoring="sigmoid")[1].unique(dim=0).tolist() == [[15, 14]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roots_of_softplus_of_large_logits(dtype, device):
    """softplus(v) is v for large ones; far below 0 it is exp(v), which is 0 at the end."""
    logits = torch.tensor([[30.0, 2.0, 21.0], [-60.0, -70.0, -61.0]], device=device, dtype=dtype)
    given = {"normalize": False, "scoring": "sqrt_softplus"}
    (weights,), (grad,) = gradients(lambda x: moe_route(x, 3, **given)[0], (logits,), [0])
    exact = routed_exactly(logits.double(), 3, correction_bias=None, **given)[0]
    torch.testing.assert_close(weights, exact.to(dtype), atol=0, rtol=1e-5)
    (_,), (wide,) = gradients(
        lambda x: routed_exactly(x, 3, correction_bias=None, **given)[0].to(dtype),
        (logits.double(),),
        [0],
    )
    torch.testing.assert_close(grad, wide.to(dtype), atol=0, rtol=1e-5)
    logits[1] = -2000.0
    assert (
        gradients(lambda x: moe_route(x, 3, **given)[0], (logits,), [0])[1][0][1].tolist()
        == [0.0] * 3
    )


def test_scores_of_invalid_logits(device):
    logits = make(4, 8, torch.float32, device)
    logits[0] = -torch.inf
    logits[1, 5] = torch.nan
    logits[2, :2] = torch.inf
    given = {"scoring": "sigmoid", "groups": 2, "kept_groups": 1}
    bias = torch.zeros(8, device=device)
    weights, experts = moe_route(logits, 2, correction_bias=bias, **given)[:2]
    assert experts[0].tolist() == [0, 1] and weights[0].isnan().all()
    assert experts[1, 0] == 5 and weights[1].isnan().all()
    assert experts[2].tolist() == [0, 1] and weights[2].tolist() == [0.5, 0.5]
    assert moe_route(logits, 2, correction_bias=bias, eps=1e-20, **given)[0][0].tolist() == [0, 0]


def test_no_tokens(device):
    weights, experts, counts, order, position = moe_route(torch.empty(0, 8, device=device), 2)
    assert (weights.shape, experts.shape, order.shape) == ((0, 2), (0, 2), (0,))
    assert counts.tolist() == [0] * 8
    x = torch.empty(0, 16, device=device)
    rows = moe_permute(x, order, position)
    assert rows.shape == (0, 16)
    assert moe_combine(rows, position, weights).shape == (0, 16)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 8, 2), (65, 64, 8), (300, 512, 10), (3000, 7, 3)])
def test_orders_by_given_experts(shape, device):
    tokens, count, k = shape
    experts = torch.randint(count, (tokens, k), device=device)  # some twice in a row
    if tokens > 64:
        experts[3, 1], experts[60, 0] = -1, count  # no experts: not counted, and last
    counts, order, position = moe_order(experts, count)
    flat = experts.flatten()
    there = flat[(flat >= 0) & (flat < count)]
    assert torch.equal(counts, torch.bincount(there, minlength=count))
    bucket = torch.where((flat >= 0) & (flat < count), flat, count)
    assert torch.equal(order, torch.sort(bucket, stable=True)[1])
    assert torch.equal(order[position], torch.arange(tokens * k, device=device))
    for actual, expected in zip(
        (counts, order, position), ordering.moe_order_reference(experts, count)
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 64, 8), (300, 512, 10), (3000, 7, 3)])
def test_negative_numbers_come_first_where_they_are_asked_to(shape, device):
    tokens, count, k = shape
    experts = torch.randint(-1, count + 1, (tokens, k), device=device)
    counts, order, position = moe_order(experts, count + 1, -1)
    flat = experts.flatten()
    assert torch.equal(order, torch.sort(flat, stable=True)[1])
    assert torch.equal(order[position], torch.arange(tokens * k, device=device))
    assert torch.equal(counts, torch.bincount(flat + 1, minlength=count + 2)[:-1])
    found = ordering.moe_order_reference(experts, count + 1, -1)
    for actual, expected in zip((counts, order, position), found):
        assert torch.equal(actual, expected)
    lower = torch.where(experts < 0, -7, experts)  # all in one group
    assert torch.equal(moe_order(lower, count + 1, -1)[1], order)


def test_order_is_that_of_routes(device):
    _, experts, *expected = moe_route(make(100, 24, torch.float32, device), 3)
    for actual, other in zip(moe_order(experts, 24), expected):
        assert torch.equal(actual, other)
    assert [each.numel() for each in moe_order(experts[:0], 24)] == [24, 0, 0]


def layer(x, weights, order, position):
    """Experts that scale their rows; a gradient for x and weights."""
    rows = moe_permute(x, order, position)
    return moe_combine(rows * 3, position, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 2, 8), (33, 8, 31), (9, 3, 2056), (70, 4, 4096)])
def test_rows_go_there_and_back(shape, dtype, device):
    tokens, k, columns = shape
    x = make(tokens, columns, dtype, device)
    weights, _, _, order, position = moe_route(make(tokens, 16, dtype, device), k)
    rows, (grad,) = gradients(lambda x: moe_permute(x, order, position), (x,), [0])
    _, (wide_grad,) = gradients(lambda x: x[order // k], (x.double(),), [0])
    assert torch.equal(rows[0], x[order // k])
    close(grad, wide_grad, dtype, scale=2)
    rows = rows[0]

    def combine_exactly(rows, weights):
        return (rows[position].view(tokens, k, columns) * weights.unsqueeze(2)).sum(1)

    (out,), grads = gradients(
        lambda rows, weights: moe_combine(rows, position, weights), (rows, weights), [0, 1]
    )
    (wide,), wide_grads = gradients(combine_exactly, (rows.double(), weights.double()), [0, 1])
    assert (out.dtype, out.shape) == (dtype, (tokens, columns))
    close(out, wide)
    close(grads[0], wide_grads[0], dtype)
    close(grads[1], wide_grads[1], dtype, scale=columns**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_aligned(dtype, device):
    weights, _, _, order, position = moe_route(make(12, 8, torch.float32, device), 2)
    flat = make(1, 24 * 65 + 8, dtype, device)[0]
    for offset in (0, 1, 3):
        x = flat[offset : offset + 12 * 64].view(12, 64)
        assert torch.equal(moe_permute(x, order, position), x[order // 2])
        assert torch.equal(moe_permute(x[:, :40], order, position), x[order // 2, :40])
        assert torch.equal(moe_permute(x.t()[:12], order, position), x.t()[:12][order // 2])
        rows = flat[offset : offset + 24 * 64].view(24, 64)
        wide = (rows.double()[position].view(12, 2, 64) * weights.double().unsqueeze(2)).sum(1)
        close(moe_combine(rows, position, weights), wide)


def test_a_number_that_is_no_row_is_nan(device):
    x = make(4, 16, torch.float32, device)
    weights, _, _, order, position = moe_route(make(4, 8, torch.float32, device), 2)
    rows = moe_permute(x, order, position)
    order[1], order[5], position[3] = -1, 8, 100
    assert moe_permute(x, order, position).isnan().all(1).nonzero().flatten().tolist() == [1, 5]
    assert moe_combine(rows, position, weights).isnan().all(1).tolist() == [
        False,
        True,
        False,
        False,
    ]
    grad = moe_combine_backward(x, rows, position, weights)[1]
    assert grad.flatten().isnan().nonzero().flatten().tolist() == [3]


def test_the_references_mean_the_same(device):
    logits = make(70, 12, torch.float32, device)
    for normalize in (True, False):
        found = moe_route(logits, 3, normalize)
        for actual, expected in zip(found, route.moe_route_reference(logits, 3, normalize)):
            torch.testing.assert_close(actual, expected)
        args = (torch.randn_like(found[0]), logits, found[0], found[1], normalize)
        torch.testing.assert_close(
            moe_route_backward(*args), route.moe_route_backward_reference(*args)
        )
    x = make(70, 24, torch.float32, device)
    weights, _, _, order, position = found
    rows = moe_permute(x, order, position)
    for op, reference, args in [
        (moe_permute, combine.moe_permute_reference, (x, order, position)),
        (moe_permute_backward, combine.moe_permute_backward_reference, (rows, position, 70)),
        (moe_combine, combine.moe_combine_reference, (rows, position, weights)),
        (
            moe_combine_backward,
            combine.moe_combine_backward_reference,
            (x, rows, position, weights),
        ),
    ]:
        torch.testing.assert_close(op(*args), reference(*args))


def test_bad_arguments_are_refused(device, capfd):
    logits = make(12, 8, torch.float32, device)
    message = "moe_route: k is 9; expected 1 to 8, the number of experts"
    refuses(lambda: moe_route(logits, 9), message, capfd)
    message = "moe_route: k is -1; expected 1 to 8, the number of experts"
    refuses(lambda: moe_route(logits, -1), message, capfd)
    message = "moe_route: gate_logits have shape (12, 0); expected at least one expert"
    refuses(lambda: moe_route(logits[:, :0], 1), message, capfd)
    message = "moe_route: gate_logits have shape (3, 4, 8); expected [tokens, experts]"
    refuses(lambda: moe_route(logits.view(3, 4, 8), 2), message, capfd)
    message = "moe_route: scoring is 'tanh'; expected 'softmax', 'sigmoid' or 'sqrt_softplus'"
    refuses(lambda: moe_route(logits, 2, scoring="tanh"), message, capfd)
    message = "moe_route: correction_bias is torch.float32 of shape (12,); expected a"
    refuses(lambda: moe_route(logits, 2, correction_bias=logits[:, 0]), message, capfd)
    message = "moe_route: correction_bias is torch.int64 of shape (8,); expected a"
    refuses(lambda: moe_route(logits, 2, correction_bias=logits[0].long()), message, capfd)
    message = "moe_route: groups is 3; expected a divisor of 8, the number of experts"
    refuses(lambda: moe_route(logits, 2, groups=3), message, capfd)
    message = "moe_route: groups is 0; expected a divisor of 8, the number of experts"
    refuses(lambda: moe_route(logits, 2, groups=0), message, capfd)
    message = "moe_route: kept_groups is 5; expected 1 to 4, the number of groups"
    refuses(lambda: moe_route(logits, 2, groups=4, kept_groups=5), message, capfd)
    message = "moe_route: group_best is 2; expected 1 or 2, and no more than the 1 experts of"
    refuses(lambda: moe_route(logits, 2, groups=8), message, capfd)
    message = "moe_route: group_best is 3; expected 1 or 2, and no more than the 4 experts of"
    refuses(lambda: moe_route(logits, 2, groups=2, group_best=3), message, capfd)
    experts = torch.zeros(3, 2, dtype=torch.int32, device=device)
    message = "moe_order: experts are torch.int32 of shape (3, 2); expected torch.int64 of shape"
    refuses(lambda: moe_order(experts, 4), message, capfd)
    message = "moe_order: count is 0; expected at least one expert"
    refuses(lambda: moe_order(experts.long(), 0), message, capfd)
    message = "moe_order: first is 1; expected 0 or a negative number"
    refuses(lambda: moe_order(experts.long(), 4, 1), message, capfd)
    weights, _, _, order, position = moe_route(logits, 2)
    message = "moe_permute: order has 24 pairs for 11 rows of x; expected a multiple"
    refuses(lambda: moe_permute(logits[:11], order, position), message, capfd)
    message = "moe_permute: x is torch.int64; expected a floating-point dtype"
    refuses(lambda: moe_permute(logits.long(), order, position), message, capfd)
    message = "moe_combine: rows have shape (12, 8), position (24,) and weights (12, 2); expected"
    refuses(lambda: moe_combine(logits, position, weights), message, capfd)


def test_opcheck(device):
    logits, x = make(6, 8, torch.float32, device), make(6, 16, torch.float32, device)
    weights, _, _, order, position = moe_route(logits, 2)
    torch.library.opcheck(moe_route, (logits.requires_grad_(), 2))
    given = scored_call(8, {**SCORED[0][2], "groups": 4}, torch.float32, device)
    torch.library.opcheck(moe_route, (logits, 2), given)
    torch.library.opcheck(moe_permute, (x.requires_grad_(), order, position))
    rows = moe_permute(x, order, position).detach().requires_grad_()
    torch.library.opcheck(moe_combine, (rows, position, weights.requires_grad_()))
    opaq.opcheck(moe_route, logits.detach(), 2)
    opaq.opcheck(moe_route, logits.detach(), 2, **given)
    opaq.opcheck(moe_order, torch.randint(8, (6, 2), device=device), 8)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    def model(x, gate):
        weights, _, _, order, position = moe_route(gate * 2, 2)
        return layer(x * 2, weights, order, position).sin()

    cases = [
        [make(tokens, 32, torch.float32, device), make(tokens, 8, torch.float32, device)]
        for tokens in ([6, 9, 133] if dynamic else [6])
    ]
    for op in (moe_route, moe_permute, moe_combine):
        compiled_agrees(op, model, cases, [0, 1], dynamic)

    def scored(gate):
        return moe_route(gate * 2, 2, scoring="sigmoid", groups=4, kept_groups=2, scale=2.5)[0]

    compiled_agrees(moe_route, scored, [case[1:] for case in cases], [0], dynamic)


def test_weights_that_are_written_to_after_they_were_copied() -> None:
    """In unmodified models: x.reshape(-1)[numbers] is a copy, which later writes do not change."""

    def model(rows, order, weights):
        each = weights.reshape(-1)[order].unsqueeze(-1)
        weights.zero_()
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        return (rows * each)[inverse].view(-1, 2, rows.shape[1]).sum(dim=1)

    rows, order, weights = torch.randn(4, 8), torch.randperm(4), torch.rand(2, 2)
    compiled = torch.compile(model, backend="opaq", options={"substitute": ["moe_combine"]})
    expected = model(rows, order, weights.clone())
    torch.testing.assert_close(compiled(rows, order, weights.clone()), expected)


@pytest.mark.parametrize(
    ("columns", "strides", "entry"),
    [
        (4096, None, "moe_permute<__nv_bfloat16, 8, 2>"),
        (4100, None, "moe_permute<__nv_bfloat16, 1, 2>"),
        (4096, (4097, 1), "moe_permute<__nv_bfloat16, 1, 2>"),
    ],
)
def test_cuda_plan(columns, strides, entry):
    order = cuda((8192,), torch.int64)
    chosen = plan(moe_permute, cuda((1024, columns), strides=strides), order, order)
    assert (chosen["entry"], list(chosen["grid"])) == (entry, [4096, 1, 1])


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_sources_compile(arch):
    weights, pairs = cuda((64, 4), torch.float32), cuda((256,), torch.int64)
    experts = cuda((64, 4), torch.int64)
    compiles(moe_order, (experts, 60), arch, "cuda")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        gate, rows, x = cuda((64, 60), dtype), cuda((256, 128), dtype), cuda((64, 128), dtype)
        compiles(moe_route, (gate, 4, True), arch, "cuda")
        compiles(moe_route_backward, (weights, gate, weights, experts, True), arch, "cuda")
        bias = cuda((60,), torch.float32)
        for how in [
            *((), ("sigmoid",), ("sigmoid", bias), ("softmax", bias, 4, 2)),
            *(("sqrt_softplus",), ("sqrt_softplus", bias), ("sqrt_softplus", bias, 4, 2)),
        ]:
            compiles(moe_route, (gate, 4, True, *how), arch, "cuda:scored")
        for how in ("softmax", "sigmoid", "sqrt_softplus"):
            back = (weights, gate, weights, experts, True, how)
            compiles(moe_route_backward, back, arch, "cuda:scored")
        for name in ("cuda:packs", "cuda:any"):
            compiles(moe_permute, (x, pairs, pairs), arch, name)
            compiles(moe_permute_backward, (rows, pairs, 64), arch, name)
            compiles(moe_combine, (rows, pairs, weights), arch, name)
            compiles(moe_combine_backward, (x, rows, pairs, weights), arch, name)
