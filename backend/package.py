"""`opaq.package`: an exported model as one file, which AOTInductor's loaders run without opaq and
without the kernels' sources.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from . import compiler, lowering, validate


def package(
    exported: torch.export.ExportedProgram,
    path: str | os.PathLike[str],
    *,
    archs: Sequence[str] = (),
    ptx: bool = False,
    strict: bool = False,
    tune: str = "off",
    substitute: str | Sequence[str] = "all",
    inductor_configs: dict[str, Any] | None = None,
) -> str:
    """torch._inductor.aoti_compile_and_package with opaq's options; returns the path of the .pt2.

    archs: what CUDA source is compiled for, such as ["sm_80", "sm_90a"]; empty: the current GPU.
    ptx: also add PTX of the lowest arch, so that newer devices run the package. strict, tune,
    substitute: as the options of backend="opaq"; what is measured when the package is made is what
    it uses.
    inductor_configs: Inductor's options.

    Raises DeclarationError for an argument of a wrong type and, through torch's InductorError,
    LaunchError for an op that cannot go into a package (its only implementation is a Python
    function, none fits, a template argument changes with a size), and MissingError where no arch is
    given and there is no GPU.
    """
    where = "opaq.package(...)"
    if not isinstance(exported, torch.export.ExportedProgram):
        validate.refuse(
            where,
            "exported",
            exported,
            "an exported program; write torch.export.export(model, args)",
        )
    if not isinstance(path, (str, os.PathLike)) or not str(path).endswith(".pt2"):
        validate.refuse(where, "path", path, "the path of the file to write, which ends in .pt2")
    if inductor_configs is not None and not isinstance(inductor_configs, dict):
        validate.refuse(where, "inductor_configs", inductor_configs, "a dict of Inductor's options")
    options = {
        "archs": tuple(validate.texts(where, "archs", archs)),
        "ptx": validate.flag(where, "ptx", ptx),
        "strict": validate.flag(where, "strict", strict),
        "tune": validate.choice(where, "tune", tune, lowering.options.accepted("tune")),
    }
    chosen, _ = compiler.settings({"substitute": _named(substitute)}, None)
    lowering.activate()
    from .lowering.compat.inductor import inductor
    from .lowering.substitute import apply

    with lowering.options.use(**options):
        return inductor.compile_package(
            exported,
            os.fspath(path),
            inductor_configs,
            lambda module: apply.apply(module, chosen["substitute"], packaged=True),
        )


def _named(substitute: str | Sequence[str]) -> str | list[str]:
    return substitute if isinstance(substitute, str) else list(substitute)
