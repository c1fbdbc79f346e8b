import math
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.api.features import Label
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.models.deepfm import pair_products
from rectrain_jobs.models.registry import TrainingTask, build_model
from rectrain_jobs.models.task_losses import task_loss

SECTIONS = {"DLRM": "dlrm", "DCNv2": "dcnV2", "DeepFM": "deepFm"}
LABELS = [
    {"name": "click", "task": "Binary"},
    {"name": "rating", "task": "Regression", "weight": 0.5},
    {"name": "kind", "task": "MultiClass", "numClasses": 3, "weight": 2},
    {"name": "tags", "task": "MultiLabel", "numClasses": 4},
]
ROWS, WIDTH = 10, 4


def spec_of(model, labels=LABELS, num_dense=2, num_sparse=3, **section):
    sparse = [{"name": f"s{i}", "kind": "Categorical", "cardinality": 9} for i in range(num_sparse - 1)]
    return RecTrainingJobSpec.model_validate(
        {
            "model": {
                "type": model,
                SECTIONS[model]: {"embeddingDim": WIDTH, "denseDims": [6], "overDims": [7], **section},
            },
            "features": [
                *({"name": f"d{i}", "kind": "Dense"} for i in range(num_dense)),
                *sparse,
                {"name": "bag", "kind": "Sequence", "cardinality": 9, "maxLength": 3},
            ],
            "labels": labels,
            "data": {"train": {"uri": "x"}},
        }
    )


def batch_of(spec, valid=None):
    rng = np.random.default_rng(0)
    columns = {f.name: rng.random(ROWS) if f.name[0] == "d" else rng.integers(0, 11, ROWS) for f in spec.features}
    columns |= {
        "bag": rng.integers(-1, 11, (ROWS, 3)),
        "click": rng.integers(0, 2, ROWS),
        "rating": rng.normal(size=ROWS),
        "kind": rng.integers(0, 3, ROWS),
        "tags": rng.integers(0, 2, (ROWS, 4)),
    }
    return BatchBuilder(spec).build(columns, np.ones(ROWS, bool) if valid is None else valid)


@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("num_sparse", [1, 3])
@pytest.mark.parametrize("dims", [[], [7], [8, 6]])
@pytest.mark.parametrize("model", SECTIONS)
def test_every_label_has_its_logits_and_every_parameter_is_trained(model, dims, num_sparse, num_dense):
    spec = spec_of(model, num_dense=num_dense, num_sparse=num_sparse, denseDims=dims, overDims=dims)
    task = TrainingTask(spec, build_model(spec))
    loss, logits = task(batch_of(spec))
    assert {name: tuple(part.shape) for name, part in logits.items()} == {
        "click": (ROWS,),
        "rating": (ROWS,),
        "kind": (ROWS, 3),
        "tags": (ROWS, 4),
    }
    assert not any(part.requires_grad for part in logits.values())
    loss.backward()
    untrained = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not untrained


@pytest.mark.parametrize("model", SECTIONS)
def test_rows_do_not_influence_each_other_and_each_feature_counts(model):
    spec = spec_of(model)
    network, batch = build_model(spec).eval(), batch_of(spec)
    before = network(batch)["kind"]
    for changed in (0, ROWS - 1):
        batch.dense[changed] += 1.0
        after = network(batch)["kind"]
        assert ((before != after).any(dim=1).nonzero().flatten()).tolist() == [changed]
        before = after
    for position, key in enumerate(batch.sparse.keys()):
        first = batch.sparse.offset_per_key()[position]
        batch.sparse.values()[first] = (batch.sparse.values()[first] + 1) % 11
        after = network(batch)["kind"]
        assert len((before != after).any(dim=1).nonzero()) == 1, key
        before = after


@pytest.mark.parametrize("model", SECTIONS)
def test_predictions_are_probabilities_or_values(model):
    spec = spec_of(model)
    network, batch = build_model(spec), batch_of(spec)
    logits, predictions = network(batch), network.predict(batch)
    torch.testing.assert_close(predictions["click"], logits["click"].sigmoid())
    torch.testing.assert_close(predictions["rating"], logits["rating"])
    torch.testing.assert_close(predictions["kind"].sum(dim=1), torch.ones(ROWS))
    torch.testing.assert_close(predictions["tags"], logits["tags"].sigmoid())


def embeddings_of(network, spec, batch):
    pooled = network.embeddings(batch.sparse).to_dict()
    return [pooled[f.name] for f in spec.features if f.name[0] != "d"]


@pytest.mark.parametrize("num_dense", [0, 2])
def test_dlrm_is_its_formula(num_dense):
    spec = spec_of("DLRM", LABELS[:1], num_dense)
    network, batch = build_model(spec), batch_of(spec)
    vector = network.arch.dense(batch.dense)
    vectors = [vector, *embeddings_of(network, spec, batch)]
    products = [(one * other).sum(dim=1) for one, other in combinations(vectors, 2)]
    expected = network.arch.over(torch.cat([vector, torch.stack(products, dim=1)], dim=1))
    torch.testing.assert_close(network(batch)["click"], expected.squeeze(1))


