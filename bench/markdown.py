"""A metric of a result as a table in Markdown, for a README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import figures
from .plot import selected


def table(
    result: Mapping[str, Any], metric: str | None = None, cases: Sequence[str] | None = None
) -> str:
    """A row for each contestant, a column for each case: the median, and the ratio where there is
    one. metric and cases: as of plot.plot.
    """
    chosen = selected(result, metric, cases)
    rows = [["", *(case.name for case in chosen.cases)], ["---"] * (1 + len(chosen.cases))]
    for name in chosen.contestants:
        cells = [
            next((_cell(r, chosen.unit) for r in case.records if r["contestant"] == name), "")
            for case in chosen.cases
        ]
        rows.append([name, *cells])
    head = f"{chosen.title}{f'; ratios are to {chosen.to}' if chosen.to else ''}"
    where = f"{figures.machine_title(result)}: `{'; '.join(figures.commands(result))}`"
    return f"{head}. {where}\n\n" + "\n".join(f"| {' | '.join(map(_text, row))} |" for row in rows)


def _cell(record: figures.Record, unit: str) -> str:
    if figures.finite(record.get("value")) is None:
        return figures.verdict(record)
    shown = " ".join(filter(None, (figures.number(record["value"]), figures.unit(unit))))
    ratio = "" if figures.is_base(record) else figures.times(record.get("ratio"))
    return f"{shown}, {ratio}" if ratio else shown


def _text(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
