"""MIND against a plain numpy routing, written from the paper and ComiRec's published code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.api.features import Side
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.models import LabelAttention
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.models.log_uniform import LogUniformSampler
from rectrain_jobs.models.mind import DynamicRouting, label_aware_attention
from rectrain_jobs.models.registry import TrainingTask, build_model

ROWS, ITEMS, LENGTH = 9, 12, 5
USER_ID = {"name": "user_id", "kind": "Categorical", "side": "None", "cardinality": 30}
ITEM_ID = {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ITEMS}
HISTORY = {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": LENGTH}
AGE = {"name": "age", "kind": "Dense", "side": "User"}
CITY = {"name": "city", "kind": "Categorical", "side": "User", "cardinality": 4}
LIKED = {"name": "liked", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 2, "pooling": "Mean"}
PLAIN, PROFILE = [USER_ID, ITEM_ID, HISTORY], [AGE, HISTORY, USER_ID, CITY, ITEM_ID, LIKED]
COUNTS = torch.cat([torch.arange(ITEMS), torch.zeros(2)])


def spec_of(features=PLAIN, labels=False, **section):
    return RecTrainingJobSpec.model_validate(
        {
            "model": {"type": "MIND", "mind": {"embeddingDim": 4, "interests": 3, **section}},
            "features": features,
            "labels": [{"name": "click", "task": "Binary"}] if labels else [],
            "data": {"train": {"uri": "x"}},
        }
    )


def columns(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    history = rng.integers(0, ITEMS, (rows, LENGTH))
    history[np.arange(LENGTH) >= np.arange(rows)[:, None] % (LENGTH + 1)] = -1  # lengths 0 to 5
    return {
        "user_id": rng.integers(0, 30, rows),
        "item_id": rng.integers(0, ITEMS, rows),
        "history": history,
        "age": rng.random(rows),
        "city": rng.integers(0, 6, rows),
        "liked": rng.integers(-1, ITEMS, (rows, 2)),
        "click": (rng.random(rows) < 0.6).astype(np.float32),
    }


def batch_of(spec, valid=None, negatives=()):
    drawn = {"item_id": np.array(negatives)} if len(negatives) else None
    return BatchBuilder(spec).build(columns(), np.ones(ROWS, bool) if valid is None else valid, drawn)


def task_of(spec):
    task = TrainingTask(spec, build_model(spec))
    task.set_item_counts(COUNTS)
    return task


def naive_squash(vector):
    squared = float(vector @ vector)
    return squared / (1 + squared) * vector / np.sqrt(squared + 1e-9)


def naive_routing(items, bilinear, logits, iterations):
    """The interests of one history [length, width]; logits [interests, length]."""
    logits = logits[:, : len(items)].astype(np.float64).copy()
    mapped = items @ bilinear.T
    for iteration in range(iterations):
        weights = np.exp(logits) / np.exp(logits).sum(axis=0, keepdims=True)
        interests = np.zeros((len(logits), items.shape[1]))
        for k in range(len(logits)):
            for position in range(len(items)):
                interests[k] += weights[k, position] * mapped[position]
            interests[k] = naive_squash(interests[k])
        if iteration < iterations - 1:
            for k in range(len(logits)):
                for position in range(len(items)):
                    logits[k, position] += mapped[position] @ interests[k]
    return interests


@st.composite
def histories(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, length, width = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    scale = draw(st.sampled_from([0.01, 1.0, 5.0]))
    history = rng.standard_normal((rows, length, width)) * scale
    present = rng.random((rows, length)) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    return history, present, draw(st.integers(1, 5)), draw(st.integers(1, 4))


def routing_of(width, interests, length, iterations):
    torch.manual_seed(width + interests)
    return DynamicRouting(width, interests, length, iterations).double()


@given(histories())
@settings(deadline=None, max_examples=60)
def test_routing_is_that_of_the_definition(drawn):
    history, present, interests, iterations = drawn
    routing = routing_of(history.shape[2], interests, history.shape[1], iterations)
    found = routing(torch.from_numpy(history), torch.from_numpy(present)).detach().numpy()
    bilinear, logits = (t.detach().numpy() for t in (routing.bilinear.weight, routing.initial_logits))
    for row in range(len(history)):
        where = present[row]
        expected = naive_routing(history[row][where], bilinear, logits[:, where], iterations)
        np.testing.assert_allclose(found[row], expected, atol=1e-9)


@given(histories())
@settings(deadline=None, max_examples=30)
def test_absent_positions_and_other_rows_do_not_matter(drawn):
    history, present, interests, iterations = (*(torch.from_numpy(a) for a in drawn[:2]), *drawn[2:])
    routing = routing_of(history.shape[2], interests, history.shape[1], iterations)
    found = routing(history, present)
    assert torch.isfinite(found).all()
    assert (found.norm(dim=2) < 1).all()
    assert (found[~present.any(dim=1)] == 0).all()
    changed = torch.where(present[:, :, None], history, torch.tensor(torch.nan, dtype=torch.float64))
    torch.testing.assert_close(routing(changed, present), found)
    torch.testing.assert_close(routing(history[:1], present[:1]), found[:1])


def test_one_interest_is_the_squashed_sum_of_the_mapped_history():
    routing, history = routing_of(4, 1, LENGTH, 3), torch.randn(2, LENGTH, 4, dtype=torch.float64)
    (mapped,) = routing.bilinear(history).sum(dim=1, keepdim=True).transpose(0, 1).detach()
    found = routing(history, torch.ones(2, LENGTH, dtype=torch.bool))
    for row in range(2):
        np.testing.assert_allclose(found[row, 0].detach().numpy(), naive_squash(mapped[row].numpy()))


def test_the_gradient_is_that_of_the_last_iteration_with_its_weights_held():
    routing = routing_of(4, 3, LENGTH, 3)
    history, present = torch.randn(2, LENGTH, 4, dtype=torch.float64), torch.arange(LENGTH).expand(2, -1) < 4
    history.requires_grad_()
    direction = torch.randn(2, 3, 4, dtype=torch.float64)
    (routing(history, present) * direction).sum().backward()
    found, of_map = history.grad.clone(), routing.bilinear.weight.grad.clone()
    assert routing.initial_logits.requires_grad is False

    held, bilinear = history.detach().clone().requires_grad_(), routing.bilinear.weight.detach().requires_grad_()
    weights = routing._weights((history @ bilinear.T).detach() * present[:, :, None], present)
    capsule = weights @ (held @ bilinear.T)
    norm = capsule.square().sum(dim=2, keepdim=True)
    ((norm / (1 + norm) * capsule / (norm + 1e-9).sqrt()) * direction).sum().backward()
    torch.testing.assert_close(found, held.grad)
    torch.testing.assert_close(of_map, bilinear.grad)


def test_attention_is_soft_by_a_power_that_keeps_the_sign_or_hard():
    interests = torch.tensor([[[1.0, 0], [0, 3], [-2, 0]], [[-1, 0], [-3, 0], [0, -2]]])
    targets = torch.tensor([[1.0, 1], [1, 0]])
    products = torch.tensor([[1.0, 3, -2], [-1, -3, 0]])
    for power in (1.0, 2.0, 2.5):
        weights = (products.sign() * products.abs() ** power).softmax(dim=1)
        expected = (weights[:, :, None] * interests).sum(dim=1)
        torch.testing.assert_close(label_aware_attention(interests, targets, LabelAttention.SOFT, power), expected)
    hard = label_aware_attention(interests, targets, LabelAttention.HARD, 1.0)
    assert hard.tolist() == [[0, 3], [0, -2]]
    sharp = label_aware_attention(interests, targets, LabelAttention.SOFT, 8.0)
    torch.testing.assert_close(sharp[0], hard[0])


@pytest.mark.parametrize("similarity", ["Dot", "Cosine"])
@pytest.mark.parametrize("features", [PLAIN, PROFILE], ids=["history", "profile"])
@pytest.mark.parametrize("hidden", [[], [6]], ids=str)
def test_vectors_of_a_side_are_those_of_the_whole_batch(features, hidden, similarity):
    spec = spec_of(features, hiddenDims=hidden, similarity=similarity)
    model = build_model(spec).eval()
    output = model(batch_of(spec, negatives=[1, 2, 3]))
    assert output.interests.shape == (ROWS, 3, 4)
    assert output.item_vectors.shape == (ROWS + 3, 4)
    every = np.ones(ROWS, bool)
    user_builder = BatchBuilder(spec, sides=[Side.USER])
    assert "user_id" not in user_builder.columns
    users = model.user_vectors(user_builder.build(columns(), every))
    items = model.item_vectors(BatchBuilder(spec, sides=[Side.ITEM]).build(columns(), every))
    torch.testing.assert_close(users, output.interests)
    torch.testing.assert_close(items, output.item_vectors[:ROWS])
    table = model.embeddings.embeddings["item_id"].weight
    rows = table[columns()["item_id"]]
    torch.testing.assert_close(items, F.normalize(rows, dim=1) if similarity == "Cosine" else rows)


def test_interests_are_the_routed_rows_of_the_item_table():
    spec = spec_of()
    model = build_model(spec)
    table = model.embeddings.embeddings["item_id"].weight.detach().double().numpy()
    routing, data = model.arch.user.routing, columns()
    bilinear, logits = (t.detach().double().numpy() for t in (routing.bilinear.weight, routing.initial_logits))
    found = model(batch_of(spec)).interests.detach().numpy()
    assert list(model.embeddings.embeddings) == ["item_id"], "no table of users, and one of items"
    for row in range(ROWS):
        history = table[data["history"][row][data["history"][row] >= 0]]
        np.testing.assert_allclose(found[row], naive_routing(history, bilinear, logits, 3), atol=1e-5)


@pytest.mark.parametrize("feature, change", [("age", 1.0), ("city", 1), ("liked", 1)])
def test_the_profile_reaches_every_interest(feature, change):
    spec = spec_of(PROFILE)
    model = build_model(spec).eval()
    before = columns()
    moved = before[feature] + change if feature == "age" else (before[feature] + change) % 4
    outputs = [
        model(BatchBuilder(spec).build(data, np.ones(ROWS, bool))).interests
        for data in (before, before | {feature: moved})
    ]
    assert (outputs[0] != outputs[1]).any(dim=2).all()


def naive_loss(spec, output, batch):
    section = spec.model.mind
    sampler = LogUniformSampler(COUNTS.long().numpy(), ITEMS, section.negatives.count)
    log_q = section.negatives.log_q_correction * sampler.log_q
    ids, losses = batch.item_ids.tolist(), []
    for row in range(ROWS):
        if not batch.valid[row] or (batch.labels and not batch.labels["click"][row]):
            continue
        closeness = output.interests[row] @ output.item_vectors[row]
        if section.attention == "Hard":
            user = output.interests[row][closeness.argmax()]
        else:
            weights = (closeness.sign() * closeness.abs() ** section.attention_power).softmax(dim=0)
            user = weights @ output.interests[row]
        compared = [row] + [j for j in range(ROWS, len(ids)) if ids[j] != ids[row]]
        scores = [user @ output.item_vectors[j] / section.temperature - log_q[ids[j]] for j in compared]
        losses.append(torch.stack(scores).logsumexp(0) - scores[0])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(
    "section",
    [
        {},
        {"attentionPower": 2.0, "negatives": {"count": 5, "logQCorrection": 0.5}},
        {"attention": "Hard", "temperature": 0.2, "similarity": "Cosine", "negatives": {"count": 5}},
    ],
    ids=str,
)
def test_the_loss_is_that_of_its_definition(section, labels):
    spec = spec_of(labels=labels, **section)
    batch = batch_of(spec, np.arange(ROWS) < ROWS - 2, negatives=[3, 5, 8, 1, 11])
    loss, output = task_of(spec)(batch)
    torch.testing.assert_close(loss, naive_loss(spec, output, batch).float(), rtol=1e-5, atol=1e-6)
    assert not output.interests.requires_grad and not output.item_vectors.requires_grad


def test_a_batch_of_padding_has_no_loss_and_no_gradient():
    spec = spec_of(PROFILE)
    task = task_of(spec)
    loss, _ = task(batch_of(spec, np.zeros(ROWS, bool), negatives=[1, 2]))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in task.parameters())


@pytest.mark.parametrize("attention", ["Soft", "Hard"])
def test_every_parameter_is_trained(attention):
    spec = spec_of(PROFILE, attention=attention, hiddenDims=[5])
    task = task_of(spec)
    task(batch_of(spec, negatives=[1, 2]))[0].backward()
    assert all((p.grad != 0).any() for p in task.parameters())


def test_negatives_ask_for_the_items_frequencies():
    spec = spec_of()
    task = TrainingTask(spec, build_model(spec))
    with pytest.raises(RuntimeError, match="set_item_counts"):
        task(batch_of(spec, negatives=[1]))
    with pytest.raises(ValueError, match=r"\[14\], not \[3\]"):
        task.set_item_counts(torch.ones(3))


def test_initial_routing_logits_depend_on_the_job_s_seed_and_are_part_of_the_model():
    torch.manual_seed(1)
    first = build_model(spec_of())
    torch.manual_seed(2)
    second = build_model(spec_of())
    name = "arch.user.routing.initial_logits"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert first.state_dict()[name].shape == (3, LENGTH)
    other = spec_of().model_copy(update={"training": spec_of().training.model_copy(update={"seed": 9})})
    assert not torch.equal(build_model(other).state_dict()[name], first.state_dict()[name])


def test_predictions_order_rows_by_their_closest_interest():
    spec = spec_of(labels=True, temperature=0.5)
    model, batch = build_model(spec).eval(), batch_of(spec)
    output = model(batch)
    scores = torch.stack([(output.interests[r] @ output.item_vectors[r]).max() for r in range(ROWS)]) / 0.5
    torch.testing.assert_close(model.predict(batch)["click"], scores.sigmoid())


def test_routing_and_loss_are_computed_in_float32_under_autocast():
    spec = spec_of()
    task, batch = task_of(spec), batch_of(spec, negatives=[1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, output = task(batch)
    assert loss.dtype is output.interests.dtype is torch.float32
    expected, _ = task(batch)
    torch.testing.assert_close(loss, expected)
