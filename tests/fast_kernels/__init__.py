"""Compiles Inductor's CPU kernels in a fifth of the time: loops over single elements, with a small
precompiled header in the place of Inductor's own and without optimization. For tests of what opaq
does between kernels, which try so many programs that the kernels' own code is most of what they
cost.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
# torch._inductor.config while kernels are compiled so, in a process that has the environment below.
SETTINGS: dict[str, Any] = {
    "cpp.cxx": (None, os.path.join(FOLDER, "fast-g++")),
    "cpp.simdlen": 1,
}


def environment(folder: str, kept: str) -> dict[str, str]:
    """What fast-g++ reads: where the precompiled header is, which this call puts into `folder`, and
    the folder of compiled kernels, which processes may share."""
    header = os.path.join(folder, "kernel.h")
    includes = ["-I", FOLDER, "-I", sysconfig.get_path("include")]
    subprocess.run(
        [
            "g++",
            "-std=c++20",
            "-O0",
            "-fPIC",
            "-w",
            *includes,
            "-x",
            "c++-header",
            os.path.join(FOLDER, "kernel.h"),
            "-o",
            f"{header}.gch",
        ],
        check=False,
    )
    return {"OPAQ_FAST_KERNELS_HEADER": header, "OPAQ_FAST_KERNELS_KEPT": kept}
