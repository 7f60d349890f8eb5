"""Hands torch's objects to the runtime, and the folders where the nvidia wheels keep libraries and
headers.
"""

from __future__ import annotations

import glob
import os
import sys
import sysconfig

import torch

from . import _runtime
from .lowering.compat import pytorch

_DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex32",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
]


def bind() -> None:
    """Once, at import."""
    libraries, includes = wheel_folders()
    _runtime.configure(
        library_dirs=libraries,
        cuda_include_dirs=includes,
        torch_include_dirs=torch_include_folders(),
    )
    some = torch.empty(0)
    _runtime.bind_torch(
        tensor=torch.Tensor,
        parameter=torch.nn.Parameter,
        dtypes={name: getattr(torch, name) for name in _DTYPES if hasattr(torch, name)},
        device=torch.device,
        symbolic=(torch.SymInt, torch.SymFloat, torch.SymBool),
        empty_strided=torch.empty_strided,
        empty_strided_cuda=pytorch.empty_strided_cuda,
        empty_strided_cpu=pytorch.empty_strided_cpu,
        **pytorch.state_addresses(),
        **pytorch.tensor_reader(),
        local_state=pytorch.local_state(),
        is_neg=some.is_neg,
        is_conj=some.is_conj,
        is_inference=some.is_inference,
        **pytorch.forward_level(),
        increment_version=torch.autograd.graph.increment_version,
    )


def torch_include_folders() -> list[str]:
    """Where the headers of the installed torch and Python are, as torch.utils.cpp_extension gives
    them to compilers (whose import would cost time).
    """
    torch_include = os.path.join(os.path.dirname(torch.__file__), "include")
    return [
        torch_include,
        os.path.join(torch_include, "torch", "csrc", "api", "include"),
        sysconfig.get_path("include"),
    ]


def wheel_folders() -> tuple[list[str], list[str]]:
    """(library folders, include folders) of the nvidia-* wheels on sys.path."""
    libraries, includes = [], []
    for folder in dict.fromkeys(sys.path):
        for part in sorted(glob.glob(os.path.join(folder or ".", "nvidia", "*")), reverse=True):
            for kind, found in (("lib", libraries), ("include", includes)):
                path = os.path.join(part, kind)
                if os.path.isdir(path):
                    found.append(path)
    return libraries, includes
