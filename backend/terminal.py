"""Text for a terminal: made safe to print, and set in columns."""

from __future__ import annotations

from collections.abc import Sequence


def plain(text: str) -> str:
    """`text` on one line and safe to print on a terminal: control characters, line ends, marks of
    text direction, lone surrogates and unassigned characters become Python escapes (`\\x1b`).
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """The rows with their cells in columns, as wide as their longest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )
