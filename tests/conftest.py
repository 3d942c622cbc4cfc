"""Small random models in the real formats, made once a session, and configs on them.

What is heavy is imported where it is used: the process that only hands out the tests needs none of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from small_models import write_pipeline, write_scorer
from spreading import (  # noqa: F401  (hooks)
    pytest_collection,
    pytest_collection_modifyitems,
    pytest_configure_node,
    pytest_runtest_teardown,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
    shared_warm_python,
)
from warm_python import start_warm_python, until_warm

from raydense.core.waiting import share_the_machine

if TYPE_CHECKING:
    import torch

    from raydense.config import Config
    from raydense.core.types import PolicyWeights, TrajectoryGroup
    from raydense.diffusion.policy import Policy

share_the_machine()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on small tensors more threads only wait, above all beside other work

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """Fills a directory once for all processes of the session: make_once(name, fill) → its path."""
    own = tmp_path_factory.getbasetemp()
    root = own if worker_id == "master" else own.parent  # which xdist's workers share

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        directory, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                directory.mkdir()
                fill(directory)
                done.touch()
        return directory

    return make


# -- small random models in the real formats, and configurations on them -----------------------------------------------


@pytest.fixture(scope="session")
def pipeline_dir(make_once: Callable[..., Path]) -> Path:
    return make_once("pipeline", write_pipeline)


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Path]:
    """`write_pipeline`, for tests that need another pipeline."""
    return write_pipeline


@pytest.fixture(scope="session")
def scorer_dir(make_once: Callable[..., Path]) -> Path:
    return make_once("scorer", write_scorer)


@pytest.fixture(scope="session")
def small_values(pipeline_dir: Path, scorer_dir: Path, make_once: Callable[..., Path]) -> dict[str, Any]:
    """A whole configuration on the small random models, as plain values."""

    def write_prompts(directory: Path) -> None:
        (directory / "train.txt").write_text("a cat\na dog\na red fox\n")
        (directory / "unseen.txt").write_text("a hen\na cow\n")

    prompts = make_once("prompts", write_prompts)
    return {
        "name": "small",
        "seed": 3,
        "policy": {"model": str(pipeline_dir), "lora_rank": 2},
        "prompts": {"train": str(prompts / "train.txt"), "unseen": str(prompts / "unseen.txt")},
        "reward": {"scorer": {"kind": "clip", "name": "clip", "model": str(scorer_dir)}},
        "steps": {"count": 4, "draws": 2},
        "sampler": {"trajectories": 4, "keep": 3, "unit_prompts": 2, "guidance_scale": 3.0},
        "samplers": {"count": 2, "num_cpus": 0.5},
        "stage": {"count": 2, "groups": 5, "steps": 3},
        "train": {"batch_groups": 4, "lr": 1e-2, "clip": 1e-2},
        "evaluate": {"prompts": 2, "images_per_prompt": 2, "grid_prompts": 2, "grid_images": 2},
    }


@pytest.fixture
def small_config(small_values: dict[str, Any]) -> Callable[..., Config]:
    """Builds the small configuration, with sections updated: small_config(train={"lr": 1e-3}, seed=4)."""
    from raydense.config import Config

    def build(**updates: Any) -> Config:
        values = dict(small_values)
        for key, value in updates.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return Config.model_validate(values)

    return build


@pytest.fixture(scope="session")
def small_runs(small_values: dict[str, Any], make_once: Callable[..., Path]) -> tuple[Path, Path]:
    """Two finished runs of the small configuration, `first` and `second`: with another seed, rank and alpha."""
    import yaml
    from typer.testing import CliRunner

    from raydense.cli import app

    second = {**small_values, "seed": 4, "policy": {**small_values["policy"], "lora_rank": 3, "lora_alpha": 6}}

    def train(root: Path) -> None:
        for name, values in (("first", small_values), ("second", second)):
            (root / f"{name}.yaml").write_text(yaml.safe_dump(values))
            command = ["train", "--local", str(root / f"{name}.yaml"), "--out", str(root / name)]
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 0, result.output

    root = make_once("small-runs", train)
    return root / "first", root / "second"


@pytest.fixture(scope="session")
def make_policy(pipeline_dir: Path) -> Callable[..., Policy]:
    """Loads the small pipeline as a policy: make_policy(guidance_scale=1.0, rank=4, alpha=8)."""
    import torch
    from peft import LoraConfig

    from raydense.diffusion.kernel import make_schedule
    from raydense.diffusion.loading import load_policy
    from raydense.families.known import family_of
    from raydense.pipelines.pipeline_files import read_pipeline

    def load(
        model: Path = pipeline_dir,
        *,
        num_steps: int = 4,
        spacing: str | None = None,
        guidance_scale: float = 3.0,
        rank: int = 2,
        alpha: float | None = None,
        targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0"),
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        with_decoder: bool = False,
        **options: Any,
    ) -> Policy:
        files = read_pipeline(str(model), None, fetch=False)
        return load_policy(
            family_of(files, guidance_scale=guidance_scale),
            make_schedule(files["scheduler"] or {}, num_steps, 1.0, spacing),
            lora=LoraConfig(
                r=rank,
                lora_alpha=rank if alpha is None else alpha,
                init_lora_weights="gaussian",
                target_modules=list(targets),
            ),
            seed=seed,
            dtype=dtype,
            device=torch.device("cpu"),
            with_decoder=with_decoder,
            **options,
        )

    return load


@pytest.fixture(scope="session")
def perturbed() -> Callable[..., PolicyWeights]:
    """The policy's weights with a non-zero B, so that the LoRA does something: perturbed(policy, seed=1)."""
    import numpy as np

    from raydense.core.types import PolicyWeights

    def perturb(policy: Policy, *, seed: int = 0, scale: float = 0.3, version: int = 1) -> PolicyWeights:
        draws = np.random.default_rng(seed)
        tensors = {
            name: array + scale * draws.standard_normal(array.shape).astype(np.float32) * ("lora_B" in name)
            for name, array in policy.weights().tensors.items()
        }
        return PolicyWeights.of(version, {name: array.astype(np.float32) for name, array in tensors.items()})

    return perturb


