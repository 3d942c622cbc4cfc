"""torch.compile: rounds elsewhere, compiles once for all batch sizes, and what it lacks is said before work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from small_families import write_flux, write_sd3
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from learner.batching import draw_batch
from learner.losses import step_weights
from learner.objective import preference_loss
from learner.references import ReferenceCache
from learner.transitions import gather_transitions
from raydense.cli import app
from raydense.core.types import PolicyWeights
from raydense.diffusion import compiler
from raydense.diffusion.flow import Levels
from raydense.diffusion.kernel import make_schedule
from raydense.diffusion.loading import load_policy
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import repeated
from raydense.families.known import family_of
from raydense.pipelines.pipeline_files import read_pipeline

Make = Callable[..., Policy]


@pytest.fixture
def compile_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Another backend. `eager`: the network becomes the same graphs, which run as they are; no code is generated."""
    compile_function = torch.compile

    def choose(backend: str) -> None:
        monkeypatch.setattr(torch, "compile", lambda f, **options: compile_function(f, **options, backend=backend))

    return choose


def predictions(policy: Policy, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """With the LoRA and without it; no gradient."""
    x = torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(count))
    arguments = x, torch.arange(count) % 4, repeated(policy.encode("a cat"), count)
    with torch.no_grad():
        tuned = policy.predict(*arguments)
        with policy.reference():
            return tuned, policy.predict(*arguments)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_policy_predicts_the_same_and_compiles_once_for_all_batch_sizes(
    make_policy: Make, perturbed: Callable[..., PolicyWeights], compile_by: Callable[[str], None], backend: str
) -> None:
    compile_by(backend)
    plain, compiled = make_policy(), make_policy(compiled=True)
    weights = perturbed(plain)
    for policy in (plain, compiled):
        policy.bind(weights)
    counters.clear()
    graphs = []
    for count in (3, 2, 5):
        expected, found = predictions(plain, count), predictions(compiled, count)
        graphs.append(counters["stats"]["unique_graphs"])
        for ours, theirs in zip(found, expected, strict=True):
            assert float((ours - theirs).norm()) < 1e-5 * float(theirs.norm())
        assert not torch.equal(*found)  # the LoRA can still be turned off
    assert graphs[0] > 4  # of each kind of block, with a LoRA and without
    assert graphs == graphs[:1] * 3
    assert not counters["graph_break"]


def test_code_for_more_kinds_of_calls_than_are_allowed_is_an_error_and_no_eager_call(
    make_policy: Make,
    perturbed: Callable[..., PolicyWeights],
    compile_by: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_by("eager")
    monkeypatch.setattr(compiler, "VERSIONS", 1)
    with torch._dynamo.config.patch(recompile_limit=1):
        policy = make_policy(compiled=True)
        policy.bind(perturbed(policy))
        arguments = torch.randn(2, 4, 8, 8), torch.tensor([0, 1]), repeated(policy.encode("a cat"), 2)
        with torch.no_grad():
            policy.predict(*arguments)
            policy.predict(*arguments)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit, match="fullgraph"):
            policy.predict(*arguments)  # with a gradient


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "write"), [("sd3", write_sd3), ("flux", write_flux)])
def test_a_transformers_blocks_compile_whole_and_predict_the_same(
    kind: str,
    write: Callable[..., Any],
    make_once: Callable[..., Path],
    perturbed: Callable[..., PolicyWeights],
    compile_by: Callable[[str], None],
) -> None:
    """plain: `test_a_compiled_policy_predicts_the_same_and_compiles_once_for_all_batch_sizes`, of a U-Net."""
    compile_by("eager")
    directory = make_once(f"kind-{kind}", write)
    plain, compiled = (load_transformer(directory, compiled) for compiled in (False, True))
    weights = perturbed(plain)
    for policy in (plain, compiled):
        policy.bind(weights)
    counters.clear()
    graphs = []
    for count in (3, 2, 5):
        x = torch.randn((count, *plain.family.latent_shape), generator=torch.Generator().manual_seed(count))
        arguments = x, torch.arange(count) % 4, repeated(plain.encode("a cat"), count)
        with torch.no_grad():
            expected, found = plain.predict(*arguments), compiled.predict(*arguments)
        graphs.append(counters["stats"]["unique_graphs"])
        assert float((found - expected).norm()) < 1e-5 * float(expected.norm())
    assert graphs[0] >= 2  # SD3's blocks differ, FLUX's are of two classes
    assert graphs == graphs[:1] * 3
    assert not counters["graph_break"]


