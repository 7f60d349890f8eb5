"""Rotary position embedding in unmodified models, of queries and keys together or of one tensor:
halves, or neighbours, rotated against each other, by cos and sin or by complex numbers.

What cos and sin are multiplied with says where the tokens are: q * cos, where cos broadcasts over
the heads, is [B, H, S, D] * [B or 1, 1, S, D], [B, S, H, D] * [B or 1, S, 1, D] or [S, B, H, D] *
[S, 1, 1, D]. Leading dimensions may be left out.
"""

from pathlib import Path

import torch

import opaq
from opaq.pattern import example_of

from .rope import rope, rope_backward

_TABLES = ("cos", "sin", "half_cos", "half_sin", "angles")


def _four(shape):
    return (1,) * (4 - len(shape)) + tuple(shape)


def _tokens_at(q, table) -> int:
    """The dimension of tokens, of four, by the shapes; 0 where they are not those of rope."""
    q, table = _four(q), _four(table)
    if table[0] != 1 and table[0] != q[0]:
        return 0
    if table[1] == 1 and table[2] == q[2]:
        return 2
    if table[1:3] == (1, 1) and table[0] == q[0]:
        return 1  # Megatron: [S, B, H, D]
    return 1 if table[2] == 1 and table[1] == q[1] else 0


