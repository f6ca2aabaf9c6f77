"""Operators of torch over kernels, for programs that are compiled with `torch.compile`.

A compiler of torch can't look into parllel's own functions, and would cut a program in two at each.
Of an operator it knows the shapes and what is written (`torch.library`), and leaves the call whole.
Samplers, transforms and algorithms don't go through operators: each call costs torch some
microseconds.
"""

from parllel.torch.operators.advantage import estimate_advantage
from parllel.torch.operators.gather import gather_rows
from parllel.torch.operators.replay_draw import ReplayDraw

__all__ = ["ReplayDraw", "estimate_advantage", "gather_rows"]
