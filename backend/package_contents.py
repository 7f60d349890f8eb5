"""`opaq inspect model.pt2`: the opaque ops in a package, their images, launch rules and sizes, from
the package alone.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from . import _runtime
from .archive import Archive, Damaged, TooLarge
from .lowering import MANIFEST, PRELUDE
from .terminal import plain

# A package may come from anywhere, so reading is limited to this many bytes: of all its manifests,
# of all its images, and, when every file is checked, of all files together. AOTInductor stores
# files uncompressed, so that the last limit is enough for any package, even if somebody has
# compressed it a little.
MOST_OF_MANIFESTS = 64 << 20
MOST_OF_IMAGES = 2 << 30
MOST_OF_FILES = 64 << 20  # and four times the package's size
FORMAT = 1  # of the manifest


class NotAPackage(ValueError):
    """The file cannot be read, or is not what AOTInductor writes."""


def read(path: str) -> dict[str, Any]:
    """{"path", "models": [{"model", "ops": [...]}], "damaged": [{"file", "reason"}]}; facts that an
    image does not tell are None.

    "damaged": the files whose content does not match the zip directory, torch's own included, which
    torch loads without a check. The package may be damaged or hostile: reading is limited, and
    anything that opaq does not write raises NotAPackage. Texts are those in the package: to print
    them, use json.dumps or `terminal.plain`.
    """
    try:
        with Archive(path) as archive:
            manifests = [name for name in archive.names if name.rsplit("/", 1)[-1] == MANIFEST]
            if not manifests and not any("/data/aotinductor/" in name for name in archive.names):
                raise NotAPackage(
                    f"{path} is a zip file, but no package of AOTInductor: it has no "
                    "data/aotinductor/; give a .pt2"
                )
            reader = _Reader(path, archive)
            models = [reader.model(name) for name in manifests]
            return {"path": path, "models": models, "damaged": reader.damaged_files()}
    except (OSError, Damaged) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise NotAPackage(
            f"{path} cannot be read as a package: {reason}; give a .pt2 that AOTInductor wrote"
        ) from error


class _Reader:
    """Reads the models of one package within the limits above."""

    def __init__(self, path: str, archive: Archive) -> None:
        self._path, self._archive = path, archive
        self._manifests_left, self._images_left = MOST_OF_MANIFESTS, MOST_OF_IMAGES
        self._files_left = MOST_OF_FILES + 4 * archive.size

    def model(self, manifest: str) -> dict[str, Any]:
        folder = manifest.rpartition("/")[0]
        try:
            text = self._archive.read(manifest, self._manifests_left)
            self._manifests_left -= len(text)
            ops = parse_manifest(text)
        except ValueError as error:  # Damaged is one
            raise NotAPackage(
                f"{self._path}: {manifest} is damaged: {error}; package the model again"
            ) from error
        for op in ops:
            for implementation in op["implementations"]:
                for step in _steps(implementation):
                    for image in step["images"]:
                        self._examine(
                            f"{folder}/{image['file']}" if folder else image["file"],
                            step["symbol"],
                            image,
                        )
        return {"model": folder.rpartition("/")[2], "ops": ops}

    def _examine(self, name: str, symbol: str, image: dict[str, Any]) -> None:
        try:
            content = self._archive.read(name, self._images_left)
        except KeyError:
            image["state"] = "missing"
            return
        except TooLarge:
            image["state"] = "too large to examine"
            return
        except Damaged:
            image["state"] = "damaged"
            return
        self._images_left -= len(content)
        image["state"] = (
            "whole" if hashlib.sha256(content).hexdigest() == image["sha256"] else "damaged"
        )
        image["bytes"] = len(content)
        if "registers" not in image and (
            image["arch"] or name.endswith((".cubin", ".fatbin", ".ptx"))
        ):  # opaq has not compiled it
            image |= _runtime.cubin_resources(content, symbol.encode(errors="surrogatepass"))

    def damaged_files(self) -> list[dict[str, str]]:
        """What is wrong with each damaged file. Raises NotAPackage if a source has opaque ops, but
        the list of them is missing.
        """
        found = []
        for name in self._archive.names:
            source = bytearray()
            try:
                for piece in self._archive.pieces(name, self._files_left):
                    self._files_left -= len(piece)
                    if name.endswith(".cpp") and len(source) < MOST_OF_MANIFESTS:
                        source += piece
            except Damaged as error:
                found.append({"file": name, "reason": str(error)})
            manifest = f"{name.rpartition('/')[0]}/{MANIFEST}"
            if PRELUDE.encode() in source and manifest not in self._archive.names:
                raise NotAPackage(
                    f"{self._path}: {manifest} is missing, the list of the opaque ops that "
                    f"{name} has; package the model again"
                )
        return found


# ---- the manifest: what opaq writes, and nothing else --------------------------------------------

_NUMBER = (int, None)
_TEXTS = [str]
_RULE = {"args": _TEXTS}
_CUDA_RULE = {
    **_RULE,
    "grid": _TEXTS,
    "block": _TEXTS,
    "cluster": _TEXTS,
    "shared": str,
    "cooperative": bool,
    "programmatic": bool,
}
_IMAGE = {"arch": str, "file": str, "sha256": str, "bytes": _NUMBER}
_IMAGE_WITH_RESOURCES = {
    **_IMAGE,
    **dict.fromkeys(("registers", "shared", "stack", "spill_stores", "spill_loads"), _NUMBER),
}
_STEP = {"entry": str, "symbol": str, "rule": dict, "images": [dict]}
_IMPLEMENTATION = {"name": str, "checked_at_launch": _TEXTS}  # of one step: and what a step has
_SCRATCH = {"name": str, "shape": _TEXTS, "dtype": str, "zeros": bool, "random": str}
_OP = {
    "schema": str,
    "function": str,
    "device": str,
    "nodes": _TEXTS,
    "implementations": [_IMPLEMENTATION],
}
_MANIFEST = {"ops": [_OP]}


def parse_manifest(text: bytes) -> list[dict[str, Any]]:
    """The ops in a manifest. Raises ValueError if a field is missing or has another type than opaq
    writes, with the name of the field.
    """
    try:
        manifest = json.loads(
            text,
            parse_int=_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            object_pairs_hook=_unique,
        )
    except RecursionError as error:
        raise ValueError("its values are nested without end") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if isinstance(manifest, dict) and manifest.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"its format is {manifest['format']!r}, and this opaq reads format {FORMAT}: use "
            "the opaq that wrote it"
        )
    _check(manifest, _MANIFEST, "manifest")
    for op in manifest["ops"]:
        for implementation in op["implementations"]:
            where = f"implementation {implementation['name']!r}"
            _check(implementation.get("scratch", []), [_SCRATCH], f"{where}: scratch")
            _check(implementation.get("steps", []), [_STEP], f"{where}: steps")
            for step in _steps(implementation):
                _check_step(step, where)
    return manifest["ops"]


def _steps(implementation: dict[str, Any]) -> list[dict[str, Any]]:
    """What an implementation launches, in order; most launch one kernel."""
    return implementation.get("steps", [implementation])


def _check_step(step: dict[str, Any], where: str) -> None:
    _check(step, _STEP, where)
    rule = step["rule"]
    _check(rule, _CUDA_RULE if "grid" in rule else _RULE, f"{where}: rule")
    for image in step["images"]:
        _check(image, _IMAGE_WITH_RESOURCES if "registers" in image else _IMAGE, f"{where}: image")
        if "/" in image["file"] or image["file"] in ("", ".", ".."):
            raise ValueError(f"{where}: image file {image['file']!r} is no plain file name")


def _check(value: Any, form: Any, where: str) -> None:
    """Raises ValueError unless `value` has this form: a type; a tuple of types and None; [the form
    of all items]; {key: the form of its value}.
    """
    if isinstance(form, dict):
        _check(value, dict, where)
        for key, inner in form.items():
            if key not in value:
                raise ValueError(f"{where} has no {key!r}")
            _check(value[key], inner, f"{where}: {key}")
    elif isinstance(form, list):
        _check(value, list, where)
        for item in value:
            _check(item, form[0], where)
    elif not any(
        type(value) is accepted or (accepted is None and value is None)
        for accepted in (form if isinstance(form, tuple) else (form,))
    ):
        names = {
            dict: "an object",
            list: "an array",
            str: "text",
            int: "a number",
            bool: "true or false",
            type(None): "null",
        }
        expected = " or ".join(
            names[accepted or type(None)]
            for accepted in (form if isinstance(form, tuple) else (form,))
        )
        raise ValueError(f"{where} is {names[type(value)]}; expected {expected}")


def _integer(digits: str) -> int:
    # More than 64 bits; and Python's time to read a number is quadratic in its digits.
    if len(digits) > 20:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _refuse_number(text: str) -> Any:
    raise ValueError(f"it holds the number {text[:20]}; expected whole numbers")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object of it has a key twice")
    return found


# ---- as text -------------------------------------------------------------------------------------


def whole(found: dict[str, Any]) -> bool:
    """Whether no file that `read` found is damaged or missing."""
    images = (
        image
        for model in found["models"]
        for op in model["ops"]
        for item in op["implementations"]
        for step in _steps(item)
        for image in step["images"]
    )
    return not found["damaged"] and all(image["state"] == "whole" for image in images)


def as_text(found: dict[str, Any]) -> str:
    """What `read` found, as lines that are safe to print."""
    lines = [found["path"]]
    lines += [
        f"  {item['file']} is damaged: {item['reason']}; copy the package again or package the "
        "model again"
        for item in found["damaged"]
    ]
    if not found["models"]:
        lines.append("  no opaque ops")
    for model in found["models"]:
        lines.append(f"model {model['model']}")
        for op in model["ops"]:
            lines += [
                "",
                f"  {op['schema']}",
                f"    {op['function']} on {op['device']}, nodes {', '.join(op['nodes'])}",
            ]
            for implementation in op["implementations"]:
                lines += [f"    {line}" for line in _implementation(implementation)]
    return "\n".join(map(plain, lines))


def _implementation(implementation: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for step in _steps(implementation):
        lines += _step(implementation["name"] if not lines else "then", step)
    for scratch in implementation.get("scratch", []):
        holds = "zeros" if scratch["zeros"] else scratch["random"]
        lines.append(
            f"  scratch {scratch['name']}: {scratch['dtype']}[{', '.join(scratch['shape'])}]"
            + (f", {holds}" if holds else "")
        )
    if implementation["checked_at_launch"]:
        lines.append(f"  where {' and '.join(implementation['checked_at_launch'])}")
    return lines


def _step(name: str, step: dict[str, Any]) -> list[str]:
    rule = step["rule"]
    lines = [f"{name}: {step['entry']}({', '.join(rule['args'])})"]
    if "grid" in rule:
        launch = (
            f"  grid ({', '.join(rule['grid'])}), block ({', '.join(rule['block'])}), "
            f"shared {rule['shared']}"
        )
        launch += f", cluster ({', '.join(rule['cluster'])})" if rule["cluster"] else ""
        lines.append(
            launch + "".join(f", {flag}" for flag in ("cooperative", "programmatic") if rule[flag])
        )
    for image in step["images"]:
        size = "unknown size" if image["bytes"] is None else f"{image['bytes']} bytes"
        facts = [image["file"], image["arch"] or "-", size, image["state"]]
        lines += ["  " + ", ".join(facts)] + (
            [f"    {_resources(image)}"] if "registers" in image else []
        )
    return lines


def _resources(image: dict[str, Any]) -> str:
    def told(key: str, unit: str = " bytes") -> str:
        return "unknown" if image[key] is None else f"{image[key]}{unit}"

    spills = told("spill_stores") + (
        f" stored, {image['spill_loads']} loaded" if image["spill_loads"] else ""
    )
    return (
        f"registers {told('registers', '')}, shared {told('shared')}, stack {told('stack')}, "
        f"spills {spills}"
    )
