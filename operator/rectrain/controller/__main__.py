"""``python -m rectrain.controller``: the controller as a process."""

import asyncio
import sys
from pathlib import Path

import click
from pydantic import ValidationError
from pydantic.alias_generators import to_snake

from rectrain.api.loading import problems_of
from rectrain.manifests import Settings

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "RECTRAIN"})
@click.option("--namespaces", default="", metavar="NAME[,NAME...]", help="Namespaces to watch. Default: all.")
@click.option(
    "--leader-election/--no-leader-election", default=True, show_default=True, help="Act only while holding a Lease."
)
@click.option("--lease-namespace", default=None, help="Namespace of the Lease. Default: the pod's own, or default.")
@click.option(
    "--workers", type=click.IntRange(1, 256), default=16, show_default=True, help="Jobs that are worked on at once."
)
@click.option(
    "--listen", default="0.0.0.0:8080", show_default=True, metavar="HOST:PORT", help="Address of /healthz and /metrics."
)
@click.option(
    "--progress-seconds",
    type=click.FloatRange(min=1),
    default=15.0,
    show_default=True,
    help="Time between two readings of a running job's progress.",
)
@click.option("--worker-image", default=None, help="Worker image of jobs that name none.")
@click.option("--output-uri", default=None, help="Folder below which jobs that name none have their results.")
@click.option("--mlflow-tracking-uri", default=None, help="MLflow server of jobs that name none.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="From which level on to log.",
)
def main(
    namespaces: str,
    leader_election: bool,
    lease_namespace: str | None,
    workers: int,
    listen: str,
    progress_seconds: float,
    log_level: str,
    **defaults: str | None,
) -> None:
    """Bring RecTrainingJobs about on the cluster that the service account or the kubeconfig names.

    Every option can also be given as an environment variable, such as RECTRAIN_WORKERS.
    """
    # kopf imports the client library where there is one, to know its objects when it meets them. There are none here,
    # and the import takes seconds and a hundred megabytes.
    sys.modules.setdefault("kubernetes", None)  # type: ignore[arg-type]

    from rectrain.controller.app import Options, run
    from rectrain.controller.connection import NoClusterError
    from rectrain.controller.logs import configure_logging
    from rectrain.controller.server import CannotListenError

    configure_logging(log_level)
    host, port = _address(listen)
    options = Options(
        namespaces=[name.strip() for name in namespaces.split(",") if name.strip()],
        leader_election=leader_election,
        lease_namespace=lease_namespace or _own_namespace(),
        workers=workers,
        host=host,
        port=port,
        progress_seconds=progress_seconds,
        settings=_settings(defaults),
    )
    try:
        code = asyncio.run(run(options))
    except NoClusterError as error:
        raise click.UsageError(f"no cluster is configured: {error}") from None
    except CannotListenError as error:
        raise click.UsageError(f"--listen must be an address of this machine that is free: {error}") from None
    sys.exit(code)


def _settings(given: dict[str, str | None]) -> Settings:
    try:
        return Settings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problem = problems_of(error)[0]
        option = f"--{to_snake(str(problem.path[0])).replace('_', '-')}"
        raise click.UsageError(f"{option}: {problem.message} (got {problem.value!r})") from None


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise click.UsageError(f"--listen must be HOST:PORT with a port from 1 to 65535 (got {listen!r})")
    return host.strip("[]"), int(port)


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text().strip()
    except OSError:
        return "default"


if __name__ == "__main__":
    main()
