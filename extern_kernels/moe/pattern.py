"""A mixture of experts in unmodified models: the router behind its product, the order of the tokens
by expert, and the weighted sum of a token's rows.

Where probabilities are equal, torch.topk may take any of the experts; the op takes the larger logit
and of equal ones the first expert. A sort that is not asked to be stable may order the pairs of one
expert in any way; the op's order is stable.

Numbers that are no experts come where a sort puts them, negative ones before all experts and others
after them. So a number that marks pairs without an expert does; several different ones on one side
stay in the order of tokens, where a sort orders them by number. No expert has their rows, and
`ends` does not count them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import dtype_of, result_of, rows_and_columns

from .combine import moe_combine, moe_permute
from .order import moe_order
from .route import moe_route

# Routers are found before the order of tokens, which takes that of the op.
from .scored_pattern import routed_tokens, when_routed

X = torch.empty(2, 8, device="meta")
PAIRS = torch.empty(2, 2, dtype=torch.int64, device="meta")

# ---- router --------------------------------------------------------------------------------------


def _router(name: str, normalize: bool):
    def _routed(logits, k):
        return routed_tokens(logits, k, normalize)

    return opaq.pattern(
        name,
        _routed,
        {"logits": torch.empty(2, 8, device="meta"), "k": 2},
        when=when_routed,
        sizes=lambda arguments: rows_and_columns(arguments["logits"]),
        measurements=Path(__file__).with_name(f"measured_{name.removeprefix('moe_')}.json"),
        alone=True,
    )


route_pattern = _router("moe_route", True)
choose_pattern = _router("moe_route_unnormalized", False)


@route_pattern.spelling
def _(logits, k):  # transformers: Mixtral, Qwen, OLMoE, ...
    weights, experts = torch.topk(F.softmax(logits, dim=-1), k, dim=-1)
    return weights / weights.sum(-1, keepdim=True), experts


@route_pattern.spelling
def _(logits, k):  # mistral-inference, transformers: gpt-oss
    largest, experts = torch.topk(logits, k, dim=-1)
    return F.softmax(largest, dim=-1), experts


@route_pattern.spelling
def _(logits, k):
    experts = torch.topk(logits, k, dim=-1)[1]
    weights = F.softmax(logits, dim=-1).gather(-1, experts)
    return weights / weights.sum(-1, keepdim=True), experts


@choose_pattern.spelling
def _(logits, k):
    weights, experts = torch.topk(F.softmax(logits, dim=-1), k, dim=-1)
    return weights, experts


@choose_pattern.spelling
def _(logits, k):
    experts = torch.topk(logits, k, dim=-1)[1]
    return F.softmax(logits, dim=-1).gather(-1, experts), experts


# ---- order of tokens -----------------------------------------------------------------------------


def _when_permuted(arguments) -> str:
    x, experts, k = arguments["x"], arguments["experts"], arguments["k"]
    count, last = arguments["count"], arguments["last"]
    if x.dim() != 2 or experts.dim() != 2 or experts.dtype != torch.int64:
        return "x and the experts have not two dimensions, or the experts are not int64"
    if experts.shape[0] != x.shape[0] or experts.shape[1] != k:
        return "the rows of x are not those of the experts' tokens"
    if count < 2:
        return "torch.histc with equal limits takes those of its values, and counts all of them"
    return "" if last == count - 1 else "the pairs are not counted for each expert"


def _permuted(x, experts, k, count, last):
    # moe_route's own order, where that chose the experts
    routed = result_of(experts, moe_route, 1)
    if routed is None:  # with negative numbers first, as a sort has them
        results = moe_order(experts, count + 1, -1)
        counts, order, position = results[0][1:], results[1], results[2]
    else:
        counts, order, position = (routed[2 + number] for number in range(3))
    rows = moe_permute(x, order, position)
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    return rows, order, ends, experts.flatten().index_select(0, order)


permute_pattern = opaq.pattern(
    "moe_permute",
    _permuted,
    {"x": X, "experts": PAIRS, "k": 2, "count": 4, "last": 3},
    when=_when_permuted,
    sizes=lambda arguments: (arguments["experts"].numel(), arguments["x"].shape[1]),
    measurements=Path(__file__).with_name("measured_permute.json"),
    alone=True,
)


@permute_pattern.spelling
def _(x, experts, k, count, last):  # transformers: grouped_mm
    in_order, order = torch.sort(experts.reshape(-1))
    counts = torch.histc(in_order.float(), bins=count, min=0, max=last)
    return x[order // k], order, torch.cumsum(counts, dim=0, dtype=torch.int32), in_order


# ---- weighted sum of a token's rows --------------------------------------------------------------


def _when_combined(arguments) -> str:
    rows, order, weights = arguments["rows"], arguments["order"], arguments["weights"]
    k, columns = arguments["k"], arguments["columns"]
    if rows.dim() != 2 or order.dim() != 1 or weights is not None and weights.dim() != 2:
        return "the rows or weights have not two dimensions, or the order not one"
    if order.dtype != torch.int64:
        return "the order is not int64"
    if order.shape[0] != rows.shape[0]:
        return "there is not one row for each number of the order"
    if columns != rows.shape[1] or k <= 0 or rows.shape[0] % k:
        return "the rows are not added for each token"
    if weights is None:
        return ""
    if weights.shape[0] * weights.shape[1] != rows.shape[0]:
        return "there is not one row for each weight"
    return "" if k == weights.shape[1] else "the rows are not added for each token"


def _combined(rows, order, weights=None, k=None, columns=None):
    place, ordered = 2, result_of(order, moe_order, 1)
    if ordered is None:
        place, ordered = 4, result_of(order, moe_route, 3)
    if ordered is None:
        numbers = torch.ones_like(order).cumsum(0) - 1
        position = torch.empty_like(order).scatter(0, order, numbers)
    else:
        position = ordered[place]
    if weights is None:
        wide = torch.ones_like(order, dtype=torch.float32).view(-1, k)
    else:
        wide = weights if dtype_of(weights) == torch.float64 else weights.float()
    return moe_combine(rows, position, wide)


combine_pattern = opaq.pattern(
    "moe_combine",
    _combined,
    {
        "rows": torch.empty(6, 8, device="meta"),
        "order": torch.empty(6, dtype=torch.int64, device="meta"),
        "weights": torch.empty(2, 3, device="meta"),
        "k": 3,
        "columns": 8,
    },
    when=_when_combined,
    form=lambda arguments: "no weights" if arguments["weights"] is None else "",
    sizes=lambda arguments: tuple(arguments["rows"].shape),
    measurements=Path(__file__).with_name("measured_combine.json"),
    alone=True,
)


def _inverse(order):
    numbers = torch.arange(order.size(0), device=order.device)
    return torch.empty_like(order).index_put((order,), numbers)


@combine_pattern.spelling
def _(rows, order, weights, k, columns):  # transformers: grouped_mm
    weighted = rows * weights.reshape(-1)[order].unsqueeze(-1)
    return weighted[_inverse(order)].view(-1, k, columns).sum(dim=1)


@combine_pattern.spelling
def _(rows, order, weights, k, columns):
    each = rows[_inverse(order)].view(-1, k, columns)
    return (each * weights.unsqueeze(-1)).sum(dim=1)


def _as_before(rows, order, k, columns):
    return torch.empty_like(rows).index_put((order,), rows).view(-1, k, columns)


@combine_pattern.spelling
def _(rows, order, weights, k, columns):  # DeepSeek's own code, SGLang
    return (_as_before(rows, order, k, columns) * weights.unsqueeze(-1)).sum(dim=1)


@combine_pattern.spelling
def _(rows, order, weights, k, columns):  # torchtitan
    return torch.bmm(weights.reshape(-1, 1, k), _as_before(rows, order, k, columns)).squeeze(1)


@combine_pattern.spelling
def _(rows, order, k, columns):  # torchtitan, of rows that have their weights already
    return _as_before(rows, order, k, columns).sum(dim=1)
