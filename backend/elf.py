"""What a cubin tells of its kernels: registers, shared memory, stack. Read from the ELF sections
that nvcc and NVRTC write.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

# Attributes of .nv.info, each followed by a symbol's index and a value. A kernel's least stack
# counts the functions that it calls.
_FRAME_SIZE, _LEAST_STACK, _REGISTERS = 0x11, 0x12, 0x2F
_UNBOUNDED = 0xFFFFFFFF  # older compilers, of a stack that grows with the depth of a recursion
_MOST_INFO = 16 << 20  # bytes of .nv.info, some thousand times what a large cubin has
_MOST_SHARED = 1 << 20  # bytes of a block; devices have at most 228 KiB
_RESERVED_SHARED = (
    1024  # of each block, for the system, since sm_90: part of the section, and of no kernel's own
)


@dataclass(frozen=True)
class Kernel:
    """None where the cubin does not tell. `shared`: static bytes of a block. `stack`: bytes of a
    thread, spilled registers among them.
    """

    registers: int | None = None
    shared: int | None = None
    stack: int | None = None

    @property
    def spill_bytes(self) -> int | None:
        """Stored, and as well loaded: with no stack there is nowhere to spill to; with one, a cubin
        tells no spill from a local array.
        """
        return 0 if self.stack == 0 else None


def read_kernel(content: bytes, symbol: str) -> Kernel:
    """Facts of one kernel; empty ones for what is not a 64-bit cubin (PTX, a fatbin), is cut short,
    or is damaged. The bytes may be hostile.
    """
    if content[:6] != b"\x7fELF\x02\x01":
        return Kernel()
    try:
        return _read(content, symbol.encode())
    except (struct.error, LookupError, ValueError):
        return Kernel()


def _read(content: bytes, symbol: bytes) -> Kernel:
    (table,) = struct.unpack_from("<Q", content, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", content, 0x3A)
    # name, type, flags, address, offset, size, link, info
    headers = [
        struct.unpack_from("<IIQQQQII", content, _within(content, table + i * size))
        for i in range(count)
    ]
    names = headers[names_index][4]
    text, shared = b".text." + symbol, b".nv.shared." + symbol
    sections: dict[bytes, tuple[int, ...]] = {}
    for header in headers:
        for wanted in (text, shared, b".nv.info", b".symtab", b".strtab"):
            if _is_text(content, names + header[0], wanted):
                sections[wanted] = header
    code = sections.get(text)
    if code is None:
        return Kernel()
    own, has_callees = _attributes(content, sections, symbol)
    registers = own.get(
        _REGISTERS, code[7] >> 24 or None
    )  # older compilers: in the section's header
    stack = max((own[key] for key in (_FRAME_SIZE, _LEAST_STACK) if key in own), default=None)
    if stack == _UNBOUNDED or (stack == 0 and has_callees):
        stack = (
            None  # it calls functions: newer compilers tell no frame of those that call themselves
        )
    return Kernel(registers, _shared(content, sections.get(shared)), stack)


def _shared(content: bytes, section: tuple[int, ...] | None) -> int | None:
    if section is None:
        return 0
    (flags,) = struct.unpack_from("<I", content, 0x30)
    arch = (
        flags >> 8 & 0xFFFF if content[8] >= 8 else flags & 0xFF
    )  # by the version of NVIDIA's ABI
    size = section[5] - (_RESERVED_SHARED if arch >= 90 else 0)
    return size if 0 <= size <= _MOST_SHARED else None


def _attributes(
    content: bytes, sections: dict[bytes, tuple[int, ...]], symbol: bytes
) -> tuple[dict[int, int], bool]:
    """(of the kernel, whether it calls functions: those of kernel k have symbols that begin with
    $k$).
    """
    info, symbols, strings = (sections.get(name) for name in (b".nv.info", b".symtab", b".strtab"))
    if not info or not symbols or not strings:
        return {}, False
    if info[5] > _MOST_INFO:
        raise ValueError("more attributes than any cubin has")
    own: dict[int, int] = {}
    has_callees = False
    callee = b"$" + symbol + b"$"
    position, end = info[4], info[4] + info[5]
    while position < end:
        form, attribute, length = struct.unpack_from("<BBH", content, _within(content, position))
        position += 4
        if form != 4:  # the value, if any, is in the two bytes of `length`
            continue
        if attribute in (_FRAME_SIZE, _LEAST_STACK, _REGISTERS):
            index, value = struct.unpack_from("<II", content, position)
            (name,) = struct.unpack_from("<I", content, _within(content, symbols[4] + index * 24))
            if _is_text(content, strings[4] + name, symbol):
                own[attribute] = value
            has_callees = has_callees or content.startswith(callee, strings[4] + name)
        position += length
    return own, has_callees


def _is_text(content: bytes, offset: int, text: bytes) -> bool:
    """Whether the zero-ended text at `offset` is `text`; nothing is copied, so that no number in
    the file decides how much is read.
    """
    return (
        content.startswith(text, offset)
        and content[offset + len(text) : offset + len(text) + 1] == b"\0"
    )


def _within(content: bytes, offset: int) -> int:
    if offset > len(content):  # struct raises OverflowError of its own for the largest
        raise ValueError("a place beyond the end")
    return offset
