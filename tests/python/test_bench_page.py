"""The page of a benchmark's result, and its plot: complete, escaped, loading nothing; in a browser,
where there is one, light and dark, sortable, without overlaps, and no wider than a phone.
"""

from __future__ import annotations

import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree
from html import escape
from pathlib import Path
from typing import Any

import pytest
from bench_results import compared, many, record, result, small

from opaq.bench import page
from opaq.page_style import COLOURS

HOSTILE = "</script><script>bad()</script> \"quoted\" 'so' & <img src=x onerror=bad()>"
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Document(html.parser.HTMLParser):
    """Checks that tags are balanced; keeps tags with their attributes, and the text outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def hostile() -> dict[str, Any]:
    """A result with such text wherever text can be."""
    found = result([{**each, "note": HOSTILE} for each in small(HOSTILE)])
    for each in found["records"]:
        each.update(contestant=each["contestant"] + HOSTILE, metric=HOSTILE, unit=HOSTILE)
        each.update(to=HOSTILE, verdict=each["verdict"] or HOSTILE)
    texts = dict.fromkeys(("title", "what", "command", "date"), HOSTILE)
    return {**found, **texts, "machine": {HOSTILE: HOSTILE}, "method": {HOSTILE: [HOSTILE]}}


def test_a_page_tells_all_of_a_result() -> None:
    document = Document(page.html(result(small())))
    for part in (
        "Host time of one op",
        "opaq bench boundary --device cuda",
        "NVIDIA H200, driver 580.159.04, torch 2.15.0+cu132, cuda 13.2, 2026-11-27",
        "less is better; in µs; ratios are to raw loop",
        "3.50 µs 3.43 to 3.57",
        "1.17× slower",
        "0.83× faster",
        "absent: not installed: CuPy",
        "wrong: error 0.3; at most 1e-5",
        "failed: RuntimeError: no kernel image",
        "environmentOMP_NUM_THREADS 1",
        "rounds15",
    ):
        assert part in document.text, part
    bars = [attributes for tag, attributes in document.tags if attributes.get("class") == "bar"]
    assert len(bars) == 3, "contestants without a figure have no bar"
    titles = [attributes.get("aria-label") for tag, attributes in document.tags if tag == "svg"]
    assert titles[1] == (
        "opaq: 3.50 µs, 95 % interval 3.43 to 3.57, 1.17x of raw loop (1.14x to 1.19x), slower, "
        "lower bound 2.90 µs"
    )
    assert document.count("tr") == 1 + 6


@pytest.mark.parametrize("records", [many(200)["records"], [], small()])
def test_a_page_loads_nothing(records: list[dict[str, Any]]) -> None:
    text = page.html(result(records))
    document = Document(text)
    assert not {"link", "img", "iframe", "a", "object"} & {tag for tag, _ in document.tags}
    assert not re.search(r"https?:|@import|url\(|fetch\(", text)
    for tag, attributes in document.tags:
        assert not {"src", "href", "style"} & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    policy = next(a for t, a in document.tags if a.get("http-equiv"))
    assert "default-src 'none'" in (policy["content"] or "")


def test_text_of_a_result_is_only_text() -> None:
    document = Document(page.html(hostile()))
    assert document.count("script") == 1 and document.count("img") == 0
    assert document.text.count(HOSTILE) > 20
    drawing = xml.etree.ElementTree.fromstring(page.plot(hostile()))
    tags = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    assert tags == {"svg", "title", "style", "text", "rect", "line"}


def test_figures_that_are_no_numbers_leave_their_place_empty() -> None:
    odd = [
        record("a", "opaq", math.nan, low=math.inf, floor=math.nan),
        record("a", "zero", 0.0, low=0.0, high=0.0),
        {**record("a", "huge", None), "value": 10**400},
        record("a", "below", -2.0, low=-2.1, high=-1.9),
        compared("a", "not positive", 1.0, 1.0, ratio=0.0, ratio_low=-1.0),
    ]
    text = page.html(result(odd))
    Document(text)
    assert not re.search(r"\b(nan|inf)\b", text)
    assert "nan" not in page.plot(result(odd))


def test_many_cases_show_their_ratios_first() -> None:
    document = Document(page.html(many(200)))
    assert "opaq: 200 cases: 81 faster, 40 equal, 79 slower" in document.text
    assert "Figures of all 200 cases" in document.text
    assert "each case has a scale of its own" in document.text
    folded = [attributes for tag, attributes in document.tags if tag == "details"]
    assert folded == [{}], "the bars are folded"


def test_a_plot_is_a_drawing_of_its_own() -> None:
    text = page.plot(result([*small(), *small("chain of 1")]), cases=["chain of 1"])
    drawing = xml.etree.ElementTree.fromstring(text)
    shown = [element.text or "" for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert shown[0] == "Host time of one op: added op"
    assert "chain of 1" in shown and "chain of 50" not in shown
    assert "3.50 µs, 1.17× slower" in shown and "absent: not installed: CuPy" in shown
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"(?:href|src|url)[=(]", text) == []


def test_a_plot_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="metric: got 'speed'; expected one of added op"):
        page.plot(result(small()), metric="speed")
    with pytest.raises(ValueError, match="cases: got 'b'; expected some of chain of 50"):
        page.plot(result(small()), cases=["b"])
    with pytest.raises(ValueError, match="metric: got None; expected one of none"):
        page.plot(result([]))


def test_text_has_enough_contrast() -> None:
    """At least 4.5 to 1, as WCAG 2.1 asks of text."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", scheme)) for scheme in COLOURS.split("@media")
    )
    for colours in (light, dark):
        for name in ("text", "dim", "accent", "good", "warn", "bad"):
            for background in ("page", "panel"):
                pair = sorted([luminance(colours[name]), luminance(colours[background])])
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (name, background)


