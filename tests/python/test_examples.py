"""Every file of tests/examples runs alone; each checks its own results against PyTorch."""

from __future__ import annotations

import pathlib
import runpy
import sys
import tempfile

import forked
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process, where torch is already loaded."""
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")


def test_an_example_runs_as_a_program() -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        command = [sys.executable, str(EXAMPLES / "elementwise.py")]
        done = forked.run(command, cwd=elsewhere, inductor=True)
    assert done.returncode == 0, done.stderr
    assert "examples::scale_add" in done.stdout  # the report
