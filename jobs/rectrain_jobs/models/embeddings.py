"""The embedding tables of a job as one collection of torchrec's: pooled, or a vector for each id."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedTensor

from rectrain.api.features import Pooling
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.models import MIND, TwoTower
from rectrain.api.tables import EmbeddingTable, embedding_tables


def build_embeddings(spec: RecTrainingJobSpec, device: torch.device) -> EmbeddingBagCollection:
    """Return the job's embedding tables: every Categorical and Sequence feature looks up in exactly one of them.

    Args:
        spec: The job.
        device: Where the tables are. On `meta` they have no values; DistributedModelParallel gives each rank its
            shards and initialises them.
    """
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                feature_names=list(table.features),
                pooling=PoolingType.MEAN if table.pooling is Pooling.MEAN else PoolingType.SUM,
                init_fn=_initializer(spec, table),
            )
            for table in embedding_tables(spec)
        ],
        device=device,
    )


def build_unpooled_embeddings(spec: RecTrainingJobSpec, device: torch.device) -> EmbeddingCollection:
    """Return the job's embedding tables, all of one width, for a model that needs the vector of every single id.

    Args:
        spec: The job.
        device: As in build_embeddings.
    """
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=table.name,
                num_embeddings=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                feature_names=list(table.features),
                init_fn=_initializer(spec, table),
            )
            for table in embedding_tables(spec)
        ],
        device=device,
    )


def concatenate(pooled: KeyedTensor, features: Iterable[str]) -> Tensor:
    """Return the pooled embeddings of these features side by side, float32 [rows, sum of their widths].

    A sharded collection orders its keys by shard, so they are taken by name.
    """
    by_feature = pooled.to_dict()
    return torch.cat([by_feature[name] for name in features], dim=1)


@dataclass(frozen=True)
class TableInitializer:
    """Fills a table, or one rank's shard of it, with random values that depend on the seed and the table's name.

    A whole table gets the same values on whichever rank it lies, so that runs on one and on several ranks start alike
    as long as tables are not split. A part of a table also takes the rank into account: with one seed for all, the
    rows (or columns) of every rank's part would be equal.

    Attributes:
        table: Name of the table.
        shape: Rows and width of the whole table.
        seed: Seed of the job.
        normal_std: Standard deviation of a normal distribution around 0, or
        uniform_bound: bound of a uniform distribution over [-bound, bound]; exactly one of the two is given.
    """

    table: str
    shape: tuple[int, int]
    seed: int
    normal_std: float | None = None
    uniform_bound: float | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """Fill the tensor in place and return it."""
        if weight.numel() == 0 or weight.is_meta:  # a table that lies on other ranks, or nowhere yet
            return weight
        part = "whole" if tuple(weight.shape) == self.shape else f"rank {dist.get_rank() if _is_distributed() else 0}"
        digest = hashlib.blake2b(f"{self.seed}/{self.table}/{part}".encode(), digest_size=8).digest()
        generator = torch.Generator(device=weight.device).manual_seed(int.from_bytes(digest, "little") >> 1)
        with torch.no_grad():
            if self.normal_std is not None:
                return weight.normal_(0.0, self.normal_std, generator=generator)
            assert self.uniform_bound is not None
            return weight.uniform_(-self.uniform_bound, self.uniform_bound, generator=generator)


def _initializer(spec: RecTrainingJobSpec, table: EmbeddingTable) -> TableInitializer:
    section, shape, seed = spec.model.section, (table.num_embeddings, table.embedding_dim), spec.training.seed
    if isinstance(section, TwoTower | MIND):
        std = section.init_std or 1 / math.sqrt(table.embedding_dim)
        return TableInitializer(table.name, shape, seed, normal_std=std)
    # The reference DLRM's: uniform, narrower the more rows a table has.
    return TableInitializer(table.name, shape, seed, uniform_bound=1 / math.sqrt(table.num_embeddings))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
