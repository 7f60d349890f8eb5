"""Begins a package again if a graph of it cannot be installed: torch catches the error and calls
`initialize` a second time, which refuses packages that are initialized.
"""

from __future__ import annotations

from typing import Any

from torch._dynamo.package import CompilePackage

__all__ = ["begin_again"]


def begin_again() -> None:
    """Installs the mend for all packages of the process."""
    install = CompilePackage.install

    def install_or_begin_again(self: Any, backends: Any) -> None:
        try:
            install(self, backends)
        except Exception:
            self.uninstall()
            vars(self).update(vars(CompilePackage(None)))  # as it was before `initialize`
            raise

    CompilePackage.install = install_or_begin_again
