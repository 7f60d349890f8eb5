"""What a cubin tells of its kernels: registers, shared memory, stack. Read from the ELF sections that nvcc and NVRTC write."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# Attributes of .nv.info, each followed by a symbol's index and a value.
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F


@dataclass(frozen=True)
class Kernel:
    """None where the cubin does not tell. `shared`: static bytes. `stack`: bytes a thread, spilled registers among them."""

    registers: int | None = None
    shared: int | None = None
    stack: int | None = None

    @property
    def spills(self) -> bool | None:
        """Whether registers may be spilled: with no stack there is nowhere to; with one, it cannot be told from local arrays."""
        return False if self.stack == 0 else None


def read_kernel(content: bytes, symbol: str) -> Kernel:
    """Facts of one kernel; empty ones for what is not a 64-bit cubin (PTX, a fatbin) or is cut short."""
    if content[:5] != b"\x7fELF\x02":
        return Kernel()
    try:
        return _read(content, symbol)
    except (struct.error, IndexError, UnicodeDecodeError):
        return Kernel()


def _read(content: bytes, symbol: str) -> Kernel:
    (table,) = struct.unpack_from("<Q", content, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", content, 0x3A)
    # name, type, flags, address, offset, size, link, info
    headers = [struct.unpack_from("<IIQQQQII", content, table + i * size) for i in range(count)]
    names = headers[names_index]
    sections = {_text(content, names[4] + header[0]): header for header in headers}
    code = sections.get(f".text.{symbol}")
    if code is None:
        return Kernel()
    shared = sections.get(f".nv.shared.{symbol}")
    facts = _attributes(content, sections, symbol)
    registers = facts.get(_REGISTERS, code[7] >> 24 or None)  # older compilers: in the section's header
    return Kernel(registers, shared[5] if shared else 0, facts.get(_FRAME_SIZE))


def _attributes(content: bytes, sections: dict[str, tuple[int, ...]], symbol: str) -> dict[int, int]:
    info, symbols = sections.get(".nv.info"), sections.get(".symtab")
    strings = sections.get(".strtab")
    if not info or not symbols or not strings:
        return {}
    found = {}
    position, end = info[4], info[4] + info[5]
    while position < end:
        form, attribute, length = struct.unpack_from("<BBH", content, position)
        position += 4
        if form != 4:  # the value, if any, is in the two bytes of `length`
            continue
        if attribute in (_FRAME_SIZE, _REGISTERS):
            index, value = struct.unpack_from("<II", content, position)
            (name,) = struct.unpack_from("<I", content, symbols[4] + index * 24)
            if _text(content, strings[4] + name) == symbol:
                found[attribute] = value
        position += length
    return found


def _text(content: bytes, offset: int) -> str:
    return content[offset : content.index(b"\0", offset)].decode()
