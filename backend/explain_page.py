"""What opaq.explain() found, as an HTML page."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import code_check, explain_text, page_style, substitutions
from .page_style import table, text

if TYPE_CHECKING:
    from .explain import ExplainedGraph, ExplainedNode, Explanation

_CHOICES = explain_text.CHOICES[1:]  # a node's own tables need not name it
_KERNELS = explain_text.KERNELS[1:]


def page(found: Explanation) -> str:
    parts = [f"<p>{text(explain_text.headline(found))}</p>"]
    parts += [f'<p class="warn">{text(remark)}</p>' for remark in found.remarks]
    parts += [part for graph in found.graphs for part in _graph(graph)]
    if found.substitutions:
        parts.append("<h2>Parts that opaque ops can replace</h2>")
        parts.append(table(substitutions.HEAD, substitutions.rows(found.substitutions)))
    if found.eager:
        parts.append("<h2>Outside of the graphs</h2>")
        rows = [(each.op, each.calls, each.place) for each in found.eager]
        parts.append(table(("op", "calls", "where"), rows))
    if found.breaks:
        parts.append("<h2>Graph breaks</h2>")
        for each in found.breaks:
            parts.append(
                f"<details><summary>{text(each.place)}: "
                f"{text(explain_text.first_line(each.reason))}</summary>"
                f"{_line(each.place)}<pre>{text(each.reason)}</pre></details>"
            )
    return page_style.page(f"opaq explain: {found.model}", "\n".join(parts))


def _graph(graph: ExplainedGraph) -> Iterator[str]:
    yield f'<h2>{text(graph.name)} <span class="dim">{text(graph.kind)}</span></h2>'
    if not graph.nodes:
        yield '<p class="dim">No opaque node.</p>'
        return
    rows = [explain_text.node_row(node)[1:-1] for node in graph.nodes]
    yield table(explain_text.NODES[1:-1], rows)
    for node in graph.nodes:
        yield (
            f"<details><summary>{text(node.node)}: <code>{text(node.op)}</code> "
            f'<span class="dim">{text(os.path.basename(node.place))}</span></summary>'
        )
        yield from _node(node)
        yield "</details>"


def _node(node: ExplainedNode) -> Iterator[str]:
    yield f"<p>{text(node.place)}</p>{_line(node.place)}"
    if node.arguments:
        yield table(("argument", "value"), node.arguments.items())
    if node.implementations:
        yield table(_CHOICES, [row[1:] for row in explain_text.choice_rows([node])])
    if kernels := [row[1:] for row in explain_text.kernel_rows([node])]:
        yield table(_KERNELS, kernels)
    for item in node.implementations:
        for launch in item.launches:
            if launch.launch:
                at = text(code_check.launch_text(launch.launch))
                yield f"<p>{text(item.name)}, at likely sizes: {at}</p>"
            for problem in launch.problems:
                yield f'<pre class="bad">{text(problem)}</pre>'


def _line(place: str) -> str:
    """The code there: "model.py:12, in forward"."""
    file, _, number = place.rpartition(", in ")[0].rpartition(":")
    code = linecache.getline(file, int(number)).strip() if number.isdigit() else ""
    return f"<pre>{text(code)}</pre>" if code else ""
