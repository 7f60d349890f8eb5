"""What expressions may ask of a device: its architecture, the shared memory of a block, the number
of multiprocessors; where these are known, and what is decided by them.
"""

from __future__ import annotations

import re

import pytest
import torch
from fake_cuda import wrapper_source

import opaq
from opaq import lowering

SOURCE = """
template <typename T, int WAY>
__global__ void copy(T* y, const T* x, long long n, int blocks) {
#if __CUDA_ARCH__ < 900
  static_assert(WAY != 90, "this way needs sm_90");
#endif
  extern __shared__ float slots[];
  for (long long i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i] + T(WAY);
}
"""


@pytest.fixture
def op(unique: str) -> opaq.Op:
    """Of three implementations, in this order: for much shared memory, for sm_90, for all."""
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    rule = {
        "source": SOURCE,
        "grid": "min(x.numel(), multiprocessors(x))",
        "block": 256,
        "args": "y, x, x.numel(), multiprocessors(x)",
    }
    op.cuda(
        name="cuda:large",
        entry="copy<{x.dtype}, 1>",
        shared="x.size(-1) * 4",
        requires=["x.size(-1) > 12288", "x.size(-1) * 4 <= shared_memory(x)"],
        priority=2,
        **rule,
    )
    op.cuda(
        name="cuda:new",
        entry="copy<{x.dtype}, 90>",
        requires="arch(x) >= 90",
        priority=1,
        **rule,
    )
    op.cuda(name="cuda:any", entry="copy<{x.dtype}, 3>", **rule)
    return op


def package_source(op: opaq.Op, size: int, archs: list[str], **options: bool) -> str:
    lowering.activate()
    with lowering.options.use(archs=tuple(archs), **options):
        return wrapper_source(lambda x: op.overload(x), (4, size), package=True)


def tried(source: str) -> list[str]:
    return re.findall(r"\{  // (cuda:\w+)\n", source)


def images(source: str) -> list[list[str]]:
    """The architectures that each implementation is compiled for."""
    return [
        re.findall(r'\{"(\w+)", "[^"]+", "[0-9a-f]{64}"\}', each)
        for each in re.findall(r"opaq_images\[\] = \{(.*)\};", source)
    ]


def test_a_package_decides_what_all_its_architectures_share(op: opaq.Op) -> None:
    source = package_source(op, 50000, ["sm_90a"])
    assert tried(source) == ["cuda:large"] and images(source) == [["sm_90a"]]
    assert tried(package_source(op, 50000, ["sm_80"])) == ["cuda:any"]
    assert tried(package_source(op, 30000, ["sm_80", "sm_90a"])) == ["cuda:large"]
    assert tried(package_source(op, 16, ["sm_90a", "sm_100a"])) == ["cuda:new"]


def test_a_package_leaves_to_launches_what_its_architectures_do_not_share(op: opaq.Op) -> None:
    source = package_source(op, 50000, ["sm_80", "sm_90a"])
    assert tried(source) == ["cuda:large", "cuda:new", "cuda:any"]
    assert "x.size(-1)" in source and "<= opaq_device_fact<1>(opaq_device)" in source
    assert "opaq_device_fact<0>(opaq_device) >= 90" in source
    # not compiled for an architecture that it would not serve
    assert images(source) == [["sm_80", "sm_90a"], ["sm_90a"], ["sm_80", "sm_90a"]]


def test_of_newer_devices_that_ptx_serves_nothing_is_known(op: opaq.Op) -> None:
    source = package_source(op, 50000, ["sm_90a"], ptx=True)
    assert tried(source) == ["cuda:large", "cuda:new", "cuda:any"]
    assert images(source) == [["sm_90a", "compute_90"]] * 3


def test_explain_decides_by_the_architecture_that_is_named(op: opaq.Op) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x)

    for arch, served in (("sm_80", "cuda:any"), ("sm_90a", "cuda:large")):
        model = torch.compile(Model(), backend="opaq", options={"archs": [arch]})
        with torch.device("cuda"):
            explained = opaq.explain(model, torch.empty(4, 50000, device="meta"))
        assert [node.implementation for node in explained.nodes] == [served]


def test_check_compiles_for_the_architectures_that_are_served(op: opaq.Op) -> None:
    report = op.check(torch.empty(4, 50000, device="meta"), arch=["sm_80", "sm_90a"])
    large, new, any_device = report.implementations
    assert report.ok
    assert [code["arch"] for code in large.code] == ["sm_90a"]
    assert large.refused == ["sm_80: x.size(-1) * 4 <= shared_memory(x) does not hold"]
    assert [code["arch"] for code in new.code] == ["sm_90a"]
    assert new.refused == ["sm_80: arch(x) >= 90 does not hold"]
    assert [code["arch"] for code in any_device.code] == ["sm_80", "sm_90a"]
    assert "  not for sm_80: arch(x) >= 90 does not hold\n" in repr(report)


def test_check_of_what_serves_no_architecture_that_is_asked_for(op: opaq.Op) -> None:
    report = op.check(torch.empty(4, 16, device="meta"), arch="sm_80")
    new = report.implementations[1]
    assert report.ok and not new.code and new.entry == "copy<{x.dtype}, 90>"
    assert new.refused == ["sm_80: arch(x) >= 90 does not hold"]


@pytest.mark.parametrize("field", ["entry", "outputs", "scratch", "cpu"])
def test_what_does_not_depend_on_a_launch_may_not_ask(unique: str, field: str) -> None:
    outputs = opaq.tensor("arch(x)", dtype="float32") if field == "outputs" else opaq.like("x")

    def declare() -> None:
        op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=outputs)
        if field == "cpu":
            op.cpu(source="void k(float*) {}", entry="k", args="y", requires="arch(x) >= 90")
        scratch = {"more": opaq.tensor("arch(x)", dtype="float32")} if field == "scratch" else {}
        op.cuda(
            source=SOURCE,
            entry="copy<float, {arch(x)}>" if field == "entry" else "copy<float, 1>",
            args="y, x, x.numel(), 1" + (", more" if scratch else ""),
            scratch=scratch,
        )

    with pytest.raises(
        opaq.DeclarationError,
        match=re.escape(
            "depends on the device, which only a launch of a CUDA implementation knows: its "
            "requires, grid, block, cluster, shared and args"
        ),
    ):
        declare()
