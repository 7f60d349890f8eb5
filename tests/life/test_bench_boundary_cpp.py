"""`opaq bench boundary` with its C++ op, C++ wrappers and packages, which take long to compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ways_in_cpp(tmp_path: Path) -> None:
    ways = ["--ways", "cpp,package-cpp"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "opaq", "bench", "boundary", "--device", "cpu", "--json"),
            *("--rounds", "1", "--chain", "1", "--only", "opaq,cpp", *ways),
        ],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    records = json.loads(done.stdout)["records"]
    assert [(each["case"], each["contestant"]) for each in records] == [
        (way, contestant)
        for way in ("C++ wrapper", "package from C++")
        for contestant in ("raw loop", "opaq", "C++ TORCH_LIBRARY")
    ]
    assert all(each["value"] > 0 and each["note"] in ("", "lower bound") for each in records)
