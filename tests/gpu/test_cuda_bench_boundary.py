"""`opaq bench boundary` on a GPU: each contestant that is installed is right."""

from __future__ import annotations

import json

import pytest

from opaq import cli


@pytest.mark.timeout(1200)
def test_all_contestants(capsys: pytest.CaptureFixture[str]) -> None:
    # C++ wrappers and packages of the same ops are tested elsewhere, and take minutes to compile
    ways = ("--ways", "eager,python,cuda-graph", "--chain", "2", "--rounds", "1")
    assert cli.main(["bench", "boundary", "--device", "cuda", *ways, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    absent = {each["contestant"]: each["note"] for each in records if each["verdict"] == "absent"}
    assert all(note.startswith("not installed: ") for note in absent.values()), absent
    assert not {"raw loop", "opaq", "torch.library.custom_op"} & set(absent)
    found = {each["case"].partition(",")[0] for each in records if each["contestant"] == "opaq"}
    assert {"eager", "Python wrapper", "CUDA graph"} <= found
