"""The sharding plan: which rank holds which part of which embedding table.

torchrec's planner chooses; this file gives it the memory that is really there, and says what it chose, what it takes
and, when it does not fit, why.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, ShardingOption, Stats
from torchrec.distributed.types import ShardingPlan

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.models import ModelType
from rectrain.api.quantities import format_bytes, parse_bytes
from rectrain.api.tables import EmbeddingTable, embedding_tables, largest_tables, state_bytes_per_row, table_bytes
from rectrain.api.training import ComputeKernel, ShardingType
from rectrain_jobs.training.distributed import Ranks, host_memory_bytes

_TYPES = {
    ShardingType.DATA_PARALLEL: "data_parallel",
    ShardingType.TABLE_WISE: "table_wise",
    ShardingType.COLUMN_WISE: "column_wise",
    ShardingType.ROW_WISE: "row_wise",
    ShardingType.TABLE_ROW_WISE: "table_row_wise",
    ShardingType.TABLE_COLUMN_WISE: "table_column_wise",
    ShardingType.GRID: "grid_shard",
}
_KERNELS = {
    ComputeKernel.DENSE: "dense",
    ComputeKernel.FUSED: "fused",
    ComputeKernel.FUSED_UVM: "fused_uvm",
    ComputeKernel.FUSED_UVM_CACHING: "fused_uvm_caching",
}
_CPU_TYPES = (ShardingType.DATA_PARALLEL, ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE)
_CPU_KERNELS = (ComputeKernel.DENSE, ComputeKernel.FUSED)
_NO_HOST_LIMIT = 1 << 50


@dataclass(frozen=True)
class Shard:
    """A part of a table on one rank; a data-parallel table has one, whole, on every rank.

    Attributes:
        rank: The rank.
        rows: First row, and number of rows.
        columns: First column, and number of columns.
        num_bytes: float32 weights and optimizer state.
    """

    rank: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    num_bytes: int


@dataclass(frozen=True)
class PlannedTable:
    """Where a table is.

    Attributes:
        name: The table.
        rows: Its rows, those for out-of-vocabulary and missing included.
        embedding_dim: Its width.
        sharding: The sharding type.
        kernel: The compute kernel.
        shards: Its parts.
    """

    name: str
    rows: int
    embedding_dim: int
    sharding: str
    kernel: str
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class PlanReport:
    """What the planner chose, for people and for plan.json.

    Attributes:
        device: cpu or cuda.
        world_size: Number of ranks.
        capacity: Bytes on a device (cuda) or of a rank's main memory (cpu) that the planner could use.
        tables: The tables.
        memory_of_rank: What the planner expects each rank to need for its shards, buffers for a batch included: bytes
            on its device and of main memory. Known where the plan was made.
    """

    device: str
    world_size: int
    capacity: int
    tables: tuple[PlannedTable, ...]
    memory_of_rank: tuple[tuple[int, int], ...] = ()

    def bytes_of_rank(self) -> list[int]:
        """Return the bytes of weights and optimizer state on each rank."""
        total = [0] * self.world_size
        for table in self.tables:
            for shard in table.shards:
                total[shard.rank] += shard.num_bytes
        return total

    def to_json(self) -> dict[str, Any]:
        """Return the plan for plan.json."""
        return {"formatVersion": 1, **asdict(self), "bytesOfRank": self.bytes_of_rank()}

    def to_table(self) -> Table:
        """Return the plan as a table: a line for each table and rank."""
        view = Table(title=f"Sharding plan for {self.world_size} {self.device} ranks", title_justify="left")
        for heading in ("Table", "Rows", "Dim", "Sharding", "Kernel", "Rank", "MB"):
            view.add_column(heading, justify="left" if heading in ("Table", "Sharding", "Kernel") else "right")
        for table in self.tables:
            for ranks, num_bytes in _by_size(table.shards):
                view.add_row(
                    table.name,
                    f"{table.rows:,}",
                    str(table.embedding_dim),
                    table.sharding,
                    table.kernel,
                    _ranges(ranks),
                    f"{num_bytes / 1e6:,.1f}",
                )
        return view


def _by_size(shards: Iterable[Shard]) -> list[tuple[list[int], int]]:
    per_rank: dict[int, int] = {}
    for shard in shards:
        per_rank[shard.rank] = per_rank.get(shard.rank, 0) + shard.num_bytes
    groups: dict[int, list[int]] = {}
    for rank, num_bytes in sorted(per_rank.items()):
        groups.setdefault(num_bytes, []).append(rank)
    return [(ranks, num_bytes) for num_bytes, ranks in groups.items()]


def _ranges(ranks: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and parts[-1][1] == rank - 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def topology_of(ranks: Ranks, spec: RecTrainingJobSpec) -> Topology:
    """Return the memory that this job's ranks really have, or the less that the job allows."""
    host = host_memory_bytes() // ranks.local_world_size
    if spec.sharding.host_memory_per_rank is not None:
        host = parse_bytes(spec.sharding.host_memory_per_rank)
    hbm = 0
    if ranks.device.type == "cuda":
        hbm = torch.cuda.mem_get_info(ranks.device)[1]
        if spec.sharding.hbm_per_device is not None:
            hbm = min(hbm, parse_bytes(spec.sharding.hbm_per_device))
    return Topology(
        world_size=ranks.world_size,
        compute_device=ranks.device.type,
        hbm_cap=hbm,
        ddr_cap=host,
        local_world_size=ranks.local_world_size,
    )


