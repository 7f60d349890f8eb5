"""The header of tests/fast_packages."""

from __future__ import annotations

import pathlib
import subprocess

FOLDER = pathlib.Path(__file__).parents[1] / "fast_packages"
# As torch/csrc/inductor/aoti_runtime/model_base.h reads the name of a device.
PROGRAM = r"""
#include <cstdio>
#include <regex>
int main() {
  for (std::string text : {"cpu", "cuda", "cuda:0", "xpu:12", "mps", "cpu:", "cuda:x", "cuda:1 ",
                           "", ":0", "tpu:0", "cuda0", "cuda:0:1", "CPU"}) {
    std::regex re("(cpu|cuda|xpu|mps)(:([0-9]+))?");
    std::smatch sm;
    const bool matched = std::regex_match(text, sm, re);
    std::printf("%s %d", text.c_str(), matched);
    for (int i = 0; matched && i < 4; ++i)
      std::printf(" %d %s", sm[i].matched, sm[i].str().c_str());
    std::puts("");
  }
}
"""


def test_devices_are_read_as_by_the_standard_library(tmp_path: pathlib.Path) -> None:
    source, program = tmp_path / "program.cpp", tmp_path / "program"
    source.write_text(PROGRAM)
    printed = []
    for options in ([], ["-DTORCH_INDUCTOR_CPP_WRAPPER", f"-I{FOLDER}"]):
        subprocess.run(["g++", "-std=c++20", *options, source, "-o", program], check=True)
        printed.append(subprocess.run([program], capture_output=True, check=True).stdout)
    assert printed[0] == printed[1] and printed[0].count(b"\n") == 14
