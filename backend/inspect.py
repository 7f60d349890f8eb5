"""`opaq inspect model.pt2`: the opaque ops in a package, their images, launch rules and sizes, from the package alone."""

from __future__ import annotations

import hashlib
import json
import zipfile
from typing import Any

from .elf import read_kernel
from .lowering import MANIFEST


class NotAPackage(ValueError):
    """The file cannot be read, or is not what AOTInductor writes."""


def read(path: str) -> dict[str, Any]:
    """{"path", "models": [{"model", "ops": [...]}]}; facts that an image does not tell are None."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            manifests = [name for name in names if name.rsplit("/", 1)[-1] == MANIFEST]
            if not manifests and not any("/data/aotinductor/" in name for name in names):
                raise NotAPackage(f"{path} is a zip file, but no package of AOTInductor: it has no data/aotinductor/; give a .pt2")
            return {"path": path, "models": [_model(archive, name) for name in manifests]}
    except (OSError, zipfile.BadZipFile) as error:
        raise NotAPackage(f"{path} cannot be read as a package: {error}; give a .pt2 that AOTInductor wrote") from error


def _model(archive: zipfile.ZipFile, manifest: str) -> dict[str, Any]:
    folder = manifest.rsplit("/", 1)[0]
    try:
        ops = json.loads(archive.read(manifest))["ops"]
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        raise NotAPackage(f"{archive.filename}: {manifest} is damaged: {error}; package the model again") from error
    for op in ops:
        for implementation in op["implementations"]:
            for image in implementation["images"]:
                _examine(archive, f"{folder}/{image['file']}", implementation["symbol"], image)
    return {"model": folder.rsplit("/", 1)[-1], "ops": ops}


def _examine(archive: zipfile.ZipFile, name: str, symbol: str, image: dict[str, Any]) -> None:
    try:
        content = archive.read(name)
    except KeyError:
        image["state"] = "missing"
        return
    except zipfile.BadZipFile:
        image["state"] = "damaged"
        return
    image["state"] = "whole" if hashlib.sha256(content).hexdigest() == image["sha256"] else "damaged"
    image["bytes"] = len(content)
    if "registers" not in image and (image["arch"] or name.endswith((".cubin", ".fatbin", ".ptx"))):  # the compiler was not there to tell
        kernel = read_kernel(content, symbol)
        spills = dict.fromkeys(("spill_stores", "spill_loads"), kernel.spill_bytes)
        image |= {"registers": kernel.registers, "shared": kernel.shared, "stack": kernel.stack, **spills}


def as_text(found: dict[str, Any]) -> str:
    lines = [found["path"]]
    if not found["models"]:
        lines.append("  no opaque ops")
    for model in found["models"]:
        lines.append(f"model {model['model']}")
        for op in model["ops"]:
            lines += ["", f"  {op['schema']}", f"    {op['function']} on {op['device']}, nodes {', '.join(op['nodes'])}"]
            for implementation in op["implementations"]:
                lines += [f"    {line}" for line in _implementation(implementation)]
    return "\n".join(lines)


def _implementation(implementation: dict[str, Any]) -> list[str]:
    rule = implementation["rule"]
    lines = [f"{implementation['name']}: {implementation['entry']}({', '.join(rule['args'])})"]
    if "grid" in rule:
        launch = f"  grid ({', '.join(rule['grid'])}), block ({', '.join(rule['block'])}), shared {rule['shared']}"
        launch += f", cluster ({', '.join(rule['cluster'])})" if rule["cluster"] else ""
        lines.append(launch + "".join(f", {flag}" for flag in ("cooperative", "programmatic") if rule[flag]))
    if implementation["checked_at_launch"]:
        lines.append(f"  where {' and '.join(implementation['checked_at_launch'])}")
    for image in implementation["images"]:
        facts = [image["file"], image["arch"] or "-", f"{image['bytes']} bytes", image["state"]]
        lines += ["  " + ", ".join(facts)] + ([f"    {_resources(image)}"] if "registers" in image else [])
    return lines


def _resources(image: dict[str, Any]) -> str:
    def told(key: str, unit: str = " bytes") -> str:
        return "unknown" if image[key] is None else f"{image[key]}{unit}"

    spills = told("spill_stores") + (f" stored, {image['spill_loads']} loaded" if image["spill_loads"] else "")
    return f"registers {told('registers', '')}, shared {told('shared')}, stack {told('stack')}, spills {spills}"
