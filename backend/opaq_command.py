"""The entry point of the command `opaq`. It is outside the package, so that an error while
importing opaq (a bad environment variable) is reported like any other mistake of the user's.
"""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from opaq import cli
    except (ImportError, ValueError) as error:
        if isinstance(error, ValueError) and type(error).__name__ != "DeclarationError":
            raise
        print(f"opaq: {error}", file=sys.stderr)
        return 2
    return cli.main()
