"""Text from files and other strangers, made safe to print."""

from __future__ import annotations


def plain(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal obeys or that reorders what a reader
    sees.

    Control characters, line ends, marks of text direction, lone surrogates and unassigned
    characters come out as Python escapes (`\\x1b`).
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
