"""The sections of who computes: a sampler, the fleet of them, the learner."""

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
    Size,
    Unsigned,
)

RENDER_BATCH = 32  # images drawn at once to judge; fixed, since the composition of a call changes the last bits


class SamplerConfig(Section):
    """What one sampler does with a work unit."""

    trajectories: PositiveInt = 5
    """R: trajectories rolled out for a prompt."""
    keep: Annotated[int, Field(ge=2)] = 5
    """K: trajectories kept of them, evenly spaced by reward rank."""
    unit_prompts: PositiveInt | Literal["auto"] = 1
    """Prompts of a work unit, which are denoised at once; auto: as many as make 32 images."""
    guidance_scale: PositiveFloat = 7.5
    """w: scale of classifier-free guidance; 1: none."""
    shared_noise: bool = False
    """One x_0 for all trajectories of a group."""
    latent_size: Size = None
    """Height and width of the latents, or [height, width]; null: the pipeline's own."""
    storage_dtype: Literal["float16", "float32"] = "float16"
    """Precision of stored states; the chain goes on from the rounded ones."""
    dtype: NetworkDtype = "float32"
    """Precision of U-Net and decoder."""
    exact: bool = False
    """The LoRA beside the weights, as the learner computes it, instead of merged into them: slower."""
    decode_batch: PositiveInt | None = None
    """Images a decoder call; null: all of a work unit."""
    device: Device = "auto"
    threads: PositiveInt = 1
    """Threads on the CPU; another number may change the last bits of a result."""

    @property
    def prompts_at_once(self) -> int:
        """Of a work unit. Judging draws as many images at once, so that no unit of `auto` needs more memory."""
        if self.unit_prompts == "auto":
            return max(1, RENDER_BATCH // self.trajectories)
        return self.unit_prompts

    @model_validator(mode="after")
    def _keep_fits(self) -> SamplerConfig:
        if self.keep > self.trajectories:
            raise ValueError(f"keep={self.keep} exceeds trajectories={self.trajectories}; lower keep")
        return self


class SamplersConfig(Section):
    """The fleet: how many sampler actors, what each reserves of the cluster, and how long it is waited for."""

    count: PositiveInt | None = None
    """Sampler actors; null: one a GPU beside the learner's, and one where there are fewer than two."""
    min: Unsigned | None = None
    """Sampler actors that must be ready before work begins; null: all, or 1 beside max; 0: begin without."""
    max: PositiveInt | None = None
    """Sampler actors asked for; those without a place join when it appears; null: count."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs that each reserves."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs that each reserves; null: what the learner leaves, shared evenly; 0 without a GPU."""
    memory_gb: NonNegativeFloat = 0.0
    """GB of main memory that each reserves, so that a node is not overfilled."""
    patience_s: PositiveFloat = 1800.0
    """Seconds without a live sampler, or waiting for the learner's place, before the run stops."""
    hang_s: PositiveFloat = 3600.0
    """Seconds that a unit may take, until one was measured."""
    hang_factor: Annotated[float, Field(gt=1)] = 10.0
    """A sampler hangs, and is replaced, after this many times the slowest unit so far."""
    hang_floor_s: PositiveFloat = 60.0
    """Seconds before which a sampler never counts as hanging."""
    labels: Labels = Field(default={})
    """Labels that a sampler's node must have."""
    autoscale: bool = False
    """Actors that fit no node yet wait: they are what the cluster grows by."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> SamplersConfig:
        if self.count is not None and self.max is not None:
            raise ValueError(f"count={self.count} and max={self.max}: for a fleet that grows, set count=null")
        largest = self.max if self.max is not None else self.count
        if self.min is not None and largest is not None and self.min > largest:
            raise ValueError(f"min={self.min} exceeds {'max' if self.max else 'count'}={largest}; lower min")
        return self


class LearnerConfig(Section):
    """Where and how the learner computes."""

    micro_batch: PositiveInt | Literal["auto"] | None = None
    """Tuples a U-Net call; null: the whole batch; auto: what fits."""
    cache_references: bool | Literal["auto"] = "auto"
    """false: log π_I anew for each draw, in a call as that of π_θ; auto: true on a CPU."""
    dtype: NetworkDtype = "float32"
    """Precision of the U-Net; LoRA and Adam's moments stay float32."""
    gradient_checkpointing: bool = False
    """Less memory, about a third more work."""
    device: Device = "auto"
    threads: PositiveInt = 1
    """Threads on the CPU; another number may change the last bits of a result."""
    num_workers: PositiveInt = 1
    """Actors that share every batch, each of which reserves what follows."""
    timeout_s: PositiveFloat = 600.0
    """Seconds that one worker waits for the others before the learner is rebuilt."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs that a worker reserves."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs that a worker reserves; null: one of several, half of a single one, 0 without."""
    memory_gb: NonNegativeFloat = 0.0
    """GB of main memory that a worker reserves."""
    labels: Labels = Field(default={"ray.io/market-type": "!spot"})
    """Labels that a worker's node must have; !spot takes unlabelled ones, too."""