def test_dcn_v2_is_its_formula():
    spec = spec_of("DCNv2", LABELS[:1], crossLayers=2, crossRank=3)
    network, batch = build_model(spec), batch_of(spec)
    start = torch.cat([network.arch.dense(batch.dense), *embeddings_of(network, spec, batch)], dim=1)
    crossnet, crossed = network.arch.interaction.crossnet, start
    for w, v, bias in zip(crossnet.W_kernels, crossnet.V_kernels, crossnet.bias, strict=True):
        assert v.shape[0] == 3
        crossed = start * (crossed @ v.T @ w.T + bias) + crossed
    torch.testing.assert_close(network(batch)["click"], network.arch.over(crossed).squeeze(1))


def test_deepfm_is_its_formula():
    spec = spec_of("DeepFM", LABELS[:1])
    network, batch = build_model(spec), batch_of(spec)
    vectors = [*embeddings_of(network, spec, batch), network.arch.dense(batch.dense)]
    pairs = sum((one * other).sum(dim=1) for one, other in combinations(vectors, 2))
    inputs = torch.cat(vectors, dim=1)
    linear, deep = network.arch.first_order(inputs), network.arch.deep(inputs)
    torch.testing.assert_close(network(batch)["click"], pairs + linear.squeeze(1) + deep.squeeze(1))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_pair_products_are_those_of_all_pairs(rows, vectors, seed):
    values = torch.randn(rows, vectors, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.zeros(rows, 3, dtype=torch.float64)
    for one, other in combinations(range(vectors), 2):
        expected += values[:, one] * values[:, other]
    torch.testing.assert_close(pair_products(values), expected)


def naive_loss(label, logits, target):
    """The loss of one row."""
    if label.task == "Regression":
        return (logits - target) ** 2
    if label.task == "MultiClass":
        return logits.logsumexp(0) - logits[target]
    probability = 1 / (1 + torch.exp(-logits))
    return -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()


@given(
    label=st.sampled_from([Label.model_validate(label) for label in LABELS]),
    valid=st.lists(st.booleans(), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_a_task_s_loss_is_the_mean_over_valid_rows(label, valid, seed):
    generator, rows = torch.Generator().manual_seed(seed), len(valid)
    shape = (rows,) if label.num_classes is None else (rows, label.num_classes)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    match label.task:
        case "Regression":
            target = torch.randn(rows, generator=generator)
        case "MultiClass":
            target = torch.randint(0, 3, (rows,), generator=generator)
        case _:
            target = torch.randint(0, 2, shape, generator=generator).float()
    mask = torch.tensor(valid)
    # What padding rows hold must not matter.
    poisoned = target.masked_fill(
        ~(mask if target.dim() == 1 else mask[:, None]), 999 if label.task == "MultiClass" else math.nan
    )
    loss = task_loss(label, logits, poisoned, mask)
    losses = [naive_loss(label, logits[row], target[row]) for row in range(rows) if valid[row]]
    expected = torch.stack(losses).mean() if losses else 0 * logits.sum()
    torch.testing.assert_close(loss, expected, check_dtype=False)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("task", LABELS, ids=lambda label: label["task"])
def test_task_losses_have_the_gradients_of_finite_differences(task):
    label = Label.model_validate(task)
    shape = (3,) if label.num_classes is None else (3, label.num_classes)
    target = {"MultiClass": torch.tensor([0, 2, 1])}.get(label.task, torch.ones(shape, dtype=torch.float64))
    logits = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    valid = torch.tensor([True, True, False])
    assert torch.autograd.gradcheck(lambda x: task_loss(label, x, target, valid), logits)


@pytest.mark.parametrize("model", SECTIONS)
def test_the_loss_is_the_weighted_sum_over_labels(model):
    spec = spec_of(model)
    task = TrainingTask(spec, build_model(spec))
    batch = batch_of(spec, np.arange(ROWS) < 6)
    loss, logits = task(batch)
    expected = sum(
        label.weight
        * sum(naive_loss(label, logits[label.name][row], batch.labels[label.name][row]) for row in range(6))
        / 6
        for label in spec.labels
    )
    torch.testing.assert_close(loss.detach(), expected)
    assert loss.dtype is torch.float32


@pytest.mark.parametrize("model", SECTIONS)
def test_a_batch_of_padding_has_no_loss_and_no_gradient(model):
    spec = spec_of(model)
    task = TrainingTask(spec, build_model(spec))
    loss, _ = task(batch_of(spec, np.zeros(ROWS, bool)))
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in task.parameters())


@pytest.mark.parametrize("model", SECTIONS)
def test_a_planted_interaction_is_learnt(model):
    # The label is the parity of two features: no sum over single features tells it.
    spec = spec_of(model, LABELS[:1], num_dense=0, overDims=[16])
    task = TrainingTask(spec, build_model(spec))
    optimizer = torch.optim.Adam(task.parameters(), lr=0.02)
    rng = np.random.default_rng(0)
    for _ in range(300):
        first, second = rng.integers(0, 9, 64), rng.integers(0, 9, 64)
        columns = {"s0": first, "s1": second, "bag": np.full((64, 3), -1), "click": (first + second) % 2}
        loss, logits = task(BatchBuilder(spec).build(columns, np.ones(64, bool)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 < F.binary_cross_entropy_with_logits(torch.zeros(1), torch.ones(1)).item()
    assert ((logits["click"] > 0).numpy() == columns["click"]).all()
