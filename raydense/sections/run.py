"""The sections of a run's configuration: what may be set, to what, and its default.

Letters in descriptions are the paper's (T steps, R rolled out, K kept, N_step draws, C, γ, δ).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydense.sections.base import (
    NetworkDtype,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Revision,
    Section,
    Share,
    TextEncoderLora,
    Unsigned,
)

MARGINAL_TUPLE = 12  # trajectories, of which 2^12 sets are summed over: 0.2 s a gradient step on one core


class PolicyConfig(Section):
    """The diffusion pipeline and its LoRA."""

    model: str
    """Hub id, directory, or pkg://package/path."""
    revision: Revision = None
    variant: str | None = None
    """Of the weights' files, such as fp16; null: plain ones, or the only variant there is."""
    lora_rank: PositiveInt = 4
    """Rank of the LoRA's matrices."""
    lora_alpha: PositiveFloat | None = None
    """The LoRA's output is scaled by alpha / rank; null: equal to the rank."""
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers of the network that are adapted, by the ends of their names; null: the attention's projections."""
    init_lora: str | None = None
    """File or directory of a LoRA to start from; its rank and alpha must be these."""
    text_encoder_lora: TextEncoderLora = "refuse"
    """What becomes of the part of init_lora that would adapt the text encoder."""
    channels_last: bool = False
    """The U-Net's memory layout: 5 to 9 % faster on CPUs, on a GPU only what is compiled, which has it in any case."""
    compile: bool | Literal["auto"] = "auto"
    """The U-Net's blocks by torch.compile; auto: of samplers on a GPU, in long runs; false: no CUDA graphs either."""

    t5: Literal["device", "cpu"] | None = "device"
    """Where a T5 encodes prompts: beside the network, or on the CPU; null: left out, where the pipeline allows it."""
    t5_dtype: NetworkDtype = "float32"
    """Precision of a T5; with one of 16 bits, embeddings are stored in float16."""
    t5_tokens: Unsigned | None = None
    """Tokens of a prompt that a T5 reads, or zeros in their place; null: as many as in diffusers' pipeline."""

    @property
    def alpha(self) -> float:
        """Of the LoRA, stated or not."""
        return self.lora_rank if self.lora_alpha is None else self.lora_alpha


class PromptsConfig(Section):
    """Where prompts come from: files (.txt, .json, .jsonl, .csv, .parquet), pkg://package/path, or set://NAME."""

    train: str
    """Prompts to learn from."""
    unseen: str | None = None
    """Prompts to judge with, never learned from; null: none."""


class StepsConfig(Section):
    """The denoising chain, and how the loss draws steps from it (METHOD §3-4)."""

    count: PositiveInt = 50
    """T: denoising steps."""
    dynamics: Literal["ddim", "cps", "flow-sde", "dance-sde"] | None = None
    """How a step draws its noise; null: ddim, for flows cps."""
    eta: Annotated[float, Field(gt=0, le=2)] = 1.0
    """η: how much noise a step has: of ddim, the share of DDPM's. Of ddim and cps at most 1."""
    window: tuple[Unsigned, PositiveInt] | None = None
    """[a, b): noise on the steps a to b − 1 alone, which are those that the loss draws; null: on all."""
    spacing: Literal["leading", "trailing"] | None = None
    """Of the chain's timesteps, with noise to the end; null: the pipeline's own."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    """γ: discount a step; the loss draws step t with a weight of γ^t."""
    balance: Literal["none", "sensitivity"] = "none"
    """sensitivity: log-ratios weighed by 1 / (|∂mean/∂output| / σ)² of their step, so that γ discounts credit alone."""
    draws: PositiveInt = 1
    """N_step: steps drawn for a tuple, whose trajectories share them."""
    exclude_last: Unsigned | None = None
    """Steps at the end of the chain that are never drawn; null: 0, for flows those that must be left out."""

    @property
    def drawn(self) -> range:
        """The steps that the loss draws; `exclude_last` is settled."""
        begin, end = self.window or (0, self.count)
        return range(begin, min(end, self.count - (self.exclude_last or 0)))

    @model_validator(mode="after")
    def _some_step_left(self) -> StepsConfig:
        if (self.exclude_last or 0) >= self.count:
            raise ValueError(
                f"exclude_last={self.exclude_last} leaves no step of count={self.count}; lower exclude_last"
            )
        if self.window is not None and not self.window[0] < self.window[1] <= self.count:
            raise ValueError(
                f"window={list(self.window)} is no part of the steps 0 to {self.count}; give [a, b] with a < b <= count"
            )
        if not self.drawn:
            raise ValueError(
                f"window={list(self.window or ())} and exclude_last={self.exclude_last} leave no step of "
                f"count={self.count}; lower exclude_last"
            )
        return self


class StageConfig(Section):
    """Algorithm 1's outer loop."""

    count: PositiveInt
    """Stages: collect, then train."""
    groups: PositiveInt
    """Trajectory groups collected a stage."""
    steps: PositiveInt
    """M: gradient steps a stage."""
    schedule: Literal["synchronous", "overlapped"] = "synchronous"
    """overlapped: the next stage is collected while this one trains."""

    @property
    def held(self) -> int:
        """Stages whose groups are needed at once."""
        return min(2, self.count) if self.schedule == "overlapped" else 1


