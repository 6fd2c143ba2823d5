"""Processes that share the work of each step, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from onnxdecomp.stopping import uninterrupted
from onnxdecomp.tuning.engine import processes


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that work together.

    Attributes:
        rank: which of them this is, from 0.
        size: how many they are.
    """

    rank: int = 0
    size: int = 1

    def mine(self, parts: int) -> slice:
        """Of `parts` of each process those that are this one's."""
        return slice(self.rank * parts, (self.rank + 1) * parts)

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, way: float, stopped: bool) -> tuple[float, bool]:
        """How far the first process is, since no two clocks agree; and whether any was stopped."""
        if self.size == 1:
            return way, stopped
        home = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        shared = torch.tensor([way if self.rank == 0 else 0.0, stopped], dtype=torch.float64, device=home)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return float(shared[0]), bool(shared[1])

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Signals wait until the block is over: who left half-way would leave the others waiting."""
        return uninterrupted() if self.size > 1 else contextlib.nullcontext()


@contextlib.contextmanager
def gathered(device: torch.device) -> Iterator[Group]:
    """The group that torchrun put this process in, or, where it did not, this process alone."""
    if not distributed.is_available() or processes() == 1:
        yield Group()
        return
    ours = not distributed.is_initialized()
    if ours:
        distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size())
    finally:
        if ours:
            distributed.destroy_process_group()
