"""The aesthetic score on a small random CLIP and head, against the procedure written out one image at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydense.config import ConfigError
from raydense.pipelines.model_folder import ModelFolder
from raydense.rewards.aesthetic import AestheticHead, AestheticScorer, check_head

CPU = torch.device("cpu")
RELEASED_SHAPES = {  # of sac+logos+ava1-l14-linearMSE.pth
    "layers.0": (1024, 768),
    "layers.2": (128, 1024),
    "layers.4": (64, 128),
    "layers.6": (16, 64),
    "layers.7": (1, 16),
}


@pytest.fixture
def head(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AestheticHead(8)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    torch.save(network.state_dict(), tmp_path / "head.pth")
    return tmp_path / "head.pth"


def pictures(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 48, 3), dtype=np.uint8)


def slow_score(image: np.ndarray[Any, Any], clip_directory: Path, head: Path) -> float:
    """Resized by Pillow, embedded by the whole CLIP model, then five matrix products in float64."""
    from transformers import CLIPImageProcessor, CLIPModel

    processor = CLIPImageProcessor.from_pretrained(clip_directory)
    height, width = image.shape[:2]
    side = 16
    scale = side / min(height, width)
    small = Image.fromarray(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (small.width - side) // 2, (small.height - side) // 2
    pixels = np.asarray(small.crop((left, top, left + side, top + side))) / 255
    pixels = (pixels - processor.image_mean) / processor.image_std
    model = CLIPModel.from_pretrained(clip_directory)
    with torch.no_grad():
        inputs = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
        features = model.visual_projection(model.vision_model(pixel_values=inputs).pooler_output)[0].double().numpy()
    value = features / np.sqrt((features**2).sum())
    state = torch.load(head)
    for layer in RELEASED_SHAPES:
        value = state[f"{layer}.weight"].double().numpy() @ value + state[f"{layer}.bias"].double().numpy()
    return float(value[0])


def test_equals_the_procedure_one_image_at_a_time(scorer_dir: Path, head: Path) -> None:
    images = pictures(5)
    scores = AestheticScorer("s", clip_model=str(scorer_dir), head=str(head), batch_size=2, device=CPU).score(
        images, ["a cat"] * 5
    )
    expected = np.array([slow_score(image, scorer_dir, head) for image in images])
    assert scores.dtype == np.float32
    # The resizes differ by one 8-bit level here and there, far less than the images do.
    np.testing.assert_allclose(scores, expected, atol=np.ptp(expected) / 50)
    assert np.ptp(expected) > 0.1


def test_prompts_and_batch_size_do_not_matter(scorer_dir: Path, head: Path) -> None:
    images = pictures(5)
    one, all_ = (
        AestheticScorer("s", clip_model=str(scorer_dir), head=str(head), batch_size=n, device=CPU) for n in (1, 5)
    )
    np.testing.assert_allclose(one.score(images, ["a"] * 5), all_.score(images, ["b"] * 5), rtol=1e-5)


def test_the_head_has_the_released_shapes() -> None:
    state = AestheticHead(768).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        **{f"{layer}.weight": shape for layer, shape in RELEASED_SHAPES.items()},
        **{f"{layer}.bias": shape[:1] for layer, shape in RELEASED_SHAPES.items()},
    }


def test_what_is_missing_is_named_with_where_to_get_it(scorer_dir: Path, head: Path, tmp_path: Path) -> None:
    expected = r"scorer s: head=/no\.pth does not exist; download sac\+logos\+ava1-l14-linearMSE\.pth from https://"
    with pytest.raises(ConfigError, match=expected):
        AestheticScorer("s", clip_model=str(scorer_dir), head="/no.pth", device=CPU)
    with pytest.raises(ConfigError, match=r"scorer s: clip_model=.* has no model\.safetensors; add it") as caught:
        AestheticScorer("s", clip_model=str(tmp_path), head=str(head), device=CPU)
    assert "\n" not in str(caught.value)


def test_a_head_that_cannot_be_used_is_refused_before_and_when_it_is_loaded(
    scorer_dir: Path, head: Path, tmp_path: Path
) -> None:
    folder = ModelFolder("scorer s: clip_model", str(scorer_dir))
    check_head("s", str(head), folder)
    state = torch.load(head)
    torch.save(AestheticHead(768).state_dict(), tmp_path / "wide.pth")
    torch.save({**state, "layers.7.bias": torch.tensor([float("nan")])}, tmp_path / "nan.pth")
    (tmp_path / "text.pth").write_text("no")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\nsize 3714759\n")
    for file, expected in (
        ("wide.pth", r"does not fit the model; 1 misshapen: layers\.0\.weight \[1024, 768\], not \[1024, 8\]"),
        ("text.pth", r"cannot be read as a file of tensors alone"),
        ("pointer.pth", r"is a pointer of large-file storage to a file of 3,714,759 bytes"),
        ("nan.pth", r"has NaN or infinity in layers\.7\.bias; download it again"),
    ):
        said = rf"^scorer s: head={tmp_path / file}: {expected}"
        with pytest.raises(ConfigError, match=said):
            AestheticScorer("s", clip_model=str(scorer_dir), head=str(tmp_path / file), device=CPU)
        if file != "nan.pth":  # values are read when they are loaded
            with pytest.raises(ConfigError, match=said):
                check_head("s", str(tmp_path / file), folder)
