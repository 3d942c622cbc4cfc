"""`raydense sweep`: what is to be run. One plain run a combination of settings and seed, each in its own directory."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from raydense.config import Config, ConfigError, changed_settings, load_config, load_run_config
from raydense.core.messages import first_few
from raydense.planning.pinning import changed_inputs, pin_inputs
from raydense.planning.preflight import as_found, check_inputs
from raydense.records.inputs import Pin, read_pins
from raydense.sections.values import split_values

Settings = tuple[tuple[str, str], ...]  # key and value, in the order of --arm and --grid
ARM_COMMA = re.compile(r",(?=\s*[\w.]+=)")  # after which the next setting begins
SEEDS, MOST_SEEDS = re.compile(r"([0-9]+)(?:-([0-9]+))?"), 1000
HARMLESS = ("name", "samplers", "replay", "checkpoint", "telemetry")  # they change no score


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. settings: of the grid; overrides: all that its command line sets; pins: of its inputs."""

    settings: Settings
    seed: int
    overrides: tuple[str, ...]
    config: Config
    directory: Path
    pins: Mapping[str, Pin] = field(default_factory=dict)

    def check_inputs(self) -> None:
        """Raises: ConfigError if what the sweep began with has changed."""
        if changed := changed_inputs(self.pins, pin_inputs(self.config).pins):
            raise ConfigError(f"{', '.join(changed)}: changed since the sweep began; put them back, then continue it")

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def finished(self) -> bool:
        return (self.directory / "summary.json").is_file()


def label(settings: Settings) -> str:
    """As tables show it: `gamma=0.8, exclude_last=2`; with the section where several have such a setting."""
    return ", ".join(f"{_short(key)}={value}" for key, value in settings) or "as configured"


def leading(settings: Sequence[Settings]) -> int:
    """How many leading settings tell all of these apart: what a table or a legend names them by."""
    different = list(dict.fromkeys(settings))
    longest = max(map(len, different), default=0)
    return next((n for n in range(1, longest) if len({one[:n] for one in different}) == len(different)), longest)


def _short(key: str) -> str:
    name = key.rpartition(".")[2]
    return name if _sections_with(name) <= 1 else key


@cache
def _sections_with(name: str) -> int:
    fields = [getattr(field.annotation, "model_fields", {}) for field in Config.model_fields.values()]
    return sum(name in section for section in fields)


