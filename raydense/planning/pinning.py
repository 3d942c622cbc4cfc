"""Which files a run is made of: they are pinned when it begins, and found again, or missed, when it continues.

A location is what the configuration has; where it is relative, it was resolved once. Whatever lies there now, its
checksum decides: a run that continues tries the resolved path, then the path as written, and takes the one that holds
what it began with. Its prompts it has itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from importlib.util import find_spec
from operator import getitem
from pathlib import Path

from raydense.config import Config, ConfigError
from raydense.diffusion.lora_files import KNOWN_FILES, PEFT_CONFIG
from raydense.files.durable import known_checksum
from raydense.pipelines.base_model import BaseModel, Checksums, differing, model_checksums
from raydense.pipelines.pipeline_files import FOLDERS
from raydense.planning.units import PromptSets
from raydense.prompts.prompt_sets import absolute, file_of, load_prompts
from raydense.records.inputs import Pin, kept_prompts, prompts_checksum, read_pins
from raydense.records.run_dir import RunDirectory
from raydense.sections.rewards import SingleScorerConfig

BASE_MODEL = "policy.model"
WHOLE = "."  # the part of an input that has no others
Look = Callable[[str, str | None], Checksums]  # location and revision → what lies there; empty: nothing that is known


@dataclass(frozen=True)
class Input:
    """A setting that names files. keys: where the configuration has it."""

    setting: str
    keys: tuple[str | int, ...]
    written: str
    look: Look
    revision: str | None = None

    def checksums(self, location: str) -> Checksums:
        return self.look(location, self.revision)

    def pinned(self, known: Checksums | None = None) -> Pin:
        """As it lies there now. Args: known: its checksums, where it has been read."""
        return Pin(self.written, self.resolved(self.written), known or self.checksums(self.written))

    def resolved(self, location: str) -> str:
        if self.keys[0] == "prompts":
            return absolute(location)
        path = Path(location).expanduser()
        return str(path.absolute()) if path.exists() else location


@dataclass(frozen=True)
class Pinned:
    """A run's inputs.

    config: the run's own, with each location where its input lies now.
    accepted: what differs from what the run was made from, a line each. notes: for the user.
    """

    config: Config
    pins: Mapping[str, Pin]
    accepted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def base_model(self) -> BaseModel:
        """For the processes that load it, whose reports complete what is known."""
        policy, pinned = self.config.policy, self.pins.get(BASE_MODEL)
        return BaseModel(policy.model, policy.revision, pinned.sha256 if pinned else {})

    def recorded(self, base: BaseModel) -> Pinned:
        """After `base` was loaded and all of this is in the run directory."""
        pins = {**self.pins, BASE_MODEL: replace(self.pins[BASE_MODEL], sha256=base.known)}
        return replace(self, pins=pins, accepted=())


def pin_inputs(config: Config, sets: PromptSets | None = None) -> Pinned:
    """The inputs of a run that begins; they must have been checked. Args: sets: its prompts, where they were read."""
    named = sets.named() if sets else {}
    known = {f"prompts.{name}": {WHOLE: prompts_checksum(prompts)} for name, prompts in named.items()}
    return Pinned(config, {one.setting: one.pinned(known.get(one.setting)) for one in inputs_of(config)})


def continue_inputs(
    config: Config, run: RunDirectory, *, accept_changes: bool, leave_out: tuple[str, ...] = ()
) -> Pinned:
    """The inputs of a run that continues, or is judged: those that it began with.

    Args:
        config: the run's, or one that shares some of its locations; others are taken as they are.
        accept_changes: whether to take what lies there now in the place of what has changed.
        leave_out: beginnings of settings that are not compared, as nobody reads what they name; prompts are the copy's.
    Raises: ConfigError naming everything that has changed or gone.
    """
    recorded, inputs = read_pins(run.root), inputs_of(config)
    if recorded is None:
        note = f"{run.shown} keeps no record of what it was made from; what lies there now is taken for it"
        return replace(pin_inputs(config), notes=(note,))
    pins = {one.setting: pin for one in inputs if (pin := recorded.get(one.setting)) and pin.written == one.written}
    places: dict[str, str] = {}
    changes = []
    for one in inputs:
        pinned = pins.get(one.setting)
        if one.setting.startswith(leave_out):
            places[one.setting] = (pinned and _copy(one, pinned, run)) or one.written
        elif pinned is None:
            pins[one.setting] = one.pinned()
        else:
            places[one.setting], found = _find(one, pinned, run)
            pins[one.setting] = replace(pinned, sha256={**found, **pinned.sha256})  # what was not known then is now
            if different := differing(pinned.sha256, found):
                changes.append(_describe(one.setting, places[one.setting], different))
                pins[one.setting] = Pin(one.written, one.resolved(places[one.setting]), found)
    if changes and not accept_changes:
        copy = any(change.startswith("prompts.") for change in changes)
        raise ConfigError(
            f"{run.shown} was made from other files than lie there now: {', '.join(changes)}; put them back"
            + (" (prompts may also go: the run has a copy)" if copy else "")
            + ", or go on with these by --accept-changes"
        )
    return Pinned(_relocated(config, places), pins, tuple(changes))


def pin_preferences(file: Path | None) -> dict[str, Pin]:
    """What `--preferences` names, if it is given."""
    if file is None:
        return {}
    return {"--preferences": Pin(str(file), str(file.absolute()), _look_at_file(str(file), None))}


def changed_inputs(before: Mapping[str, Pin], now: Mapping[str, Pin]) -> list[str]:
    """What differs between inputs, a line each."""
    return [
        _describe(setting, pin.written, different)
        for setting, pin in now.items()
        if setting in before and (different := differing(before[setting].sha256, pin.sha256))
    ]


def _describe(setting: str, place: str, parts: list[str]) -> str:
    named = ", ".join(part for part in parts if part != WHOLE)
    return f"{setting}={place}" + (f" ({named})" if named else "")


def _find(one: Input, pinned: Pin, run: RunDirectory) -> tuple[str, Checksums]:
    """Where an input lies now, and what lies there; what it was, if that is anywhere. Raises: ConfigError."""
    locations = list(dict.fromkeys((pinned.resolved, pinned.written)))
    there = {location: found for location in locations if (found := one.checksums(location))}
    same = [location for location, found in there.items() if not differing(pinned.sha256, found)]
    if (same or not there) and (copy := _copy(one, pinned, run)):
        return copy, pinned.sha256
    if there:
        place = (same or list(there))[0]
        return place, there[place]
    if Path(pinned.resolved).is_absolute():
        missing = " nor ".join(locations)
        raise ConfigError(f"{one.setting}={one.written} has gone: there is no {missing}; put it back")
    return one.written, {}


def _copy(one: Input, pinned: Pin, run: RunDirectory) -> str | None:
    """The run's own, of prompts, if it is sound."""
    copy = str(kept_prompts(run.root, str(one.keys[-1])))
    return copy if one.keys[0] == "prompts" and one.checksums(copy) == pinned.sha256 else None


