"""Routers by scores in unmodified models: sigmoids, a bias that only the choice sees, groups of
experts, weights divided by their sum and multiplied by a factor, as in DeepSeek-V3 and GLM-4.5.

Where scores are equal, torch.topk may take any of the experts; the op takes the first one, or,
without bias and groups, that with the largest logit. Where only the weights' division is written in
another way than here, the weights of the op are the scores, and Inductor divides them.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import dtype_of, example_of, rows_and_columns

from .route import moe_route


def when_routed(arguments) -> str:
    logits, k = arguments["logits"], arguments["k"]
    if logits.dim() < 2:
        return f"the logits have {logits.dim()} dimension(s); expected [tokens, experts] or more"
    if not (0 < k <= 32 and logits.shape[-1] <= 512):
        return "there are more than 512 experts, or more than 32 of a token"
    return ""


def routed_tokens(logits, k, *settings):
    """(weights, experts) of moe_route, for logits of tokens in any number of dimensions."""
    leading = example_of(logits).dim() - 1
    if leading == 1:
        results = moe_route(logits, k, *settings)
        return results[0], results[1]
    results = moe_route(logits.flatten(0, -2), k, *settings)
    shape = [logits.size(dim) for dim in range(leading)]
    return results[0].view(*shape, k), results[1].view(*shape, k)


def _when(arguments) -> str:
    if refusal := when_routed(arguments):
        return refusal
    logits, k, bias = arguments["logits"], arguments["k"], arguments["bias"]
    groups, size, kept = arguments["groups"], arguments["size"], arguments["kept"]
    experts = logits.shape[-1]
    if bias is not None and (bias.dim() == 0 or not bias.numel() == bias.shape[-1] == experts):
        return "the bias has not one number for each expert"
    if groups is None:
        return ""
    if logits.dim() != 2:
        return f"the logits have {logits.dim()} dimensions; expected two where there are groups"
    if not (groups * size == arguments["count"] == experts and groups <= 32):
        return "the groups are not up to 32 of all experts"
    if not (0 < kept <= groups and kept * size >= k):
        return "fewer experts remain than a token has"
    if arguments["fill"] not in (0, -math.inf):
        return "the experts of other groups are left out with another number than 0 or -inf"
    return ""


def _routed(
    logits,
    k,
    bias=None,
    groups=None,
    size=None,
    count=None,
    kept=None,
    fill=-math.inf,
    eps=0.0,
    scale=1.0,
    scoring="sigmoid",
    normalize=True,
    group_best=2,
):
    grouped = groups is not None and bool(example_of(kept) < example_of(groups))
    # No score is below 0 without a bias: with 0, too, the experts of other groups come last.
    zero_dropped = grouped and example_of(fill) == 0 and bias is not None
    if bias is not None:
        # DeepSeek's own code has it as a parameter; the choice gives it no gradient.
        bias = bias.detach().reshape(-1).to(torch.promote_types(dtype_of(logits), torch.float32))
    weights, experts = routed_tokens(
        logits,
        k,
        normalize,
        scoring,
        bias,
        groups if grouped else 1,
        kept if grouped else 1,
        group_best,
        zero_dropped,
        eps,
        scale,
    )
    return experts, weights


def _form(arguments) -> str:
    """What is scored and chosen, and how much of it models write."""
    groups, form = arguments["groups"], arguments["scoring"]
    if arguments["bias"] is not None:
        form += ", bias"
    if not arguments["normalize"]:
        form += ", not normalized"
    if groups is None:
        return form
    return form + (", all groups" if arguments["kept"] == groups else ", groups")


scored_pattern = opaq.pattern(
    "moe_route_scored",
    _routed,
    {
        "logits": torch.empty(2, 8, device="meta"),
        "k": 2,
        "bias": torch.empty(8, device="meta"),
        "groups": 2,
        "size": 4,
        "count": 8,
        "kept": 1,
        "fill": -math.inf,
        "eps": 1e-3,
        "scale": 2.5,
        "scoring": "sigmoid",
        "normalize": True,
        "group_best": 2,
    },
    when=_when,
    sizes=lambda arguments: rows_and_columns(arguments["logits"]),
    form=_form,
    measurements=Path(__file__).with_name("measured_route_scored.json"),
    alone=True,
)

# ---- the choice ----------------------------------------------------------------------------------


def _best(by, k):
    return torch.topk(by, k, dim=-1)[1]


def _in_groups(by, of_group, groups, size, count, kept, fill):
    """The scores, of all but the best groups `fill`; as transformers writes it."""
    mask = torch.zeros_like(of_group).scatter(1, _best(of_group, kept), 1)
    mask = mask.unsqueeze(-1).expand(-1, groups, size).reshape(-1, count)
    return by.masked_fill(~mask.bool(), fill)


def _by_two(scores, k, groups, size, count, kept, fill):
    of_group = scores.view(-1, groups, size).topk(2, dim=-1)[0].sum(dim=-1)
    return _best(_in_groups(scores, of_group, groups, size, count, kept, fill), k)


def _by_two_of_views(scores, k, groups, size, count, kept, fill):
    """As DeepSeek writes it."""
    scores = scores.view(-1, groups, size)
    of_group = scores.topk(2, dim=-1)[0].sum(dim=-1)
    others = torch.ones_like(of_group, dtype=torch.bool).scatter(1, _best(of_group, kept), False)
    return _best(scores.masked_fill(others.unsqueeze(-1), fill).view(-1, count), k)


# ---- the weights ---------------------------------------------------------------------------------


def _divided(weights):
    return weights / weights.sum(-1, keepdim=True)


def _divided_safely(weights, eps):
    return weights / (weights.sum(-1, keepdim=True) + eps)


def _scaled(weights, eps, scale):
    return _divided_safely(weights, eps) * scale


# ---- sigmoids, with groups: DeepSeek-V3, GLM-4.5, Kimi, dots, Nemotron-H, ... --------------------


def _spell_groups(chosen):
    @scored_pattern.spelling
    def _(logits, k, bias, groups, size, count, kept, fill, eps, scale):
        scores = logits.sigmoid()
        experts = chosen(scores + bias, k, groups, size, count, kept, fill)
        return experts, _scaled(scores.gather(1, experts), eps, scale)

    @scored_pattern.spelling
    def _(logits, k, bias, groups, size, count, kept, fill, eps):
        scores = logits.sigmoid()
        experts = chosen(scores + bias, k, groups, size, count, kept, fill)
        return experts, _divided_safely(scores.gather(1, experts), eps)

    @scored_pattern.spelling(normalize=False)
    def _(logits, k, bias, groups, size, count, kept, fill):
        scores = logits.sigmoid()
        experts = chosen(scores + bias, k, groups, size, count, kept, fill)
        return experts, scores.gather(1, experts)


_spell_groups(_by_two)


@scored_pattern.spelling
def _(logits, k, bias, groups, size, count, kept, fill, scale):  # DeepSeek's own code
    scores = logits.sigmoid()
    experts = _by_two_of_views(scores + bias, k, groups, size, count, kept, fill)
    return experts, _divided(scores.gather(1, experts)) * scale


_spell_groups(_by_two_of_views)


# ---- sigmoids, without groups --------------------------------------------------------------------


@scored_pattern.spelling
def _(logits, k, bias, eps, scale):  # transformers: AFMoE, HunYuan 3, LFM2
    scores = logits.sigmoid()
    experts = _best(scores + bias, k)
    return experts, _scaled(scores.gather(1, experts), eps, scale)


@scored_pattern.spelling
def _(logits, k, bias):  # transformers: MiniMax-M2
    scores = logits.sigmoid()
    experts = _best(scores + bias, k)
    return experts, _divided(scores.gather(1, experts))


@scored_pattern.spelling(normalize=False)
def _(logits, k, bias):
    scores = logits.sigmoid()
    experts = _best(scores + bias, k)
    return experts, scores.gather(1, experts)


@scored_pattern.spelling
def _(logits, k, eps, scale):  # transformers: LFM2
    weights, experts = torch.topk(logits.sigmoid(), k, dim=-1)
    return experts, _scaled(weights, eps, scale)


@scored_pattern.spelling
def _(logits, k):  # transformers: Flint
    weights, experts = torch.topk(logits.sigmoid(), k, dim=-1)
    return experts, _divided(weights)


@scored_pattern.spelling(normalize=False)
def _(logits, k):
    weights, experts = torch.topk(logits.sigmoid(), k, dim=-1)
    return experts, weights


@scored_pattern.spelling
def _(logits, k):  # transformers: Cohere 2
    largest, experts = torch.topk(logits, k, dim=-1)
    return experts, _divided(largest.sigmoid())


@scored_pattern.spelling(normalize=False)
def _(logits, k):
    largest, experts = torch.topk(logits, k, dim=-1)
    return experts, largest.sigmoid()


# ---- roots of softplus: DeepSeek-V4 --------------------------------------------------------------


def _root_of_softplus(logits):
    return F.softplus(logits).sqrt()


@scored_pattern.spelling(scoring="sqrt_softplus")
def _(logits, k, bias, eps, scale):
    scores = _root_of_softplus(logits)
    experts = _best(scores + bias, k)
    return experts, _scaled(scores.gather(1, experts), eps, scale)


@scored_pattern.spelling(scoring="sqrt_softplus")
def _(logits, k, bias, scale):
    scores = _root_of_softplus(logits)
    experts = _best(scores + bias, k)
    return experts, _divided(scores.gather(1, experts)) * scale


@scored_pattern.spelling(scoring="sqrt_softplus", normalize=False)
def _(logits, k, bias):
    scores = _root_of_softplus(logits)
    experts = _best(scores + bias, k)
    return experts, scores.gather(1, experts)


# ---- softmax with a bias or groups ---------------------------------------------------------------


@scored_pattern.spelling(scoring="softmax", normalize=False)
def _(logits, k, bias):  # transformers: Ernie 4.5
    scores = F.softmax(logits, dim=-1)
    experts = _best(scores + bias, k)
    return experts, scores.gather(1, experts)


@scored_pattern.spelling(scoring="softmax")
def _(logits, k, groups, size, count, kept, fill, eps, scale):  # transformers: Mistral 4
    scores = F.softmax(logits, dim=-1)
    experts = _by_two(scores, k, groups, size, count, kept, fill)
    return experts, _scaled(scores.gather(1, experts), eps, scale)


@scored_pattern.spelling(scoring="softmax", normalize=False)
def _(logits, k, groups, size, count, kept, fill):
    scores = F.softmax(logits, dim=-1)
    experts = _by_two(scores, k, groups, size, count, kept, fill)
    return experts, scores.gather(1, experts)


@scored_pattern.spelling(scoring="softmax", normalize=False, group_best=1)
def _(logits, k, groups, size, count, kept, fill):  # transformers: DeepSeek-V2
    scores = F.softmax(logits, dim=-1)
    of_group = scores.view(-1, groups, size).max(dim=-1)[0]
    scores = _in_groups(scores, of_group, groups, size, count, kept, fill)
    weights, experts = torch.topk(scores, k, dim=-1)
    return experts, weights


# ---- the scores of all experts, 0 for those that are not chosen ----------------------------------


def _scores(logits, k):
    weights, experts = routed_tokens(logits, k, False, "sigmoid")
    return torch.zeros_like(logits).scatter(-1, experts, weights.to(dtype_of(logits)))


scores_pattern = opaq.pattern(
    "moe_scores",
    _scores,
    {"logits": torch.empty(2, 8, device="meta"), "k": 2},
    when=when_routed,
    sizes=lambda arguments: rows_and_columns(arguments["logits"]),
    alone=True,
    measurements=Path(__file__).with_name("measured_scores.json"),
)


@scores_pattern.spelling
def _(logits, k):  # transformers: Llama 4
    largest, experts = torch.topk(logits, k, dim=-1)
    return torch.full_like(logits, -math.inf).scatter(1, experts, largest).sigmoid()