def parse_grid(options: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`key=v1,v2` of each --grid: values by key, as --set takes them; one with a comma has brackets or quotes.

    Raises: ConfigError for what is not of this form, and for a key or a value that is there twice.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for option in options:
        key, equals, text = option.partition("=")
        try:
            values = split_values(text)
        except ValueError:
            values = []
        again = len(set(values)) < len(values) or key in grid
        if not equals or not key or not values or again or key == "seed":
            raise ConfigError(
                f"--grid {option!r}: expected key=value,value, each key once and each value once, such as "
                "--grid steps.gamma=0.8,1 (--seeds sets the seeds)"
            )
        grid[key] = tuple(values)
    return grid


def parse_arms(options: Sequence[str], grid: Mapping[str, Sequence[str]]) -> list[Settings]:
    """`key=v,key=v` of each --arm: settings that go together, where a grid would combine each with each.

    Raises: ConfigError for what is not of this form, and for a key that is there twice or in the grid too.
    """
    arms: list[Settings] = []
    for option in options:
        parts = [part.partition("=") for part in ARM_COMMA.split(option)]
        arm = tuple((key.strip(), value.strip()) for key, _, value in parts)
        keys = [key for key, _ in arm]
        whole = all(key and _is_one_value(value) for key, value in arm)
        if not whole or sorted(arm) in map(sorted, arms) or len(set(keys)) < len(keys) or {"seed", *grid} & set(keys):
            raise ConfigError(
                f"--arm {option!r}: expected key=value,key=value, each arm once, no key of --grid or --seeds, such as "
                "--arm steps.gamma=1,train.lr=1e-4"
            )
        arms.append(arm)
    return arms


def _is_one_value(text: str) -> bool:
    try:
        return split_values(text) == [text]
    except ValueError:
        return False


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """`101,102` or `101-110` or both. Raises: ConfigError unless it is a list of different whole numbers."""
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        ends = SEEDS.fullmatch(part.strip())
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not 0 <= last - first < MOST_SEEDS:
            raise ConfigError(
                f"--seeds={text}: expected different whole numbers and ranges of up to {MOST_SEEDS:,}, such as "
                "--seeds 101,102,103 or --seeds 101-120"
            )
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds={text}: expected different whole numbers; one is there twice")
    return tuple(seeds)


def more_seeds(seeds: Sequence[int], count: int) -> tuple[int, ...]:
    """The given ones, and then the numbers that follow the largest of them, until there are `count`."""
    return (*seeds, *range(max(seeds) + 1, max(seeds) + 1 + count - len(seeds)))


def find_setting(option: str, text: str, known: Sequence[Settings]) -> Settings:
    """The one that a person names as a table shows it (`gamma=0.8, exclude_last=2`) or by whole keys, or by as many of
    its leading settings as no other begins with.

    Raises: ConfigError if none or more than one has this name.
    """
    wanted = "".join(text.split())

    def is_called(settings: Settings, count: int) -> bool:
        some = settings[:count]
        return wanted in {"".join(name.split()) for name in (label(some), ",".join(f"{k}={v}" for k, v in some))}

    whole = [settings for settings in known if is_called(settings, len(settings))]
    found = whole or [s for s in known if any(is_called(s, count) for count in range(1, len(s)))]
    if len(found) != 1:
        shown = first_few([repr(label(settings)) for settings in known])
        raise ConfigError(f"{option}={text}: names {len(found)} settings of this sweep; give one of {shown}")
    return found[0]


def plan_sweep(
    out: Path,
    config_file: Path | None,
    preset: str | None,
    overrides: Sequence[str],
    grid: dict[str, tuple[str, ...]],
    seeds: tuple[int, ...] | None,
    accept_changes: bool = False,
    arms: Sequence[Settings] = (),
) -> list[Trial]:
    """Every run of the sweep: the settings in the order of arms and grid, and each with every seed.

    Args:
        accept_changes: whether runs that are there may be of other files.
        arms: each is combined with all of the grid.
    Raises: ConfigError if one of them cannot start, if what --set says holds in none of them, or if `out` holds a run
        of that name with other settings or made from other files.
    """
    _check_overrides(overrides, arms, grid, seeds)
    trials: list[Trial] = []
    known: list[tuple[Config, Settings]] = []
    for arm, values in itertools.product(arms or [()], itertools.product(*grid.values())):
        settings = (*arm, *zip(grid, values, strict=True))
        changes = (*overrides, *(f"{key}={value}" for key, value in settings))
        own = load_config(config_file, preset, list(changes))
        if same := next((label(other) for before, other in known if before == own), None):
            raise ConfigError(f"{label(settings)} is {same} in other words: nothing to compare; leave one of them out")
        known.append((own, settings))
        config = as_found(own, check_inputs(own).pipeline)
        pins = pin_inputs(own).pins
        for seed in seeds or (own.seed,):
            seeded, directory = config.model_copy(update={"seed": seed}), out / _directory_name(settings, seed)
            trials.append(Trial(settings, seed, (*changes, f"seed={seed}"), seeded, directory, pins))
    for trial in trials:
        _check_same(trial)
    if (changed := changes_since(trials)) and not accept_changes:
        raise ConfigError(f"{'; '.join(changed)}; give another --out, or go on by --accept-changes")
    return trials


def _check_overrides(
    overrides: Sequence[str], arms: Sequence[Settings], grid: Mapping[str, Sequence[str]], seeds: Sequence[int] | None
) -> None:
    """What --set gives must hold in one run at least."""
    everywhere = set.intersection(*({key for key, _ in arm} for arm in arms)) if arms else set()
    setters = {**dict.fromkeys(everywhere, "every --arm"), **dict.fromkeys(grid, "--grid")}
    setters |= {"seed": "--seeds"} if seeds else {}
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in setters:
            raise ConfigError(f"--set {override}: {setters[key]} sets {key} too; leave one of them out")


def check_pairs(trials: Sequence[Trial]) -> None:
    """Raises: ConfigError if there is no difference of two settings over seeds."""
    arms, seeds = len({trial.settings for trial in trials}), len({trial.seed for trial in trials})
    if arms < 2 or seeds < 2:
        raise ConfigError(
            f"--paired compares two settings or more over two seeds or more, and this sweep has {arms} and {seeds}; "
            "such as --grid steps.gamma=0.8,1 --seeds 101-110"
        )


def changes_since(trials: Sequence[Trial]) -> list[str]:
    """A line for each run that is there and was made from other files than the sweep reads now."""
    before = [(trial, read_pins(trial.directory) or {}) for trial in trials]
    return [
        f"{trial.directory} was made from another {', '.join(changed)}"
        for trial, pins in before
        if (changed := changed_inputs(pins, trial.pins))
    ]


def _check_same(trial: Trial) -> None:
    """A run that is there already must be the one that this sweep would make."""
    file = trial.directory / "config.yaml"
    if file.is_file() and (different := changed_settings(load_run_config(file), trial.config, HARMLESS)):
        raise ConfigError(f"{trial.directory} is of another sweep ({'; '.join(different)}); give another --out")


def _directory_name(settings: Settings, seed: int) -> str:
    """Readable, and different for different settings."""
    text = ",".join(f"{key}={value}" for key, value in (*settings, ("seed", str(seed))))
    name = re.sub(r"[^\w.,=-]+", "_", text)[:150]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