def _when(arguments) -> str:
    q, k = arguments["q"], arguments["k"]
    tables = [arguments[name] for name in _TABLES if arguments[name] is not None]
    if q.dim() not in (3, 4):
        return "q has not three or four dimensions"
    if not all(1 <= table.dim() <= 4 for table in tables):
        return "cos and sin have not one to four dimensions"
    if any(table.requires_grad for table in tables):
        return "cos and sin need gradients"
    if tables[0].shape != tables[-1].shape:
        return "cos and sin have different shapes"
    if not (at := _tokens_at(q.shape, tables[0].shape)):
        return "cos and sin have another shape than the tokens"
    width = q.shape[-1]
    if not isinstance(width, int) or width % 2:
        return "the size of a head is not even, or not known when the graph is compiled"
    if tables[0].shape[-1] != (width if arguments["cos"] is not None else width // 2):
        return "cos and sin have another size than a head"
    if any(_of_real(table) != _of_real(tables[0]) for table in tables):
        return "cos and sin have different dtypes"
    if torch.promote_types(_of_real(tables[0]), torch.float32) not in (torch.float32, q.dtype):
        return "cos and sin have more digits than the op"
    if k is None:
        return ""
    if k.dtype != q.dtype or k.dim() != q.dim():
        return "queries and keys have different dtypes, or numbers of dimensions"
    one, other = (list(_four(each.shape)) for each in (q, k))
    del one[3 - at], other[3 - at]  # heads
    return "" if one == other else "queries and keys have different shapes"


def _of_real(table) -> torch.dtype:
    return table.dtype.to_real()


def _sizes(arguments):
    both = [each for each in (arguments["q"], arguments["k"]) if each is not None]
    return sum(each.numel() for each in both) // both[0].shape[-1], both[0].shape[-1]


def _form(arguments):
    """Of Llama: "halves, cos and sin, heads first"."""
    q, k = arguments["q"], arguments["k"]
    table = next(arguments[name] for name in _TABLES if arguments[name] is not None)
    kinds = {"cos": "cos and sin", "half_cos": "cos and sin of pairs", "angles": "complex numbers"}
    words = [
        _pairing(arguments),
        next(kind for name, kind in kinds.items() if arguments[name] is not None),
        "heads first" if _tokens_at(q.shape, table.shape) == 2 else "tokens first",
        *(["backwards"] if arguments["backwards"] else []),
        *([f"in {_of_real(table)}".replace("torch.", "")] if _of_real(table) != q.dtype else []),
        *(["one tensor"] if k is None else []),
    ]
    return ", ".join(words)


def _pairing(arguments) -> str:
    if arguments["apart"]:
        return "neighbours into halves"
    return "neighbours" if arguments["interleaved"] else "halves"


def _rotated(
    q,
    k=None,
    cos=None,
    sin=None,
    half_cos=None,
    half_sin=None,
    angles=None,
    interleaved=False,
    backwards=False,
    apart=False,
):
    """half_cos and half_sin: of the pairs, which are half as many as elements. angles: cos + i sin
    of the pairs. backwards: rotated the other way. apart: of the results, the first ones of all
    pairs come first, then the second ones."""
    given = example_of(next(each for each in (cos, half_cos, angles) if each is not None))
    if angles is not None:
        half_cos, half_sin = (torch.view_as_real(angles)[..., part] for part in (0, 1))
    tables = (half_cos, half_sin) if cos is None else (cos, sin)
    at = _tokens_at(example_of(q).shape, given.shape)
    cos, sin = (_table(each, given, q, at) for each in tables)
    turn = rope
    if backwards and at == 1 and half_cos is not None and not _has_gradient(q, k):
        # That of a rotation by pairs turns the other way; of single tokens it has rope's layout.
        turn = rope_backward
    elif backwards:
        sin = -sin
    # Without keys: keys of no heads.
    first = _heads_first(q, at)
    second = first.detach()[:, :0] if k is None else _heads_first(k, at)
    results = turn(first, second, cos, sin, interleaved)
    q_out, k_out = results[0], results[1]
    if at == 1 or example_of(q).dim() == 3:
        q_out, k_out = q_out.view_as(q), k_out if k is None else k_out.view_as(k)
    if apart:  # Inductor computes this in one kernel with what reads the result
        q_out, k_out = _set_apart(q_out), k_out if k is None else _set_apart(k_out)
    return q_out if k is None else (q_out, k_out)


def _set_apart(x):
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def _has_gradient(*tensors) -> bool:
    given = [example_of(each) for each in tensors if each is not None]
    return torch.is_grad_enabled() and any(each.requires_grad for each in given)


def _heads_first(x, tokens_at: int):
    """As [B, H, S, D]. Where tokens come first, each is a sequence of its own, so that results have
    the order of x."""
    if example_of(x).dim() == 3:
        x = x.unsqueeze(0)
    return x if tokens_at == 2 else x.flatten(0, 1).unsqueeze(2)


def _table(table, given, q, tokens_at: int):
    """As the op takes it, in a dtype that it takes. given: has its sizes."""
    like = example_of(q)
    dtype, wanted = _of_real(given), torch.promote_types(like.dtype, torch.float32)
    if dtype not in (like.dtype, wanted):
        table = table.to(wanted)
    for _ in range(4 - given.dim()):
        table = table.unsqueeze(0)
    if tokens_at == 2:
        return table.squeeze(1)
    if _four(given.shape)[1] == 1:
        table = table.expand(-1, q.size(like.dim() - 3), -1, -1)
    return table.flatten(0, 1)


pattern = opaq.pattern(
    "rope",
    _rotated,
    {
        "q": torch.empty(2, 4, 3, 8, device="meta"),
        "k": torch.empty(2, 2, 3, 8, device="meta"),
        "cos": torch.empty(2, 1, 3, 8, device="meta"),
        "sin": torch.empty(2, 1, 3, 8, device="meta"),
        "half_cos": torch.empty(2, 1, 3, 4, device="meta"),
        "half_sin": torch.empty(2, 1, 3, 4, device="meta"),
        "angles": torch.empty(2, 1, 3, 4, device="meta", dtype=torch.complex64),
        "interleaved": False,
        "backwards": False,
        "apart": False,
    },
    when=_when,
    streamed=("q", "k"),
    sizes=_sizes,
    form=_form,
    measurements=Path(__file__).with_name("measured.json"),
)

# ---- spellings, of one tensor --------------------------------------------------------------------


def _halves(x):
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _neighbours(x):
    return x[..., ::2], x[..., 1::2]


def _side_by_side(first, second):
    return torch.stack((first, second), dim=-1).flatten(-2)


def _turned(x, cos, sin):  # transformers: Llama, Mistral, Qwen, Gemma, Phi, GPT-NeoX
    first, second = _halves(x)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _turned_backwards(x, cos, sin):  # transformers: nanochat
    first, second = _halves(x)
    return x * cos + torch.cat((second, -first), dim=-1) * sin


def _turned_neighbours(x, cos, sin):  # transformers: GPT-J, Cohere, GLM
    first, second = _neighbours(x)
    return x * cos + _side_by_side(-second, first) * sin


def _by_halves(x, half_cos, half_sin):  # transformers: gpt-oss; vLLM
    first, second = _halves(x)
    return torch.cat(
        (first * half_cos - second * half_sin, second * half_cos + first * half_sin), dim=-1
    )


def _by_neighbours(x, half_cos, half_sin):  # gpt-fast, torchtune
    first, second = _neighbours(x)
    return _side_by_side(first * half_cos - second * half_sin, second * half_cos + first * half_sin)


def _by_neighbours_into_halves(x, half_cos, half_sin):  # transformers: DeepSeek-V3
    first, second = _neighbours(x)
    return torch.cat(
        (first * half_cos - second * half_sin, second * half_cos + first * half_sin), dim=-1
    )


def _by_halves_backwards(x, half_cos, half_sin):  # modded-nanogpt, nanochat
    first, second = _halves(x)
    return torch.cat(
        (first * half_cos + second * half_sin, first * -half_sin + second * half_cos), dim=-1
    )


def _by_complex_numbers(x, angles):  # Meta's Llama; transformers: Llama 4
    pairs = torch.view_as_complex(x.float().unflatten(-1, (x.shape[-1] // 2, 2)))
    return torch.view_as_real(pairs * angles).flatten(-2)


_FIXED = {
    _turned: {},
    _turned_backwards: {"backwards": True},
    _turned_neighbours: {"interleaved": True},
    _by_halves: {},
    _by_neighbours: {"interleaved": True},
    _by_neighbours_into_halves: {"interleaved": True, "apart": True},
    _by_halves_backwards: {"backwards": True},
    _by_complex_numbers: {"interleaved": True},
}
_OF_WHOLE_TABLES = (_turned, _turned_backwards, _turned_neighbours)


def _of_both(of_one):
    if of_one is _by_complex_numbers:
        return lambda q, k, angles: (of_one(q, angles), of_one(k, angles))
    if of_one in _OF_WHOLE_TABLES:
        return lambda q, k, cos, sin: (of_one(q, cos, sin), of_one(k, cos, sin))
    return lambda q, k, half_cos, half_sin: (
        of_one(q, half_cos, half_sin),
        of_one(k, half_cos, half_sin),
    )


def _of_q(of_one):
    if of_one is _by_complex_numbers:
        return lambda q, angles: of_one(q, angles)
    if of_one in _OF_WHOLE_TABLES:
        return lambda q, cos, sin: of_one(q, cos, sin)
    return lambda q, half_cos, half_sin: of_one(q, half_cos, half_sin)


# Those of both come first, so that one launch serves queries and keys.
for _made in (_of_both, _of_q):
    for _of_one, _fixed in _FIXED.items():
        pattern.spelling(_made(_of_one), **_fixed)
