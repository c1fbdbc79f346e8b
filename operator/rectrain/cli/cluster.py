"""What the commands that talk to a cluster have in common: how it is found, and how objects are named and listed."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rectrain.api.crd import PLURAL, SHORT_NAME
from rectrain.api.job import GROUP, KIND

if TYPE_CHECKING:
    from rectrain.sdk import Client

NONE = "<none>"
_F = TypeVar("_F", bound=Callable[..., Any])
_GAP = "   "
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
"""Length of each unit of time that is written, the longest first."""


def cluster_options(command: _F) -> _F:
    """Add the options by which kubectl is told which cluster and namespace are meant."""
    for option in (
        click.option("--kubeconfig", metavar="FILE", help="Kubeconfig. [env: KUBECONFIG] Default: ~/.kube/config."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig. Default: its current one."),
        click.option("-n", "--namespace", metavar="NAME", help="Namespace. Default: that of the context."),
    ):
        command = option(command)
    return command


def client_of(namespace: str | None, context: str | None, kubeconfig: str | None) -> "Client":
    """Return the client that the options ask for; its package is imported only now."""
    from rectrain.sdk import Client

    return Client(namespace, context=context, kubeconfig=kubeconfig)


class _JobName(click.ParamType[str]):
    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, slash, name = value.rpartition("/")
        if slash and kind.removesuffix(f".{GROUP}").lower() not in _KINDS:
            self.fail(f"{value!r} is no {KIND}", param, ctx)
        if not name:
            self.fail("must not be empty", param, ctx)
        return name


_KINDS = (KIND.lower(), PLURAL, SHORT_NAME)
JOB_NAME = _JobName()
"""Type of an argument that names a job: cds, rtj/cds, or as `rectrain get -o name` prints it."""


def object_name(name: str) -> str:
    """Return a job's name as kubectl prints objects."""
    return f"{KIND.lower()}.{GROUP}/{name}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as kubectl lays out a table; the first row holds the column names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def age(timestamp: str | datetime, now: datetime | None = None) -> str:
    """Return how long ago a time is, as kubectl prints ages: 5s, 3m, 2h, 9d."""
    then = datetime.fromisoformat(timestamp) if isinstance(timestamp, str) else timestamp
    return duration(((now or datetime.now(UTC)) - then).total_seconds())


def duration(seconds: float) -> str:
    """Return a length of time with its largest unit, and with the next one while that says much: 95s, 12m, 3h20m."""
    left = max(0, int(seconds))
    if left < 120:
        return f"{left}s"
    for unit, finer in (("d", "h"), ("h", "m")):
        whole, rest = divmod(left, SECONDS[unit])
        if whole:
            more = rest // SECONDS[finer]
            return f"{whole}{unit}{more}{finer}" if more and whole < 8 else f"{whole}{unit}"
    return f"{left // 60}m"
