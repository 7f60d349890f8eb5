"""`opaq.explain`: what torch.compile(backend="opaq") would do with each opaque op of a model. No
kernel runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import _runtime, call_site, code_check, explain_text

if TYPE_CHECKING:
    from .lowering import Substitution
    from .lowering.explained import LoweredNode

SERVES, MAY_SERVE, NOT_USED = "serves", "may serve", "not used"


@dataclass(frozen=True)
class ConsideredImplementation:
    """One implementation of the op of a node, or its reference."""

    name: str
    device: str
    kind: str
    role: str  # "serves"; "may serve": each launch takes the first that fits it; "not used"
    why: str  # why not, or where
    checked_at_launch: list[str] = field(default_factory=list)  # "aligned(x, 16)"
    copied_at_launch: list[str] = field(default_factory=list)  # arguments, where not row-major
    # Of one that is used, for each step: entry, grid and block at likely sizes, image, resources.
    launches: list[code_check.CheckedImplementation] = field(default_factory=list)


@dataclass(frozen=True)
class ExplainedNode:
    """An opaque op in a graph."""

    graph: str
    node: str
    op: str
    device: str
    place: str  # "model.py:12, in forward": the user's line; "" where it is not known
    # that is tried first; "reference"; "python"; or "dispatcher": PyTorch calls the op
    implementation: str
    reason: str  # why the dispatcher, or why an implementation is tried before the others
    arguments: dict[str, str] = field(default_factory=dict)
    made_contiguous: list[str] = field(default_factory=list)  # arguments that the graph copies
    # bytes of scratch memory that the graph plans; a text where a launch tells; None: unknown
    workspace: int | str | None = None
    implementations: list[ConsideredImplementation] = field(default_factory=list)
    # By result, the argument whose memory it takes if that is an intermediate which nothing reads
    # afterwards. Only code generation knows; it tells in a comment.
    may_overwrite: dict[str, str] = field(default_factory=dict)

    @property
    def checked_at_launch(self) -> list[str]:
        conditions = [text for each in self.implementations for text in each.checked_at_launch]
        return list(dict.fromkeys(conditions))


@dataclass(frozen=True)
class ExplainedGraph:
    name: str  # as in torch's logs: "model__0_inference_0"
    kind: str  # "forward", "backward" or "inference"
    nodes: list[ExplainedNode]


@dataclass(frozen=True)
class GraphBreak:
    place: str
    reason: str


@dataclass(frozen=True)
class EagerCall:
    """Calls of an opaque op outside of graphs, where torch.compile leaves code to Python."""

    op: str
    place: str
    calls: int


@dataclass(frozen=True)
class Explanation:
    """Opaque nodes of a model's graphs and how each would be served. str() is for reading, `html`
    gives a page, `as_dict` the same as JSON-like data.
    """

    model: str
    graphs: list[ExplainedGraph]
    breaks: list[GraphBreak]
    eager: list[EagerCall]
    archs: list[str]  # for which the kernels were compiled
    # parts of the model that could be replaced by opaque ops, whether they are, and why
    substitutions: list[Substitution]
    # Why graphs may be missing: values that the code needs, gradients on a GPU that is not here.
    remarks: list[str]

    @property
    def nodes(self) -> list[ExplainedNode]:
        return [node for graph in self.graphs for node in graph.nodes]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return explain_text.text(self)

    def html(self) -> str:
        """A self-contained page."""
        from . import explain_page

        return explain_page.page(self)


def explain(model: Any, /, *args: Any, **kwargs: Any) -> Explanation:
    """Traces and lowers model(*args, **kwargs) as torch.compile(model, backend="opaq") does, and
    tells how each opaque node would be served. No kernel runs.

    model: a Module or function. A copy of it is called, with tensors that have no values, so that
    neither the model nor tensors nor gradients change. Of a function, the modules and tensors in
    its closure are copied, but no globals and no other objects. Tensors on the device "meta" stand
    for tensors on the default device (torch.set_default_device). If an input requires a gradient
    and autograd is on, backward graphs are lowered too. Options are those that the model has been
    compiled with: opaq.explain(torch.compile(model, backend="opaq", options={...}), x).

    Raises Error if the model cannot be traced or a graph cannot be lowered. If the code between two
    graphs needs the value of a tensor, the result ends there, and says so in `remarks`.
    """
    return run(model, args, kwargs)


def run(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    archs: Sequence[str] = (),
) -> Explanation:
    """archs: what CUDA source is compiled for; by default what the option `archs` of a compiled
    model names, or this GPU's architecture.
    """
    from . import compiler
    from .lowering import explained
    from .lowering.compat.inductor import inductor  # costs seconds

    if not callable(model):
        raise _runtime.DeclarationError(
            f"opaq.explain: got {type(model).__name__} as the model; expected a Module or a "
            "function"
        )
    model, given = inductor.compiled_with(model)
    name = getattr(model, "__qualname__", type(model).__name__)
    ours, patches = compiler.settings(given.options, given.mode)
    traced = explained.trace(
        model,
        args,
        kwargs,
        ours,
        {**patches, **given.patches},
        given.dynamic,
        given.fullgraph,
        compiler.changed,
    )
    remarks = list(traced.remarks)
    if traced.error is not None:
        raise _runtime.Error(_problem(name, traced.error)) from traced.error
    archs = code_check.archs_of("opaq.explain", archs or ours["archs"])
    graphs = [
        ExplainedGraph(
            graph.name,
            graph.kind,
            [_explained(graph.name, node, archs) for node in graph.nodes],
        )
        for graph in traced.graphs
    ]
    if not archs and any(
        code_check.needs_arch(item)
        for graph in traced.graphs
        for node in graph.nodes
        if node.decision
        for item in (each.implementation for each in node.decision.candidates)
    ):
        remarks.append(
            "registers, shared memory and image sizes of CUDA source are unknown: there is no GPU "
            "here, and no architecture was named"
        )
    return Explanation(
        name,
        graphs,
        [GraphBreak(*each) for each in traced.breaks],
        [EagerCall(*called, times) for called, times in traced.eager.items()],
        list(archs),
        traced.substitutions,
        remarks,
    )


def _explained(graph: str, node: LoweredNode, archs: Sequence[str]) -> ExplainedNode:
    facts = (graph, node.node, node.op, node.device, node.place, node.implementation)
    decision = node.decision
    if decision is None:
        return ExplainedNode(*facts, node.reason)
    return ExplainedNode(
        *facts,
        reason=decision.measured.why,
        arguments=dict(node.arguments or {}),
        made_contiguous=list(decision.copied),
        workspace=node.workspace,
        implementations=_considered(node, archs),
        may_overwrite={each["name"]: each["over"] for each in node.info["results"] if each["over"]}
        if node.info
        else {},
    )


def _considered(node: LoweredNode, archs: Sequence[str]) -> list[ConsideredImplementation]:
    """Those of the op in the order tried, then the others, then the reference."""
    info, decision = node.info, node.decision
    assert info is not None and decision is not None
    role = MAY_SERVE if decision.chooses else SERVES
    found = []
    for candidate in decision.candidates:
        item = candidate.implementation
        where = f"where {' and '.join(candidate.conditions)}" if candidate.conditions else ""
        found.append(
            ConsideredImplementation(
                item["name"],
                item["device"],
                item["kind"],
                role,
                where or ("where none before it fits" if found else ""),
                list(candidate.conditions),
                list(candidate.copied),
                _launches(info, item, node.example, archs),
            )
        )
    taken = [item.name for item in found]
    for item in info["implementations"]:
        if item["name"] in taken:
            continue
        if item["device"] != node.device.split(":")[0]:
            why = f"it is for {item['device']}"
        else:
            head = f"{item['name']}: "
            why = next(
                (line.removeprefix(head) for line in decision.skipped if line.startswith(head)),
                f"{taken[-1]} comes before it and always fits" if taken else "",
            )
        facts = (item["name"], item["device"], item["kind"])
        found.append(ConsideredImplementation(*facts, NOT_USED, why))
    if decision.has_reference:
        facts = ("reference", "any", "reference")
        if decision.always_fits:
            why = "an implementation always fits"
            found.append(ConsideredImplementation(*facts, NOT_USED, why))
        else:
            role = MAY_SERVE if decision.candidates else SERVES
            found.append(ConsideredImplementation(*facts, role, "where no implementation fits"))
    return found


def _launches(
    info: _runtime.OpInfo,
    item: _runtime.ImplementationInfo,
    example: Sequence[_runtime.FakeArgument] | None,
    archs: Sequence[str],
) -> list[code_check.CheckedImplementation]:
    found = code_check.check_implementation(info, item, example, archs)
    if archs or not code_check.needs_arch(item):
        return found
    return [replace(launch, code=[]) for launch in found]


def _problem(model: str, error: BaseException) -> str:
    """One that a user can solve: the cause, and where it is in the user's code."""
    seen = call_site.causes(error)
    cause = next((each for each in seen if isinstance(each, _runtime.Error)), None)
    text = str(cause or seen[-1]).strip()
    # torch tells the line that it traced in the text; the error's own is that of the call
    places = [call_site.of_trace(str(each)) for each in seen] + [*map(call_site.of_error, seen)]
    place = next(filter(None, places), "")
    if cause is None:  # torch's advice comes after the first paragraph
        text = f"{type(seen[-1]).__name__}: {text}".split("\n\n")[0]
    return f"opaq.explain: tracing {model} failed{place and f' ({place})'}: {text}"
