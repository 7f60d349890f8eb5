"""The parts of models that opaque ops replace, or why not, as rows of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lowering import Substitution

HEAD = ("pattern", "places", "replaced", "why", "where")


def rows(found: Iterable[Substitution]) -> list[tuple[str, ...]]:
    """One for each line of the user's code and reason; layers of a model share their lines."""
    counts = Counter((each.pattern, each.applied, each.reason, each.place) for each in found)
    return [
        (pattern, str(times), "yes" if applied else "no", reason, place)
        for (pattern, applied, reason, place), times in counts.items()
    ]
