"""The sections of a run's configuration: what may be set, to what, and its default.

Letters in comments are the paper's (T steps, R rolled out, K kept, N_step draws, C, γ, δ).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydense.sections.base import (
    Device,
    Labels,
    NetworkDtype,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    Unsigned,
)


class PolicyConfig(Section):
    """The diffusion pipeline and its LoRA."""

    model: str  # hub id, directory, or pkg://package/path
    revision: str | None = None
    variant: str | None = None  # of the weights' files, such as fp16; None: plain ones, or the only variant there is
    lora_rank: PositiveInt = 4
    lora_alpha: PositiveFloat | None = None  # None: equal to the rank
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("to_q", "to_k", "to_v", "to_out.0")
    init_lora: str | None = None  # file or directory of a LoRA to start from; its rank and alpha must be these
    channels_last: bool = False  # the U-Net's memory layout: 5 to 9 % faster on CPUs, not measured on a GPU
    compile: bool = False  # the U-Net by torch.compile: faster after minutes of compiling; needs a C++ compiler


class PromptsConfig(Section):
    """Text files, one prompt a line: a path or pkg://package/path."""

    train: str
    unseen: str | None = None


class StepsConfig(Section):
    """The denoising chain, and how the loss draws steps from it (METHOD §3-4)."""

    count: PositiveInt = 50  # T
    eta: Annotated[float, Field(gt=0, le=1)] = 1.0
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    draws: PositiveInt = 1  # N_step
    exclude_last: Unsigned = 0

    @model_validator(mode="after")
    def _some_step_left(self) -> StepsConfig:
        if self.exclude_last >= self.count:
            raise ValueError(
                f"exclude_last={self.exclude_last} leaves no step of count={self.count}; lower exclude_last"
            )
        return self


class SamplerConfig(Section):
    """What one sampler does with a work unit."""

    trajectories: PositiveInt = 5  # R
    keep: Annotated[int, Field(ge=2)] = 5  # K
    unit_prompts: PositiveInt = 1
    guidance_scale: PositiveFloat = 7.5  # w
    shared_noise: bool = False  # one x_0 for all trajectories of a group
    latent_size: PositiveInt | None = None  # None: the pipeline's own
    storage_dtype: Literal["float16", "float32"] = "float16"
    dtype: NetworkDtype = "float32"  # of U-Net and decoder
    decode_batch: PositiveInt | None = None  # images a decoder call; None: all of a work unit
    device: Device = "auto"
    threads: PositiveInt = 1

    @model_validator(mode="after")
    def _keep_fits(self) -> SamplerConfig:
        if self.keep > self.trajectories:
            raise ValueError(f"keep={self.keep} exceeds trajectories={self.trajectories}; lower keep")
        return self


class SamplersConfig(Section):
    """The fleet: how many sampler actors, what each reserves of the cluster, and how long it is waited for."""

    count: PositiveInt | None = None  # None: one a GPU beside the learner's; one where there are fewer than two
    min: Unsigned | None = None  # ready before work begins; None: all, or 1 beside max; 0: begin without
    max: PositiveInt | None = None  # asked for; those without a place join when it appears; None: `count`
    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat | None = None  # None: what the learner leaves, shared evenly; 0 without a GPU
    memory_gb: NonNegativeFloat = 0.0  # of main memory that each reserves, so that a node is not overfilled
    patience_s: PositiveFloat = 1800.0  # without a live sampler, or for the learner's place, before the run stops
    hang_s: PositiveFloat = 3600.0  # a unit may take, until one was measured
    hang_factor: Annotated[float, Field(gt=1)] = 10.0  # times the slowest unit so far: a sampler hangs and is replaced
    hang_floor_s: PositiveFloat = 60.0  # never sooner
    labels: Labels = Field(default_factory=dict)  # that a sampler's node must have
    autoscale: bool = False  # actors that fit no node yet wait: they are what the cluster grows by

    @model_validator(mode="after")
    def _sizes_fit(self) -> SamplersConfig:
        if self.count is not None and self.max is not None:
            raise ValueError(f"count={self.count} and max={self.max}: for a fleet that grows, set count=null")
        largest = self.max if self.max is not None else self.count
        if self.min is not None and largest is not None and self.min > largest:
            raise ValueError(f"min={self.min} exceeds {'max' if self.max else 'count'}={largest}; lower min")
        return self


class StageConfig(Section):
    """Algorithm 1's outer loop."""

    count: PositiveInt
    groups: PositiveInt  # trajectory groups collected a stage
    steps: PositiveInt  # gradient steps a stage (M)
    schedule: Literal["synchronous", "overlapped"] = "synchronous"  # overlapped: collect the next stage while training

    @property
    def held(self) -> int:
        """Stages whose groups are needed at once."""
        return min(2, self.count) if self.schedule == "overlapped" else 1


class TrainConfig(Section):
    """The loss and the optimizer (METHOD §4)."""

    batch_groups: PositiveInt
    tuple_size: Annotated[int, Field(ge=2)] = 2
    tuples: PositiveInt = 1  # tuples drawn from each group of a batch
    tuple_choice: Literal["random", "best_worst"] = "random"
    c: PositiveFloat = 10.0
    clip: PositiveFloat = 1e-4  # δ
    reg_to_pi_init: bool = True
    reg_to_pi_old: bool = False
    no_reg_warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0

    @property
    def batch_tuples(self) -> int:
        return self.batch_groups * self.tuples

    @model_validator(mode="after")
    def _some_reference(self) -> TrainConfig:
        if not (self.reg_to_pi_init or self.reg_to_pi_old):
            raise ValueError("reg_to_pi_init and reg_to_pi_old are both false; the loss needs a reference policy")
        return self


class LearnerConfig(Section):
    """Where and how the learner computes."""

    micro_batch: PositiveInt | Literal["auto"] | None = (
        None  # tuples a U-Net call; None: the whole batch; auto: what fits
    )
    cache_references: bool = True  # False: log π_I anew for each draw, in the composition of its own micro-batch
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast; LoRA and Adam's moments stay float32
    gradient_checkpointing: bool = False  # less memory, about a third more work
    device: Device = "auto"
    threads: PositiveInt = 1
    num_workers: PositiveInt = 1  # actors that share every batch, each of which reserves what follows
    timeout_s: PositiveFloat = 600.0  # that one worker waits for the others before the learner is rebuilt
    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat | None = None  # None: one of several, half of a single one, 0 without
    memory_gb: NonNegativeFloat = 0.0  # of main memory that it reserves
    labels: Labels = Field(default_factory=lambda: {"ray.io/market-type": "!spot"})  # an unlabelled node will do


class ReplayConfig(Section):
    """The replay buffer: one stage's groups, in memory and on disk."""

    max_bytes: PositiveInt | None = None  # of a stage's groups; None: what the object store and its disk take

    segments: bool | None = None  # None: where a group has at least 1 MiB
    keep_segments: bool = False  # of finished stages


class CheckpointConfig(Section):
    """Checkpoints are written at every stage boundary, and between them if asked."""

    every_steps: PositiveInt | None = None  # gradient steps of the whole run
    keep_last: PositiveInt = 3


class EvaluateConfig(Section):
    """Fixed-seed judging: of the base and the tuned model, and of the held-out prompts during training."""

    every_steps: PositiveInt | None = None  # gradient steps of the whole run; None: at its ends only

    prompts: PositiveInt = 32  # of each prompt set, evenly spaced through it
    images_per_prompt: PositiveInt = 4
    grid_prompts: PositiveInt = 6  # a row of the image grids each
    grid_images: PositiveInt = 4  # a column of the image grids each