# ---- in a browser --------------------------------------------------------------------------------

BROWSER = os.environ.get("CHROME") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
in_a_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome was found; set CHROME to one"
)
DARK, LIGHT = 0, 1


def browse(file: Path, *options: str, scheme: int = LIGHT) -> str:
    """Opens a file; returns what the browser prints."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={file.parent / 'profile'}",
        f"--blink-settings=preferredColorScheme={scheme}",
        "--virtual-time-budget=3000",
        *options,
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# Runs in the page that holds the tested one in a frame, and writes what it finds as its own text.
INSPECT = """
const view = document.getElementById("frame").contentWindow, page = view.document;
const texts = column => [...page.querySelectorAll("#records tbody tr")]
  .filter(row => !row.hidden).map(row => row.cells[column].textContent);
const heads = [...page.querySelectorAll("#records th")];
const found = {width: view.innerWidth, needed: page.documentElement.scrollWidth, overlaps: []};
for (const item of page.querySelectorAll(".bars li, .ratios li")) {
  const outer = item.getBoundingClientRect();
  const boxes = [...item.children].map(child => child.getBoundingClientRect());
  boxes.forEach((a, i) => {
    if (a.left < outer.left - 1 || a.right > outer.right + 1) found.overlaps.push(item.textContent);
    for (const b of boxes.slice(i + 1)) {
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
          && b.top < a.bottom - 1) found.overlaps.push(item.textContent);
    }
  });
}
found.first = texts(2);
const click = name => heads.find(head => head.textContent === name).firstChild.click();
click("Value"); found.ascending = texts(2);
click("Value"); found.descending = texts(2);
found.sorted = heads.map(head => head.getAttribute("aria-sort"));
click("Contestant"); found.names = texts(2);
const filter = page.querySelector("input");
filter.value = "CUPY"; filter.dispatchEvent(new Event("input")); found.filtered = texts(2);
found.bad = typeof view.bad_ran;
document.body.textContent = JSON.stringify(found);
"""


def inspect(tmp_path: Path, shown: dict[str, Any], width: int) -> dict[str, Any]:
    """Facts about the page in a frame of so many pixels."""
    text = page.html(shown).replace("bad()", "window.bad_ran = 1")
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><body><iframe id="frame" width="{width}" '
        f'height="800" srcdoc="{escape(text)}"></iframe>'
        f"<script>addEventListener('load', () => {{{INSPECT}}})</script>",
        encoding="utf-8",
    )
    printed = browse(outer, "--dump-dom")
    body = re.search(r"<body>(\{.*\})</body>", printed, re.DOTALL)
    assert body, f"the script of the test did not come to its end: {printed[-300:]}"
    return json.loads(html.unescape(body[1]))


@in_a_browser
def test_the_table_is_sorted_and_filtered(tmp_path: Path) -> None:
    found = inspect(tmp_path, result(small()), 1000)
    without = ["CuPy", "numba", "custom_op"]
    assert found["first"] == ["raw loop", "opaq", "triton_op", *without]
    assert found["ascending"] == ["triton_op", "raw loop", "opaq", *without]
    assert found["descending"] == ["opaq", "raw loop", "triton_op", *without], "blanks stay last"
    assert found["sorted"][3] == "descending" and found["sorted"].count(None) == 13
    assert found["names"] == sorted(found["first"], key=str.lower)
    assert found["filtered"] == ["CuPy"]


@in_a_browser
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("which", ["hostile", "long", "many"])
def test_nothing_overlaps_or_is_wider_than_the_page(tmp_path: Path, which: str, width: int) -> None:
    long = [
        {**each, "contestant": "torch.ops.library.overload_" * 4, "note": "a remark " * 20}
        for each in small("x".join(["4096"] * 40))
    ]
    shown = {"hostile": hostile(), "long": result(long), "many": many(30)}[which]
    found = inspect(tmp_path, shown, width)
    assert found["width"] == width and found["needed"] <= width
    assert found["overlaps"] == []
    assert found["bad"] == "undefined", "text of the result ran as a script"


@in_a_browser
def test_no_text_of_a_plot_overlaps_or_is_cut(tmp_path: Path) -> None:
    long = ["x".join(["4096"] * 60), "W" * 200, "核心" * 90, "of words and words " * 12, "short"]
    records = [record(case, f"opaq {case}", 1e5, unit="units", note=case) for case in long]
    records += [record(case, case, None, verdict="wrong", note=case) for case in long]
    file = tmp_path / "plot.html"
    file.write_text(
        f"<!doctype html><meta charset=utf-8><body>{page.plot(result(records))}<script>"
        """
        const drawing = document.querySelector("svg"), found = [];
        const boxes = [...drawing.querySelectorAll("text")].map(text => text.getBBox());
        const apart = (a, b) => a.x + a.width <= b.x || b.x + b.width <= a.x
            || a.y + 14 <= b.y || b.y + 14 <= a.y;
        boxes.forEach((a, i) => {
          if (a.x + a.width > 840) found.push(`cut: ${a.x} ${a.width}`);
          boxes.slice(i + 1).forEach(b => { if (!apart(a, b)) found.push(`${a.x} ${a.y}`); });
        });
        document.body.textContent = JSON.stringify(found);</script>""",
        encoding="utf-8",
    )
    assert "<body>[]</body>" in browse(file, "--dump-dom")


@in_a_browser
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("kind", ["page", "plot"])
def test_it_is_drawn_light_and_dark(tmp_path: Path, kind: str, scheme: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    file, shot = tmp_path / "page.html", tmp_path / "page.png"
    if kind == "page":
        file.write_text(page.html(result(small())), encoding="utf-8")
    else:  # as a README shows it
        (tmp_path / "plot.svg").write_text(page.plot(result(small())), encoding="utf-8")
        file.write_text(
            '<!doctype html><meta name="color-scheme" content="light dark"><img src="plot.svg">'
        )
    browse(file, f"--screenshot={shot}", "--window-size=900,900", scheme=scheme)
    with image.open(shot) as opened:
        picture = opened.convert("L")
    background = picture.getpixel((2, 2))
    assert background > 240 if scheme == LIGHT else background < 40
    shades = picture.getcolors(256)
    contrasting = sum(count for count, shade in shades if abs(shade - background) > 100)
    assert 2_000 < contrasting < 0.2 * picture.width * picture.height, "text and bars"
