"""What the HTML pages of opaq share: one look, light and dark, in one self-contained file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

COLOURS = """
:root { color-scheme: light dark; --text: #1c1e21; --dim: #5f6670; --page: #ffffff;
  --panel: #f4f5f7; --line: #d8dbe0; --accent: #1f5fbf; --good: #1a7f37; --warn: #9a5b00;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ea; --dim: #9aa2ad; --page: #15171a;
  --panel: #1f2227; --line: #363b43; --accent: #7fb0ff; --good: #5cc878; --warn: #e0a84b;
  --bad: #ff8a80; } }
"""
CSS = (
    COLOURS
    + """
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: var(--text);
  background: var(--page); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
a { color: var(--accent); } .dim { color: var(--dim); }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { padding: .6rem .8rem; overflow-x: auto; background: var(--panel); border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .3rem .8rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 600; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
details { margin: .4rem 0; } summary { cursor: pointer; }
"""
)

# Makes a browser refuse to load what an error of ours might ask for.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A complete document. title: text; body: HTML; style: CSS beside that of all pages. It loads
    nothing from anywhere.
    """
    scripts = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{text(title)}</title>\n<style>{CSS}{style}</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{body}\n{scripts}</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Its text, safe within HTML and within an attribute in quotes."""
    return html.escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Cells are texts; numbers are aligned to the right. It scrolls where it is too wide."""

    def cell(value: object) -> str:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return f"{'<td class=number>' if number else '<td>'}{text(value)}</td>"

    lines = [f"<tr>{''.join(map(cell, row))}</tr>" for row in rows]
    header = "".join(f"<th>{text(name)}</th>" for name in head)
    return f'<div class="wide"><table>\n<tr>{header}</tr>\n{chr(10).join(lines)}\n</table></div>'