def imagined_topology(spec: RecTrainingJobSpec, *, devices: int, nodes: int, hbm: int) -> Topology:
    """Return GPUs that need not be here.

    Args:
        spec: The job.
        devices: GPUs in all.
        nodes: Machines that they are on.
        hbm: Bytes of each.

    Raises:
        UserError: The devices do not divide over the nodes.
    """
    if devices % nodes:
        raise UserError(f"--devices {devices}: must be a multiple of --nodes, {nodes}")
    host = spec.sharding.host_memory_per_rank
    return Topology(
        world_size=devices,
        compute_device="cuda",
        hbm_cap=hbm,
        ddr_cap=parse_bytes(host) if host is not None else _NO_HOST_LIMIT,
        local_world_size=devices // nodes,
    )


def sharders() -> list[Any]:
    """Return torchrec's sharders of the embedding modules that models have: pooled, and a vector for each id."""
    return [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()]


def make_plan(
    model: nn.Module, spec: RecTrainingJobSpec, topology: Topology, group: dist.ProcessGroup | None = None
) -> tuple[ShardingPlan, PlanReport]:
    """Choose a plan for a model on the meta device, whose tables are marked with their optimizer.

    Args:
        model: The unsharded model.
        spec: The job.
        topology: The ranks' memory.
        group: Ranks that must agree: rank 0 plans for all. None plans in this process alone.

    Raises:
        UserError: The tables do not fit, or a constraint cannot be met; the message names tables and remedies.
    """
    chosen = _ChosenOptions()
    constraints = _constraints(spec, topology.compute_device)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        enumerator=_OrderedEnumerator(topology, spec.training.batch_size, constraints),
        stats=chosen,
        batch_size=spec.training.batch_size,
        constraints=constraints,
        debug=False,
    )
    try:
        plan = planner.plan(model, sharders()) if group is None else planner.collective_plan(model, sharders(), group)
    except PlannerError as error:
        raise UserError(explain_misfit(spec, topology, error)) from None
    except RuntimeError as error:  # what the planner raises where no sharding type goes with a kernel
        table = re.search(r"^No available sharding type.* for (\w+)\. Module", str(error))
        if table is None:
            raise
        raise UserError(_explain_combination(table[1], constraints[table[1]], topology.compute_device)) from None
    return plan, replace(report_plan(plan, spec, topology), memory_of_rank=chosen.memory_of_rank)


