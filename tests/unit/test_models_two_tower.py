import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from rectrain.api.errors import UserError
from rectrain.api.features import Side
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.models.registry import TrainingTask, build_model
from rectrain_jobs.models.retrieval_losses import mixed_log_q

USER_ID = {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": 20}
ITEM_ID = {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": 10}
HISTORY = {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 3}
AGE = {"name": "age", "kind": "Dense", "side": "User"}
PRICE = {"name": "price", "kind": "Dense", "side": "Item"}
BRAND = {"name": "brand", "kind": "Categorical", "side": "Item", "cardinality": 4}
ALL = [PRICE, USER_ID, ITEM_ID, HISTORY, AGE, {**BRAND, "embeddingDim": 8}]
ROWS = 12
COUNTS = torch.arange(12, dtype=torch.float32)


def spec_of(features=ALL, labels=False, **section):
    return RecTrainingJobSpec.model_validate(
        {
            "model": {"type": "TwoTower", "twoTower": {"embeddingDim": 4, "hiddenDims": [6, 5], **section}},
            "features": features,
            "labels": [{"name": "click", "task": "Binary", "weight": 2}] if labels else [],
            "data": {"train": {"uri": "x"}},
        }
    )


def columns(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(0, 22, rows),
        "item_id": rng.integers(0, 12, rows),
        "history": rng.integers(-1, 12, (rows, 3)),
        "brand": rng.integers(0, 6, rows),
        "age": rng.random(rows),
        "price": rng.random(rows),
        "click": (rng.random(rows) < 0.6).astype(np.float32),
    }


def batch_of(spec, valid=None, negatives=0):
    drawn = {name: columns(negatives, 1)[name] for name in ("item_id", "brand", "price")} if negatives else None
    return BatchBuilder(spec).build(columns(), np.ones(ROWS, bool) if valid is None else valid, drawn)


def task_of(spec, counts=COUNTS, num_items=None):
    task = TrainingTask(spec, build_model(spec))
    task.set_item_counts(counts, num_items)
    return task


@pytest.mark.parametrize("similarity", ["Cosine", "Dot"])
@pytest.mark.parametrize(
    "features, hidden, width",
    [(ALL, [6, 5], 5), (ALL, [3], 3), ([USER_ID, ITEM_ID], [5], 5), ([USER_ID, HISTORY, ITEM_ID, BRAND], [], 4)],
    ids=["deep", "one layer", "ids only", "no layers"],
)
def test_vectors_of_a_side_are_those_of_the_whole_batch(features, hidden, width, similarity):
    spec = spec_of(features, hiddenDims=hidden, similarity=similarity)
    model = build_model(spec).eval()
    output = model(batch_of(spec, negatives=3))
    assert output.user_vectors.shape == (ROWS, width)
    assert output.item_vectors.shape == (ROWS + 3, width)
    every = np.ones(ROWS, bool)
    users = model.user_vectors(BatchBuilder(spec, sides=[Side.USER]).build(columns(), every))
    items = model.item_vectors(BatchBuilder(spec, sides=[Side.ITEM]).build(columns(), every))
    torch.testing.assert_close(users, output.user_vectors)
    torch.testing.assert_close(items, output.item_vectors[:ROWS])
    norms = output.user_vectors.norm(dim=1)
    assert torch.allclose(norms, torch.ones(ROWS)) == (similarity == "Cosine")


def test_a_tower_reads_its_side_alone():
    spec = spec_of()
    model = build_model(spec).eval()
    before, changed = columns(), columns()
    changed |= {"item_id": (before["item_id"] + 1) % 12, "price": before["price"] + 1}
    outputs = [model(BatchBuilder(spec).build(c, np.ones(ROWS, bool))) for c in (before, changed)]
    assert torch.equal(outputs[0].user_vectors, outputs[1].user_vectors)
    assert (outputs[0].item_vectors != outputs[1].item_vectors).any(dim=1).all()
    changed = before | {"age": before["age"] + 1}
    other = model(BatchBuilder(spec).build(changed, np.ones(ROWS, bool)))
    assert torch.equal(outputs[0].item_vectors, other.item_vectors)
    assert (outputs[0].user_vectors != other.user_vectors).any(dim=1).all()


def test_without_layers_the_embeddings_are_summed():
    spec = spec_of([USER_ID, HISTORY, ITEM_ID, BRAND], hiddenDims=[], similarity="Dot")
    model = build_model(spec)
    tables = {name: bag.weight for name, bag in model.embeddings.embedding_bags.items()}
    data, output = columns(), model(batch_of(spec))
    for row in range(ROWS):
        history = data["history"][row]
        mean = tables["item_id"][history[history >= 0]].mean(dim=0) if (history >= 0).any() else torch.zeros(4)
        torch.testing.assert_close(output.user_vectors[row], tables["user_id"][data["user_id"][row]] + mean)
        items = tables["item_id"][data["item_id"][row]] + tables["brand"][data["brand"][row]]
        torch.testing.assert_close(output.item_vectors[row], items)


def test_without_an_embedding_of_the_user_a_user_is_the_mean_of_the_history():
    spec = spec_of([{**USER_ID, "side": "None"}, HISTORY, ITEM_ID], hiddenDims=[], similarity="Dot")
    model = build_model(spec)
    (table,) = [bag.weight for bag in model.embeddings.embedding_bags.values()]
    data, output = columns(), model(batch_of(spec))
    for row in range(ROWS):
        history = data["history"][row]
        mean = table[history[history >= 0]].mean(dim=0) if (history >= 0).any() else torch.zeros(4)
        torch.testing.assert_close(output.user_vectors[row], mean)


@pytest.mark.parametrize(
    "features, message",
    [
        (
            [{**USER_ID, "side": "None"}, HISTORY, ITEM_ID, {**BRAND, "embeddingDim": 8}],
            r"must be 4 as item_id's.*not 8",
        ),
        ([USER_ID, ITEM_ID, PRICE], r"features\.2\.kind must not be Dense.*price"),
        ([USER_ID, {**ITEM_ID, "embeddingDim": 8}], r"features\.1\.embeddingDim must be 4 as user_id's.*not 8"),
    ],
)
def test_what_cannot_be_summed_is_refused(features, message):
    with pytest.raises(UserError, match=message):
        build_model(spec_of(features, hiddenDims=[]))


def reference_loss(spec, output, batch):
    """The loss of a batch on one rank, from the definitions, row by row."""
    section = spec.model.two_tower
    users, items = output.user_vectors.double(), output.item_vectors.double()
    ids = batch.item_ids.tolist()
    valid = batch.valid.tolist() + [True] * batch.num_negatives
    item_log_q = (COUNTS.clamp_min(1) / COUNTS.sum()).log()
    log_q = section.negatives.log_q_correction * mixed_log_q(item_log_q, ROWS, batch.num_negatives, 10)
    losses = []
    for row in range(ROWS):
        if not valid[row] or (batch.labels and not batch.labels["click"][row]):
            continue
        rest = [
            j
            for j in range(len(ids))
            if j != row and valid[j] and not (section.negatives.mask_duplicates and ids[j] == ids[row])
        ]
        scores = torch.stack([users[row] @ items[j] / section.temperature for j in (row, *rest)])
        if section.loss == "BPR":
            losses.append(-F.logsigmoid(scores[0] - scores[1:]).mean())
        else:
            corrected = scores - log_q[[ids[j] for j in (row, *rest)]]
            losses.append(corrected.logsumexp(0) - corrected[0])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("negatives", [0, 7])
@pytest.mark.parametrize(
    "section",
    [
        {"loss": "InBatchSoftmax"},
        {"loss": "InBatchSoftmax", "temperature": 1.0, "negatives": {"logQCorrection": 0.5, "maskDuplicates": False}},
        {"loss": "InBatchSoftmax", "similarity": "Dot", "negatives": {"logQCorrection": 0}},
        {"loss": "BPR"},
        {"loss": "BPR", "negatives": {"maskDuplicates": False}},
    ],
    ids=str,
)
def test_the_loss_is_that_of_its_definition(section, negatives, labels):
    spec = spec_of(labels=labels, **section)
    task = task_of(spec)
    batch = batch_of(spec, np.arange(ROWS) < ROWS - 3, negatives)
    loss, output = task(batch)
    torch.testing.assert_close(loss.double(), reference_loss(spec, output, batch), rtol=1e-5, atol=1e-6)
    assert not output.user_vectors.requires_grad


def test_predictions_are_the_probabilities_that_the_binary_loss_is_of():
    spec = spec_of(labels=True, loss="BinaryCrossEntropy", similarity="Dot", temperature=0.5)
    task, batch = task_of(spec).eval(), batch_of(spec)
    predicted = task.model.predict(batch)["click"]
    assert predicted.shape == (ROWS,)
    loss, _ = task(batch)
    torch.testing.assert_close(2 * F.binary_cross_entropy(predicted, batch.labels["click"]), loss)


def test_binary_cross_entropy_is_of_own_pairs_and_weighted():
    spec = spec_of(labels=True, loss="BinaryCrossEntropy", temperature=0.5)
    batch = batch_of(spec, np.arange(ROWS) < ROWS - 3)
    loss, output = task_of(spec)(batch)
    scores = (output.user_vectors * output.item_vectors).sum(dim=1)[:-3] / 0.5
    expected = 2 * F.binary_cross_entropy_with_logits(scores, batch.labels["click"][:-3])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("loss", ["InBatchSoftmax", "BPR", "BinaryCrossEntropy"])
def test_a_batch_of_padding_has_no_loss_and_no_gradient(loss):
    spec = spec_of(labels=True, loss=loss)
    task = task_of(spec)
    value, _ = task(batch_of(spec, np.zeros(ROWS, bool)))
    value.backward()
    assert value.item() == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in task.parameters())


@pytest.mark.parametrize("loss", ["InBatchSoftmax", "BPR", "BinaryCrossEntropy"])
def test_every_parameter_is_trained(loss):
    spec = spec_of(labels=True, loss=loss)
    task = task_of(spec)
    task(batch_of(spec))[0].backward()
    assert all((p.grad != 0).any() for p in task.parameters())


def test_uniform_negatives_are_drawn_from_as_many_items_as_are_said():
    spec = spec_of()
    batch = batch_of(spec, negatives=7)
    losses = [task_of(spec, num_items=n)(batch)[0].item() for n in (None, 10, 1000)]
    assert losses[0] == losses[1] != losses[2]


def test_the_correction_asks_for_the_items_frequencies():
    spec = spec_of()
    task = TrainingTask(spec, build_model(spec))
    with pytest.raises(RuntimeError, match="set_item_counts"):
        task(batch_of(spec))
    with pytest.raises(ValueError, match=r"\[12\], not \[3\]"):
        task.set_item_counts(torch.ones(3))
    assert "item" not in " ".join(name for name in task.state_dict() if "log_q" in name)


def test_dropout_is_of_training_alone_and_from_torch_s_seed():
    spec = spec_of(embeddingDropout=0.5)
    model, batch = build_model(spec), batch_of(spec)

    def vectors(seed):
        torch.manual_seed(seed)
        return model(batch).user_vectors

    assert torch.equal(vectors(0), vectors(0))
    assert not torch.equal(vectors(0), vectors(1))
    model.eval()
    assert torch.equal(vectors(0), vectors(1))


def test_initial_weights_depend_on_the_job_s_seed_alone():
    torch.manual_seed(1)
    first, state = build_model(spec_of()), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "building a model must leave the random state alone"
    torch.manual_seed(2)
    second = build_model(spec_of())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_loss_is_computed_in_float32_under_autocast():
    spec = spec_of()
    task = task_of(spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, output = task(batch_of(spec))
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss.double(), reference_loss(spec, output, batch_of(spec)), rtol=1e-5, atol=1e-6)
