"""Several learner workers as one: each has a slice of every batch, and all add up their gradients."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from raydense.core.interfaces import GroupsLost, LearnerDied
from raydense.core.messages import one_line

LOOPBACK = "127.0.0.1"
Result = TypeVar("Result")


class Gang:
    """One worker's view of all; alone, everything is local and nothing is waited for.

    Args: rank, size: this worker's number, and how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._listener: socket.socket | None = None

    def listen(self, host: str) -> int:
        """Opens the meeting place at a free port of this address, and of no other; for rank 0."""
        self._listener = socket.create_server((host, 0))
        return int(self._listener.getsockname()[1])

    def join(self, host: str, port: int, timeout_s: float) -> None:
        """Meets the others; `timeout_s` holds for every later exchange too: NCCL for a GPU's tensors, gloo for others.

        Raises: LearnerDied if one does not come.
        """
        timeout = timedelta(seconds=timeout_s)
        if host == LOOPBACK:  # else by the machine's name, which may be another interface's
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
        own = self._listener.detach() if self._listener else None
        try:
            store = dist.TCPStore(host, port, self.size, own is not None, timeout=timeout, master_listen_fd=own)  # type: ignore[attr-defined]
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout)
        except RuntimeError as error:
            raise self._broken(error) from error

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all workers, in place, in one message. Raises: LearnerDied."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            raise self._broken(error) from error
        for tensor, total in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def agree(self, get: Callable[[], Result]) -> Result:
        """What `get` gives, if no worker's raised GroupsLost; else every worker raises it. Raises: LearnerDied."""
        lost: GroupsLost | None = None
        try:
            result = get()
        except GroupsLost as error:
            lost = error
        losses = torch.tensor([float(lost is not None)])
        self.add_up([losses])
        if float(losses) > 0:
            raise lost or GroupsLost("another worker of the learner cannot read its groups")
        return result

    def _broken(self, error: Exception) -> LearnerDied:
        return LearnerDied(f"worker {self.rank} of {self.size} lost the others: {one_line(error)}")