class _OrderedEnumerator(EmbeddingEnumerator):  # type: ignore[misc]  # torchrec has no types
    """Lists the options of a table in one order, so that one job always gets one plan.

    torchrec's lists them as a set gives them, which differs from process to process, and the first of equals is chosen.
    """

    def _filter_sharding_types(self, *args: Any, **kwargs: Any) -> list[str]:
        return sorted(super()._filter_sharding_types(*args, **kwargs), key=list(_TYPES.values()).index)

    def _filter_compute_kernels(self, *args: Any, **kwargs: Any) -> list[str]:
        return sorted(super()._filter_compute_kernels(*args, **kwargs), key=list(_KERNELS.values()).index)


class _ChosenOptions(Stats):  # type: ignore[misc]  # torchrec has no types
    """Takes note of the memory that the planner expects each rank to need."""

    def __init__(self) -> None:
        self.memory_of_rank: tuple[tuple[int, int], ...] = ()

    def log(self, *, topology: Topology, best_plan: list[ShardingOption], **_: Any) -> None:
        memory = [[0, 0] for _ in range(topology.world_size)]
        for option in best_plan:
            for shard in option.shards:
                memory[shard.rank][0] += int(shard.storage.hbm)
                memory[shard.rank][1] += int(shard.storage.ddr)
        self.memory_of_rank = tuple((hbm, ddr) for hbm, ddr in memory)


def report_plan(plan: ShardingPlan, spec: RecTrainingJobSpec, topology: Topology) -> PlanReport:
    """Return what a plan says, in numbers."""
    parameters = {name: sharding for module in plan.plan.values() for name, sharding in module.items()}
    capacity = topology.devices[0].storage
    return PlanReport(
        device=topology.compute_device,
        world_size=topology.world_size,
        capacity=capacity.hbm if topology.compute_device == "cuda" else capacity.ddr,
        tables=tuple(
            PlannedTable(
                name=table.name,
                rows=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                sharding=parameters[table.name].sharding_type,
                kernel=parameters[table.name].compute_kernel,
                shards=tuple(_shards(table, parameters[table.name], spec, topology.world_size)),
            )
            for table in embedding_tables(spec)
        ),
    )


def explain_misfit(spec: RecTrainingJobSpec, topology: Topology, error: PlannerError) -> str:
    """Return why no plan was found: the tables by size, the memory there is, and what would make it fit."""
    device = "GPU" if topology.compute_device == "cuda" else "rank"
    storage = topology.devices[0].storage
    capacity = storage.hbm if topology.compute_device == "cuda" else storage.ddr
    total = sum(table_bytes(table, spec) for table in embedding_tables(spec))
    largest = largest_tables(spec)
    reason = " ".join(str(error).split())
    constrained = [c.table for c in spec.sharding.constraints]
    if total <= 0.85 * capacity * topology.world_size and constrained:
        return (
            f"spec.sharding.constraints: no plan meets the constraints on {', '.join(constrained)}: "
            f"{total and format_bytes(total)} of tables, {topology.world_size} {device}s of {format_bytes(capacity)}; "
            f"allow more sharding types or kernels. Largest tables: {largest}. Planner: {reason[:200]}"
        )
    needed = math.ceil(total / (0.75 * capacity)) if capacity else topology.world_size + 1
    remedies = [f"{max(needed, topology.world_size + 1)} or more {device}s of {format_bytes(capacity)}"]
    remedies.append(f"{format_bytes(total / 0.75 / topology.world_size)} or more on each")
    if topology.compute_device == "cuda":
        remedies.append("kernel FusedUVMCaching for the largest tables (spec.sharding.constraints), in main memory")
    remedies.append("a smaller embeddingDim or cardinality")
    return (
        f"the embedding tables do not fit: weights and optimizer state take {format_bytes(total)}, and "
        f"{topology.world_size} {device}s of {format_bytes(capacity)} keep about 15% for the rest. "
        f"Largest tables: {largest}. What would make it fit: {'; or '.join(remedies)}"
    )


