"""Scores of the ImageReward package's own modules with seeded random weights, for `test_imagereward_golden.py`.

The package cannot live beside ours (old timm, transformers and fairscale), so its scores are made once, elsewhere:

    python3.11 -m venv /tmp/imagereward && . /tmp/imagereward/bin/activate
    pip install torch torchvision transformers==4.27.4 timm==0.6.13 && pip install --no-deps image-reward==1.5
    python tests/golden/make_imagereward.py

Of the package, only what scores is executed: its `ImageReward` class, its vision transformer and its BERT. fairscale's
checkpoint wrapper, which they import and never call, is a stand-in. Every weight is drawn by NumPy from its own name,
so that the test draws the same ones; `imagereward.json` holds names and shapes of the package's state dict, and scores.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("imagereward.json")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "and", "dog", "moon", "##s", "green", "on",
              "the", "rabbit", "four", "wolves", ".", ","]  # fmt: skip
PROMPTS = ["a cat and a dog.", "Four wolves on the moon", "a green rabbit, " * 12, "zebra"]  # the third is cut at 35
IMAGE_SIZES = [
    (40, 56),
    (48, 32),
    (32, 32),
]  # height, width: shrunk and cropped at the small size, enlarged at the full
MED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "pad_token_id": 0,
       "add_cross_attention": True, "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "vit": {"img_size": 32, "patch_size": 16, "embed_dim": 192, "depth": 2, "num_heads": 3},
        "bert": {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 2,
                 "vocab_size": len(VOCABULARY) + 2, "encoder_width": 192},
    },
    "full": {
        "vit": {"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
        "bert": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
                 "vocab_size": 30524, "encoder_width": 1024},
    },
}  # fmt: skip


def draw(name: str, shape: Sequence[int]) -> np.ndarray:
    """float32 values that are a function of the name alone, of the size that keeps a network's activations near 1."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    draws = np.random.Generator(np.random.PCG64(seed))
    values = draws.standard_normal(tuple(shape), dtype=np.float32)
    if "norm" in name.lower() and name.endswith("weight"):
        return values * np.float32(0.1) + np.float32(1)
    if len(shape) == 1 or ("embed" in name and "proj" not in name):
        return values * np.float32(0.1)
    return values * np.float32(np.prod(shape[1:]) ** -0.5)


def state_arrays(shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, np.ndarray]]:
    """The seeded state dict, an array at a time."""
    for name, shape in shapes.items():
        yield name, draw(name, shape)


def pictures() -> list[np.ndarray]:
    """uint8 [h, w, 3], smooth enough that resizing matters and noise does not dominate."""
    draws = np.random.Generator(np.random.PCG64(0))
    result = []
    for height, width in IMAGE_SIZES:
        coarse = draws.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        result.append(coarse.repeat(8, axis=0).repeat(8, axis=1))
    return result


def write_vocabulary(directory: Path, size: str) -> Path:
    """A BertTokenizer directory with as many words as the size needs, less the two that ImageReward adds."""
    missing = SIZES[size]["bert"]["vocab_size"] - 2 - len(VOCABULARY)
    (directory / "vocab.txt").write_text("\n".join([*VOCABULARY, *(f"[unused{i}]" for i in range(missing))]) + "\n")
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    return directory


@functools.cache
def import_package() -> Any:
    """The package's module `ImageReward.ImageReward`, without what its `__init__` files import beside it."""
    spec = importlib.util.find_spec("ImageReward")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    for name, path in (("ImageReward", root), ("ImageReward.models", root / "models")):
        bare = ModuleType(name)
        bare.__path__ = [str(path)]
        sys.modules[name] = bare
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        sys.modules[name] = ModuleType(name)
    stand_in = ModuleType("fairscale.nn.checkpoint.checkpoint_activations")
    stand_in.checkpoint_wrapper = None
    sys.modules[stand_in.__name__] = stand_in
    return importlib.import_module("ImageReward.ImageReward")


def build(size: str, tokenizer: Any) -> Any:
    """The package's ImageReward; the small one is put together as its `__init__` does the full one."""
    from torch import nn

    package = import_package()
    blip = sys.modules["ImageReward.models.BLIP.blip_pretrain"]
    blip.init_tokenizer = lambda: tokenizer
    vit, bert = SIZES[size]["vit"], {**MED, **SIZES[size]["bert"]}
    if size == "full":
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(bert, file)
            file.flush()
            return package.ImageReward(file.name).eval()
    model = package.ImageReward.__new__(package.ImageReward)
    nn.Module.__init__(model)
    model.device, model.mean, model.std = "cpu", 0.16717362830052426, 1.0333394966054072
    model.preprocess = package._transform(vit["img_size"])
    model.blip = nn.Module()
    model.blip.visual_encoder = sys.modules["ImageReward.models.BLIP.vit"].VisionTransformer(**vit)
    model.blip.tokenizer = tokenizer
    med = sys.modules["ImageReward.models.BLIP.med"]
    model.blip.text_encoder = med.BertModel(config=med.BertConfig(**bert), add_pooling_layer=False)
    model.blip.vision_proj = nn.Linear(vit["embed_dim"], 256)
    model.blip.text_proj = nn.Linear(bert["hidden_size"], 256)
    model.mlp = package.MLP(bert["hidden_size"])
    return model.eval()


def make(size: str) -> dict[str, Any]:
    import torch
    from PIL import Image
    from transformers import BertTokenizer

    with tempfile.TemporaryDirectory() as directory:
        tokenizer = BertTokenizer(str(write_vocabulary(Path(directory), size) / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    model = build(size, tokenizer)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state_arrays(shapes)}, strict=False)
    with torch.no_grad():
        scores = [[model.score(prompt, Image.fromarray(image)) for image in pictures()] for prompt in PROMPTS]
    return {"shapes": {name: list(value.shape) for name, value in model.state_dict().items()}, "scores": scores}


if __name__ == "__main__":
    FILE.write_text(json.dumps({size: make(size) for size in SIZES}) + "\n")