@pytest.fixture(scope="session")
def make_groups() -> Callable[..., list[TrajectoryGroup]]:
    """Trajectory groups of a policy as it is now, with seeded rewards: make_groups(policy, count=5, keep=3)."""
    import torch

    from actors.sampler import rollout
    from raydense.core.types import TrajectoryGroup
    from raydense.families.conditioning import repeated

    def make(policy: Policy, *, count: int = 5, keep: int = 3, stage: int = 0, seed: int = 0) -> list[TrajectoryGroup]:
        draws = torch.Generator().manual_seed(seed)
        weights, groups = policy.weights(), []
        for index in range(count):
            prompt = f"a {['cat', 'dog', 'fox', 'hen', 'cow'][index % 5]}"
            embeds = policy.encode(prompt)
            noise = torch.randn((keep, policy.schedule.num_steps + 1, 4, 8, 8), generator=draws)
            latents, log_probs = rollout(policy, noise, repeated(embeds, keep), torch.float16)
            group = TrajectoryGroup(
                stage=stage,
                index=index,
                prompt=prompt,
                conditioning={name: tensor.numpy() for name, tensor in embeds.items()},
                latents=latents.numpy(),
                log_probs=log_probs.numpy(),
                rewards=torch.randn(keep, generator=draws).numpy(),
                weights_version=weights.version,
                weights_checksum=weights.checksum,
            )
            groups.append(group)
        return groups

    return make


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def warm_python(request: pytest.FixtureRequest) -> Iterator[Path]:
    """For tests that start a process but not to see how it starts; see `support/warm_python.py`."""
    if (shared := shared_warm_python(request.config)) is not None:
        yield until_warm(shared)
        return
    with start_warm_python() as executable:
        yield until_warm(executable)


@pytest.fixture(scope="session")
def ray_cluster(warm_python: Path) -> Iterator[None]:
    """The session's one private Ray cluster; four logical CPUs, so that tests place actors freely."""
    import logging

    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm_python))  # Ray starts its workers with it
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
