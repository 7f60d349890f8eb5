"""PyTorch's tutorial "Custom Python Operators" with one name changed: an image is cropped with
Pillow, which torch.compile cannot trace, and a function of NumPy's gets a gradient.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

import opaq


@opaq.custom_op("examples::crop", mutates_args=())
def crop(picture: torch.Tensor, box: Sequence[int]) -> torch.Tensor:
    """picture: uint8 [height, width, 3]; box: left, upper, right, lower."""
    image = Image.fromarray(picture.cpu().numpy())
    return torch.tensor(np.asarray(image.crop(tuple(box))), device=picture.device)


@crop.register_fake
def _(picture: torch.Tensor, box: Sequence[int]) -> torch.Tensor:
    return picture.new_empty(box[3] - box[1], box[2] - box[0], picture.shape[2])


@opaq.custom_op("examples::numpy_sin", mutates_args=())
def numpy_sin(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sin(x.cpu().numpy())).to(x.device)


@numpy_sin.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def save(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


numpy_sin.register_autograd(lambda ctx, grad: grad * ctx.saved_tensors[0].cos(), setup_context=save)

device = "cuda" if torch.cuda.is_available() else "cpu"
picture = torch.randint(0, 256, (64, 48, 3), dtype=torch.uint8, device=device)
for function in (crop, torch.compile(crop, fullgraph=True)):
    torch.testing.assert_close(function(picture, (10, 20, 40, 60)), picture[20:60, 10:40])
x = torch.randn(100, device=device, requires_grad=True)
for function in (numpy_sin, torch.compile(numpy_sin, fullgraph=True)):
    torch.testing.assert_close(function(x), x.sin())
    torch.testing.assert_close(torch.autograd.grad(function(x).sum(), x)[0], x.cos())
torch.library.opcheck(numpy_sin, (x,))
print("cropped as by slicing; the sine and its gradient are PyTorch's")
