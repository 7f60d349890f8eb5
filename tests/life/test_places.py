"""Machines in a bad state: no file descriptors left, no space, no writable folder, no home. What
can work does, and errors say why something cannot, and what to do.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from programs import Places, places, run  # noqa: F401


def test_folders_that_are_not_there_or_not_to_be_used(places: Places, tmp_path) -> None:  # noqa: ANN001
    a_file = tmp_path / "file"
    a_file.write_text("")
    for environment in (
        {"OPAQ_CACHE_DIR": str(a_file)},
        {"OPAQ_CACHE_DIR": "/proc/nowhere"},
        {"OPAQ_CACHE_DIR": str(a_file), "TMPDIR": "/no/such/folder"},
        {
            "OPAQ_CACHE_DIR": None,
            "HOME": None,
            "XDG_CACHE_HOME": str(tmp_path / "xdg"),
            "TMPDIR": "/no/such/folder",
        },
    ):
        assert (
            run(places, "print(plain('f')(x).tolist())", environment=environment).splitlines()[-1]
            == "[2.0, 2.0, 2.0]"
        )
    assert not [name for name in os.listdir("/tmp") if name.startswith(".opaq-work-")]


def test_too_many_open_files(places: Places) -> None:
    output = run(
        places,
        """
        import resource
        op = plain("f"); other = plain("g")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        kept = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            while True: kept.append(open("/dev/null"))
        except OSError: pass
        try: op(x)
        except opaq.Error as error: print(type(error).__name__, error)
        kept.clear()
        print(op(x).tolist())
    """,
    )
    first, last = output.splitlines()
    assert first.startswith("CompileError") and "Too many open files" in first, output
    assert last == "[2.0, 2.0, 2.0]"


def test_no_space_left(places: Places, tmp_path) -> None:  # noqa: ANN001
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", small],
            capture_output=True,
            check=False,
        ).returncode
        != 0
    ):
        pytest.skip("a full file system takes the right to mount one")
    try:
        environment = {"OPAQ_CACHE_DIR": str(small), "TMPDIR": str(small)}
        output = run(
            places,
            """
            op = plain("f")
            filler = os.path.join(os.environ["OPAQ_CACHE_DIR"], "filler")
            descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
            try:
                while True: os.write(descriptor, b"x" * 4096)
            except OSError: pass
            def attempt():
                try: print(op(x).tolist())
                except opaq.Error as error: print(type(error).__name__, str(error).replace("\\n",
                    " "))
            attempt()
            os.close(descriptor); os.remove(
                filler)  # the source can be written, but not the library
            attempt()
            os.system("mount -o remount,size=4m " + os.environ["OPAQ_CACHE_DIR"])
            attempt()
        """,
            environment=environment,
        )
        full, nearly_full, enough = output.splitlines()
        advice = "free space there, or name another folder in OPAQ_CACHE_DIR or TMPDIR"
        assert (
            full.startswith("CompileError life::f: ")
            and "No space left on device; " + advice in full
        ), output
        assert (
            nearly_full.startswith("CompileError life::f: ")
            and f"KB are free in {small}: {advice}" in nearly_full
        ), output
        assert enough == "[2.0, 2.0, 2.0]", output
    finally:
        subprocess.run(["umount", small], check=False)
