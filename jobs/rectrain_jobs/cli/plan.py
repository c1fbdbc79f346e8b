"""`rectrain plan`: would the tables fit, and where would they be?"""

import json

import click

from rectrain.api import UserError, load_job
from rectrain.api.quantities import format_bytes, parse_bytes

_EPILOG = """\b
Examples:
  rectrain plan job.yaml --devices 8 --hbm 80Gi
  rectrain plan job.yaml --devices 16 --nodes 2 --hbm 40Gi --set model.dlrm.embeddingDim=128
"""


@click.command(epilog=_EPILOG)
@click.argument("job_file", metavar="JOB", type=click.Path())
@click.option("--devices", type=click.IntRange(1, 65536), help="GPUs in all. Default: the job's ranks.")
@click.option("--hbm", metavar="BYTES", help="Memory of each GPU, such as 80Gi. Default: the job's hbmPerDevice.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Machines that they are on.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the job.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    job_file: str, devices: int | None, hbm: str | None, nodes: int, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Show how a job's embedding tables would be sharded over GPUs, and whether they fit. Needs no GPU."""
    job = load_job(job_file, overrides)
    given = hbm or job.spec.sharding.hbm_per_device
    if given is None:
        raise UserError("--hbm: is required, such as 80Gi, because spec.sharding.hbmPerDevice is not set")
    try:
        capacity = parse_bytes(given)
    except ValueError as error:
        raise UserError(f"--hbm: {error}") from None
    if capacity == 0:
        raise UserError(f"--hbm: must be more than no bytes, not {given!r}")
    from rectrain_jobs.installation import check_kernels

    check_kernels()
    import torch
    from rich.console import Console

    from rectrain_jobs.logs import configure_logging
    from rectrain_jobs.models.registry import TrainingTask, build_model
    from rectrain_jobs.training.optimizers import fuse_embedding_optimizer
    from rectrain_jobs.training.plan import imagined_topology, make_plan

    configure_logging()
    spec = job.spec
    topology = imagined_topology(spec, devices=devices or spec.workers.world_size, nodes=nodes, hbm=capacity)
    task = TrainingTask(spec, build_model(spec, embedding_device=torch.device("meta")))
    fuse_embedding_optimizer(
        task.model.embeddings.parameters(), spec.training.optimizers.embedding, torch.device("cuda")
    )
    _, report = make_plan(task, spec, topology)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
        return
    console = Console(highlight=False)
    console.print(report.to_table())
    on_device, on_host = (max(memory) for memory in zip(*report.memory_of_rank, strict=True))
    of_host = f", and {format_bytes(on_host)} of main memory for each" if on_host else ""
    console.print(
        f"fits: at most {format_bytes(on_device)} of a GPU's {format_bytes(capacity)} for tables, their optimizer "
        f"state and the buffers of a batch{of_host}; "
        f"{format_bytes(sum(report.bytes_of_rank()))} of tables and state in all",
        soft_wrap=True,
    )
