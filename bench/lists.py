"""Types of command-line arguments that are lists, as in 1,10 or opaq,inductor."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable


def numbers(least: int, most: int) -> Callable[[str], list[int]]:
    """Whole numbers in this range, each once."""

    def read(text: str) -> list[int]:
        parts = items(text)
        if not all(part.isdecimal() and least <= int(part[:9]) <= most for part in parts):
            raise argparse.ArgumentTypeError(
                f"got {text!r}; expected whole numbers from {least} to {most}, as in {least},{most}"
            )
        return list(map(int, parts))

    return read


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Names among these, each once."""
    accepted = list(known)

    def read(text: str) -> list[str]:
        parts = items(text)
        for name in parts:
            if name not in accepted:
                raise argparse.ArgumentTypeError(f"got {name!r}; expected {', '.join(accepted)}")
        return parts

    return read


def items(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))
