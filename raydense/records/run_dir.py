"""The run directory: what is where, and that no run ever overwrites another."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydense.config import Config, ConfigError, load_run_config
from raydense.files.durable import json_if_there, write_text
from raydense.records.inputs import Pin, write_pins

if TYPE_CHECKING:  # it imports torch, for which `raydense status` does not wait
    from raydense.records.mirror import Mirror
    from raydense.records.scores import Judgement
    from raydense.sections.run import StepsConfig

FAILURE = "failure.json"
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's Jobs API sets it for the entry point of a job


def default_out(config: Config) -> Path:
    """runs/<name>-<time>, under the current directory. Raises: ConfigError under a Ray job."""
    _refuse_under_a_job("--out is missing")
    return Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"


def locate(location: str) -> tuple[Path, Mirror | None]:
    """The run directory that --out or --resume names; for a URI, the local copy of it and its mirror.

    Raises: ConfigError for a URI that cannot be reached, or for a relative path under a Ray job.
    """
    if "://" in location:
        from raydense.records.mirror import Mirror

        mirror = Mirror(location)
        return mirror.local, mirror
    path = Path(location).expanduser()
    if not path.is_absolute():
        _refuse_under_a_job(f"--out={location} is relative")
    return path, None


@contextlib.contextmanager
def here_until_done(mirror: Mirror | None, say: Callable[[str], None]) -> Iterator[None]:
    """Removes this machine's copy of a run at a URI when the run is done, or was refused; else says where it is."""
    all_is_there = True
    try:
        yield
    except BaseException as error:
        all_is_there = isinstance(error, ConfigError)
        raise
    finally:
        if mirror and all_is_there:
            mirror.remove_local()
        elif mirror:
            say(f"the copy of {mirror.uri} on this machine is kept in {mirror.local}")


def _refuse_under_a_job(problem: str) -> None:
    if JOB_VARIABLE in os.environ:
        raise ConfigError(f"{problem}, but a Ray job works in a copy that Ray deletes; give --out an absolute path")


def _close_to_others(root: Path) -> None:
    """Takes away what users outside owner and group may do; a directory of somebody else stays as it is."""
    with contextlib.suppress(PermissionError):
        root.chmod(stat.S_IMODE(root.stat().st_mode) & 0o770)


class RunDirectory:
    """Paths of one run, and its mirror if it lies at a URI."""

    def __init__(self, root: Path, mirror: Mirror | None = None) -> None:
        self.root, self._mirror = root, mirror

    @property
    def shown(self) -> str:
        """Where the user finds it."""
        return self._mirror.uri if self._mirror else str(self.root)

    @classmethod
    def create(cls, root: Path, config: Config, mirror: Mirror | None = None) -> RunDirectory:
        """Raises: ConfigError if the directory holds something already, or cannot be written."""
        run_dir = cls(root, mirror)
        try:
            used = not mirror.is_empty if mirror else root.exists() and (not root.is_dir() or any(root.iterdir()))
            if used:
                raise ConfigError(f"--out={run_dir.shown} is not empty and is never overwritten; give a new directory")
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _close_to_others(root)
            for directory in (run_dir.images, run_dir.checkpoints, run_dir.lora):
                directory.mkdir(parents=True, exist_ok=True)
            run_dir.write_config(config)
            run_dir.claim()
        except OSError as error:
            run_dir.discard()
            raise ConfigError(f"--out={root} cannot be written ({error.strerror}); give another directory") from None
        return run_dir

    def read_config(self, setting: str = "") -> Config:
        """The run's configuration. Args: setting: the option that named the directory. Raises: ConfigError."""
        if not self.config_file.is_file():
            shown = f"{setting}={self.shown}" if setting else self.shown
            raise ConfigError(f"{shown} holds no config.yaml; give the directory of a run")
        return load_run_config(self.config_file)

    def write_config(self, config: Config) -> None:
        write_text(self.config_file, config.to_yaml())

    def discard(self) -> None:
        """Removes a directory that `create` made, if no checkpoint was written into it."""
        if self.root.is_dir() and not any(self.checkpoints.glob("*")):
            shutil.rmtree(self.root, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.publish()

    def claim(self) -> None:
        """Raises: ConfigError if the mirror cannot be written; nothing to do for a run on this machine."""
        if self._mirror:
            self._mirror.claim(self.config_file.relative_to(self.root).as_posix())

    def publish(self) -> None:
        """Brings the mirror up to date; nothing to do for a run on this machine."""
        if self._mirror:
            self._mirror.push()

    @property
    def config_file(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def telemetry(self) -> Path:
        return self.root / "telemetry.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def lora(self) -> Path:
        return self.root / "lora"

    @property
    def last_step_lora(self) -> Path:
        """Beside `lora`, where that is an average."""
        return self.root / "lora-last-step"

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    @property
    def scheduler(self) -> Path:
        return self.root / "scheduler.json"

    @property
    def base_judgement(self) -> Path:
        return self.root / "scores-base.json"

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write_json("summary.json", summary)

    def write_failure(self, what: str) -> None:
        """Which batch stopped the run; with the seed and the step in it, the batch can be drawn again."""
        self._write_json(FAILURE, {"what": what})

    def forget_failure(self) -> None:
        """Of a process before, when the run goes on."""
        (self.root / FAILURE).unlink(missing_ok=True)

    def read_failure(self) -> str | None:
        """What stopped the run; None where nothing did, or where it went on."""
        found: dict[str, str] | None = json_if_there(self.root / FAILURE)
        return found["what"] if found else None

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Every single score behind the summary's means."""
        self._write_json("scores.json", scores)

    def write_base_judgement(self, judgement: Judgement) -> None:
        """The base model's scores, which a run that continues compares with."""
        self._write_json(self.base_judgement.name, judgement.as_lists())

    def read_base_judgement(self) -> Judgement | None:
        """None before the base model was judged, on the inputs that the run now has."""
        from raydense.records.scores import Judgement

        if not self.base_judgement.is_file():
            return None
        return Judgement.of_lists(json.loads(self.base_judgement.read_text("utf-8")))

    def write_scheduler(self, scheduler: Mapping[str, Any] | None, steps: StepsConfig) -> None:
        """The settings of the DDIMScheduler that takes the run's steps. Args: scheduler: the pipeline's, if known."""
        from raydense.diffusion.schedulers import ddim_settings

        if scheduler is not None and steps.dynamics in (None, "ddim"):
            self._write_json(self.scheduler.name, ddim_settings(scheduler, steps.count, steps.spacing))

    def read_scheduler(self) -> Mapping[str, Any] | None:
        """What `write_scheduler` wrote; None of a run of earlier code. Raises: ConfigError if it is damaged."""
        from raydense.files.weight_files import FileFault, read_json

        if not self.scheduler.is_file():
            return None
        try:
            return read_json(self.scheduler)
        except FileFault as fault:
            raise ConfigError(f"{self.scheduler} {fault}") from None

    def write_inputs(
        self, pins: Mapping[str, Pin], prompts: Mapping[str, Sequence[str]], accepted: Sequence[str] = ()
    ) -> None:
        """As `write_pins`; where other inputs were accepted, what the base model scored on the former ones goes."""
        if accepted:
            self.base_judgement.unlink(missing_ok=True)  # first: a kill in between leaves what is to be accepted again
        write_pins(self.root, pins, prompts, accepted)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_text(self.root / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
