"""A setting that another one switches off is refused in a line; what stands in an earlier run's file is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config, ConfigError, changed_config, load_config, load_run_config, resumed_config

HTTP = "{kind: http, name: served, url: 'https://host/score', backoff_s: 2, retries: "
ORACLE = "reward.monitors=[{kind: callable, name: oracle, target: 'raydense.tiny.oracle:score'}]"
# an override; what it says, and what beside it makes the setting act, and what says so
IDLE = [
    ("train.clip_share=0.2", "beside train.clip=0.01; set train.clip=auto, or leave it at 0.05", "train.clip=auto"),
    ("learner.cache_references=true", "beside train.reg_to_pi_init=false; leave it at auto",
     "train.reg_to_pi_init=true"),
    ("learner.timeout_s=60", "beside learner.num_workers=1; raise that, or leave it at 600", "learner.num_workers=2"),
    ("replay.keep_segments=true", "beside replay.segments=false; set that to true, or leave it at false",
     "replay.segments=true"),
    ("telemetry.wandb_project=mine", "beside telemetry.wandb=null; set that to online or offline, or leave it at rayd",
     "telemetry.wandb=offline"),
    ("telemetry.wandb_entity=us", "beside telemetry.wandb=null; set that to online or offline, or leave it at null",
     "telemetry.wandb=online"),
    ("policy.text_encoder_lora=leave_out", "without policy.init_lora; name a LoRA there, or leave it at refuse",
     "policy.init_lora=some.safetensors"),
]  # fmt: skip
SWITCHED_OFF = ["train.reg_to_pi_init=false", "train.reg_to_pi_old=true", "sampler.exact=true", "replay.segments=false"]


@pytest.fixture
def file(small_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_values))
    return path


@pytest.mark.parametrize(("override", "said", "switch"), IDLE)
def test_what_another_setting_switches_off_is_refused_beside_it_alone(
    override: str, said: str, switch: str, file: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides=[*SWITCHED_OFF, override])
    assert f"{override} is not read {said}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load_config(file, overrides=[*SWITCHED_OFF, override, switch])


@pytest.mark.parametrize(
    ("place", "retries", "taken"), [("scorer", 1, False), ("monitors", 0, False), ("scorer", 2, True)]
)
def test_a_pause_between_retries_wants_two_of_them(place: str, retries: int, taken: bool, file: Path) -> None:
    judge = f"{HTTP}{retries}}}"
    override = f"reward.{place}={judge}" if place == "scorer" else f"reward.{place}=[{judge}]"
    if taken:
        assert load_config(file, overrides=[override])
        return
    with pytest.raises(ConfigError, match=f"^scorer served: backoff_s=2 is not read beside its retries={retries}; all"):
        load_config(file, overrides=[override])


def test_every_such_setting_has_its_line(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides=[*SWITCHED_OFF, *(override for override, *_ in IDLE)])
    assert [line.partition(" is not read ")[0] for line in str(caught.value).splitlines()] == [o for o, *_ in IDLE]


def test_an_earlier_runs_file_is_read_as_it_is_and_may_be_continued(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = small_config(train={"clip_share": 0.2}, telemetry={"wandb_project": "mine"})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    earlier = load_run_config(tmp_path / "config.yaml")
    assert earlier == config
    assert resumed_config(earlier, ["checkpoint.keep_last=1"]).train.clip_share == 0.2
    with pytest.raises(ConfigError, match=r"telemetry\.wandb_entity=us is not read beside telemetry\.wandb=null"):
        resumed_config(earlier, ["telemetry.wandb_entity=us"])


def test_an_evaluation_reads_what_becomes_of_a_text_encoders_part(small_config: Callable[..., Config]) -> None:
    overrides = ["policy.text_encoder_lora=leave_out"]
    assert changed_config(small_config(), overrides, ["policy"], "it").policy.text_encoder_lora == "leave_out"


def test_the_command_says_it_with_its_exit_code(file: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(file), "--set", "train.clip_share=0.2", "--dry-run"])
    assert result.exit_code == 2
    assert "train.clip_share=0.2 is not read beside train.clip=0.01" in result.stderr