def _relocated(config: Config, places: Mapping[str, str]) -> Config:
    values = config.model_dump(mode="json")
    for one in inputs_of(config):
        if one.setting in places:
            *parents, leaf = one.keys
            reduce(getitem, parents, values)[leaf] = places[one.setting]  # type: ignore[arg-type, index]
    return Config.model_validate(values)


# -- what is an input, and how its files are read ---------------------------------------------------------------


def inputs_of(config: Config) -> list[Input]:
    """Every setting of a configuration that names files."""
    policy, prompts = config.policy, config.prompts
    found = [Input("prompts.train", ("prompts", "train"), prompts.train, _look_at_prompts)]
    if prompts.unseen is not None:
        found.append(Input("prompts.unseen", ("prompts", "unseen"), prompts.unseen, _look_at_prompts))
    found.append(Input(BASE_MODEL, ("policy", "model"), policy.model, _look_at_pipeline, policy.revision))
    if policy.init_lora is not None:
        found.append(Input("policy.init_lora", ("policy", "init_lora"), policy.init_lora, _look_at_lora))
    return found + [one for keys, judge in _judges(config) for one in _inputs_of_judge(keys, judge)]


def _judges(config: Config) -> Iterator[tuple[tuple[str | int, ...], SingleScorerConfig]]:
    scorer = config.reward.scorer
    if scorer.kind == "mixture":
        for index, component in enumerate(scorer.components):
            yield ("reward", "scorer", "components", index, "scorer"), component.scorer
    else:
        yield ("reward", "scorer"), scorer
    for index, monitor in enumerate(config.reward.monitors):
        yield ("reward", "monitors", index), monitor


def _inputs_of_judge(keys: tuple[str | int, ...], judge: SingleScorerConfig) -> Iterator[Input]:
    for name, look in SCORER_FILES[judge.kind].items():
        if (written := getattr(judge, name)) is not None:
            revision = getattr(judge, "revision", None)
            yield Input(f"scorer {judge.name}: {name}", (*keys, name), written, look, revision)


def _look_at_prompts(location: str, revision: str | None) -> Checksums:
    """Of the prompts that are chosen, not of the file."""
    try:
        return {WHOLE: prompts_checksum(load_prompts(location).prompts)}
    except ValueError as error:
        return {WHOLE: str(error)} if file_of(location) else {}


def _look_at_pipeline(location: str, revision: str | None) -> Checksums:
    return model_checksums(location, revision, FOLDERS)


def _look_at_file(location: str, revision: str | None) -> Checksums:
    path = Path(location).expanduser()
    return {WHOLE: known_checksum(path)} if path.is_file() else {}


def _look_at_lora(location: str, revision: str | None) -> Checksums:
    path = Path(location).expanduser()
    files = [path, path.with_name(PEFT_CONFIG)] if path.is_file() else [path / n for n in (*KNOWN_FILES, PEFT_CONFIG)]
    return {file.name: known_checksum(file) for file in files if file.is_file()}


def _look_at_vocabulary(location: str, revision: str | None) -> Checksums:
    return _look_at_file(str(Path(location) / "vocab.txt"), revision)


def _look_at_source(target: str, revision: str | None) -> Checksums:
    """The file of `module:function`, not of what that imports; it may lie in the current directory too."""
    name = target.partition(":")[0]
    try:
        spec = find_spec(name)
    except Exception:  # whatever a user's package raises: the check of the scorer says so
        spec = None
    if spec and spec.has_location and spec.origin:
        return _look_at_file(spec.origin, revision)
    here = Path(*name.split("."))  # an installed command does not have it on Python's path before the scorer is made
    return _look_at_file(f"{here}.py", revision) or _look_at_file(str(here / "__init__.py"), revision)


SCORER_FILES: Mapping[str, Mapping[str, Look]] = {
    "clip": {"model": model_checksums},
    "aesthetic": {"clip_model": model_checksums, "head": _look_at_file},
    "hpsv2": {"checkpoint": _look_at_file},
    "imagereward": {"checkpoint": _look_at_file, "tokenizer": _look_at_vocabulary},
    "callable": {"target": _look_at_source},
    "http": {},
}
