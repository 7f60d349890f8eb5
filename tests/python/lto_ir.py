"""LTO-IR for tests, made by the NVRTC that opaq has found, so that its nvJitLink can link it."""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Any

from opaq import _runtime


@functools.cache
def lto_ir(source: str, arch: str = "compute_80") -> bytes:
    library = ctypes.CDLL(_runtime.doctor()["nvrtc"]["path"])

    def call(name: str, *arguments: Any) -> None:
        result = getattr(library, name)(*arguments)
        assert result == 0, f"{name}: {result}"

    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"k.cu", 0, None, None)
    options = (ctypes.c_char_p * 3)(b"-dlto", b"-rdc=true", f"-arch={arch}".encode())
    call("nvrtcCompileProgram", program, len(options), options)
    call("nvrtcGetLTOIRSize", program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    call("nvrtcGetLTOIR", program, content)
    return content.raw


def fatbin(*parts: tuple[int, bytes]) -> bytes:
    """Of LTO-IR by architecture, as nvcc writes it without compression: (80, LTO-IR)."""
    options = b"-ftz=0 -prec_div=1 -prec_sqrt=1 -fmad=1 "
    body = b""
    for number, content in parts:
        content += bytes(-len(content) % 8)
        header = struct.pack(
            "<HHIQIIHHIIIQQQ",
            *(8, 0x101, 120, len(content), 0, 64, 0x41, 1, number, 0, 0, 0x11, 0, 0),
        )
        header += struct.pack("<II", 72, len(options)) + options + bytes(8)
        body += header + content
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body
