"""Every property of a launch is the same in eager, in the Python wrapper, in the C++ wrapper and in
a package: results, empty results, and the text of each error. Here for host functions; for kernels
see tests/cpp/launch_everywhere_test.cpp, on a fake driver.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

import opaq

Call = Callable[[int, int, int], torch.Tensor]
FORMS = ["eager", "Python wrapper", "C++ wrapper", "package"]
SOURCE = """#include <stdexcept>
void scale(const float* x, short times, float by, float* out, long n) {
  if (times == 7) throw std::runtime_error("seven is refused");
  if (times == 8) throw 8;
  for (long i = 0; i < n; ++i) out[i] = x[i] * times * by; }"""


class Model(torch.nn.Module):
    """Numbers that vary from call to call are sizes of tensors: all forms take these."""

    def __init__(self, op: opaq.Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor, times: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
        return self.op(x, times.size(0), 0.5, divisor.size(0) - 3)


def arguments(size: int, times: int, divisor: int) -> tuple[torch.Tensor, ...]:
    x = torch.arange(size * 4, dtype=torch.float32).reshape(size, 4)
    return x, torch.empty(times, 0), torch.empty(divisor + 3, 0)


@pytest.fixture(
    scope="module", params=[*FORMS[:-1], pytest.param("package", marks=pytest.mark.life)]
)
def call(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """An op in the form of the parameter: call(size of x, times, divisor)."""
    form = request.param
    op = opaq.op(
        f"launch_everywhere::form{FORMS.index(form)}"
        "(Tensor x, SymInt times, float by, SymInt divisor) -> Tensor",
        outputs=opaq.like("x"),
    )
    op.cpu(source=SOURCE, entry="scale", args="x, times, by, out, x.numel() // divisor")
    model: Callable[..., torch.Tensor] = Model(op)
    if form == "package":
        dynamic = ({0: torch.export.Dim.DYNAMIC},) * 3
        program = torch.export.export(Model(op), arguments(5, 3, 1), dynamic_shapes=dynamic)
        path = opaq.package(program, tmp_path_factory.mktemp("package") / "model.pt2")
        model = torch._inductor.aoti_load_package(path)
    elif form != "eager":
        options = {"cpp_wrapper": form == "C++ wrapper"}
        model = torch.compile(model, fullgraph=True, dynamic=True, options=options)
    return lambda *numbers: model(*arguments(*numbers))


@pytest.mark.parametrize(("size", "times"), [(5, 3), (2, 9), (33, 2)])
def test_results(call: Call, size: int, times: int) -> None:
    torch.testing.assert_close(call(size, times, 1), arguments(size, 1, 1)[0] * times * 0.5)


def test_nothing_is_called_for_empty_results(call: Call) -> None:
    assert call(0, 7, 1).shape == (0, 4)


@pytest.mark.parametrize(
    ("times", "divisor", "message"),
    [
        (7, 1, "OP: its function `scale` threw: seven is refused"),
        (8, 1, "OP: its function `scale` threw something that is no std::exception"),
        (
            40_000,
            1,
            "OP: argument 2 `times` is 40000, which does not fit the kernel's parameter `short`",
        ),
        (
            3,
            0,
            "args of OP, implementation 'cpu': 'x.numel() // divisor': division by zero: 20 // 0",
        ),
    ],
)
def test_errors(
    call: Call, times: int, divisor: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError) as error:
        call(5, times, divisor)
    # The loader of packages prints what its C interface cannot carry.
    text = re.sub(r"launch_everywhere::form\d", "OP", str(error.value) + capfd.readouterr().err)
    assert message in text
    torch.testing.assert_close(call(5, 3, 1), arguments(5, 1, 1)[0] * 1.5)  # and nothing is lost
