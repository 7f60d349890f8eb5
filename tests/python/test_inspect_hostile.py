"""`opaq inspect` on files that are damaged, hostile or no packages: one line, exit status 2,
limited time and memory, no control characters.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import resource
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opaq import _runtime, archive, cli, package_contents
from opaq.terminal import plain

FOLDER = "model/data/aotinductor/model"
IMAGE = {"arch": "", "file": "k.host", "sha256": hashlib.sha256(b"code").hexdigest(), "bytes": 4}
RULE = {
    "args": ["x"],
    "grid": ["1"],
    "block": ["32"],
    "cluster": [],
    "shared": "0",
    "cooperative": False,
    "programmatic": False,
}
IMPLEMENTATION = {
    "name": "cuda",
    "entry": "k",
    "symbol": "k",
    "checked_at_launch": [],
    "rule": RULE,
    "images": [IMAGE],
}
OP = {
    "op": "a::b",
    "schema": "a::b()",
    "function": "f",
    "device": "cuda",
    "nodes": ["op0"],
    "implementations": [IMPLEMENTATION],
}


def package(folder: pathlib.Path, manifest: Any, **members: bytes) -> str:
    path = folder / "model.pt2"
    text = manifest if isinstance(manifest, (bytes, str)) else json.dumps(manifest)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(f"{FOLDER}/opaq.json", text)
        for name, content in members.items():
            made.writestr(f"{FOLDER}/{name}", content)
    return str(path)


def refused(path: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    for options in ([], ["--json"]):
        assert cli.main(["inspect", path, *options]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1 and err.endswith("\n")
        assert err[:-1].isprintable()
    return err


def changed(field: str, value: Any) -> dict[str, Any]:
    """A manifest with another value in one field, which is given by its path."""
    manifest = json.loads(json.dumps({"format": 1, "ops": [OP]}))
    *parents, last = (int(part) if part.isdigit() else part for part in field.split("."))
    place: Any = manifest
    for part in parents:
        place = place[part]
    place[last] = value
    return manifest


def test_a_manifest_as_opaq_writes_it_is_shown(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, state, status in ((b"code", "whole", 0), (b"c0de", "damaged", 1)):
        assert (
            cli.main(
                ["inspect", package(tmp_path, {"format": 1, "ops": [OP]}, **{"k.host": content})]
            )
            == status
        )
        assert f"k.host, -, 4 bytes, {state}" in capsys.readouterr().out


def _fields(value: Any, path: str = "") -> list[str]:
    found = [path] if path else []
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        found += _fields(inner, f"{path}.{key}" if path else str(key))
    return found


@pytest.mark.parametrize(
    "field", [field for field in _fields({"ops": [OP]}) if field != "ops.0.op"]
)
def test_a_field_of_another_type_is_refused_by_name(
    field: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (None, 7, True, "text", [], [7], {}, {"a": 1}, [[]], 1.5):
        manifest = changed(field, value)
        *_, last = re.findall(r"[a-z_]+[0-9]*[a-z_]*", field)
        status = cli.main(["inspect", package(tmp_path, manifest)])
        out, err = capsys.readouterr()
        if status in (0, 1):  # 1: the image is not there
            assert "model" in out
        else:
            assert status == 2 and err.count("\n") == 1, err
            assert "is damaged" in err
            assert last.rstrip("s") in err or isinstance(value, float), err


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("[]", "manifest is an array; expected an object"),
        ("", "Expecting value"),
        ("{}", "manifest has no 'ops'"),
        ('{"ops": null}', "manifest: ops is null; expected an array"),
        ('{"ops": [NaN]}', "it holds the number NaN"),
        ('{"ops": [1e999]}', "it holds the number 1e999"),
        ('{"ops": [], "ops": []}', "has a key twice"),
        ("[" * 100_000, "nested without end"),
        ('{"a":' * 100_000, "nested without end"),
        (f'{{"ops": {"9" * 1_000_000}}}', "a number of 1000000 digits"),
        (b'{"ops": [{"schema": "\xff"}]}', "it is not UTF-8 text: invalid start byte at byte 21"),
        ('{"format": 2, "ops": []}', "its format is 2, and this opaq reads format 1"),
        (
            changed("ops.0.implementations.0.images.0.file", "../../k"),
            "image file '../../k' is no plain file name",
        ),
        (
            changed("ops.0.implementations.0.images.0.file", "/etc/passwd"),
            "image file '/etc/passwd' is no plain file name",
        ),
    ],
    ids=str,
)
def test_a_manifest_that_opaq_did_not_write_is_refused(
    manifest: Any, reason: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(package(tmp_path, manifest), capsys)
    assert reason in message
    assert message.endswith("; package the model again\n")


ESCAPES = "\x1b]0;pwned\x07\x1b[2J\r\x9b31m\u202egnp.exe\u2066\u200b\n\ud800\x7f\u2028"


def test_nothing_from_the_file_reaches_the_terminal_raw(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poisoned(inner) for inner in value] or [ESCAPES]
        return ESCAPES if isinstance(value, str) else value

    path = package(tmp_path, {"format": 1, "ops": poisoned([OP])})
    for options in ([], ["--json"]):
        assert cli.main(["inspect", path, *options]) == 1  # no image has such a digest
        out = capsys.readouterr().out
        assert all(line.isprintable() for line in out.split("\n"))
        assert "\\x1b" in out or "\\u001b" in out
    assert json.loads(out)["models"][0]["ops"][0]["schema"] == ESCAPES
    for field in _fields({"ops": [OP]}):
        if isinstance(eval_field(OP, field), str):
            message = changed(field, ESCAPES)
            cli.main(["inspect", package(tmp_path, message)])
            out, err = capsys.readouterr()
            assert all(line.isprintable() for line in (out + err).split("\n")), field


def eval_field(op: dict[str, Any], field: str) -> Any:
    place: Any = {"ops": [op]}
    for part in field.split("."):
        place = place[int(part) if part.isdigit() else part]
    return place


def test_names_with_escapes_are_shown_plainly(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model\x1b[2J\n.pt2"
    assert "model\\x1b[2J\\n.pt2 cannot be read as a package: No such file" in refused(
        str(path), capsys
    )
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("m\x1b[31m/data/aotinductor/\x1b[2J/opaq.json", "[]")
    assert "m\\x1b[31m/data/aotinductor/\\x1b[2J/opaq.json is damaged" in refused(str(path), capsys)


def limited(*arguments: str, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    """`opaq inspect` in a process of its own that may take no more than 2 GiB over what `import
    opaq` maps.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))

    command = [sys.executable, "-m", "opaq", "inspect", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds * 3, preexec_fn=limit, check=False
    )


