"""log π_I of the transitions that a stage's batches draw: computed once each, though they are drawn again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batching import BatchDraws
from learner.transitions import TransitionBatch, transition_log_probs
from raydense.core.types import FloatArray
from raydense.diffusion.policy import Policy
from raydense.diffusion.transfers import to_device


class ReferenceCache:
    """The reference policy is the same module with the LoRA off; its log-probs never change within a stage.

    What a batch finds here depends on what was drawn before, and so do the last bits of what is computed for it (the
    composition of a U-Net call): the cache is part of the learner's state.
    Args:
        policy: whose reference it is.
        groups, keep: the largest replay buffer, and K.
        enabled: False computes every log-prob in a call as that of π_θ: its micro-batch, in the same order.
    """

    def __init__(self, policy: Policy, groups: int, keep: int, enabled: bool = True) -> None:
        self._policy, self._enabled, self._stage = policy, enabled, -1
        self._known = np.full((groups, keep, policy.schedule.num_steps), np.nan, np.float32)
        self._fingerprints = np.full(groups, -1, np.int64)  # of the groups whose transitions are known

    def begin_stage(self, stage: int) -> None:
        """Forgets another stage's; a stage that begins again, after a fault, goes on with what is known."""
        if stage != self._stage:
            self._stage = stage
            self._known.fill(np.nan)
            self._fingerprints.fill(-1)

    def forget_changed(self, fingerprints: Mapping[int, int]) -> None:
        """Of groups that are not what they were: a group sampled again on a GPU has other bits. Args: by group."""
        for group, fingerprint in fingerprints.items():
            if self._fingerprints[group] != fingerprint:
                self._known[group] = np.nan
                self._fingerprints[group] = fingerprint

    def look_up(self, part: TransitionBatch) -> Tensor:
        """log π_I of a micro-batch's draws, float32 [B, n, S]; what is not known is computed, in one call."""
        if not self._enabled:
            with self._policy.reference():
                return transition_log_probs(self._policy, part).detach()[part.draws]
        known, device = self._known[_index(part.plan)], part.draws.device
        missing = np.unique(part.places[np.isnan(known)])
        values = to_device(torch.from_numpy(known), device)
        if not missing.size:
            return values
        which = to_device(torch.from_numpy(missing), device)
        with self._policy.reference():
            fresh = transition_log_probs(self._policy, part, which).detach()
        by_place = fresh.new_full((len(part.t),), torch.nan).index_copy(0, which, fresh)
        return torch.where(values.isnan(), by_place[part.draws], values)

    def remember(self, plan: BatchDraws, values: FloatArray) -> None:
        """Args: values: log π_I [B, n, S] of the plan's draws. Of a transition drawn twice, the first counts."""
        if not self._enabled:
            return
        index = tuple(i.reshape(-1)[::-1] for i in np.broadcast_arrays(*_index(plan)))  # the last written stays
        known = self._known[index]
        self._known[index] = np.where(np.isnan(known), values.reshape(-1)[::-1], known)

    def state_dict(self) -> dict[str, Tensor]:
        drawn = np.flatnonzero(self._fingerprints >= 0)
        return {
            "stage": torch.tensor(self._stage),
            "groups": torch.from_numpy(drawn),
            "fingerprints": torch.from_numpy(self._fingerprints[drawn]),
            "log_probs": torch.from_numpy(self._known[drawn]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.begin_stage(-1)
        self._stage, drawn = int(state["stage"]), state["groups"].numpy()
        self._fingerprints[drawn] = state["fingerprints"].numpy()
        self._known[drawn] = state["log_probs"].numpy()


def _index(plan: BatchDraws) -> tuple[NDArray[np.int64], ...]:
    return tuple(index.numpy() for index in plan.index())
