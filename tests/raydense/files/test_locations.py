"""Where a model or a prompt file is."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydense.files.locations import below, resolve, short


def test_a_file_inside_an_installed_package() -> None:
    assert Path(resolve("pkg://raydense.presets/tiny.yaml")).read_text("utf-8").startswith("#")
    assert Path(resolve("pkg://raydense/presets")).is_dir()


@pytest.mark.parametrize("location", ["runwayml/stable-diffusion-v1-5", "/a/b", "relative/path", "file.txt"])
def test_everything_else_is_left_as_it_is(location: str) -> None:
    assert resolve(location) == location


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("pkg://no_such_package/x", "no installed package 'no_such_package'"),
        ("pkg://raydense.presets/absent.yaml", "no 'absent.yaml' in package 'raydense.presets'"),
        ("pkg://raydense.config/x", "no installed package 'raydense.config'"),
    ],
)
def test_what_is_not_there_is_named(location: str, said: str) -> None:
    with pytest.raises(FileNotFoundError, match=said):
        resolve(location)


@pytest.mark.parametrize(
    ("location", "called"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion-v1-5"),
        ("/models/sd15", "sd15"),
        ("/models/sd15/", "sd15"),
        ("pkg://raydense.tiny/weights/pipeline", "raydense.tiny/weights/pipeline"),
        (".", "."),
    ],
)
def test_a_model_is_called_in_few_words(location: str, called: str) -> None:
    assert short(location) == called


@pytest.mark.parametrize(
    ("root", "file"),
    [
        (Path("runs/one"), "runs/one/lora/a"),
        ("/runs/is this one?", "/runs/is this one?/lora/a"),
        ("s3://bucket/one", "s3://bucket/one/lora/a"),
        ("s3://bucket/one?endpoint_override=http://h:1", "s3://bucket/one/lora/a?endpoint_override=http://h:1"),
    ],
)
def test_a_file_of_a_run_is_where_it_can_be_found(root: Path | str, file: str) -> None:
    assert below(root, "lora/a") == file
