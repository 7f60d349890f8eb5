"""What opaq.explain() found, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from . import code_check, substitutions
from .terminal import table

if TYPE_CHECKING:
    from .explain import ConsideredImplementation, ExplainedNode, Explanation

NODES = (
    "graph",
    "node",
    "op",
    "device",
    "implementation",
    "made contiguous",
    "checked at each launch",
    "workspace",
    "may overwrite",
    "where",
)
KERNELS = ("node", "implementation", "entry", *code_check.COLUMNS, "image bytes")
CHOICES = ("node", "implementation", "for", "role", "why")


def text(found: Explanation) -> str:
    """Tables of nodes, of their kernels, of the implementations considered and of the parts that
    patterns found, then the rest."""
    parts = [headline(found)]
    if found.nodes:
        parts.append(table([NODES, *map(node_row, found.nodes)]))
        if kernels := list(kernel_rows(found.nodes)):
            parts.append(table([KERNELS, *kernels]))
        if choices := list(choice_rows(found.nodes)):
            parts.append(table([CHOICES, *choices]))
    if found.substitutions:
        parts.append(table([substitutions.HEAD, *substitutions.rows(found.substitutions)]))
    parts += [
        f"{each.op} is called outside of the graphs at {each.place}, {_counted(each.calls, 'time')}"
        for each in found.eager
    ]
    parts += [f"graph break at {each.place}: {first_line(each.reason)}" for each in found.breaks]
    return "\n\n".join([*parts, *found.remarks])


def headline(found: Explanation) -> str:
    counts = [
        _counted(len(found.graphs), "graph"),
        _counted(len(found.nodes), "opaque node"),
        _counted(len(found.breaks), "graph break"),
    ]
    note = "" if found.nodes else ": no opaque op is called in what is compiled"
    return f"{found.model}: {', '.join(counts)}{note}"


def node_row(node: ExplainedNode) -> tuple[str, ...]:
    at_launch = dict.fromkeys(
        name for item in node.implementations for name in item.copied_at_launch
    )
    copies = [*node.made_contiguous, *(f"{name} (if need be)" for name in at_launch)]
    used = [item.name for item in node.implementations if item.role != "not used"]
    return (
        node.graph,
        node.node,
        node.op,
        node.device,
        (" or ".join(used) or node.implementation) + (f" ({node.reason})" if node.reason else ""),
        ", ".join(copies) or "-",
        ", ".join(node.checked_at_launch) or "-",
        "-" if node.workspace in (None, 0) else f"{node.workspace} bytes",
        ", ".join(f"{over} by {name}" for name, over in node.may_overwrite.items()) or "-",
        node.place,
    )


def kernel_rows(nodes: Iterable[ExplainedNode]) -> Iterator[tuple[str, ...]]:
    for node, item in _considered(nodes):
        for launch in item.launches:
            for code in launch.code:
                if code["arch"] or code["resources"]:
                    row = code_check.row(code)
                    size = "" if code["problem"] else str(code["bytes"])
                    yield (_name(node), item.name, launch.entry, *row, size)


def choice_rows(nodes: Iterable[ExplainedNode]) -> Iterator[tuple[str, ...]]:
    for node, item in _considered(nodes):
        copied = ", ".join(item.copied_at_launch)
        why = [item.why, copied and f"makes {copied} contiguous where need be"]
        yield (_name(node), item.name, item.device, item.role, "; ".join(filter(None, why)))


def first_line(reason: str) -> str:
    """And what follows a colon at its end."""
    first, _, rest = reason.strip().partition("\n")
    return f"{first} {first_line(rest)}" if first.endswith(":") and rest.strip() else first


def _considered(
    nodes: Iterable[ExplainedNode],
) -> Iterator[tuple[ExplainedNode, ConsideredImplementation]]:
    return ((node, item) for node in nodes for item in node.implementations)


def _name(node: ExplainedNode) -> str:
    return f"{node.graph} {node.node}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
