"""The services' encoder says what the trainer's model says, for every form of it."""

import numpy as np
import pytest
import torch
from bundles import (
    AGE,
    CITY,
    HISTORY,
    ITEM_ID,
    ITEMS,
    LIKED,
    MATRIX,
    MIND,
    MIND_OF_PROFILE,
    OWN_USER,
    PRICE,
    TWO_TOWER,
    USER_ID,
    job_of,
)

from rectrain.api import UserError
from rectrain.api.features import Side
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.models.registry import build_model
from rectrain_jobs.serving.encoder import EncodedUser, encoder_of, item_rows

ROWS = 24
SUMMED, SUMMED_HISTORY = LIKED | {"pooling": "Sum"}, HISTORY | {"pooling": "Sum"}
OF_OWN_TABLE = {"name": "tags", "kind": "Sequence", "side": "User", "cardinality": 9, "maxLength": 3, "pooling": "Sum"}

FORMS = {
    "MIND": (MIND, [USER_ID, ITEM_ID, HISTORY]),
    "MIND, cosine": (MIND_OF_PROFILE | {"mind": MIND["mind"] | {"similarity": "Cosine"}}, [USER_ID, ITEM_ID, HISTORY]),
    "MIND, one iteration": (
        MIND | {"mind": MIND["mind"] | {"routingIterations": 1, "interests": 1}},
        [USER_ID, HISTORY, ITEM_ID],
    ),
    "MIND with a profile": (MIND_OF_PROFILE, [AGE, SUMMED_HISTORY, USER_ID, CITY, ITEM_ID, SUMMED]),
    "two towers": (TWO_TOWER, [OWN_USER, HISTORY, AGE, ITEM_ID, CITY, PRICE]),
    "two towers, sums": (TWO_TOWER, [USER_ID, ITEM_ID, HISTORY, OF_OWN_TABLE]),
    "matrix factorization": (MATRIX, [OWN_USER, ITEM_ID]),
    "mean of the history": (MATRIX, [USER_ID, ITEM_ID, HISTORY]),
}


def columns_of(features, rng):
    """Rows with every id of every table among them: 0, out-of-vocabulary, missing; empty histories, too."""
    found = {}
    for feature in features:
        rows = feature.get("cardinality", ITEMS) + 2
        if feature["kind"] == "Dense":
            found[feature["name"]] = rng.standard_normal(ROWS).astype(np.float32)
        elif feature["kind"] == "Sequence":
            length = feature["maxLength"]
            lists = rng.integers(0, rows, (ROWS, length))
            lists[np.arange(length) >= np.arange(ROWS)[:, None] % (length + 1)] = -1
            found[feature["name"]] = lists
        else:
            found[feature["name"]] = np.r_[0, rows - 1, rows - 2, rng.integers(0, rows, ROWS - 3)]
    return found


def users_of(spec, columns):
    users = []
    for row in range(ROWS):
        rows, dense = {}, {}
        for feature in spec.features:
            value = columns[feature.name][row]
            if feature.side is not Side.USER:
                continue
            if feature.kind == "Dense":
                dense[feature.name] = float(value)
            else:
                rows[feature.name] = [int(v) for v in np.atleast_1d(value) if v >= 0]
        users.append(EncodedUser(rows, dense))
    return users


@pytest.fixture(params=FORMS)
def form(request):
    """A model of one form, its spec, and its encoder."""
    model, features = FORMS[request.param]
    spec = job_of(model, features).spec
    torch.manual_seed(5)
    built = build_model(spec).eval()
    with torch.no_grad():
        for parameter in built.arch.parameters():
            parameter.normal_(std=0.7)
    weights = {name: value.numpy() for name, value in built.state_dict().items()}
    return built, spec, features, encoder_of(spec, weights)


def test_user_vectors_are_those_of_the_model(form):
    built, spec, features, encoder = form
    columns = columns_of(features, np.random.default_rng(0))
    with torch.no_grad():
        batch = BatchBuilder(spec, sides=[Side.USER]).build(columns, np.ones(ROWS, bool))
        wanted = built.user_vectors(batch).numpy().reshape(ROWS, -1, 8)
    users = users_of(spec, columns)
    np.testing.assert_allclose(encoder.users(users), wanted, rtol=2e-5, atol=2e-6)
    # One at a time, with no other user's padding beside it.
    alone = np.concatenate([encoder.users([user]) for user in users])
    np.testing.assert_allclose(alone, wanted, rtol=2e-5, atol=2e-6)


def test_item_vectors_are_those_of_the_model(form):
    built, spec, features, encoder = form
    if PRICE in features:
        with pytest.raises(UserError, match=r"besides their id \(price\).*rectrain index publish"):
            item_rows(spec, None)
        return
    rows = item_rows(spec, None)
    assert rows.tolist() == list(range(ITEMS))
    with torch.no_grad():
        batch = BatchBuilder(spec, sides=[Side.ITEM]).build({"item_id": rows}, np.ones(ITEMS, bool))
        wanted = built.item_vectors(batch).numpy()
    np.testing.assert_allclose(encoder.items(rows), wanted, rtol=2e-5, atol=2e-6)


def test_a_ranking_model_has_no_encoder():
    spec = job_of({"type": "DLRM", "dlrm": {}}, [{"name": "item_id", "kind": "Categorical", "cardinality": 3}]).spec
    with pytest.raises(UserError, match="a bundle of DLRM has no user vectors"):
        encoder_of(spec, {})
