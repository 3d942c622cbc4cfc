"""`raydense config`."""

from __future__ import annotations

from typing import Annotated

import typer

from raydense.commands.common import ConfigFile, Debug, Overrides, Preset, explained
from raydense.config import Config, ConfigError, load_config
from raydense.sections.commented import commented_yaml
from raydense.sections.reference import markdown as as_markdown

EXAMPLE = "Example: `raydense config --preset multi-prompt > mine.yaml`, then `raydense train mine.yaml --dry-run`"


def config(
    config_file: ConfigFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Instead, tables of all settings and kinds of scorers.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Prints a whole configuration as YAML: each setting with what it is, what is allowed and its default."""
    with explained(debug):
        if markdown and (config_file or preset or overrides):
            raise ConfigError("--markdown prints what may be set, whatever the configuration; give nothing beside it")
        text = as_markdown(Config) if markdown else commented_yaml(load_config(config_file, preset, overrides))
        typer.echo(text.encode(), nl=False)  # as bytes: UTF-8, as a file must be, whatever the terminal's own
