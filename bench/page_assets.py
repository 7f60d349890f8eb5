"""What the page of a result adds to the look of opaq's pages, and the script of its table."""

from __future__ import annotations

STYLE = """
:root {
  --bar: #a5adb6; --mark0: var(--accent); --mark1: #bc4c00; --mark2: #8250df;
  --mark3: #1a7f37; --mark4: #bf3989; --mark5: #59636e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bar: #656c76; --mark1: #f0883e; --mark2: #ab7df8;
    --mark3: #3fb950; --mark4: #f778ba; --mark5: #9198a1;
  }
}
* { box-sizing: border-box; }
body { max-width: 66rem; overflow-wrap: anywhere; }
h2 { margin-bottom: .2rem; }
h3 { margin: 1.1rem 0 .25rem; }
p { margin: .3rem 0; max-width: 48rem; }
pre { margin: .6rem 0; white-space: pre-wrap; }
small { color: var(--dim); font-size: .8rem; }
ul { list-style: none; margin: 0; padding: 0; }
.summary { margin: .5rem 0; }

.key { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; font-size: .85rem; margin: .5rem 0; }
.key .whisker, .key .floor { display: inline-block; vertical-align: middle; margin-right: .3rem; }
.key .whisker {
  width: 1.2rem; height: .5rem; border: solid var(--text); border-width: 0 1.5px;
  background: linear-gradient(var(--text), var(--text)) center / 100% 1.5px no-repeat;
}
.key .floor { height: 1rem; border-left: 2px dashed var(--warn); }

svg { display: block; width: 100%; height: 18px; overflow: visible; }
.bars li, .ratios li { display: grid; column-gap: .8rem; align-items: center; }
.bars li { grid-template-columns: 13rem minmax(0, 1fr) 10.5rem 9.5rem; padding: 2px 0; }
.bars .who, .bars .value, .bars .ratio, .without { line-height: 1.3; font-size: .9rem; }
.without { grid-column: 2 / -1; color: var(--dim); }
.value, .ratio { font-variant-numeric: tabular-nums; }
.ours .who, .ours .value b { color: var(--accent); font-weight: 600; }
b { font-weight: 600; }
.bar { fill: var(--bar); }
.ours .bar { fill: var(--accent); }
line.whisker { stroke: var(--text); stroke-width: 1.5; }
line.floor { stroke: var(--warn); stroke-width: 2; stroke-dasharray: 4 3; }
.faster { color: var(--good); }
.slower, .failed { color: var(--warn); }
.wrong { color: var(--bad); }
.wrong, .failed { font-weight: 600; }
.equal, .baseline, .absent { color: var(--dim); }

.ratios li {
  grid-template-columns: 22rem minmax(0, 1fr); min-height: 19px;
  font-size: .82rem; line-height: 1.3;
}
.ratios li > svg { height: 0; min-height: 100%; }
.ratios li + li { border-top: 1px solid color-mix(in srgb, var(--line) 50%, transparent); }
line.one { stroke: var(--dim); }
.label { fill: var(--dim); font-size: 11px; text-anchor: middle; }
svg.mark { display: inline-block; width: 12px; vertical-align: -4px; }
svg.origin { width: 1px; height: 1px; }
.mark0 { fill: var(--mark0); stroke: var(--mark0); }
.mark1 { fill: var(--mark1); stroke: var(--mark1); }
.mark2 { fill: var(--mark2); stroke: var(--mark2); }
.mark3 { fill: var(--mark3); stroke: var(--mark3); }
.mark4 { fill: var(--mark4); stroke: var(--mark4); }
.mark5 { fill: var(--mark5); stroke: var(--mark5); }
circle, path { stroke-width: 0; }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }

.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin-top: .5rem; }
table { margin: 0; font-size: .82rem; width: 100%; overflow-wrap: normal; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { white-space: nowrap; background: var(--panel); border-bottom: 1px solid var(--line); }
tbody tr + tr td { border-top: 1px solid color-mix(in srgb, var(--line) 50%, transparent); }
td { max-width: 26em; }
td:nth-child(2), td:last-child:not(:empty) { min-width: 16em; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; }
th button::after { content: "\\2195"; color: var(--dim); margin-left: .3em; }
th[aria-sort="ascending"] button::after { content: "\\2191"; color: var(--text); }
th[aria-sort="descending"] button::after { content: "\\2193"; color: var(--text); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
input {
  font: inherit; color: inherit; background: var(--page); border: 1px solid var(--line);
  border-radius: 6px; padding: .25rem .5rem; width: 20rem; max-width: 100%; margin-top: .4rem;
}
.facts { display: flex; flex-wrap: wrap; gap: 0 3rem; font-size: .87rem; }
.facts > div { flex: 1 1 20rem; min-width: 0; }
dl {
  display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr); gap: .1rem 1rem;
  margin: .3rem 0;
}
dt { color: var(--dim); }
dd { margin: 0; }

@media (max-width: 48rem) {
  .bars li { grid-template-columns: minmax(0, 1fr) auto; padding: 5px 0; }
  .bars .who { grid-column: 1 / -1; grid-row: 1; }
  .bars .value { grid-column: 1; grid-row: 2; }
  .bars .ratio { grid-column: 2; grid-row: 2; text-align: right; }
  .bars svg { grid-column: 1 / -1; grid-row: 3; }
  .bars .ratio { max-width: 50vw; }
  .without { grid-column: 1 / -1; }
  .ratios li { grid-template-columns: minmax(0, 1fr); padding: 2px 0; }
  .ratios li > svg { height: 18px; min-height: 0; }
}
@media print { .scroll { overflow: visible; } }
"""

# Without the script the table is in the order of the records, and nothing looks clickable.
SCRIPT = """
"use strict";
(() => {
  const table = document.getElementById("records");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const names = new Intl.Collator("en", {numeric: true});

  function compare(a, b, column, sign) {
    const [x, y] = [a.cells[column], b.cells[column]];
    if (x.dataset.number === undefined) {
      return sign * names.compare(x.textContent, y.textContent);
    }
    const [p, q] = [x.dataset.number, y.dataset.number];
    if (p === "" || q === "") return (p === "") - (q === "");  // those without a number come last
    return sign * (p - q);
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...rows.sort((a, b) => compare(a, b, column, sign)));
    });
  });

  const filter = document.createElement("input");
  filter.type = "search";
  filter.placeholder = "Show rows with ...";
  filter.setAttribute("aria-label", "Show only rows that contain this text");
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  table.parentElement.before(filter);
})();
"""
