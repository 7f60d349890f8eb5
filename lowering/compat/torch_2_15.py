"""Inductor's names for torch 2.15: what opaq uses has kept its 2.11 spelling."""

from .torch_2_11 import *  # noqa: F403
