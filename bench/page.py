"""The page of a result: one HTML file with everything in it, for wide screens and phones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opaq import page_style
from opaq.page_style import text

from . import figures
from .chart import bar_scale, bars, key
from .figures import Metric, Record
from .page_assets import SCRIPT, STYLE
from .plot import plot
from .ratios import ratio_chart

__all__ = ["html", "plot"]

MANY_CASES = 24  # from here on the ratios come first, and the bars are folded


def html(result: Mapping[str, Any]) -> str:
    """The page of a result, complete in one text."""
    parts = [
        f"<p>{text(result.get('what') or '')}</p>",
        *(f"<pre>{text(line)}</pre>" for line in figures.commands(result)),
        f'<p class="dim">{text(figures.machine_title(result))}</p>',
        *(map(_metric, figures.metrics(result)) if result["records"] else ["<p>No records.</p>"]),
        f"<section>\n<h2>All records</h2>\n{_table(result['records'])}\n</section>",
        '<section class="facts">',
        *(_facts(head, result.get(head.lower()) or {}) for head in ("Machine", "Method")),
        "</section>",
    ]
    return page_style.page(result["title"], "\n".join(parts), style=STYLE, script=SCRIPT)


def _metric(metric: Metric) -> str:
    parts = [f"<section>\n<h2>{text(metric.name)}</h2>"]
    meaning = [figures.BETTER.get(metric.better, ""), f"in {figures.unit(metric.unit)}"]
    if metric.to:
        meaning.append(f"ratios are to {metric.to}")
    parts.append(f'<p class="dim">{text("; ".join(filter(None, meaning)))}</p>')
    if len(metric.cases) >= figures.SUMMARISED:
        parts.append(_summary(metric))
    scale = bar_scale(metric)
    groups = "\n".join(
        f"<h3>{text(case.name)}</h3>\n{bars(case, metric, scale)}" for case in metric.cases
    )
    bar_key = key(metric)
    if len(metric.cases) < MANY_CASES:
        parts += [bar_key, groups]
    else:
        chart = ratio_chart(metric)
        shown = "" if chart else " open"
        parts += [
            chart,
            f"<details{shown}><summary>Figures of all {len(metric.cases)} cases</summary>",
            bar_key,
            groups,
            "</details>",
        ]
    return "\n".join([*filter(None, parts), "</section>"])


def _summary(metric: Metric) -> str:
    rows = [
        f"<li><b>{text(summary.contestant)}</b>"
        f"{text(f' to {summary.to}' if summary.to and not metric.to else '')}: "
        f"{text(summary.text)}</li>"
        for summary in figures.summaries(metric)
    ]
    return f'<ul class="summary">{"".join(rows)}</ul>' if rows else ""


# The columns of the table: heading, and the name in the record.
_TEXTS = (("Metric", "metric"), ("Case", "case"), ("Contestant", "contestant"))
_NUMBERS = (("Value", "value"), ("Low", "low"), ("High", "high"))
_RATIOS = (("Ratio", "ratio"), ("Low", "ratio_low"), ("High", "ratio_high"))


def _table(records: Iterable[Record]) -> str:
    heads = [head for head, _ in _TEXTS] + [head for head, _ in _NUMBERS] + ["Unit"]
    heads += [head for head, _ in _RATIOS] + ["To", "Verdict", "Lower bound", "Note"]
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    rows = "\n".join(f"<tr>{_row(record)}</tr>" for record in records)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="All records">'
        f'<table id="records">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n'
        "</table></div>"
    )


def _row(record: Record) -> str:
    value = figures.finite(record.get("value"))
    cells = [_text(record[name]) for _, name in _TEXTS]
    cells += [
        _number(record.get(name), figures.number(record.get(name), value)) for _, name in _NUMBERS
    ]
    cells.append(_text(figures.unit(record.get("unit") or "")))
    cells += [_number(record.get(name), figures.times(record.get(name))) for _, name in _RATIOS]
    cells += [_text(record.get("to") or ""), _text(figures.verdict(record))]
    cells += [_number(record.get("floor"), figures.number(record.get("floor")))]
    cells += [_text(record.get("note") or "")]
    return "".join(cells)


def _text(cell: str) -> str:
    return f"<td>{text(cell)}</td>"


def _number(value: Any, shown: str) -> str:
    """A cell that sorts by its number; those without come last."""
    if figures.finite(value) is None:
        return '<td class="number" data-number=""></td>'
    return f'<td class="number" data-number="{value!r}">{text(shown)}</td>'


def _facts(head: str, mapping: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{text(name)}</dt><dd>{text(fact)}</dd>" for name, fact in figures.facts(mapping)
    )
    return f"<div><h2>{text(head)}</h2><dl>{rows}</dl></div>" if rows else ""
