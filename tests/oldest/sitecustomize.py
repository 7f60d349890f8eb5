"""Python imports this when it starts, in the part `oldest`, which has this folder on PYTHONPATH.

With torch 2.11, each process that compiles a kernel for the CPU starts Python three times, to see
whether libraries with newer vector instructions (AMX, VNNI, BF16) can be loaded. Each of these
imports torch: 6 seconds of processor time for each process of a test. Here such a Python ends at
once, which means that they can. (TORCHINDUCTOR_VEC_ISA_OK, which run.py sets, says so for older
instructions only.)
"""

import os
import sys

if len(sys.orig_argv) == 3 and sys.orig_argv[1] == "-c":
    lines = sys.orig_argv[2].split("\n")
    if "import torch" in lines and lines[-2].startswith('cdll.LoadLibrary("'):
        os._exit(0)
