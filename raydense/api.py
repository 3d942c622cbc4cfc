"""The Python API, as `raydense.train` and `raydense.Run`: what notebooks and scripts need, typed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from raydense.config import Config, ConfigError, load_config, preset_names, validated_config
from raydense.core.terminal import open_console
from raydense.diffusion.lora import FILE_NAME
from raydense.records.metrics import read_rows
from raydense.records.progress import ProgressDisplay
from raydense.records.run_dir import RunDirectory, default_out, locate
from raydense.records.scores import read_scores
from raydense.training.summary import read_summary

Kind = Literal["step", "stage", "evaluation"]


class Run:
    """A run in its directory, finished or not; everything is read when it is asked for.

    run = raydense.Run.open("runs/seven")
    run.metrics("stage").to_pandas().plot(x="step", y="reward/mean")
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Raises: ConfigError if there is no run."""
        root = Path(path).expanduser()
        return cls(root, RunDirectory(root).read_config())

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """Scores before and after, times and versions; None before the run has finished."""
        return read_summary(self.path)

    @property
    def lora(self) -> Path:
        """The file for `StableDiffusionPipeline.load_lora_weights`; there from the first checkpoint on."""
        return RunDirectory(self.path).lora / FILE_NAME

    def metrics(self, kind: Kind | None = None) -> pa.Table:
        """The rows of metrics.jsonl, a column a name, null where a row has no such number.

        Args: kind: of the rows; None: all. `.to_pandas()` turns the table into a data frame, where pandas is installed.
        """
        rows = read_rows(RunDirectory(self.path).metrics)
        return _table([row for row in rows if kind is None or row["kind"] == kind])

    def telemetry(self) -> pa.Table:
        """The rows of telemetry.jsonl: times, samplers, retries, the ledger."""
        return _table(list(read_rows(RunDirectory(self.path).telemetry)))

    def scores(self) -> pa.Table:
        """Every single score: a row a picture and judge, with `prompts` (the set), `prompt`, `picture`, before, after.

        `last_step` too, where `after` is of averaged weights (`train.ema`). Empty before the run has finished.
        """
        found = read_scores(self.path)
        rows: list[dict[str, Any]] = []
        for name, judges in (found.judged if found else {}).items():
            for judge, paired in judges.items():
                values = {"before": paired.before, "after": paired.after}
                if found and found.last_step:
                    values["last_step"] = found.last_step[name][judge].after
                rows += [
                    {"prompts": name, "prompt": prompt, "picture": i, "judge": judge}
                    | {when: scores[row, i] for when, scores in values.items()}
                    for row, prompt in enumerate(found.prompts[name] if found else ())
                    for i in range(paired.before.shape[1])
                ]
        return _table(rows)


def train(
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    overrides: Sequence[str] = (),
    local: bool = False,
    show: bool = True,
) -> Run:
    """Trains, as `raydense train` does; returns the finished run.

    Args:
        config: a Config, its values (or `preset` and what differs from it), a preset's name or a YAML file; None: the
            embedded default.
        out: a new directory; None: runs/NAME-TIME.
        overrides: `key=value`, as of --set.
        local: in this process, without Ray.
        show: whether to print progress.
    Raises: ConfigError before any work if something does not fit; StopRequested on SIGINT or SIGTERM. Call it from the
        main thread, which is where Python takes signals.
    """
    from raydense.training.run import train as run_train

    whole = _config(config, list(overrides))
    if out is not None and "://" in os.fspath(out):
        raise ConfigError(f"out={out} is a URI; give a directory, or use the command line")
    root = locate(os.fspath(out))[0] if out is not None else default_out(whole)
    run_train(whole, root, local=local, display=ProgressDisplay(open_console(quiet=not show)))
    return Run.open(root)


def _config(config: Config | Mapping[str, Any] | str | os.PathLike[str] | None, overrides: list[str]) -> Config:
    if isinstance(config, Config | Mapping):
        values = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
        return validated_config(values, overrides)
    if config is None or (isinstance(config, str) and config in preset_names()):
        return load_config(preset=config, overrides=overrides)
    return load_config(Path(config), overrides=overrides)


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})
