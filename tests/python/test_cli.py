"""The command `opaq`: what the user got wrong is one line on stderr and status 2; never a
traceback.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opaq import cli

OPAQ = [sys.executable, "-m", "opaq"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "opaq: the following arguments are required: command; see opaq --help"),
        (["frobnicate"], "opaq: argument command: invalid choice: 'frobnicate'"),
        (
            ["inspect"],
            "opaq inspect: the following arguments are required: model; see opaq inspect --help",
        ),
        (["inspect", "a", "b"], "opaq: unrecognized arguments: b"),
        (["doctor", "--jsno"], "opaq: unrecognized arguments: --jsno"),
        (
            ["demo", "--steps", "0"],
            (
                "opaq demo: argument --steps: got '0'; expected a whole number, at least 1; see "
                "opaq demo --help"
            ),
        ),
        (["demo", "--steps", "-3"], "expected a whole number, at least 1"),
        (["demo", "--steps", "many"], "got 'many'; expected a whole number, at least 1"),
        (["demo", "--steps", "9" * 5000], "expected a whole number, at least 1"),
        (
            ["demo", "--seed", "-1"],
            "argument --seed: got '-1'; expected a whole number, at least 0",
        ),
        (["demo", "--seed", str(1 << 64)], "expected a whole number, at least 0"),
        (["demo", "--device", "tpu"], "opaq demo: argument --device: invalid choice: 'tpu'"),
        (["demo", "--device", "\x1b[31mcpu\n"], "\\x1b[31mcpu"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert raised.value.code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1 and err[:-1].isprintable()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--device", "cuda", "--steps", "2"]) == 2
    assert (
        capsys.readouterr().err
        == "device 'cuda' was asked for, but torch sees no GPU; run `opaq doctor`, or pass "
        "--device cpu\n"
    )


def test_ctrl_c_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from opaq import doctor

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


@pytest.fixture
def many_ops(tmp_path: Path) -> str:
    path = tmp_path / "model.pt2"
    op = (
        '{"schema": "a::b()\u202e", "function": "f", "device": "cpu", "nodes": [], '
        '"implementations": []}'
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "m/data/aotinductor/model/opaq.json", '{"ops": [' + ", ".join([op] * 20_000) + "]}"
        )
    return str(path)


def test_a_reader_that_goes_away(many_ops: str) -> None:
    with subprocess.Popen(
        [*OPAQ, "inspect", many_ops], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def _full(many_ops: str) -> subprocess.CompletedProcess[str]:
    with open("/dev/full", "w", encoding="utf-8") as full:
        return subprocess.run(
            [*OPAQ, "inspect", many_ops],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )


def _closed(many_ops: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m opaq inspect {many_ops} >&-"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def _ascii(many_ops: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    return subprocess.run(
        [*OPAQ, "inspect", many_ops + "\u00e9"],
        capture_output=True,
        env=environment,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("run", "status", "message"),
    [
        (_full, 2, "the output cannot be written: No space left on device\n"),
        (_closed, 0, ""),
        (_ascii, 2, "model.pt2\\xe9 cannot be read as a package: No such file or directory"),
    ],
)
def test_an_output_that_takes_less(
    run: Callable[[str], subprocess.CompletedProcess[str]], status: int, message: str, many_ops: str
) -> None:
    done = run(many_ops)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") <= 1


def test_a_package_is_not_read_from_a_pipe() -> None:
    done = subprocess.run(
        [*OPAQ, "inspect", "/dev/stdin"], input="", capture_output=True, text=True, check=False
    )
    assert "it is a named pipe, not a file" in done.stderr
    assert done.returncode == 2
