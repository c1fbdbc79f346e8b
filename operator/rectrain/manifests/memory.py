"""Whether a job's embedding tables can fit its devices, before any device is asked for."""

import math

from rectrain.api.job import RecTrainingJob
from rectrain.api.quantities import format_bytes, parse_bytes
from rectrain.api.tables import embedding_tables, largest_tables, table_bytes
from rectrain.api.training import ComputeKernel, ShardingType

USABLE_SHARE = 0.85
"""Share of a device that the sharding planner gives to tables (torchrec's storage reservation keeps the rest)."""

_IN_MAIN_MEMORY = {ComputeKernel.FUSED_UVM, ComputeKernel.FUSED_UVM_CACHING}


def memory_problem(job: RecTrainingJob) -> str | None:
    """Return why the embedding tables cannot fit the declared devices; None when they may fit, or none are declared.

    It compares weights and optimizer state of all tables with sharding.hbmPerDevice times the number of ranks. Tables
    that may stay in main memory (kernels FusedUVM, FusedUVMCaching) are left out, and ones that are copied to every
    rank (only DataParallel allowed) count once for each. A job that passes can still fail in the planner, which knows
    how tables can be cut and what a batch needs.
    """
    spec = job.spec
    if spec.sharding.hbm_per_device is None:
        return None
    ranks, device = spec.workers.world_size, parse_bytes(spec.sharding.hbm_per_device)
    constraints = {constraint.table: constraint for constraint in spec.sharding.constraints}
    needed = 0
    for table in embedding_tables(spec):
        constraint = constraints.get(table.name)
        if constraint is not None and _IN_MAIN_MEMORY & set(constraint.kernels or ()):
            continue
        is_copied = constraint is not None and constraint.types == [ShardingType.DATA_PARALLEL]
        needed += table_bytes(table, spec) * (ranks if is_copied else 1)
    usable = USABLE_SHARE * device * ranks
    if needed <= usable:
        return None
    return (
        f"the embedding tables do not fit: weights and optimizer state take {format_bytes(needed)}, and {ranks} "
        f"{'device' if ranks == 1 else 'devices'} of {format_bytes(device)} have {format_bytes(usable)} for them. "
        f"Largest tables: {largest_tables(spec)}. What would make it fit: "
        f"{math.ceil(needed / (USABLE_SHARE * device))} or more ranks (workers.replicas, workers.processesPerReplica); "
        "or kernel FusedUVMCaching for the largest tables (sharding.constraints), in main memory; "
        "or a smaller embeddingDim or cardinality"
    )
