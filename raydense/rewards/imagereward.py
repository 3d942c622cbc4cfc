"""ImageReward (Xu et al. 2023): how people would rate a picture of a prompt; the paper's single-prompt reward.

Its package (`image-reward` 1.5) pins a timm and a fairscale that cannot live beside ours, so the network is built of
transformers' BLIP modules and given the released tensors by name. The two are one architecture, but
transformers' defaults are those of other BLIP checkpoints and no shape shows it: the vision LayerNorm's eps is 1e-6
here, attention heads are 64 wide throughout, and the text model attends to the picture without being causal. All other
sizes are read off the checkpoint. `tests/golden/test_imagereward_golden.py` holds it to the package's own scores.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from raydense.config import ConfigError
from raydense.core.types import FloatArray
from raydense.files.hub import hub_file
from raydense.rewards.head import regression_head
from raydense.rewards.weights import check_fit, load_strictly, read_state_dict

REPOSITORY, CHECKPOINT = "THUDM/ImageReward", "ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score, over the package's validation set
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
TOKENS = 35  # of a prompt, padded or cut
HEAD_WIDTH = 64
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
RENAMED = (  # released name → ours, in this order
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.(\d+)\.norm", r"vision.encoder.layers.\1.layer_norm"),
    (r"^vision\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^vision\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^vision\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^mlp\.layers\.", "head."),
)


class ImageRewardModel(nn.Module):
    """Pixels [N, 3, s, s], token ids and mask [N, L] → raw scores [N]."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision: Any = BlipVisionModel(vision)
        self.text: Any = BlipTextModel(text, add_pooling_layer=False)
        self.head = regression_head(text.hidden_size)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        patches = self.vision(pixel_values=pixels).last_hidden_state
        states = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=patches, is_decoder=False)
        score: torch.Tensor = self.head(states.last_hidden_state[:, 0]).squeeze(-1)
        return score


class ImageRewardScorer:
    """What `ImageReward.load("ImageReward-v1.0").score` gives, in batches; about −2 (poor) to 2 (good).

    Args:
        name: in metrics.
        checkpoint: a local `ImageReward.pt`; None: from the hub.
        tokenizer: a local directory with the `vocab.txt` of BERT, uncased; None: from the hub.
        batch_size: images a forward pass, float32.

    Raises:
        FileNotFoundError: naming the checkpoint or the vocabulary that the hub does not give.
        ConfigError: the checkpoint is none of ImageReward, or the vocabulary is not the one it was trained with.
    """

    def __init__(
        self,
        name: str,
        *,
        checkpoint: str | None = None,
        tokenizer: str | None = None,
        batch_size: int = 16,
        device: torch.device,
    ) -> None:
        self.name, self._batch_size, self._device = name, batch_size, device
        self._tokenizer = _load_tokenizer(tokenizer)
        path = _find_checkpoint(checkpoint)
        source = f"scorer {name}: checkpoint={path}"
        state = rename(read_state_dict(path, source))
        vision, text = read_sizes(state, source)
        if (
            tokens := len(self._tokenizer)
        ) != text.vocab_size:  # of a directory without vocab.txt it makes an empty one
            raise ConfigError(
                f"scorer {name}: tokenizer={tokenizer or TOKENIZER} has {tokens} tokens, but {path} was trained with "
                f"{text.vocab_size}; give a directory with the vocab.txt of {TOKENIZER}"
            )
        with torch.random.fork_rng(devices=[]):
            self._model = ImageRewardModel(vision, text)
        load_strictly(self._model, state, source)
        self._model.requires_grad_(False).eval().to(device)
        self._transform = Compose(
            [
                Resize(vision.image_size, interpolation=InterpolationMode.BICUBIC),
                CenterCrop(vision.image_size),
                ToTensor(),
                Normalize(PIXEL_MEAN, PIXEL_STD),
            ]
        )

    @torch.no_grad()
    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → float32 [N]."""
        size = self._batch_size
        starts = range(0, len(images), size)
        parts = [self._score_batch(images[i : i + size], list(prompts[i : i + size])) for i in starts]
        return np.concatenate(parts)

    def _score_batch(self, images: NDArray[np.uint8], prompts: list[str]) -> FloatArray:
        pixels = torch.stack([self._transform(Image.fromarray(image)) for image in images])
        tokens = self._tokenizer(
            prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self._device)
        raw = self._model(pixels.to(self._device), tokens.input_ids, tokens.attention_mask)
        scores: FloatArray = ((raw - MEAN) / STD).float().cpu().numpy()
        return scores


def check_checkpoint(name: str, checkpoint: str) -> None:
    """Holds a scorer's checkpoint against the network, without reading its values. Raises: ConfigError."""
    path, source = Path(checkpoint).expanduser(), f"scorer {name}: checkpoint={checkpoint}"
    state = rename(read_state_dict(path, source, device="meta"))
    with torch.device("meta"):
        check_fit(ImageRewardModel(*read_sizes(state, source)), state, source)


def rename(released: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The released tensors that scoring needs, under the names of `ImageRewardModel`."""
    renamed = {}
    for name, tensor in released.items():
        if name.startswith(UNUSED):
            continue
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor
    return renamed


def read_sizes(state: Mapping[str, torch.Tensor], source: str) -> tuple[BlipVisionConfig, BlipTextConfig]:
    """The networks that fit these tensors. Raises: ConfigError if they are not ImageReward's."""
    try:
        patch = state["vision.embeddings.patch_embedding.weight"].shape
        patches = state["vision.embeddings.position_embedding"].shape[1] - 1
        words = state["text.embeddings.word_embeddings.weight"].shape
        vision_inner = state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0]
        text_inner = state["text.encoder.layer.0.intermediate.dense.weight"].shape[0]
        positions = state["text.embeddings.position_embeddings.weight"].shape[0]
    except KeyError as error:
        raise ConfigError(f"{source}: is no checkpoint of ImageReward ({error.args[0]} is missing)") from None
    vision = BlipVisionConfig(
        hidden_size=patch[0],
        intermediate_size=vision_inner,
        num_hidden_layers=_layers(state, r"vision\.encoder\.layers\.(\d+)\."),
        num_attention_heads=patch[0] // HEAD_WIDTH,
        patch_size=patch[-1],
        image_size=math.isqrt(patches) * patch[-1],
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=words[0],
        bos_token_id=None,  # it generates nothing
        sep_token_id=None,
        hidden_size=words[1],
        encoder_hidden_size=patch[0],
        intermediate_size=text_inner,
        num_hidden_layers=_layers(state, r"text\.encoder\.layer\.(\d+)\."),
        num_attention_heads=words[1] // HEAD_WIDTH,
        max_position_embeddings=positions,
        is_decoder=True,  # transformers' word for: it has cross-attention; `forward` keeps it from being causal
    )
    return vision, text


def _layers(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))


def _find_checkpoint(checkpoint: str | None) -> Path:
    if checkpoint is not None:
        return Path(checkpoint).expanduser()
    return hub_file(REPOSITORY, CHECKPOINT, instead="download it where the hub can be reached and give its path")


def _load_tokenizer(directory: str | None) -> Any:
    """BERT's, with the two tokens that the package adds."""
    if directory is None:
        instead = "download it where the hub can be reached and give its directory as `tokenizer`"
        directory = str(hub_file(TOKENIZER, "vocab.txt", instead=instead).parent)
    tokenizer: Any = BertTokenizer.from_pretrained(Path(directory).expanduser(), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer
