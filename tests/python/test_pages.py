"""The pages: the README's declaration runs, links have targets, tables are complete."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch

from opaq import options

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md")])


def test_the_declaration_in_the_readme_runs(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 1
    pasted = tmp_path / "pasted.py"  # a file: torch.compile looks at the source
    pasted.write_text(blocks[0])
    exec(compile(blocks[0], str(pasted), "exec"), {"__name__": "pasted"})
    shown = capsys.readouterr().out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert re.search(rf"mylib::scale +{device}", shown), shown


def test_the_readme_fits_on_a_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 64


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            assert heading in [text.lower().replace(" ", "-") for text in headings], link


def table(heading: str) -> list[list[str]]:
    """The cells of the table in a section of the user guide, without its head."""
    text = (ROOT / "backend" / "README.md").read_text()
    section = re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_variable_that_is_read_is_in_the_table_and_no_other() -> None:
    source = (ROOT / "runtime" / "base" / "settings.cpp").read_text()
    read = set(re.findall(r'\benv\("(\w+)"\)', source))
    for names in re.findall(r"const char\* variable : \{(.*?)\}", source):
        read |= set(re.findall(r'"(\w+)"', names))
    assert {"OPAQ_CACHE_DIR", "CUDA_HOME"} <= read  # the expressions above still match the source
    rows = table("Environment variables")
    listed = [name for row in rows for name in re.findall("`(.*?)`", row[0])]
    assert sorted(listed) == sorted(read)


def test_nothing_else_reads_the_environment() -> None:
    reads = re.compile(r"\bgetenv\(|os\.environ|\bgetenv\b")
    found = [
        str(path.relative_to(ROOT))
        for folder in ("backend", "lowering", "runtime", "extern_kernels")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h") and reads.search(path.read_text())
    ]
    assert set(found) <= {"runtime/base/settings.cpp", "runtime/base/include/base/settings.h"}


def test_every_option_is_in_the_table_with_its_type_and_default() -> None:
    listed = {row[0].strip("`"): (row[1], row[2].strip("`")) for row in table("Options")}
    expected = {
        option.name: (option.type.__name__, repr(option.default))
        for option in options.OPTIONS
        if option.name != "check"  # its default is read from the environment
    }
    assert listed == {**expected, "check": ("str", "OPAQ_CHECK")}
