"""The checkpoints of a run: one a position, the latest sound one found again, old ones removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from raydense.config import Config
from raydense.core.types import Position
from raydense.records.checkpoint_files import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from raydense.records.metrics import read_rows
from raydense.records.run_dir import RunDirectory


class CheckpointStore:
    """Checkpoint directories under `root`, named after their positions, so that their order is that of the run.

    Args:
        keep_last: how many are kept; what the run continued from, and the best stage boundary, are never removed.
        held: stages whose groups are needed at once; with 2, a stage is sampled with the weights of the boundary before
            its own.
    """

    def __init__(self, root: Path, keep_last: int, held: int = 1) -> None:
        self._root, self._keep_last, self._held = root, keep_last, held
        self._loaded = ""
        self._stage_rewards: dict[str, float] = {}  # boundary → mean reward of what its weights then sampled

    @classmethod
    def of_run(cls, run_dir: RunDirectory, config: Config) -> CheckpointStore:
        """Of a run that may have been at work before, and says in its metrics which boundary was the best."""
        store = cls(run_dir.checkpoints, config.checkpoint.keep_last, config.stage.held)
        for row in read_rows(run_dir.metrics):
            if row["kind"] == "stage":
                store.note_reward(row["stage"], row["reward/mean"])
        return store

    def note_reward(self, stage: int, reward: float) -> None:
        """The mean reward of what was sampled for a stage: what its weights, a boundary's, are worth."""
        self._stage_rewards[Position(max(0, stage - self._held + 1)).name] = reward

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes it, then removes what is no longer kept."""
        save_checkpoint(self._root / checkpoint.position.name, checkpoint)
        names = self._names()
        boundaries = [name for name in names if "-step-" not in name][-self._held :]
        kept = {name for name in boundaries if name not in self._stage_rewards}  # one of these may be the best
        kept |= {self._loaded, max(self._stage_rewards, key=self._stage_rewards.__getitem__, default="")}
        for name in names[: -self._keep_last]:
            if name not in kept:
                shutil.rmtree(self._root / name)

    def latest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest sound checkpoint; `warn` hears of each damaged one that was passed over."""
        for name in reversed(self._names()):
            try:
                checkpoint = load_checkpoint(self._root / name)
            except CheckpointError as error:
                warn(f"{error}; using the checkpoint before it")
                continue
            self._loaded = name
            return checkpoint
        return None

    def _names(self) -> list[str]:
        return sorted(p.name for p in self._root.iterdir() if p.is_dir() and not p.name.endswith(".partial"))