def _shards(table: EmbeddingTable, sharding: Any, spec: RecTrainingJobSpec, world_size: int) -> Iterable[Shard]:
    whole = Shard(0, (0, table.num_embeddings), (0, table.embedding_dim), table_bytes(table, spec))
    if sharding.sharding_spec is None:
        yield from (replace(whole, rank=rank) for rank in range(world_size))
        return
    optimizer = spec.training.optimizers.embedding.type
    for part in sharding.sharding_spec.shards:
        (first_row, first_column), (rows, columns) = part.shard_offsets, part.shard_sizes
        if rows and columns:
            num_bytes = rows * (4 * columns + state_bytes_per_row(optimizer, columns))
            yield Shard(part.placement.rank(), (first_row, rows), (first_column, columns), num_bytes)


def _explain_combination(table: str, constraint: ParameterConstraints, device: str) -> str:
    """Return which of a table's sharding types and kernels were asked for, of which none go together."""
    types = [name for name, value in _TYPES.items() if value in (constraint.sharding_types or ())]
    kernels = [name for name, value in _KERNELS.items() if value in (constraint.compute_kernels or ())]
    return (
        f"spec.sharding.constraints[{table}]: none of the types {', '.join(types)} goes with any of the kernels "
        f"{', '.join(kernels)} on {device}; Dense goes with DataParallel, and the others with the other types"
    )


def _constraints(spec: RecTrainingJobSpec, device: str) -> dict[str, ParameterConstraints]:
    # Copies on every rank (DataParallel) are not chosen unasked: their gradients are dense, as large as the table.
    available = list(ShardingType) if device == "cuda" else list(_CPU_TYPES)
    default = [t for t in available if t is not ShardingType.DATA_PARALLEL]
    default_kernels = [ComputeKernel.DENSE, ComputeKernel.FUSED]
    asked = {c.table: c for c in spec.sharding.constraints}
    constraints = {}
    for table in embedding_tables(spec):
        constraint = asked.get(table.name)
        types = default if constraint is None or constraint.types is None else constraint.types
        # Main memory behind a table is many times slower, so it is not chosen unasked either: a plan without it either
        # fits or says that this is one of the remedies.
        kernels = default_kernels if constraint is None or constraint.kernels is None else constraint.kernels
        if device == "cpu":
            _check_cpu(table.name, types, kernels)
            if spec.model.type is ModelType.MIND:
                types, kernels = _unpooled_on_cpu(table.name, types, kernels)
        constraints[table.name] = ParameterConstraints(
            sharding_types=[_TYPES[t] for t in types],
            compute_kernels=[_KERNELS[k] for k in kernels],
        )
    return constraints


def _unpooled_on_cpu(
    table: str, types: Sequence[ShardingType], kernels: Sequence[ComputeKernel]
) -> tuple[list[ShardingType], list[ComputeKernel]]:
    """Leave out what pools a table that is to be looked up id by id: FBGEMM's dense CPU kernel (its issue 4586)."""
    left: list[ShardingType] = [t for t in types if t is not ShardingType.DATA_PARALLEL]
    if not left or ComputeKernel.FUSED not in kernels:
        field, value = ("types", types) if not left else ("kernels", kernels)
        raise UserError(
            f"spec.sharding.constraints[{table}].{field}: {', '.join(value)} needs GPUs for a MIND model; on CPU "
            f"{'TableWise or ColumnWise' if not left else 'Fused'} must be among them"
        )
    return left, [ComputeKernel.FUSED]


def _check_cpu(table: str, types: Sequence[ShardingType], kernels: Sequence[ComputeKernel]) -> None:
    if types and not set(types) & set(_CPU_TYPES):
        raise UserError(
            f"spec.sharding.constraints[{table}].types: {', '.join(types)} needs GPUs; "
            f"on CPU one of {', '.join(_CPU_TYPES)} must be among them"
        )
    if kernels and not set(kernels) & set(_CPU_KERNELS):
        raise UserError(
            f"spec.sharding.constraints[{table}].kernels: {', '.join(kernels)} needs GPUs; "
            f"on CPU one of {', '.join(_CPU_KERNELS)} must be among them"
        )
