"""Who takes a run's metrics beside its JSON lines: TensorBoard's event files, and Weights & Biases if asked."""

from __future__ import annotations

import netrc
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from raydense.config import Config, ConfigError
from raydense.core.messages import one_line
from raydense.files.durable import write_text
from raydense.records.metrics import MetricSink
from raydense.records.run_dir import RunDirectory

WANDB_PATIENCE_S = 60.0  # for its last upload


class TensorBoardSink:
    """A new event file in `directory` for every process of a run, each row written before the next is asked for.

    The file is written by tensorboardX's writer without its thread, whose death would let a full queue stop a run.

    Args:
        purge_step: TensorBoard hides what earlier files have from this step on: a run that continues writes it anew.
    """

    def __init__(self, directory: Path, purge_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        number = len(list(directory.glob("events.out.tfevents.*")))  # two files of one second must differ
        self._events = EventsWriter(str(directory / "events"), f".{number:04d}")
        self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        parts = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=parts))

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        from tensorboardX import summary

        self._write(step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(step=step, wall_time=time.time(), **content))
        self._events.flush()


class WandbSink:
    """One Weights & Biases run a raydense run, however often that continues; its id is kept in the run directory.

    Offline runs lie in the run directory's wandb/, for `wandb sync`.
    """

    def __init__(self, config: Config, root: Path) -> None:
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            init_timeout=30,
            x_disable_stats=True,
            x_graphql_retry_max=3,  # else a server out of reach holds the process for minutes after its end
            x_graphql_timeout_seconds=10,
        )
        telemetry = config.telemetry
        self._run = wandb.init(
            project=telemetry.wandb_project,
            entity=telemetry.wandb_entity,
            name=config.name,
            id=_stored_id(root / "wandb-id.txt"),
            resume="allow" if telemetry.wandb == "online" else None,
            mode=telemetry.wandb,
            dir=str(root),
            config=config.model_dump(mode="json"),
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self) -> None:
        """Waits for the last upload, but not for ever."""
        end = threading.Thread(target=self._run.finish, name="wandb-finish", daemon=True)
        end.start()
        end.join(WANDB_PATIENCE_S)


def _stored_id(path: Path) -> str:
    if not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text("utf-8")


def open_sinks(config: Config, run_dir: RunDirectory, purge_step: int, warn: Callable[[str], None]) -> list[MetricSink]:
    """The sinks that the configuration asks for; one that does not open is said and left out.

    Args:
        purge_step: the first gradient step that is still to come.
    """
    wanted: dict[str, Callable[[], MetricSink]] = {}
    if config.telemetry.tensorboard:
        wanted["TensorBoard"] = lambda: TensorBoardSink(run_dir.tensorboard, purge_step)
    if config.telemetry.wandb:
        wanted["Weights & Biases"] = lambda: WandbSink(config, run_dir.root)
    sinks = []
    for name, open_sink in wanted.items():
        try:
            sinks.append(open_sink())
        except Exception as error:  # of the network, the file system or the library: the run needs none of them
            reason = one_line(error)
            warn(f"{name} cannot be opened ({reason}); the run goes on without it")
    return sinks


def check_telemetry(config: Config) -> None:
    """Raises: ConfigError if Weights & Biases is asked for and not installed, or has no key."""
    mode = config.telemetry.wandb
    if mode is None:
        return
    if find_spec("wandb") is None:
        raise ConfigError(f"telemetry.wandb={mode} needs wandb; pip install 'raydense[wandb]', or set it to null")
    if mode == "online" and not _has_wandb_key():
        raise ConfigError("telemetry.wandb=online finds no key; set WANDB_API_KEY, run `wandb login`, or use offline")


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
