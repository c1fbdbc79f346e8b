"""DeepFM: a factorization machine and an MLP side by side over the same embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DenseArch
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedTensor

from rectrain.api.models import DeepFM
from rectrain_jobs.models.embeddings import concatenate


class DeepFMArch(nn.Module):
    """What is above the embeddings of a DeepFM model: first-order terms + pairs + deep part.

    Guo et al., "DeepFM: A factorization-machine based neural network for CTR prediction", IJCAI 2017. The vectors that
    interact are the embeddings and, of the Dense features together, one more vector from layers over them. Differences:
    a value's first-order weight is a learnt projection of its embedding, not a table of its own; and each logit weighs
    the coordinates of the pairs' sum, from 1 at the start, so that several labels share one machine.

    torchrec's FactorizationMachine is not used: it sums over all coordinates at once, which mixes the products of
    different coordinates, and of one vector with itself, into what should be the inner products of pairs.

    Args:
        section: Settings of the model.
        features: Names of the Categorical and Sequence features.
        num_dense: Number of Dense features.
        outputs: Number of logits.
    """

    def __init__(self, section: DeepFM, features: Sequence[str], num_dense: int, outputs: int) -> None:
        """Build the layers."""
        super().__init__()
        self.features, self.width = features, section.embedding_dim
        self.dense = DenseArch(num_dense, [*section.dense_dims, self.width]) if num_dense else None
        vectors = len(features) + (1 if num_dense else 0)
        self.first_order = nn.Linear(vectors * self.width, outputs)
        self.pairs = nn.Linear(self.width, outputs, bias=False)
        nn.init.ones_(self.pairs.weight)
        self.deep = MLP(
            vectors * self.width, [*section.over_dims, outputs], activation="relu", activation_on_last=False
        )

    def forward(self, pooled: KeyedTensor, dense: Tensor) -> Tensor:
        """Return logits [rows, outputs].

        Args:
            pooled: Embeddings of the features.
            dense: float32 [rows, Dense features].
        """
        inputs = concatenate(pooled, self.features)
        if self.dense is not None:
            inputs = torch.cat([inputs, self.dense(dense).to(inputs.dtype)], dim=1)
        pairs = pair_products(inputs.reshape(len(inputs), -1, self.width))
        return self.first_order(inputs) + self.pairs(pairs) + self.deep(inputs)  # type: ignore[no-any-return]


def pair_products(vectors: Tensor) -> Tensor:
    """Return the sum over pairs of vectors of their elementwise products, [rows, width].

    In linear time, as half of (the square of the sum - the sum of the squares): Rendle, "Factorization machines", ICDM
    2010, lemma 3.1.

    Args:
        vectors: [rows, vectors, width].
    """
    return (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)) / 2
