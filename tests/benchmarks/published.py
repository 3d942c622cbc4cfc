"""The baseline: the same update and rollout, done the way code of this kind is published.

One transition a U-Net call with its two guidance halves, in a loop over groups, trajectories and steps; a second U-Net
for π_I; text embeddings computed again each time; nothing cached, nothing fetched ahead (METHOD §8).
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.batch_source import BatchSource
from learner.gang import Gang
from learner.transitions import TransitionBatch
from raydense.config import Config
from raydense.diffusion.policy import Policy
from raydense.wiring.roles import make_batches


class Published:
    """Its own U-Nets, with the LoRA of `policy` as it is now; the rest of the pipeline is shared."""

    def __init__(self, policy: Policy, config: Config) -> None:
        self.unet = copy.deepcopy(policy.network).float().to(memory_format=torch.contiguous_format)
        self.reference = copy.deepcopy(self.unet)
        self.reference.delete_adapters("default")
        self.unet.disable_gradient_checkpointing()
        self._policy, self._train = policy, config.train
        self._schedule, self._scale = policy.schedule, config.sampler.guidance_scale
        dtype: torch.dtype = getattr(torch, config.learner.dtype)
        narrow = dtype != torch.float32
        self._precision = lambda: torch.autocast(policy.device.type, dtype) if narrow else nullcontext()
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self.parameters, lr=self._train.lr, weight_decay=self._train.weight_decay, betas=self._train.betas
        )

    def step(self, batch: TransitionBatch, prompts: list[str]) -> float:
        """One gradient step; returns the loss."""
        self._optimizer.zero_grad()
        loss = self.loss(batch, prompts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self._train.max_grad_norm)
        self._optimizer.step()
        return loss.item()

    def loss(self, batch: TransitionBatch, prompts: list[str]) -> Tensor:
        """The pairwise loss of METHOD §4, averaged over the batch's pairs."""
        losses = []
        for b, prompt in enumerate(prompts):
            logits = [self._logit(batch, b, k, prompt) for k in (0, 1)]
            win, lose = sorted((0, 1), key=lambda k: (batch.rewards[b, k], batch.tie_noise[b, k]), reverse=True)
            losses.append(F.softplus(logits[lose] - logits[win]))
        return torch.stack(losses).mean()

    def _logit(self, batch: TransitionBatch, b: int, k: int, prompt: str) -> Tensor:
        ratios = []
        for drawn in batch.places[b, k].tolist():
            embeds = self._embed(prompt)
            x_t, x_next, t = batch.x_t[drawn], batch.x_next[drawn], int(batch.t[drawn])
            with self._precision():
                now = self._log_prob(self.unet, x_t[None], x_next[None], t, embeds[None])
                with torch.no_grad():
                    initial = self._log_prob(self.reference, x_t[None], x_next[None], t, embeds[None])
            ratios.append((now - initial)[0].clamp(-self._train.clip, self._train.clip))
        return self._train.c * torch.stack(ratios).mean()

    @torch.no_grad()
    def rollout(self, noise: Tensor, prompt: str, storage: torch.dtype) -> tuple[Tensor, Tensor]:
        """R trajectories of one prompt: latents [R, T+1, C, H, W] and log-probs [R, T]."""
        embeds = self._embed(prompt).expand(len(noise), -1, -1)
        states, log_probs = [noise[:, 0].to(storage)], []
        for t in range(self._schedule.num_steps):
            mean, sigma = self._step(self.unet, states[-1], t, embeds)
            states.append((mean + sigma * noise[:, t + 1]).to(storage))
            log_probs.append(_log_normal(states[-1], mean, sigma))
        return torch.stack(states, 1), torch.stack(log_probs, 1)

    def _log_prob(self, unet: Any, x_t: Tensor, x_next: Tensor, t: int, embeds: Tensor) -> Tensor:
        return _log_normal(x_next, *self._step(unet, x_t, t, embeds))

    def _step(self, unet: Any, x_t: Tensor, t: int, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and σ of DDIM with η (Song et al. 2021, eq. 12), for epsilon prediction."""
        null = self._embed("").expand_as(embeds)
        x = x_t.to(unet.dtype)
        output = self.call(unet, torch.cat([x, x]), self._schedule.timesteps[t], torch.cat([null, embeds]).to(x))
        unconditional, conditional = output.float().chunk(2)
        epsilon = unconditional + self._scale * (conditional - unconditional)
        schedule = self._schedule
        alpha, alpha_prev, sigma = schedule.signal[t] ** 2, schedule.next_signal[t] ** 2, schedule.sigma[t]
        x0 = (x_t.float() - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
        return alpha_prev.sqrt() * x0 + (1 - alpha_prev - sigma**2).sqrt() * epsilon, sigma

    def _embed(self, prompt: str) -> Tensor:
        return self._policy.encode(prompt)["prompt_embeds"]

    def call(self, unet: Any, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """One U-Net call, as a diffusers pipeline makes it."""
        output: Tensor = unet(x, timestep, encoder_hidden_states=embeds, return_dict=False)[0]
        return output


def _log_normal(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    density = -((x.float() - mean) ** 2) / (2 * sigma**2) - sigma.log() - math.log(math.sqrt(2 * math.pi))
    return density.mean(dim=tuple(range(1, density.ndim)))


def batch_source(config: Config, fetch: Any, device: torch.device) -> BatchSource[int]:
    """The run's own draws, a batch in one part."""
    whole = config.model_copy(update={"learner": config.learner.model_copy(update={"micro_batch": None})})
    return make_batches(whole, fetch, device, Gang(), config.stage.groups)
