"""Commands that are imported when they are used, so that `rectrain --help` is quick and needs no worker packages."""

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import click

ENTRY_POINT_GROUP = "rectrain.commands"
"""Entry points of this group are commands of `rectrain`; each names a click command."""

# Listing commands must not import them, so the short help of our own entry points is here.
_SUMMARIES = {
    "run": "Train a job on this machine, from raw data to model bundle.",
    "data": "Convert raw data to shards and look into them.",
    "plan": "Show how the embedding tables are split over ranks, and whether they fit.",
    "evaluate": "Measure a trained model on the validation data.",
    "index": "Publish item vectors to an index, and look after its versions.",
    "serve": "Answer requests from a trained model over HTTP.",
}


class LazyCommand(click.Command):
    """Stands for a command whose module is imported when the command is used or its own help is asked for."""

    def __init__(self, name: str, summary: str, load: Callable[[], click.Command]) -> None:
        """Hold the name, the line that the list of commands shows, and what imports the command."""
        super().__init__(name, short_help=summary)
        self._load = load

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Import the command and return its context; click goes on with the command of that context."""
        try:
            command = self._load()
        except ImportError:
            # While a shell completes a line there is nobody to tell that a package is missing.
            if extra.get("resilient_parsing"):
                return super().make_context(info_name, args, parent, **extra)
            raise
        return command.make_context(info_name, args, parent, **extra)


def lazy_command(name: str, summary: str, target: str) -> LazyCommand:
    """Return a command that is imported from ``module:attribute`` when it is used."""
    module, _, attribute = target.partition(":")

    def load() -> click.Command:
        command: click.Command = getattr(import_module(module), attribute)
        return command

    return LazyCommand(name, summary, load)


def entry_point_commands() -> dict[str, metadata.EntryPoint]:
    """Return the commands that installed packages add, by name."""
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)}


def command_of(entry: metadata.EntryPoint) -> LazyCommand:
    """Return the command of an entry point, not imported yet."""
    summary = _SUMMARIES.get(entry.name) or f"Added by {entry.dist.name if entry.dist else entry.module}."
    return LazyCommand(entry.name, summary, entry.load)
