"""The configuration: presets, overrides, and one plain line for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from raydense.config import Config, ConfigError, load_config, preset_names


@pytest.fixture
def small_file(small_values: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_values))
    return file


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(preset=name)
    (tmp_path / "resolved.yaml").write_text(config.to_yaml(), "utf-8")
    assert load_config(tmp_path / "resolved.yaml") == config


def test_the_embedded_preset_is_the_default() -> None:
    assert load_config() == load_config(preset="tiny")
    assert load_config().name == "tiny"


def test_the_resolved_configuration_names_every_setting(small_config: Callable[..., Config]) -> None:
    resolved = yaml.safe_load(small_config().to_yaml())
    assert set(resolved) == {"format", *Config.model_fields}
    assert resolved["train"]["betas"] == [0.9, 0.999]  # a default, written out
    assert resolved["steps"]["eta"] == 1.0


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("train.clip=1e-4", ("train", "clip"), 1e-4),  # YAML itself would read text
        ("train.lr=3e-5", ("train", "lr"), 3e-5),
        ("train.betas=[0.8, 0.9]", ("train", "betas"), (0.8, 0.9)),
        ("prompts.unseen=null", ("prompts", "unseen"), None),
        ("sampler.shared_noise=true", ("sampler", "shared_noise"), True),
        ("name=a=b", ("name",), "a=b"),
        ("name=run #7", ("name",), "run #7"),  # YAML would begin a comment
        ("name = 1e5", ("name",), "1e5"),  # a text, as the setting is
        ("policy.revision=0123456", ("policy", "revision"), "0123456"),
        ("seed=010", ("seed",), 10),  # YAML 1.1: 8
        ("seed=1_000", ("seed",), 1000),
        ("sampler.shared_noise=yes", ("sampler", "shared_noise"), True),
        ("reward.scorer={kind: hpsv2, name: no #1}", ("reward", "scorer", "name"), "no #1"),
        ("evaluate.prompts=5", ("evaluate", "prompts"), 5),  # a section the file need not have
        ("learner.micro_batch=2", ("learner", "micro_batch"), 2),
    ],
)
def test_an_override_sets_one_value(small_file: Path, override: str, path: tuple[str, ...], value: Any) -> None:
    changed, before = load_config(small_file, overrides=[override]), load_config(small_file)
    found: Any = changed
    for key in path:
        found = getattr(found, key)
    assert found == value
    difference = {k for k in Config.model_fields if getattr(changed, k) != getattr(before, k)}
    assert difference == {path[0]}


def test_the_last_of_equal_overrides_wins(small_file: Path) -> None:
    assert load_config(small_file, overrides=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.learning_rate=1", "train.learning_rate is not a setting; allowed here: objective, batch_groups"),
        ("train.cilp=1", "(did you mean clip?)"),
        ("reward.scorer.modle=x", "reward.scorer.modle is not a setting"),
        ("stages.count=2", "(did you mean stage?)"),
        ("seed", "--set 'seed': expected key=value"),
        ("=3", "--set '=3': expected key=value"),
        ("seed.x=3", "seed is not a section"),
        ("train.lr=[1", "the value is not valid YAML"),
        ("prompts.unseen=", "--set 'prompts.unseen=': a value is missing; give one, null for none"),
        ("seed=1:30", "seed='1:30': input should be a valid integer"),  # YAML 1.1: 90
        ("reward.scorer=kind: clip", "reward.scorer='kind: clip': input should be a valid dictionary"),
        ("train.lr=fast", "train.lr='fast': input should be a valid number"),
        ("train.lr=0", "train.lr=0: input should be greater than 0"),
        ("train.lr=.inf", "train.lr=inf: input should be a finite number"),
        ("train.clip=nan", "train.clip=nan"),
        ("train.betas=[0.9, 1.0]", "train.betas"),
        ("train.batch_groups=9", "train.batch_groups=9 exceeds the 5 groups of a stage; lower it or raise"),
        ("train.tuple_size=4", "train.tuple_size=4 exceeds sampler.keep=3"),
        ("train.tuple_size=1", "train.tuple_size=1: input should be greater than or equal to 2"),
        (
            "train.tuple_size=13",
            "tuple_size=13 has too many orders to sum over for ties=marginal; lower it to 12 or set",
        ),
        ("train.ties=none", "train.ties='none': input should be 'marginal' or 'random'"),
        ("train.tuple_choice=best", "train.tuple_choice='best': input should be 'random' or 'best_worst'"),
        ("train.reg_to_pi_init=false", "the loss needs a reference policy"),
        ("train.ema=0", "train.ema=0: input should be greater than 0"),
        ("train.ema=1", "train.ema=1: input should be less than 1"),
        ("train.ema=true", "train: ema=true should be a number, not true or false"),
        ("train.ema_rollouts=true", "ema_rollouts=true rolls out with an average that ema=null does not keep; set ema"),
        ("train.objective=ppo", "train.objective='ppo': input should be 'dense_preference', 'trajectory_preference'"),
        ("train.objective=policy_gradient", "objective=policy_gradient needs log-probabilities that the sampler comp"),
        ("train.kl=0.1", "train.kl=0.1 is not read by train.objective=dense_preference; leave it at 0"),
        ("train.dpo_beta=3", "train.dpo_beta=3 is not read by train.objective=dense_preference; leave it at 5000"),
        ("train.reg_to_pi_old=true", "as the learner does; set sampler.exact=true too"),
        ("sampler.keep=5", "keep=5 exceeds trajectories=4; lower keep"),
        ("sampler.keep=1", "sampler.keep=1: input should be greater than or equal to 2"),
        ("sampler.storage_dtype=bfloat16", "input should be 'float16' or 'float32'"),
        ("steps.eta=0", "steps.eta=0: input should be greater than 0"),
        ("steps.gamma=1.5", "steps.gamma=1.5: input should be less than or equal to 1"),
        ("steps.exclude_last=4", "exclude_last=4 leaves no step of count=4"),
        ("steps.count=2.5", "steps.count=2.5: input should be a valid integer"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("policy.model=null", "policy.model=None: input should be a valid string"),
        ("policy.lora_targets=[]", "policy.lora_targets"),
        ("reward.scorer.kind=hps", "reward.scorer.kind='hps': input should be"),
        ("reward.scorer.model=null", "reward.scorer.model=None: input should be a valid string"),
        ("reward.scorer={kind: callable, name: x, target: nocolon}", "as module:function, got 'nocolon'"),
        ("reward.monitors=[{kind: callable, name: clip, target: 'a:b'}]", "scorer names must differ"),
        ("reward.scorer.name=a/b", "reward.scorer.name: 'a/b' becomes part of a file's name; give 1 to 100 characters"),
        ("reward.monitors=[{kind: callable, name: .x, target: 'a:b'}]", "reward.monitors.0.name: '.x' becomes part"),
        ('name="a\\ud83d"', "name='a\\ud83d' holds \\ud83d, half of a character or a byte that is no UTF-8; write it"),
        ("prompts.train=\udcff.txt", "prompts: train='\\udcff.txt' holds \\udcff, half of a character or a byte"),
        ("sampler=3", "sampler=3: input should be a valid dictionary"),
    ],
)
def test_a_mistake_is_explained_in_a_line(small_file: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(small_file, overrides=[override])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_reference_out_of_the_sampler_needs_one_that_computes_as_the_learner_does() -> None:
    config = load_config(overrides=["train.reg_to_pi_old=true", "sampler.exact=true"])
    assert (config.train.reg_to_pi_old, config.sampler.exact) == (True, True)


def test_a_scorers_name_may_have_a_dot_inside() -> None:
    config = load_config(overrides=["reward.scorer={kind: hpsv2, name: hpsv2.1, version: v2.1}"])
    assert config.reward.scorer.name == "hpsv2.1"


def test_every_mistake_is_told_at_once(small_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(small_file, overrides=["seed=-1", "train.lr=0", "steps.gama=1"])
    assert sorted(line.split("=")[0].split(" ")[0] for line in str(caught.value).splitlines()) == [
        "seed",
        "steps.gama",
        "train.lr",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"a: [1", "is not valid YAML"),
        (b"- 1\n- 2\n", "must be a mapping of sections, got list"),
        (b"", "must be a mapping of sections, got NoneType"),
        (b"name: \xff\n", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--preset=tinny is unknown; allowed: .*tiny.*did you mean tiny"):
        load_config(preset="tinny")


def test_a_configuration_cannot_be_changed(small_config: Callable[..., Config]) -> None:
    config = small_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.train.lr = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.labels={zone: '$'}", "learner.labels: {'zone': '$'} selects no node; expected a label and value"),
        ("samplers.labels={a b: c}", "samplers.labels: {'a b': 'c'} selects no node"),
        ("samplers.labels={zone: 3}", "samplers.labels.zone=3: input should be a valid string"),
    ],
)
def test_labels_that_ray_would_not_take(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert str(caught.value).startswith(said)


def test_the_learner_is_kept_off_spot_nodes_unless_told_otherwise() -> None:
    assert load_config().learner.labels == {"ray.io/market-type": "!spot"}
    assert load_config(overrides=["learner.labels={}"]).learner.labels == {}
    one = load_config(overrides=["samplers.labels.raydense/role=in(a, b)"])
    assert one.samplers.labels == {"raydense/role": "in(a, b)"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.micro_batch=0", "learner.micro_batch=0: input should be greater than or equal to 1, or 'auto'"),
        ("sampler.unit_prompts=0", "sampler.unit_prompts=0: input should be greater than or equal to 1, or 'auto'"),
        ("train.clip=-1", "train.clip=-1: input should be greater than 0, or 'auto'"),
        ("policy.compile=2", "policy.compile=2: input should be a valid boolean, unable to interpret input, or 'auto'"),
    ],
)  # fmt: skip
def test_of_a_setting_of_several_kinds_there_is_one_line(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("policy_gradient steps.balance=sensitivity", "steps.balance=sensitivity is not read by"),
        ("policy_gradient train.reg_to_pi_init=false", "train.reg_to_pi_init=false is not read by"),
        ("policy_gradient train.reg_to_pi_old=true", "train.reg_to_pi_old=true is not read by"),
        ("policy_gradient train.no_reg_warmup_ratio=0.5", "train.no_reg_warmup_ratio=0.5 is not read by"),
        ("policy_gradient train.dpo_beta=1", "train.dpo_beta=1 is not read by"),
        ("diffusion_dpo train.kl=1", "train.kl=1 is not read by"),
        ("policy_gradient learner.cache_references=false", "learner.cache_references=false is not read by train.obj"),
        ("policy_gradient train.c=5", "train.c=5: train.objective=policy_gradient does not read it; leave it out, or"),
        ("policy_gradient train.ties=random", "train.ties=random: train.objective=policy_gradient does not read it"),
        ("diffusion_dpo train.clip_share=0.1", "train.clip_share=0.1 is not read by train.objective=diffusion_dpo"),
        ("diffusion_dpo train.c=5", "train.c=5: train.objective=diffusion_dpo does not read it; leave it out"),
        ("diffusion_dpo train.clip=auto", "train.clip=auto: train.objective=diffusion_dpo does not read it"),
        ("diffusion_dpo steps.gamma=1", "steps.gamma=1: train.objective=diffusion_dpo does not read it; leave it out"),
        ("diffusion_dpo steps={count: 4, gamma: 0.7}", "steps.gamma=0.7: train.objective=diffusion_dpo does not rea"),
        ("trajectory_preference steps={count: 4, gamma: 0.5}", "train.objective=trajectory_preference is γ = 1; le"),
        ("diffusion_dpo train.tuple_size=3", "train.objective=diffusion_dpo learns from pairs; set it to 2"),
        ("trajectory_preference steps.gamma=0.5", "steps.gamma=0.5: train.objective=trajectory_preference is γ = 1"),
        ("trajectory_preference  steps.gamma =0.5", "steps.gamma=0.5: train.objective=trajectory_preference is γ = 1"),
    ],
)
def test_what_an_objective_does_not_read_is_refused(small_file: Path, overrides: str, said: str) -> None:
    objective, other = overrides.split(" ", 1)
    settings = ["sampler.exact=true", f"train.objective={objective}", other]
    with pytest.raises(ConfigError) as caught:
        load_config(small_file, overrides=settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.objective=policy_gradient", "sampler.exact=true", "train.kl=0.1", "train.clip=auto"],
        ["train.objective=diffusion_dpo", "train.dpo_beta=50", "steps={count: 4, window: [1, 3]}"],
        ["train.objective=diffusion_dpo"],  # beside the file's own C, δ and γ
        ["train.objective=trajectory_preference", "steps.gamma=1"],
        ["train.objective=trajectory_preference"],  # beside the file's own γ
        ["train.objective=dense_preference", "steps.gamma=0.5"],
    ],
)
def test_what_an_objective_reads_is_taken(small_file: Path, overrides: list[str]) -> None:
    assert load_config(small_file, overrides=overrides).train.objective == overrides[0].partition("=")[2]
