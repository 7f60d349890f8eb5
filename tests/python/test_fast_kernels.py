"""The compiler of tests/fast_kernels."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import fast_kernels, torch._inductor.config
from torch._inductor.cpu_vec_isa import pick_vec_isa

with torch._inductor.config.patch(fast_kernels.SETTINGS):
    assert not pick_vec_isa()
assert pick_vec_isa()
"""


def test_kernels_of_later_tests_have_vector_instructions() -> None:
    """Inductor asks once in a process which the compiler has. A later test would find another
    process' graph in the cache, and compile its vectors without them."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
        "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    }
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
