"""The rooms of the runtime: which may include which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "runtime"
pytestmark = pytest.mark.skipif(not RUNTIME.is_dir(), reason="needs the source tree")


def rooms() -> dict[str, set[str]]:
    """Each room, and the rooms that it may include: those that it links, and what these link."""
    text = (RUNTIME / "CMakeLists.txt").read_text()
    reachable: dict[str, set[str]] = {}
    for name, *linked in (line.split() for line in re.findall(r"^opaq_room\((.*)\)", text, re.M)):
        assert set(linked) <= set(reachable), f"{name} links a room that is declared after it"
        reachable[name] = set(linked).union(*(reachable[room] for room in linked))
    reachable["python"] = set(reachable)  # the module is the last room and links all others
    return reachable


def includes(folder: Path) -> list[tuple[str, str]]:
    """(file and line, what it includes) of every #include "..." under the folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".cpp", ".h"}:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if match := re.match(r'\s*#\s*include\s+"([^"]+)"', line):
                found.append((f"{path.relative_to(RUNTIME)}:{number}", match[1]))
    return found


def test_every_folder_is_a_room() -> None:
    files = [*RUNTIME.glob("*/*.cpp"), *RUNTIME.glob("*/include/*/*.h")]
    folders = {path.relative_to(RUNTIME).parts[0] for path in files}
    assert folders == set(rooms())


def test_a_room_includes_only_rooms_that_it_links() -> None:
    allowed, wrong = rooms(), []
    for room, linked in allowed.items():
        for where, header in includes(RUNTIME / room):
            owner = header.split("/")[0]
            if owner in allowed and owner != room and owner not in linked:
                wrong.append(f"{where} includes {header}, but {room} does not link {owner}")
    assert not wrong, "\n".join(wrong)


def test_headers_that_a_room_keeps_to_itself_are_included_by_that_room_alone() -> None:
    wrong = []
    for room in rooms():
        for where, header in includes(RUNTIME / room):
            if "/" in header and not header.startswith("../"):
                owner = header.split("/")[0]
                if not (RUNTIME / owner / "include" / header).is_file():
                    wrong.append(f"{where} includes {header}, which no room offers")
            else:
                target = ((RUNTIME / where).parent / header).resolve()
                if not target.is_file() or RUNTIME / room not in target.parents:
                    wrong.append(f"{where} includes {header}, which is not a header of {room}")
    assert not wrong, "\n".join(wrong)
