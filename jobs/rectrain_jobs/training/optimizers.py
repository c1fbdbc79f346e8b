"""Optimizers: one fused into the backward pass of the embedding tables, one for everything else.

The learning rate of both is a function of the step alone, so that a resumed run has the rates of an uninterrupted one.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import SGD, Adagrad, Adam, PartialRowWiseAdam, in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from rectrain.api.errors import UserError
from rectrain.api.training import (
    Decay,
    DenseOptimizer,
    DenseOptimizerType,
    EmbeddingOptimizer,
    EmbeddingOptimizerType,
    Optimizers,
    Schedule,
)

_FUSED = {
    EmbeddingOptimizerType.SGD: SGD,
    EmbeddingOptimizerType.ADAGRAD: Adagrad,
    EmbeddingOptimizerType.ROW_WISE_ADAGRAD: RowWiseAdagrad,
    EmbeddingOptimizerType.ADAM: Adam,
    EmbeddingOptimizerType.PARTIAL_ROW_WISE_ADAM: PartialRowWiseAdam,
}
_ON_CPU = (EmbeddingOptimizerType.SGD, EmbeddingOptimizerType.ADAGRAD, EmbeddingOptimizerType.ROW_WISE_ADAGRAD)

# The data-parallel copies of a table are ordinary parameters, so these are ordinary optimizers.
_DATA_PARALLEL = {
    EmbeddingOptimizerType.SGD: torch.optim.SGD,
    EmbeddingOptimizerType.ADAGRAD: torch.optim.Adagrad,
    EmbeddingOptimizerType.ROW_WISE_ADAGRAD: RowWiseAdagrad,
    EmbeddingOptimizerType.ADAM: torch.optim.Adam,
}
_DENSE = {
    DenseOptimizerType.SGD: torch.optim.SGD,
    DenseOptimizerType.ADAGRAD: torch.optim.Adagrad,
    DenseOptimizerType.ADAM: torch.optim.Adam,
    DenseOptimizerType.ADAM_W: torch.optim.AdamW,
}


def learning_rate_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Return what the learning rate is multiplied by at a step.

    Args:
        schedule: Warm-up and decay.
        step: Number of steps done before this one.
        total_steps: Steps of the whole training.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay is Decay.CONSTANT:
        return 1.0
    done = min(1.0, (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps))
    left = 1.0 - done if schedule.decay is Decay.LINEAR else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * left


def fuse_embedding_optimizer(tables: Iterable[nn.Parameter], spec: EmbeddingOptimizer, device: torch.device) -> None:
    """Mark the tables to be updated in the backward pass; call before the model is sharded.

    Raises:
        UserError: The optimizer has no kernel for the device.
    """
    if device.type == "cpu" and spec.type not in _ON_CPU:
        raise UserError(
            f"spec.training.optimizers.embedding.type: {spec.type} runs on GPUs only; "
            f"on CPU it must be one of {', '.join(_ON_CPU)}"
        )
    arguments: dict[str, Any] = {"lr": spec.learning_rate}
    if spec.type is not EmbeddingOptimizerType.SGD:
        arguments["eps"] = spec.epsilon
    if spec.weight_decay:
        arguments["weight_decay"] = spec.weight_decay
        if spec.type is EmbeddingOptimizerType.ROW_WISE_ADAGRAD:
            arguments["weight_decay_mode"] = WeightDecayMode.L2
    if spec.clip_value is not None:
        arguments |= {"gradient_clipping": True, "max_gradient": spec.clip_value}
    apply_optimizer_in_backward(_FUSED[spec.type], tables, arguments)


class ModelOptimizer:
    """The optimizers of a sharded model as one: rates by the step, clipping, and their tensors for checkpoints.

    Args:
        model: The sharded model; its tables were marked by `fuse_embedding_optimizer`.
        spec: The job's optimizers.
        total_steps: Steps of the whole training, for the decay of the rates; may be set anew.
    """

    def __init__(self, model: DistributedModelParallel, spec: Optimizers, total_steps: int) -> None:
        """Make the optimizers of what is not fused."""
        self._spec = spec
        self.total_steps = total_steps
        self._fused = model.fused_optimizer
        rest = dict(in_backward_optimizer_filter(model.named_parameters()))
        copies = {name: p for name, p in rest.items() if ".embedding_bags." in name}
        self._dense_parameters = {name: p for name, p in rest.items() if name not in copies}
        optimizers = [self._fused]
        self._copies = _data_parallel_optimizer(copies, spec.embedding) if copies else None
        self._dense = _dense_optimizer(self._dense_parameters, spec.dense) if self._dense_parameters else None
        optimizers += [o for o in (self._copies, self._dense) if o is not None]
        self.combined = CombinedOptimizer(optimizers)

    def begin_step(self, step: int) -> None:
        """Set the learning rates of a step and clear the gradients. Call before the backward pass.

        Args:
            step: Number of steps done before this one.
        """
        embedding = self._spec.embedding.learning_rate * learning_rate_factor(
            self._spec.embedding.schedule, step, self.total_steps
        )
        for optimizer in (self._fused, self._copies):
            if optimizer is not None:
                _set_rate(optimizer, embedding)
        if self._dense is not None:
            factor = learning_rate_factor(self._spec.dense.schedule, step, self.total_steps)
            _set_rate(self._dense, self._spec.dense.learning_rate * factor)
        self._fused.step()  # the fused kernels take the rate of this step; the update itself is in the backward pass
        for optimizer in (self._copies, self._dense):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Clip and apply the gradients of what is not fused. Call after the backward pass."""
        if self._copies is not None:
            if self._spec.embedding.clip_value is not None:
                nn.utils.clip_grad_value_(self._copies.params.values(), self._spec.embedding.clip_value)
            self._copies.step()
        if self._dense is not None:
            if self._spec.dense.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._dense_parameters.values(), self._spec.dense.clip_norm)
            self._dense.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: `begin_step` clears the gradients. torchrec's pipeline calls this."""

    def state_tensors(self) -> dict[str, Any]:
        """Return the optimizers' tensors by parameter, for a checkpoint; rates are not state."""
        return self.combined.state_dict()["state"]  # type: ignore[no-any-return]

    def load_state_tensors(self, state: dict[str, Any], step: int) -> None:
        """Take tensors that a checkpoint held.

        Args:
            state: As from `state_tensors`.
            step: Steps done, which the bias correction of a fused Adam counts by itself.
        """
        full = self.combined.state_dict()
        full["state"] = state
        self.combined.load_state_dict(full)
        self._fused.set_optimizer_step(step)

    def create_state(self) -> None:
        """Make the state that torch's optimizers make in their first step, so that a checkpoint can be read into it.

        The gradients of that step are zero and it is taken at rate zero, so no parameter changes.
        """
        for optimizer in (self._copies, self._dense):
            if optimizer is None:
                continue
            _set_rate(optimizer, 0.0)
            for parameter in optimizer.params.values():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _data_parallel_optimizer(parameters: dict[str, nn.Parameter], spec: EmbeddingOptimizer) -> KeyedOptimizerWrapper:
    factory = _DATA_PARALLEL.get(spec.type)
    if factory is None:
        raise UserError(
            f"spec.training.optimizers.embedding.type: {spec.type} has no data-parallel form; "
            "must be another one, or no sharding constraint may ask for DataParallel"
        )
    arguments: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if spec.type is not EmbeddingOptimizerType.SGD:
        arguments["eps"] = spec.epsilon
    return KeyedOptimizerWrapper(parameters, lambda p: factory(p, **arguments))


def _dense_optimizer(parameters: dict[str, nn.Parameter], spec: DenseOptimizer) -> KeyedOptimizerWrapper:
    return KeyedOptimizerWrapper(
        parameters, lambda p: _DENSE[spec.type](p, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    )
