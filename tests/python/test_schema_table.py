"""Compares the table of schemas that tests/cpp/schema_test.cpp uses with the installed PyTorch."""

import pathlib

import pytest

torch = pytest.importorskip("torch")

TABLE = pathlib.Path(__file__).parents[1] / "cpp" / "data" / "schemas.txt"

# PyTorch 2.15 refuses what 2.11 accepts; both are refused by opaq.
VERDICT_DIFFERS = {"m::f(Dimname x) -> Tensor"}


def rows():
    lines = [
        line
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    return list(zip(lines[::2], lines[1::2], strict=True))


def parse(text):
    try:
        return torch._C.parse_schema(text)
    except Exception:  # PyTorch raises RuntimeError, IndexError or ValueError
        return None


def meaning(schema):
    def facts(value):
        alias = value.alias_info
        default = value.default_value if value.has_default_value() else "required"
        return (
            value.name,
            str(value.real_type),
            value.N,
            value.kwarg_only,
            str(default),
            bool(alias and alias.is_write),
        )

    def number_like(fact):  # `float? x=1` is 1 to PyTorch, and 1.0 as we write it
        return tuple(item.removesuffix(".0") if isinstance(item, str) else item for item in fact)

    return (
        schema.name,
        [number_like(facts(arg)) for arg in schema.arguments],
        [(ret.name, str(ret.type)) for ret in schema.returns],
    )


@pytest.mark.parametrize(("verdict", "outcome"), rows(), ids=lambda line: line[:80])
def test_pytorch_agrees(verdict, outcome):
    text = verdict[2:]
    parsed = parse(text)
    if text not in VERDICT_DIFFERS:
        assert (parsed is not None) == (verdict[0] == "+")
    if outcome[0] == "=":
        canonical = parse(outcome[2:])
        assert canonical is not None, "PyTorch refuses our canonical text"
        if parsed is not None:
            assert meaning(canonical) == meaning(parsed)
