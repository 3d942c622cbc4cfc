"""README and guides name nothing that is not there: links, commands, settings, files, tests; the README stays short."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from typer.main import get_command

from raydense.cli import app
from raydense.config import Config, load_config, preset_names
from raydense.planning.dry_run import count_images, count_judged
from raydense.planning.units import read_prompt_sets
from raydense.prompts import sources
from raydense.rewards import aesthetic, hpsv2, imagereward
from raydense.sections.base import Section
from raydense.sections.rewards import ScorerConfig

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FOLDERS = ("raydense", "actors", "learner", "deploy", "tests")
GUIDES = [README, *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
SECTIONS = "|".join(Config.model_fields)
GROWING = ("samplers={max: 8, num_gpus: 1}", "learner.num_gpus=1")  # with which every setting of the fleet can be tried
STARTED = (*GROWING, "policy.init_lora=lora.safetensors")  # and every setting of the policy
each_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))


def slug(heading: str) -> str:
    """A heading's anchor, as Git hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def prose(guide: Path) -> str:
    """A guide without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", guide.read_text("utf-8"), flags=re.S | re.M)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def scripts(guide: Path) -> Iterator[list[str]]:
    """Each shell command of the indented blocks as words: continued lines are joined, comments cut."""
    pending = ""
    for line in guide.read_text("utf-8").splitlines():
        if not line.startswith("    "):
            pending = ""
            continue
        pending += re.sub(r"(^|\s)#\s.*$", "", line.strip())
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending)
        except ValueError:  # a quotation goes on in the next line
            continue
        pending = ""
        yield words


def raydense_commands(guide: Path) -> Iterator[list[str]]:
    """The words behind `raydense` of every command line in blocks, and of every whole one in the prose."""
    inline = [shlex.split(text) for text in re.findall(r"`(raydense [a-z][^`…]*)`", prose(guide).replace("\n", " "))]
    for words in [*scripts(guide), *inline]:
        for start, (before, word) in enumerate(pairwise(["&&", *words]), 1):
            if (before, word) not in {("&&", "raydense"), ("--", "raydense"), ("-m", "raydense.cli")}:
                continue
            command = words[start:]
            end = next((i for i, word in enumerate(command) if word in ("&&", "&", "|", ";", ">")), len(command))
            if command[:end]:
                yield command[:end]


def check_settings(command: list[str]) -> None:
    """Raises: ConfigError if a preset or a `--set` of the command is none."""
    values = dict(pairwise(command))
    overrides = [value for option, value in pairwise(command) if option == "--set"]
    load_config(None, values.get("--preset"), overrides)


def names(annotation: Any, prefix: str = "") -> Iterator[str]:
    """The whole names of all settings below a section, or below what holds sections."""
    if not (isinstance(annotation, type) and issubclass(annotation, Section)):
        for part in get_args(annotation):
            yield from names(part, prefix)
        return
    for name, field in annotation.model_fields.items():
        yield prefix + name
        yield from names(field.annotation, f"{prefix}{name}.")


@each_guide
def test_every_relative_link_and_its_anchor_are_there(guide: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(guide))
    for link in [link for link in links if not re.match(r"[a-z]+:", link)]:
        path, _, anchor = link.partition("#")
        target = (guide.parent / path).resolve() if path else guide
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            assert anchor in map(slug, headings), link


@each_guide
def test_every_file_that_it_names_is_there(guide: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])((?:raydense|actors|learner|tests|deploy)/[\w./-]+\.\w+)", guide.read_text("utf-8")
    )
    # the threat model's table is headed "held by (tests/…)"
    assert [name for name in named if not any((place / name).exists() for place in (ROOT, ROOT / "tests"))] == []


@each_guide
def test_every_command_is_one_that_raydense_takes(guide: Path) -> None:
    commands: Any = get_command(app)
    for name, *arguments in raydense_commands(guide):
        assert name in commands.commands, name
        if arguments and "--help" not in arguments:
            commands.commands[name].make_context(name, list(arguments))  # parses, and runs nothing
        check_settings([name, *arguments])


@each_guide
def test_every_script_and_module_is_there(guide: Path) -> None:
    for words in scripts(guide):
        for word, following in pairwise(words):
            if word == "python" and following.endswith(".py"):
                assert (ROOT / following).is_file(), following
            if word == "-m" and following.startswith(("raydense", "actors", "learner")):
                assert find_spec(following) is not None, following


@each_guide
def test_every_setting_that_it_names_is_one(guide: Path) -> None:
    """`section.key` and `section.key=value`; the last is tried."""
    settings = set(names(Config))
    named = re.findall(rf"`(?:--set )?((?:{SECTIONS})\.[a-z][\w.]*)(=[^`\s]*)?`", prose(guide))
    for key, value in named:
        if not re.search(r"\.(py|yaml|md|jsonl?)$", key):
            assert key in settings, key
        if value:
            load_config(overrides=[*STARTED, f"{key}{value}"])


def test_the_commands_were_found() -> None:
    found = [command for guide in GUIDES for command in raydense_commands(guide)]
    assert len(found) > 50
    assert {name for name, *_ in found} == set(get_command(app).commands)  # type: ignore[attr-defined]
    assert ["train", "--preset", "multi-prompt", "--dry-run"] in list(raydense_commands(README))


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    text = README.read_text("utf-8")
    assert text.count("\n") <= 180
    assert re.findall(r"^ *(pip install .*&& pytest)$", text, re.M) == ["pip install '.[test]' && pytest"]  # as .ci/run
    assert text.count("\n    pip install . && raydense train\n") == 1


def test_the_picture_of_the_architecture_names_what_is_there() -> None:
    (picture,) = re.findall(r"^```mermaid\n(.*?)^```", README.read_text("utf-8"), re.S | re.M)
    named = re.findall(r"<br/>([\w/]+(?:\.py|/))", picture)
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_guide_can_be_reached_from_the_readme() -> None:
    """In two steps at most."""
    near = set(_linked(README))
    reached = near | {link for guide in near for link in _linked(guide)}
    assert [guide for guide in GUIDES if guide != README and guide not in reached] == []


def _linked(guide: Path) -> Iterator[Path]:
    for link in re.findall(r"\]\(([^)#\s]+)", prose(guide)):
        target = (guide.parent / link).resolve()
        page = target / "README.md" if target.is_dir() else target
        if page.is_file() and page.suffix == ".md":
            yield page


def test_the_method_has_every_section_that_code_cites() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    cited = {number for path in files for number in re.findall(r"METHOD §(\d)", path.read_text("utf-8"))}
    headings = re.findall(r"^## (\d)\.", (ROOT / "learner" / "METHOD.md").read_text("utf-8"), re.M)
    assert cited <= set(headings)


def test_the_page_on_the_paper_has_the_codes_sources_and_the_plans_counts() -> None:
    page = (ROOT / "raydense" / "presets" / "README.md").read_text("utf-8")
    config = load_config(preset="single-prompt")
    names = [
        f"{config.policy.model} --revision {config.policy.revision}",
        *(imagereward.REPOSITORY, imagereward.CHECKPOINT, imagereward.TOKENIZER),
        *(hpsv2.REPOSITORY, hpsv2.CHECKPOINTS["v2.0"]),
        *(aesthetic.HEAD, aesthetic.HEAD_SOURCE, aesthetic.CLIP_MODEL),
        *(sources.HPSV2_TRAIN_REPOSITORY, sources.HPSV2_BENCHMARK_REPOSITORY),
        *(f"{style}.json" for style in sources.HPSV2_STYLES),
    ]
    assert [name for name in names if name not in page] == []
    multi = load_config(preset="multi-prompt")
    assert f"| {count_images(config):,} | {count_images(multi):,} |" in page
    assert f"| {count_judged(config, read_prompt_sets(config)):,} | {count_judged(multi, None):,} |" in page
    for plan in (config, multi):
        assert f"{plan.stage.count * plan.stage.steps:,} of {plan.train.batch_groups} groups" in page


def test_every_preset_and_kind_of_judge_is_in_its_guide() -> None:
    training = (ROOT / "raydense" / "training" / "README.md").read_text("utf-8")
    assert [name for name in preset_names() if f"| `{name}`" not in training] == []
    assert [name for name in Config.model_fields if f"`{name}`" not in training] == []
    rewards = (ROOT / "raydense" / "rewards" / "README.md").read_text("utf-8")
    kinds = [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(get_args(ScorerConfig)[0])]
    assert [kind for kind in kinds if f"| `{kind}` |" not in rewards] == []


def test_the_records_guide_names_every_metric_of_a_run() -> None:
    guide = (ROOT / "raydense" / "records" / "README.md").read_text("utf-8")
    rows = (ROOT / "tests" / "compatibility" / "finished" / "metrics.jsonl").read_text("utf-8").splitlines()
    metrics = {name for row in rows for name in yaml.safe_load(row)} - {"intervals", "weights_checksum"}
    assert [name for name in metrics if not name.startswith("evaluate/") and f"`{name}`" not in guide] == []


def test_python_in_the_guides_is_python() -> None:
    """Blocks that import or define something are parsed."""
    blocks = [b for g in GUIDES for b in re.findall(r"(?:^    .*\n?)+", g.read_text("utf-8"), re.M)]
    python = [re.sub(r"^    ", "", block, flags=re.M) for block in blocks if re.match(r"    (import|def|from) ", block)]
    assert len(python) >= 2
    for block in python:
        ast.parse(block)