Objective = Literal["dense_preference", "trajectory_preference", "policy_gradient", "diffusion_dpo"]


class TrainConfig(Section):
    """The loss and the optimizer (METHOD §4)."""

    objective: Objective = "dense_preference"
    """What is minimised; trajectory_preference: the same with γ = 1; policy_gradient, diffusion_dpo: METHOD §10."""
    batch_groups: PositiveInt
    """Groups drawn for a gradient step."""
    tuple_size: Annotated[int, Field(ge=2)] = 2
    """Trajectories that are ranked against each other; 2: pairs."""
    tuples: PositiveInt = 1
    """Tuples drawn from each group of a batch."""
    tuple_choice: Literal["random", "best_worst"] = "random"
    """best_worst: evenly spaced by rank, the best and the worst included."""
    ties: Literal["marginal", "random"] = "marginal"
    """Equal rewards: marginal: no preference between them; random: put in an order at random, as in the paper."""
    c: PositiveFloat = 10.0
    """C: the loss's scale of a log-ratio."""
    clip: PositiveFloat | Literal["auto"] = 1e-4
    """δ: where log-ratios are clipped; choose it by the clipped share, 2 to 10 % (METHOD §9); auto: for each step."""
    clip_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Of log-ratios, what clip=auto clips."""
    reg_to_pi_init: bool = True
    """Log-ratios to the model with its LoRA off."""
    reg_to_pi_old: bool = False
    """Log-ratios to the policy that rolled out; with reg_to_pi_init, the sum of both."""
    no_reg_warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the run's steps, at its beginning, without a reference policy."""
    kl: NonNegativeFloat = 0.0
    """Of a policy gradient: weight of the divergence from the model with its LoRA off, a latent element's."""
    dpo_beta: PositiveFloat = 5000.0
    """β of diffusion_dpo; 5000 is what its authors' code has for Stable Diffusion 1.5."""
    lr: PositiveFloat
    """Learning rate of AdamW; constant."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """β₁ and β₂ of AdamW."""
    eps: PositiveFloat = 1e-8
    """ε of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay a gradient step of a moving average of the LoRA, which is then the run's result; null: the last step is."""
    ema_rollouts: bool = False
    """Whether samplers roll out with this average, too."""

    @property
    def prefers(self) -> bool:
        """Whether the loss is that of METHOD §4."""
        return self.objective in ("dense_preference", "trajectory_preference")

    @property
    def draws_steps(self) -> bool:
        """Whether the loss is on steps of the chain; else on finished pictures."""
        return self.objective != "diffusion_dpo"

    @property
    def needs_old(self) -> bool:
        """Whether the loss reads log π_old, which the sampler must compute as the learner does."""
        return self.reg_to_pi_old or self.objective == "policy_gradient"

    @property
    def calls_initial(self) -> bool:
        """Whether the loss needs the model with its LoRA off."""
        if self.objective == "policy_gradient":
            return self.kl > 0
        return self.reg_to_pi_init or not self.prefers

    @property
    def shown_clip(self) -> str:
        """δ, as tables show it."""
        return f"{self.clip:g}" if isinstance(self.clip, float) else f"{self.clip}, {self.clip_share:.0%} a step"

    @property
    def shown_weights(self) -> str:
        """Which ones are the run's result, as tables show it."""
        return "of the last step" if self.ema is None else f"averaged over the steps, decay {self.ema:g} a step"

    @property
    def shown_loss(self) -> str:
        """What the loss is and hangs on, as tables show it."""
        if self.objective == "policy_gradient":
            return f"policy gradient, ratio clip ε = {self.shown_clip}, KL weight {self.kl:g}"
        if self.objective == "diffusion_dpo":
            return f"Diffusion-DPO, β = {self.dpo_beta:g}"
        return f"C = {self.c:g}, clip δ = {self.shown_clip}"

    @property
    def batch_tuples(self) -> int:
        return self.batch_groups * self.tuples

    @model_validator(mode="after")
    def _orders_can_be_summed(self) -> TrainConfig:
        if self.prefers and self.ties == "marginal" and self.tuple_size > MARGINAL_TUPLE:
            raise ValueError(
                f"tuple_size={self.tuple_size} has too many orders to sum over for ties=marginal; lower it to "
                f"{MARGINAL_TUPLE} or set ties=random"
            )
        return self

    @model_validator(mode="after")
    def _some_average(self) -> TrainConfig:
        if self.ema_rollouts and self.ema is None:
            raise ValueError("ema_rollouts=true rolls out with an average that ema=null does not keep; set ema, too")
        return self

    @model_validator(mode="after")
    def _some_reference(self) -> TrainConfig:
        if self.prefers and not (self.reg_to_pi_init or self.reg_to_pi_old):
            raise ValueError("reg_to_pi_init and reg_to_pi_old are both false; the loss needs a reference policy")
        return self


