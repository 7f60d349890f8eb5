"""tests/run.py if GoogleTest is neither installed nor downloadable: for root it installs the
distribution's package and says so first; others are told how to install it.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
from types import ModuleType

import pytest

CMAKE = """#!/bin/sh
echo cmake >> {log}
[ -e {installed} ] || {{ echo 'CMake Error: GoogleTest is missing: none here' >&2; exit 1; }}
"""
APT = """#!/bin/sh
echo "apt-get $*" >> {log}
[ "$1" = update ] || touch {installed}
"""


@pytest.fixture
def script(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tests/run.py, whose cmake and apt-get only write to tmp_path/log that they were called."""
    names = {"log": tmp_path / "log", "installed": tmp_path / "installed"}
    for program, text in (("cmake", CMAKE), ("apt-get", APT)):
        (tmp_path / program).write_text(text.format(**names))
        (tmp_path / program).chmod(0o755)
    path = pathlib.Path(__file__).parents[1] / "run.py"
    spec = importlib.util.spec_from_file_location("opaq_tests_run", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "python"))
    return module


def test_root_gets_the_package_and_is_told_before(
    script: ModuleType,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: 0)
    script.configure("plain", "")
    assert "==== installing the system package libgtest-dev with apt-get" in capfd.readouterr().out
    called = (tmp_path / "log").read_text().splitlines()
    assert called == ["cmake", "apt-get update -qq", "apt-get install -y libgtest-dev", "cmake"]


def test_others_are_told_what_to_install(
    script: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="GoogleTest is missing .* apt-get install libgtest-dev"):
        script.configure("plain", "")
    assert (tmp_path / "log").read_text() == "cmake\n"
