"""Small random models in the real formats, made once a session, and configs on them.

What is heavy is imported where it is used: the process that only hands out the tests needs none of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from small_models import write_pipeline, write_scorer
from xdist.scheduler import LoadScopeScheduling

from raydense.core.waiting import share_the_machine

if TYPE_CHECKING:
    import torch

    from raydense.config import Config
    from raydense.core.types import PolicyWeights, TrajectoryGroup
    from raydense.diffusion.policy import Policy

share_the_machine()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on small tensors more threads only wait, above all beside other work

ROOT = Path(__file__).parents[1]
RAY = "files on the session's Ray"
LONG = (  # these begin first, so that no process is left with one of them at the end
    "raydense/checks/test_chaos.py",
    "deploy/test_watched_run.py",
    "raydense/training/test_resume.py",
    "raydense/planning/test_placement.py",
    "raydense/training/test_pipelines.py",
    "deploy/test_actors_on_nodes.py",
    "raydense/evaluation/test_sweep.py",
)
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


# -- how the plain suite is spread over two processes: a file stays in one, and so do all on the session's Ray ---------


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means here; `-n 0` or any other number on the command line wins.

    Single files, what is slow or needs a GPU (it measures times, or takes the whole machine) and output that is not
    captured stay in the one process.
    """
    plain = all(f"not {name}" in config.getoption("markexpr") for name in ("slow", "gpu"))
    whole = all(Path(argument).is_dir() for argument in config.args)
    return 2 if plain and whole and config.getoption("capture") != "no" else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    """Module fixtures are made once, and so is the session's cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0])


@cache
def _group(file: str) -> str:
    return RAY if re.search(r"\bray_cluster\b", (ROOT / file).read_text("utf-8")) else file


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, the order in which groups begin."""
    if hasattr(config, "workerinput"):
        first = [RAY, *(f"tests/{name}" for name in LONG)]
        place = {group: index for index, group in enumerate(first)}
        items.sort(key=lambda item: place.get(_group(item.nodeid.partition("::")[0]), len(first)))


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

    from raydense.diffusion.policy import load_policy

    def load(
        model: Path = pipeline_dir,
        *,
        num_steps: int = 4,
        guidance_scale: float = 3.0,
        rank: int = 2,
        alpha: float | None = None,
        targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0"),
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        with_decoder: bool = False,
        **options: Any,
    ) -> Policy:
        return load_policy(
            str(model),
            num_steps=num_steps,
            eta=1.0,
            guidance_scale=guidance_scale,
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

    def make(policy: Policy, *, count: int = 5, keep: int = 3, stage: int = 0, seed: int = 0) -> list[TrajectoryGroup]:
        draws = torch.Generator().manual_seed(seed)
        weights, groups = policy.weights(), []
        for index in range(count):
            prompt = f"a {['cat', 'dog', 'fox', 'hen', 'cow'][index % 5]}"
            embeds = policy.encode(prompt)
            noise = torch.randn((keep, policy.schedule.num_steps + 1, 4, 8, 8), generator=draws)
            latents, log_probs = rollout(policy, noise, embeds.expand(keep, -1, -1), torch.float16)
            group = TrajectoryGroup(
                stage=stage,
                index=index,
                prompt=prompt,
                prompt_embeds=embeds.numpy(),
                latents=latents.numpy(),
                log_probs=log_probs.numpy(),
                rewards=torch.randn(keep, generator=draws).numpy(),
                weights_version=weights.version,
                weights_checksum=weights.checksum,
            )
            groups.append(group)
        return groups

    return make


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The session's one private Ray cluster; four logical CPUs, so that tests place actors freely."""
    import logging

    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