class ReplayConfig(Section):
    """The replay buffer: one stage's groups, in memory and on disk."""

    max_bytes: PositiveInt | None = None
    """Bytes of a stage's groups; null: what the object store and its disk take."""
    segments: bool | None = None
    """Whether finished units are kept on disk; null: where a group has at least 1 MiB."""
    keep_segments: bool = False
    """Also those of finished stages, for --replay-from."""


class CheckpointConfig(Section):
    """Checkpoints are written at every stage boundary, and between them if asked."""

    every_steps: PositiveInt | None = None
    """Gradient steps of the whole run between two checkpoints; null: at stage boundaries only."""
    keep_last: PositiveInt = 3
    """Latest checkpoints that are kept; the best stage boundary, and where the run was continued from, stay too."""


class EvaluateConfig(Section):
    """Fixed-seed judging: of the base and the tuned model, and of the held-out prompts during training."""

    every_steps: PositiveInt | None = None
    """Gradient steps of the whole run between two judgements; null: at its ends only."""
    prompts: PositiveInt = 32
    """Prompts of each set, evenly spaced through it."""
    images_per_prompt: PositiveInt = 4
    """Pictures of each prompt."""
    steps: PositiveInt | None = None
    """Denoising steps of these pictures; null: those of training, for flows as users draw."""
    dynamics: Literal["ddim", "ode", "cps", "flow-sde", "dance-sde"] | None = None
    """How their steps draw noise; null: as in training, for flows ode, which draws none."""
    grid_prompts: PositiveInt = 6
    """Rows of the image grids, a prompt each."""
    grid_images: PositiveInt = 4
    """Columns of the image grids."""
