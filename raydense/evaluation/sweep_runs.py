"""The runs of a sweep, side by side, each a process of its own: finished ones are skipped, cut ones continue."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from raydense.config import Config, ConfigError
from raydense.evaluation.sweep import Trial, label
from raydense.training.stopping import StopFlag, StopRequested

POLL_S = 0.2
Say = Callable[[str], None]


def default_jobs(config: Config, local: bool) -> int:
    """How many runs go side by side: on Ray or a GPU one, which takes what there is; else as many as have a core."""
    if not local or torch.cuda.is_available():
        return 1
    return max(1, len(os.sched_getaffinity(0)) // max(config.learner.threads, config.sampler.threads))


@dataclass
class _Running:
    trial: Trial
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float


class SweepRunner:
    """Runs trials with `raydense train`, `jobs` at a time.

    Args:
        arguments: of the command line that are the same for all: the configuration file or the preset.
        accept_changes: whether runs that were cut may go on with other files than they were made from.
        say: hears a line when a run starts and ends.
    """

    def __init__(
        self, arguments: Sequence[str], *, local: bool, jobs: int, say: Say, accept_changes: bool = False
    ) -> None:
        self._accept = ["--accept-changes"] if accept_changes else []
        self._arguments, self._local, self._say = list(arguments), local, say
        self.jobs = jobs
        self._stop = StopFlag()
        self.failed: list[Trial] = []

    def run(self, trials: Sequence[Trial]) -> None:
        """Returns when every run has finished or failed; `failed` then names those of all calls.

        Raises: StopRequested on SIGINT or SIGTERM, after the runs at work have stopped where they continue;
            ConfigError if a run is still at work for another sweep.
        """
        waiting = deque(trial for trial in trials if not trial.finished)
        if done := len(trials) - len(waiting):
            self._say(f"{done} of {len(trials)} runs are finished already")
        running: list[_Running] = []
        told = False
        with self._stop.listening(self._say):
            try:
                while running or (waiting and not self._stopping):
                    while waiting and len(running) < self.jobs and not self._stopping:
                        running.append(self._start(waiting.popleft()))
                    if self._stop.signal_number is not None and not told:
                        told = True
                        for run in running:
                            run.process.send_signal(self._stop.signal_number)
                    running = [run for run in running if not self._ended(run)]
                    time.sleep(POLL_S)
            finally:
                for run in running:
                    run.process.kill()
        if self._stop.signal_number is not None:
            raise StopRequested(self._stop.signal_number)

    @property
    def _stopping(self) -> bool:
        return self._stop.signal_number is not None

    def _start(self, trial: Trial) -> _Running:
        trial.directory.parent.mkdir(parents=True, exist_ok=True)
        log = trial.directory.with_name(f"{trial.name}.log").open("ab")
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the child has it too, and keeps it if we are killed
        except BlockingIOError:
            raise ConfigError(
                f"{trial.directory} is at work already, of a sweep that was killed; wait for it"
            ) from None
        if (trial.directory / "config.yaml").is_file():
            arguments, verb = ["--resume", str(trial.directory), *self._accept], "continues"
        else:
            trial.check_inputs()
            _remove_empty(trial)
            sets = [part for override in trial.overrides for part in ("--set", override)]
            arguments, verb = [*self._arguments, *sets, "--out", str(trial.directory)], "starts"
        command = [sys.executable, "-m", "raydense.cli", "train", *arguments, *(["--local"] if self._local else [])]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._say(f"{label(trial.settings)}, seed {trial.seed}: {verb}")
        return _Running(trial, process, log, time.monotonic())

    def _ended(self, run: _Running) -> bool:
        code = run.process.poll()
        if code is None:
            return False
        run.log.close()
        name, seconds = f"{label(run.trial.settings)}, seed {run.trial.seed}", time.monotonic() - run.started
        if code == 0:
            self._say(f"{name}: finished in {seconds:.0f} s")
        elif not self._stopping:  # else it stopped because we asked it to
            self.failed.append(run.trial)
            reason = f" ({_last_line(run.log.name)})" if code > 0 else ""  # a killed one did not say why
            self._say(f"{name}: failed with exit code {code}{reason}; see {run.log.name}")
        return True


def _last_line(log: str) -> str:
    """In which a command says why it ends."""
    lines = Path(log).read_text("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _remove_empty(trial: Trial) -> None:
    """What a run leaves that was killed before its first file: directories alone."""
    for path in sorted(trial.directory.glob("**/"), reverse=True):
        with suppress(OSError):
            path.rmdir()
