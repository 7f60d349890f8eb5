"""`opaq bench boundary` on a GPU: each contestant that is installed is right in each way."""

from __future__ import annotations

import json

import pytest

from opaq import cli


@pytest.mark.timeout(1200)
def test_all_contestants(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(
            ["bench", "boundary", "--device", "cuda", "--chain", "2", "--rounds", "1", "--json"]
        )
        == 0
    )
    records = json.loads(capsys.readouterr().out)["records"]
    absent = {each["contestant"]: each["note"] for each in records if each["verdict"] == "absent"}
    assert all(note.startswith("not installed: ") for note in absent.values()), absent
    assert not {"raw loop", "opaq", "torch.library.custom_op"} & set(absent)
    ways = {each["case"].partition(",")[0] for each in records if each["contestant"] == "opaq"}
    assert {"eager", "Python wrapper", "C++ wrapper", "package from C++", "CUDA graph"} <= ways
