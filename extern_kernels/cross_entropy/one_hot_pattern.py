"""Losses that models write as sums over the products of log_softmax and the weights of classes: 1
for the class of a row and 0 for others, or two other numbers (label smoothing).

Where a log-probability is minus infinity, 0 times it is nan; the op gives the loss of the class.
"""

import torch
import torch.nn.functional as F

from .pattern import NO_CLASS, given_pattern, smoothing_pattern


def _sum(weights, logits):
    return (weights * F.log_softmax(logits, dim=-1)).sum(-1)


# The negative of the sum, where models do not negate that.
_NEGATIVE = [
    lambda weights, logits: _sum(-weights, logits),
    lambda weights, logits: (weights * -F.log_softmax(logits, dim=-1)).sum(-1),
]


# ---- the class alone -----------------------------------------------------------------------------


def _of_one_class(of):
    return [
        lambda logits, target, classes: of(F.one_hot(target, classes), logits),
        lambda logits, target, classes: of(F.one_hot(target, classes).float(), logits),
    ]


def _of_one_index(of):
    return lambda logits, index: of(torch.zeros_like(logits).scatter(-1, index, 1.0), logits)


for _of in _NEGATIVE:
    for _spelling in _of_one_class(_of):
        given_pattern.spelling(_spelling, loss=True)
    given_pattern.spelling(_of_one_index(_of), loss=True, squeezed=True)
for _spelling in _of_one_class(_sum):
    given_pattern.spelling(_spelling)
given_pattern.spelling(_of_one_index(_sum), squeezed=True)


# ---- label smoothing -----------------------------------------------------------------------------


def _of_two_weights(of):
    """With the weights of the class and of others, or what of 1 is left to the class, and what is
    added for all."""

    def scattered(logits, index, low, high):
        return of(torch.full_like(logits, low).scatter(-1, index, high), logits)

    def by_scattered(logits, index, confidence, low):
        one = torch.zeros_like(logits).scatter(-1, index, 1.0)
        return of(one * confidence + low, logits)

    def by_integers(logits, target, classes, confidence, low):
        return of(F.one_hot(target, classes) * confidence + low, logits)

    def by_floats(logits, target, classes, confidence, low):
        return of(F.one_hot(target, classes).float() * confidence + low, logits)

    return scattered, by_scattered, by_integers, by_floats


def _mean(weights, logits):  # TransReID, torchreid
    return (-weights * F.log_softmax(logits, dim=1)).mean(0).sum()


for _of in (_sum, *_NEGATIVE):
    for _spelling in _of_two_weights(_of):
        smoothing_pattern.spelling(
            _spelling, ignore_index=NO_CLASS, reduction="none", negated=_of is _sum
        )
for _spelling in _of_two_weights(_mean):
    smoothing_pattern.spelling(_spelling, ignore_index=NO_CLASS)