def load_transformer(directory: Path, compiled: bool) -> Policy:
    files = read_pipeline(str(directory), None, fetch=False)
    family = family_of(files, guidance_scale=3.0, text_tokens=12, latent_size=8)
    levels = Levels(family.tokens, family.even_levels)
    return load_policy(
        family,
        make_schedule(files["scheduler"] or {}, 4, 0.8, dynamics="cps", levels=levels),
        lora=LoraConfig(r=2, target_modules=list(family.lora_targets), init_lora_weights="gaussian"),
        seed=0,
        dtype=torch.float32,
        device=torch.device("cpu"),
        with_decoder=False,
        compiled=compiled,
    )


@pytest.mark.slow
def test_a_compiled_policys_gradient_is_the_plain_ones_to_rounding(
    make_policy: Make, perturbed: Callable[..., PolicyWeights]
) -> None:
    """no plain twin: takes a minute of generating code."""
    gradients = []
    for compiled in (False, True):
        policy = make_policy(compiled=compiled)
        policy.bind(perturbed(policy))
        embeds = repeated(policy.encode("a cat"), 2)
        x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        policy.predict(x, torch.tensor([0, 1]), embeds).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    plain, other = gradients
    assert plain.norm() > 0
    assert (other - plain).norm() < 1e-5 * plain.norm()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_learner_has_log_ratio_zero_for_equal_weights_and_learns_as_the_plain_one(
    make_policy: Make, make_groups: Callable[..., Any], dtype: torch.dtype
) -> None:
    """π_I goes through the code of π_θ with a B of 0: code without a LoRA or without a gradient rounds elsewhere.

    no plain twin: takes a minute of generating code.
    """
    groups = make_groups(make_policy(), count=4)
    found = {}
    for compiled in (False, True):
        policy = make_policy(dtype=dtype, compiled=compiled)
        plan = draw_batch(
            torch.arange(4), torch.stack([torch.tensor(g.rewards) for g in groups]), step_weights(range(4), 0.9),
            tuple_size=2, tuples=1, tuple_choice="random", ties="random", step_draws=2,
            draws=torch.Generator().manual_seed(0),
        )  # fmt: skip
        batch = gather_transitions(plan, groups)
        reference = ReferenceCache(policy, 4, keep=3, enabled=False).look_up(batch)
        loss, values = preference_loss(policy, batch, [reference], c=10.0, clip=0.1, ties="random")
        loss.sum().backward()
        assert float(values["log_ratio/abs_max"].max()) == 0.0
        found[compiled] = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        assert all(".lora_B." not in name or not p.any() for name, p in policy._parameters.items())
    assert (found[True] - found[False]).norm() < (1e-4 if dtype == torch.float32 else 0.3) * found[False].norm()


@pytest.mark.slow
@pytest.mark.ray
def test_compiled_samplers_and_learner_train_to_the_same_bytes_alone_and_on_ray(
    small_values: Mapping[str, Any], tmp_path: Path, ray_cluster: None
) -> None:
    """plain: `test_where_it_runs_changes_no_byte`, without the compiler."""
    values = {**small_values, "policy": {**small_values["policy"], "compile": True}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    for name, where in (("local", ["--local"]), ("ray", [])):
        command = ["train", *where, str(tmp_path / "config.yaml"), "--out", str(tmp_path / name)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    for file in ("lora/pytorch_lora_weights.safetensors", "metrics.jsonl"):
        assert (tmp_path / "local" / file).read_bytes() == (tmp_path / "ray" / file).read_bytes()


@pytest.mark.parametrize("lacking", ["compiler", "headers"])
def test_a_machine_without_a_compiler_says_so_before_anything_starts(
    small_values: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str, make_policy: Make
) -> None:
    if lacking == "compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
        expected = "policy.compile=true needs the C++ compiler no-such-compiler (environment variable CXX)"
    else:
        monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
        expected = f"policy.compile=true needs Python's headers ({tmp_path / 'Python.h'})"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dict(small_values)))
    command = ["train", str(tmp_path / "config.yaml"), "--set", "policy.compile=true", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert expected in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError, match=r"install it, or leave it at auto$"):
        make_policy(compiled=True)
