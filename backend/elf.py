"""What a cubin tells of its kernels: registers, shared memory, stack. Read from the ELF sections that nvcc and NVRTC write."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# Attributes of .nv.info, each followed by a symbol's index and a value. A kernel's least stack counts the functions that it calls.
_FRAME_SIZE, _LEAST_STACK, _REGISTERS = 0x11, 0x12, 0x2F
_UNBOUNDED = 0xFFFFFFFF  # older compilers, of a stack that grows with the depth of a recursion
_RESERVED_SHARED = 1024  # of each block, for the system, since sm_90: part of the section, and of no kernel's own


@dataclass(frozen=True)
class Kernel:
    """None where the cubin does not tell. `shared`: static bytes of a block. `stack`: bytes of a thread, spilled registers among them."""

    registers: int | None = None
    shared: int | None = None
    stack: int | None = None

    @property
    def spill_bytes(self) -> int | None:
        """Stored, and as well loaded: with no stack there is nowhere to spill to; with one, a cubin tells no spill from a local array."""
        return 0 if self.stack == 0 else None


def read_kernel(content: bytes, symbol: str) -> Kernel:
    """Facts of one kernel; empty ones for what is not a 64-bit cubin (PTX, a fatbin) or is cut short."""
    if content[:5] != b"\x7fELF\x02":
        return Kernel()
    try:
        return _read(content, symbol)
    except (struct.error, IndexError, ValueError):
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
    facts = _attributes(content, sections)
    own = facts.get(symbol, {})
    registers = own.get(_REGISTERS, code[7] >> 24 or None)  # older compilers: in the section's header
    stack = max((own[key] for key in (_FRAME_SIZE, _LEAST_STACK) if key in own), default=None)
    if stack == _UNBOUNDED or (stack == 0 and any(name.startswith(f"${symbol}$") for name in facts)):
        stack = None  # it calls functions: newer compilers tell no frame of those that call themselves
    return Kernel(registers, _shared(content, sections.get(f".nv.shared.{symbol}")), stack)


def _shared(content: bytes, section: tuple[int, ...] | None) -> int:
    if section is None:
        return 0
    (flags,) = struct.unpack_from("<I", content, 0x30)
    arch = flags >> 8 & 0xFFFF if content[8] >= 8 else flags & 0xFF  # by the version of NVIDIA's ABI
    return section[5] - (_RESERVED_SHARED if arch >= 90 else 0)


def _attributes(content: bytes, sections: dict[str, tuple[int, ...]]) -> dict[str, dict[int, int]]:
    """By function: kernels under their symbols, what kernel k calls as $k$function."""
    info, symbols = sections.get(".nv.info"), sections.get(".symtab")
    strings = sections.get(".strtab")
    if not info or not symbols or not strings:
        return {}
    found: dict[str, dict[int, int]] = {}
    position, end = info[4], info[4] + info[5]
    while position < end:
        form, attribute, length = struct.unpack_from("<BBH", content, position)
        position += 4
        if form != 4:  # the value, if any, is in the two bytes of `length`
            continue
        if attribute in (_FRAME_SIZE, _LEAST_STACK, _REGISTERS):
            index, value = struct.unpack_from("<II", content, position)
            (name,) = struct.unpack_from("<I", content, symbols[4] + index * 24)
            found.setdefault(_text(content, strings[4] + name), {})[attribute] = value
        position += length
    return found


def _text(content: bytes, offset: int) -> str:
    return content[offset : content.index(b"\0", offset)].decode()
