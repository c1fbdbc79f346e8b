"""From a job to its model and what is trained."""

import torch
from torch import Tensor, nn

from rectrain.api.features import FeatureKind
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.models import DLRM, DCNv2, DeepFM
from rectrain.api.models import MIND as MINDSection  # noqa: N811
from rectrain.api.models import TwoTower as TwoTowerSection
from rectrain_jobs.data.batch import Batch
from rectrain_jobs.models.deepfm import DeepFMArch
from rectrain_jobs.models.dlrm import DLRMArch
from rectrain_jobs.models.embeddings import build_embeddings, build_unpooled_embeddings
from rectrain_jobs.models.mind import MIND, MINDLoss, MINDOutput
from rectrain_jobs.models.ranking import RankingModel
from rectrain_jobs.models.task_losses import TaskLoss, logit_width
from rectrain_jobs.models.two_tower import TwoTower, TwoTowerLoss, TwoTowerOutput

RetrievalModel = TwoTower | MIND
"""Models with user and item vectors."""
Model = RetrievalModel | RankingModel
"""What a job can train."""

_CPU = torch.device("cpu")


def build_model(
    spec: RecTrainingJobSpec, device: torch.device = _CPU, embedding_device: torch.device | None = None
) -> Model:
    """Return the job's model with its initial weights, which depend on training.seed alone.

    Args:
        spec: The job.
        device: Where everything but the embedding tables is.
        embedding_device: Where the embedding tables are: `meta` for training with DistributedModelParallel. Default:
            `device`.
    """
    # Drawn on CPU, so that the initial weights are the same on every device; the caller's random state is left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.training.seed)
        section, tables_on = spec.model.section, embedding_device or device
        model: Model
        if isinstance(section, MINDSection):
            model = MIND(spec, build_unpooled_embeddings(spec, tables_on))
        elif isinstance(section, TwoTowerSection):
            model = TwoTower(spec, build_embeddings(spec, tables_on))
        else:
            model = RankingModel(build_embeddings(spec, tables_on), _ranking_arch(spec, section), spec.labels)
    model.arch.to(device)
    return model


class TrainingTask(nn.Module):
    """A model and its loss: what DistributedModelParallel wraps and torchrec's train pipelines call.

    Args:
        spec: The job.
        model: Its model, from build_model.
    """

    def __init__(self, spec: RecTrainingJobSpec, model: Model) -> None:
        """Choose the loss."""
        super().__init__()
        self.model = model
        self.loss: TwoTowerLoss | MINDLoss | TaskLoss
        if isinstance(model, MIND):
            self.loss = MINDLoss(spec)
        else:
            self.loss = TwoTowerLoss(spec) if isinstance(model, TwoTower) else TaskLoss(spec.labels)

    def forward(self, batch: Batch) -> tuple[Tensor, TwoTowerOutput | MINDOutput | dict[str, Tensor]]:
        """Return the loss, a scalar that is the mean over this rank's valid rows, and the detached outputs."""
        return self.loss(self.model(batch), batch)  # type: ignore[no-any-return]

    def set_item_counts(self, counts: Tensor, num_items: int | None = None) -> None:
        """Give a retrieval model the items' frequencies in the training data: see the losses' set_item_counts.

        To be called before the first step of every run, a resumed one too: checkpoints do not hold them.
        """
        if isinstance(self.loss, TwoTowerLoss):
            self.loss.set_item_counts(counts, num_items)
        elif isinstance(self.loss, MINDLoss):
            self.loss.set_item_counts(counts)


def _ranking_arch(spec: RecTrainingJobSpec, section: DLRM | DCNv2 | DeepFM) -> nn.Module:
    features = [f.name for f in spec.features if f.kind is not FeatureKind.DENSE]
    num_dense = len(spec.features) - len(features)
    outputs = sum(logit_width(label) for label in spec.labels)
    if isinstance(section, DeepFM):
        return DeepFMArch(section, features, num_dense, outputs)
    return DLRMArch(section, features, num_dense, outputs)
