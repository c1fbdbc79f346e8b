"""DLRM and DCNv2: embeddings and a dense vector of one width, their interactions, an MLP on top."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchrec.models.dlrm import DenseArch, InteractionArch, InteractionDCNArch
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedTensor

from rectrain.api.models import DLRM, DCNv2
from rectrain_jobs.models.embeddings import concatenate
from rectrain_jobs.models.ranking import ConstantVector


class DLRMArch(nn.Module):
    """What is above the embeddings of a DLRM or DCNv2 model.

    DLRM: inner products of all pairs among the embeddings and the dense vector, and the dense vector itself. Naumov et
    al., "Deep learning recommendation model for personalization and recommendation systems", arXiv:1906.00091.

    DCNv2: low-rank cross layers x0 * (W V x + b) + x over all of them side by side. Wang et al., "DCN V2: Improved deep
    & cross network", WWW 2021, in the shape of the reference DLRM (arXiv:2008.13535's stacked form).

    Args:
        section: Settings of the model.
        features: Names of the Categorical and Sequence features.
        num_dense: Number of Dense features.
        outputs: Number of logits.
    """

    def __init__(self, section: DLRM | DCNv2, features: Sequence[str], num_dense: int, outputs: int) -> None:
        """Build the layers."""
        super().__init__()
        self.features, self.width = features, section.embedding_dim
        self.dense = (
            DenseArch(num_dense, [*section.dense_dims, self.width]) if num_dense else ConstantVector(self.width)
        )
        if isinstance(section, DCNv2):
            interactions = (len(features) + 1) * self.width
            crossnet = LowRankCrossNet(interactions, section.cross_layers, section.cross_rank)
            self.interaction: nn.Module = InteractionDCNArch(len(features), crossnet)
        else:
            interactions = self.width + len(features) * (len(features) + 1) // 2
            self.interaction = InteractionArch(len(features))
        self.over = MLP(interactions, [*section.over_dims, outputs], activation="relu", activation_on_last=False)

    def forward(self, pooled: KeyedTensor, dense: Tensor) -> Tensor:
        """Return logits [rows, outputs].

        Args:
            pooled: Embeddings of the features.
            dense: float32 [rows, Dense features].
        """
        embedded = concatenate(pooled, self.features).reshape(-1, len(self.features), self.width)
        vector = self.dense(dense).to(embedded.dtype)
        return self.over(self.interaction(vector, embedded))  # type: ignore[no-any-return]