def test_a_manifest_that_expands_without_end_is_not_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bomb.pt2"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made,
        made.open(f"{FOLDER}/opaq.json", "w", force_zip64=True) as stream,
    ):
        for _ in range(300):
            stream.write(b" " * (1 << 20))
    done = limited(str(path))
    assert done.returncode == 2
    most = package_contents.MOST_OF_MANIFESTS
    assert f"it has {300 << 20} bytes; at most {most} are read" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_member_that_declares_less_than_it_holds_is_bounded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("member", b" " * (64 << 20))
    content = path.read_bytes().replace(struct.pack("<I", 64 << 20), struct.pack("<I", 100))
    path.write_bytes(content)
    with archive.Archive(str(path)) as opened, pytest.raises(archive.Damaged):
        opened.read("member", 1 << 20)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_expand_without_bound_are_refused(
    method: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr(f"{FOLDER}/opaq.json", '{"ops": []}')
    assert f"it is compressed by method {method}; expected stored or deflated" in refused(
        str(path), capsys
    )


def test_a_directory_of_millions_of_members_is_not_read(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt2"
    entry = (
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
        + b"a"
    )
    directory = entry * (1 << 18)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFE, 0xFFFE, len(directory), 0, 0)
    path.write_bytes(directory + end)
    assert "its directory is larger than 8 MiB" in refused(str(path), capsys)


def test_members_that_stand_twice_or_lead_outside_are_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt2"
    for names, reason in (
        (["a", "a"], "it holds 'a' twice"),
        (["../a"], "leads out"),
        (["/a"], "leads out"),
        (["a\\..\\b"], "leads out"),
    ):
        with (
            zipfile.ZipFile(path, "w") as made,
            pytest.warns() if names == ["a", "a"] else open(os.devnull),
        ):
            for name in names:
                made.writestr(name, "")
        assert reason in refused(str(path), capsys)


def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    began = time.monotonic()
    for path, reason in (
        (tmp_path, "it is a folder, not a file"),
        (tmp_path / "fifo", "it is a named pipe, not a file"),
        (tmp_path / "link", "it is a named pipe, not a file"),
        (tmp_path / "socket", "it is a socket, not a file"),
        ("/dev/zero", "it is a device, not a file"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / "absent", "No such file or directory"),
        ("x" * 5000, "File name too long"),
    ):
        assert reason in refused(str(path), capsys)
    server.close()
    assert time.monotonic() - began < 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = package(tmp_path, {"ops": []})
    os.chmod(path, 0)
    assert "Permission denied" in refused(path, capsys)


def test_cut_or_encrypted_packages_are_refused_or_told_as_damaged(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pathlib.Path(
        package(tmp_path, {"format": 1, "ops": [OP]}, **{"k.host": os.urandom(400)})
    )
    content = path.read_bytes()
    for size in range(0, len(content), 9):
        path.write_bytes(content[:size])
        refused(str(path), capsys)
    encrypted = bytearray(content)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[content.index(signature) + offset] |= 1
    path.write_bytes(encrypted)
    assert "it is encrypted" in refused(str(path), capsys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return pathlib.Path(
        package(tmp_path_factory.mktemp("whole"), {"format": 1, "ops": [OP]}, **{"k.host": b"code"})
    ).read_bytes()


FLIPS = st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=400, deadline=None)
@given(flips=FLIPS)
def test_any_bytes_changed_give_a_result_or_one_error(
    flips: list[tuple[int, int]], whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(whole)
    for place, value in flips:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "flipped.pt2"
    path.write_bytes(content)
    try:
        text = package_contents.as_text(package_contents.read(str(path)))
    except package_contents.NotAPackage as error:
        text = plain(str(error))
    assert all(line.isprintable() for line in text.split("\n"))


@settings(max_examples=300, deadline=None)
@given(
    text=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    )
)
def test_any_json_gives_ops_or_one_error(text: Any) -> None:
    for value in (text, {"ops": text}, {"ops": [text]}, changed("ops.0.implementations.0", text)):
        try:
            assert isinstance(package_contents.parse_manifest(json.dumps(value).encode()), list)
        except ValueError as error:
            assert str(error)


# ---- cubins --------------------------------------------------------------------------------------


def cubin(symbol: bytes = b"k", records: int = 1) -> bytes:
    """The parts of an ELF file that cubin_resources reads: a kernel of 40 registers and 24 bytes of
    stack.
    """
    names = (
        b"\0.text."
        + symbol
        + b"\0.nv.info\0.symtab\0.strtab\0.shstrtab\0.nv.shared."
        + symbol
        + b"\0"
    )
    info = (
        b"".join(
            struct.pack("<BBHII", 4, attribute, 8, 0, value)
            for attribute, value in ((0x2F, 40), (0x11, 24))
        )
        * records
    )
    symtab = struct.pack("<I", 1) + bytes(20)
    strtab = b"\0" + symbol + b"\0"
    contents = {
        b".text." + symbol: b"",
        b".nv.info": info,
        b".symtab": symtab,
        b".strtab": strtab,
        b".shstrtab": names,
    }
    body, headers, place = b"", b"", 64
    for name, content in contents.items():
        headers += struct.pack(
            "<IIQQQQIIQQ",
            names.index(b"\0" + name + b"\0") + 1,
            1,
            0,
            0,
            place,
            len(content),
            0,
            0,
            0,
            0,
        )
        body += content
        place += len(content)
    headers += struct.pack(
        "<IIQQQQIIQQ", names.index(b".nv.shared"), 8, 0, 0, place, 1024 + 12, 0, 0, 0, 0
    )
    head = bytearray(64)
    head[:9] = b"\x7fELF\x02\x01\x01\x33\x08"
    struct.pack_into("<Q", head, 0x28, place)
    struct.pack_into("<I", head, 0x30, 90 << 8)
    struct.pack_into("<HHH", head, 0x3A, 64, 6, 4)
    return bytes(head) + body + headers


def read(content: bytes) -> tuple[int | None, ...]:
    found = _runtime.cubin_resources(content, b"k")
    return (found["registers"], found["shared"], found["stack"])


NOTHING = (None, None, None)


def test_the_small_cubin_is_read() -> None:
    assert read(cubin()) == (40, 12, 24)


@settings(max_examples=1500, deadline=None)
@given(flips=FLIPS, cut=st.integers(0, 2000))
def test_any_bytes_changed_in_a_cubin_give_facts_or_none(
    flips: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(cubin())
    for place, value in flips:
        content[place % len(content)] = value
    found = read(bytes(content[: cut + 64] if cut < 500 else content))
    assert all(value is None or 0 <= value < 1 << 32 for value in found)


def test_numbers_in_a_cubin_decide_no_amount_of_work() -> None:
    began = time.monotonic()
    for place in (0x28, 0x3A, 0x3C, 0x3E):
        for value in (0, 0xFFFF):
            content = bytearray(cubin())
            struct.pack_into("<H", content, place, value)
            read(bytes(content))
    # every section's name would be 32 MB long
    content = bytearray(cubin(b"k" * 5) + b"a" * (32 << 20))
    struct.pack_into("<HH", content, 0x3A, 0, 0xFFFF)
    read(bytes(content))
    assert read(cubin(records=1_000_000)) == NOTHING
    surrogate = "\ud800".encode(errors="surrogatepass")
    assert set(_runtime.cubin_resources(cubin(), surrogate).values()) == {None}
    assert time.monotonic() - began < 5


def test_the_crc_of_a_member_is_checked(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps({"format": 1, "ops": []}).encode()
    path = package(tmp_path, text)
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(
        content.replace(struct.pack("<I", zlib.crc32(text)), struct.pack("<I", 7))
    )
    assert "Bad CRC-32" in refused(path, capsys)
