"""A bar chart of a result as an SVG file, for a README: right on light and dark pages."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

from opaq.page_style import COLOURS, text

from . import figures
from .chart import Scale, bar_scale, describe, is_ours, scale_of
from .figures import WITHOUT_FIGURE, Metric, Record

WIDTH, MARGIN, GAP = 840, 12, 12
FONT, TITLE, LINE = 13, 15, 17  # font sizes and distance of lines, in pixels
BAR = 12
NAMES, FIGURES = 230, 190  # most pixels for names, and those for figures
# Widths of letters in ems, those of a wide font (DejaVu Sans), and how much wider bold ones are.
NARROW, OTHER, CAPITAL, WIDE, BOLD = 0.41, 0.65, 0.8, 1.05, 1.12

# The colours are those of the page; an SVG in an <img> follows the reader's scheme by itself.
_STYLE = (
    COLOURS
    + f"""
text {{
  font: {FONT}px system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif;
  fill: var(--text);
}}
.title {{ font-size: {TITLE}px; font-weight: 600; }}
.case {{ font-weight: 600; }}
.dim {{ fill: var(--dim); }}
.ours {{ fill: var(--accent); font-weight: 600; }}
rect {{ fill: #8c959f; }}
rect.ours {{ fill: var(--accent); }}
line.whisker {{ stroke: var(--text); stroke-width: 1.5; }}
line.floor {{ stroke: var(--warn); stroke-width: 2; stroke-dasharray: 4 3; }}
"""
)


def plot(
    result: Mapping[str, Any], metric: str | None = None, cases: Collection[str] | None = None
) -> str:
    """The bars of one metric as the text of an SVG file.

    metric: by default the first of the result. cases: those to show, in this order; default: all.
    """
    drawn = selected(result, metric, cases)
    shared = bar_scale(drawn)
    names = [record["contestant"] for record in drawn.records]
    left = MARGIN + min(NAMES, BOLD * max(map(text_width, names))) + GAP
    y, marks = float(MARGIN), list[str]()
    title = f"{result['title']}: {drawn.name}"
    y = _lines(marks, wrap(title, WIDTH - 2 * MARGIN, TITLE * BOLD), MARGIN, y, "title", 20)
    y = _lines(marks, wrap(_subtitle(result, drawn), WIDTH - 2 * MARGIN), MARGIN, y, "dim")
    for case in drawn.cases:
        y += 10
        y = _lines(marks, wrap(case.name, WIDTH - 2 * MARGIN, FONT * BOLD), MARGIN, y, "case")
        scale = shared or scale_of(case.records)
        for record in case.records:
            y = _record(marks, record, scale, left, y)
    height = y + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img" aria-labelledby="title">\n'
        f'<title id="title">{text(title)}</title>\n<style>{_STYLE}</style>\n'
        + "\n".join(marks)
        + "\n</svg>\n"
    )


def selected(
    result: Mapping[str, Any], metric: str | None, cases: Collection[str] | None
) -> Metric:
    """What to show: as of plot. ValueError: the result has no such metric or case."""
    found = figures.metrics(result)
    names = [each.name for each in found]
    if not found or metric not in (None, *names):
        raise ValueError(f"metric: got {metric!r}; expected one of {', '.join(names) or 'none'}")
    chosen = found[names.index(metric)] if metric is not None else found[0]
    if cases is None:
        return chosen
    by_name = {case.name: case for case in chosen.cases}
    for name in cases:
        if name not in by_name:
            raise ValueError(f"cases: got {name!r}; expected some of {', '.join(by_name)}")
    return Metric(chosen.name, chosen.unit, [by_name[name] for name in cases])


def _subtitle(result: Mapping[str, Any], metric: Metric) -> str:
    parts = [figures.BETTER.get(metric.better, "")]
    parts += [f"ratios are to {metric.to}"] if metric.to else []
    if any(figures.finite(record.get("floor")) is not None for record in metric.records):
        parts.append("dashed: lower bound")
    return "; ".join(filter(None, [*parts, figures.machine_title(result)]))


def _record(marks: list[str], record: Record, scale: Scale, left: float, y: float) -> float:
    """Draws a contestant below y; returns where the next one starts."""
    ours, size = ("ours", FONT * BOLD) if is_ours(record) else ("", FONT)
    names = wrap(record["contestant"], left - MARGIN - GAP, size)
    verdict, middle = figures.verdict(record), y + LINE / 2
    if verdict in WITHOUT_FIGURE or figures.finite(record.get("value")) is None:
        shown = ": ".join(filter(None, (verdict or "no figure", record.get("note") or "")))
        right = _lines(marks, wrap(shown, WIDTH - left - MARGIN), left, y, "dim")
        return max(right, _lines(marks, names, MARGIN, y, ours))
    room = WIDTH - MARGIN - FIGURES - GAP - left

    def at(value: float) -> float:
        return left + room * scale.at(value) / 100

    zero, end = at(0), at(record["value"])
    marks.append(
        f'<rect class="{ours}" x="{min(zero, end):.1f}" y="{middle - BAR / 2}" '
        f'width="{abs(end - zero):.1f}" height="{BAR}"><title>{text(describe(record))}</title>'
        "</rect>"
    )
    low, high = figures.bounds(record)
    if low is not None and high is not None:
        marks.append(_line(at(low), at(high), middle, middle, "whisker"))
        marks += [_line(at(x), at(x), middle - 4, middle + 4, "whisker") for x in (low, high)]
    floor = figures.finite(record.get("floor"))
    if floor is not None:
        marks.append(_line(at(floor), at(floor), y, y + LINE, "floor"))
    value = f"{figures.number(record['value'])} {figures.unit(record.get('unit') or '')}".rstrip()
    ratio = "" if figures.is_base(record) else figures.times(record.get("ratio")).replace("x", "×")
    shown = ", ".join(filter(None, (value, " ".join(filter(None, (ratio, verdict))))))
    right = _lines(marks, wrap(shown, FIGURES, size), WIDTH - MARGIN - FIGURES, y, ours)
    return max(right, _lines(marks, names, MARGIN, y, ours))


def _line(x1: float, x2: float, y1: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _lines(
    marks: list[str], lines: list[str], x: float, y: float, name: str, height: float = LINE
) -> float:
    """Writes lines of text below y; returns where the last one ends."""
    for line in lines:
        y += height
        marks.append(f'<text class="{name}" x="{x:.1f}" y="{y - 4:.1f}">{text(line)}</text>')
    return y


def letter_width(letter: str) -> float:
    if letter in "WM@%mw×" or unicodedata.east_asian_width(letter) in "WF":
        return WIDE
    if letter in " .,:;'|()[]ijlft":
        return NARROW
    return CAPITAL if letter.isupper() else OTHER


def text_width(line: str, size: float = FONT) -> float:
    """About the pixels that a line takes, rather too many than too few."""
    return size * sum(map(letter_width, line))


def wrap(words: str, room: float, size: float = FONT) -> list[str]:
    """The text in lines of at most `room` pixels, broken at spaces or, where a word is longer,
    inside it."""
    lines, line = [], ""
    for word in words.split():
        while text_width(word, size) > room:
            lines += [line] if line else []
            line = ""
            count = len(word) - 1
            while count > 1 and text_width(word[:count], size) > room:
                count -= 1
            lines.append(word[:count])
            word = word[count:]
        if line and text_width(f"{line} {word}", size) > room:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, *([line] if line else [])] or [""]
