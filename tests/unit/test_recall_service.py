"""The recall service's calls, on bundles of small models, each answer against a plain search."""

import asyncio
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import (
    AGE,
    CITY,
    HISTORY,
    ITEM_ID,
    ITEMS,
    MATRIX,
    MIND,
    MIND_OF_PROFILE,
    NAMED_ITEM,
    OWN_USER,
    PRICE,
    TWO_TOWER,
    USER_ID,
    make_bundle,
)
from fastapi.testclient import TestClient

from rectrain.api import UserError
from rectrain_jobs.retrieval.base import UnavailableError
from rectrain_jobs.retrieval.faiss_store import FaissStore
from rectrain_jobs.retrieval.publishing import publish
from rectrain_jobs.serving.access import Access, BodyLimit
from rectrain_jobs.serving.encoder import EncodedUser
from rectrain_jobs.serving.recall_app import AppSettings, Limits, recall_app
from rectrain_jobs.serving.recall_model import RecallModel
from rectrain_jobs.serving.recall_service import RecallService, RecallSettings
from rectrain_jobs.storage import open_store

OPEN = Access(admin_without_token=True)
FEATURES = [USER_ID, ITEM_ID, HISTORY]


@pytest.fixture(scope="module")
def mind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mind")
    make_bundle(folder, MIND, FEATURES)
    return folder


@pytest.fixture
def serve():
    """Return a client of a service; what it is made of is taken away after the test."""
    opened = []

    def start(bundle, access=OPEN, limits=None, **settings):
        service = RecallService(RecallSettings(str(bundle), **settings))
        app = recall_app(service, AppSettings(limits or Limits(), access, follow_seconds=0))
        client = TestClient(app, raise_server_exceptions=False)
        opened.append(service)
        client.service = service
        return client

    yield start
    for service in opened:
        service.close()


def recall(client, status=200, **body):
    answer = client.post("/rec/recall", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def expected(client, history, k, without=(), user=None):
    """Ids and scores by a plain search of every item with every vector of a user."""
    model = client.service.current.model
    vectors = model.encoder.users([user or EncodedUser({"history": history})])[0]
    scores = (vectors @ model.encoder.items(np.arange(ITEMS)).T).max(axis=0)
    order = [item for item in np.argsort(-scores, kind="stable") if item not in without][:k]
    return [int(item) for item in order], [float(scores[item]) for item in order]


def test_the_four_calls(mind, serve, tmp_path):
    client = serve(mind, index=str(tmp_path / "index"))
    refused = recall(client, 503, top_k=3, hist_item=[[1]])
    assert "has no served version yet" in refused["detail"]
    assert client.get("/readyz").status_code == 503
    inserted = client.post("/rec/insert_data")
    version = inserted.json()["index_version"]
    assert inserted.json() == {"inserted": ITEMS, "index_version": version}
    assert client.post("/rec/count").json() == {"count": ITEMS}
    answer = recall(client, top_k=7, hist_item=[[3, 9, 4], [17]])
    for user, history in enumerate(([3, 9, 4], [17])):
        ids, scores = expected(client, history, 7)
        assert answer["items"][user] == ids
        assert answer["scores"][user] == pytest.approx(scores, rel=1e-5)
    assert answer["sources"] == ["model", "model"] and answer["unknown"] == [0, 0]
    assert version == f"000001_{answer['model_version']}" == answer["index_version"]
    assert client.get("/readyz").json() == {k: answer[k] for k in ("model_version", "index_version")}
    for path in ("/qa/drop", "/rec/drop"):
        assert client.post(path).json() == {"dropped": 1}
        assert "the index was dropped" in recall(client, 503, top_k=3, hist_item=[[1]])["detail"]
        assert client.post("/rec/count").status_code == 503
        assert client.post("/rec/insert_data").json()["inserted"] == ITEMS
    assert recall(client, hist_item=[[1]])["items"][0] == expected(client, [1], ITEMS)[0]  # top_k is 50


def test_every_item_is_there_once_and_seen_ones_are_left_out(mind, serve):
    client = serve(mind)
    everything = recall(client, top_k=1000, hist_item=[[5, 6]])["items"][0]
    assert sorted(everything) == list(range(ITEMS))
    history = [5, 6, 5, 8, 1, 2, 3]  # longer than the model's, which reads the last five
    rest = recall(client, top_k=1000, hist_item=[history, [7]], exclude_seen=True)
    assert sorted(rest["items"][0]) == sorted(set(range(ITEMS)) - set(history))
    assert sorted(rest["items"][1]) == sorted(set(range(ITEMS)) - {7})
    assert rest["items"][0][:9] == expected(client, history[-5:], 9, without=history)[0]


def test_unknown_ids_are_ignored_and_counted(mind, serve):
    client = serve(mind)
    known = recall(client, top_k=5, hist_item=[[3, 9]])
    answer = recall(client, top_k=5, hist_item=[[3, 10**30, -1, "x", 9, ITEMS], [1]])
    assert answer["items"][0] == known["items"][0] and answer["unknown"] == [4, 0]
    metrics = client.get("/metrics").text
    assert "rectrain_recall_unknown_ids_total 4.0" in metrics
    assert 'rectrain_recall_users_total{source="model"} 3.0' in metrics
    assert 'rectrain_recall_requests_total{code="200",path="/rec/recall"} 2.0' in metrics


def test_who_has_no_history_gets_what_is_popular(mind, serve):
    client = serve(mind)
    answer = recall(client, top_k=4, hist_item=[[], [999], [3], []])
    assert answer["sources"] == ["popularity", "popularity", "model", "popularity"]
    # Item i was seen i + 1 times.
    assert answer["items"][0] == answer["items"][1] == [39, 38, 37, 36]
    assert answer["scores"][0] == [40, 39, 38, 37]
    assert answer["items"][2] == expected(client, [3], 4)[0]
    assert recall(client, top_k=100, hist_item=[[]])["items"][0] == list(range(39, -1, -1))


@pytest.mark.parametrize(("model", "features"), [(MIND, FEATURES), (MATRIX, [OWN_USER, ITEM_ID])])
def test_an_item_that_training_never_saw_is_in_no_answer(model, features, tmp_path, serve):
    make_bundle(tmp_path, model, features, counts=[0, 3, 0] + [1] * (ITEMS - 3))
    client = serve(tmp_path)
    assert client.post("/rec/count").json() == {"count": ITEMS - 2}
    user = {"hist_item": [[0, 5], []]} if model is MIND else {"user_features": [{"user_id": 3}, {}]}
    answer = recall(client, top_k=100, **user)
    assert answer["sources"] == ["model", "popularity"] and answer["unknown"] == [0, 0]
    assert sorted(answer["items"][0]) == sorted(answer["items"][1]) == [1, *range(3, ITEMS)]


def test_a_bundle_without_counts_is_served_without_popularity(tmp_path, serve, caplog):
    make_bundle(tmp_path, MIND, FEATURES, counts=None)
    client = serve(tmp_path)
    assert f"{tmp_path}: has no item counts" in caplog.text
    answer = recall(client, top_k=100, hist_item=[[3], []])
    assert sorted(answer["items"][0]) == list(range(ITEMS)) and answer["items"][1] == answer["scores"][1] == []
    assert answer["sources"] == ["model", "popularity"]


def test_a_deleted_item_is_not_popular(mind, serve, tmp_path):
    client = serve(mind, index=str(tmp_path))
    client.post("/rec/insert_data")
    FaissStore(open_store(str(tmp_path))).delete(np.array([39, 37]))
    assert client.service.follow() is True and client.service.follow() is False
    assert recall(client, top_k=2, hist_item=[[]])["items"] == [[38, 36]]
    assert client.post("/rec/count").json() == {"count": ITEMS - 2}


def test_user_features_reach_the_model(tmp_path, serve):
    make_bundle(tmp_path, TWO_TOWER, [OWN_USER, AGE, CITY, ITEM_ID])
    client = serve(tmp_path)
    given = [{"user_id": 7, "age": 0.5, "city": 2}, {"user_id": 7}, {"user_id": 99, "city": "atlantis"}, {}]
    answer = recall(client, top_k=6, user_features=given)
    users = [
        EncodedUser({"user_id": [7], "city": [2]}, {"age": 0.5}),
        EncodedUser({"user_id": [7], "city": [5]}),  # 5 is the row of a missing one
    ]
    for number, user in enumerate(users):
        assert answer["items"][number] == expected(client, None, 6, user=user)[0]
    # The model has no row for an unknown user, and one for unknown cities, by which alone it does not go.
    assert answer["sources"] == ["model", "model", "popularity", "popularity"]
    assert answer["unknown"] == [0, 0, 2, 0]
    answer = recall(client, top_k=6, user_features=[{"user_id": 7}], hist_item=[[30, 31]], exclude_seen=True)
    assert answer["items"][0] == expected(client, None, 6, without=(30, 31), user=users[1])[0]


def test_a_profile_stands_beside_the_history(tmp_path, serve):
    make_bundle(tmp_path, MIND_OF_PROFILE, [USER_ID, AGE, CITY, ITEM_ID, HISTORY])
    client = serve(tmp_path)
    answer = recall(client, top_k=6, hist_item=[[4, 5], []], user_features=[{"age": 2}, {"age": 2}])
    user = EncodedUser({"history": [4, 5], "city": [5]}, {"age": 2.0})
    assert answer["items"][0] == expected(client, None, 6, user=user)[0]
    assert answer["sources"] == ["model", "popularity"]


@pytest.mark.parametrize(
    ("values", "ids"),
    [(["b", "a", "b", "c", "b", "a"], ["b", "a", "c"]), ([70, 8, 70], [70, 8]), (["07", "7"], ["07", "7"])],
)
def test_items_are_named_as_the_training_data_names_them(values, ids, tmp_path, serve):
    make_bundle(tmp_path, MIND, [USER_ID, NAMED_ITEM, HISTORY], values=values)
    client = serve(tmp_path)
    assert client.post("/rec/count").json() == {"count": len(ids)}
    answer = recall(client, top_k=10, hist_item=[[ids[1], "new"]])
    assert sorted(map(str, answer["items"][0])) == sorted(map(str, ids)) and answer["unknown"] == [1]
    assert all(type(item) is type(ids[0]) for item in answer["items"][0])


ATTRIBUTES = {
    "item_id": [*range(ITEMS), 1000],
    "brand": [f"b{i % 3}" if i else None for i in range(ITEMS + 1)],
    "price": [i / 2 if i != 7 else None for i in range(ITEMS + 1)],
    "stock": [*range(ITEMS), 5],
    "new": [i % 2 == 0 for i in range(ITEMS + 1)],
    "code": [2**62 + i for i in range(ITEMS + 1)],  # float64 does not tell them apart
    "hash": pa.array([2**63 + i for i in range(ITEMS + 1)], pa.uint64()),
    "weight": pa.array([i / 10 for i in range(ITEMS + 1)], pa.float32()),
    "half": pa.array(np.arange(ITEMS + 1) / 10, pa.float16()),
}
FILTERS = [
    ({"brand": {"in": ["b1", "b7"]}}, lambda i: i % 3 == 1),
    ({"brand": {"not_in": ["b1"]}}, lambda i: i and i % 3 != 1),
    ({"price": {"lte": 3.5}}, lambda i: i <= 7 and i != 7),
    ({"price": {"gt": 3, "lt": 5}}, lambda i: 6 < i < 10 and i != 7),
    ({"stock": {"gte": 30}, "new": {"in": [True]}}, lambda i: i >= 30 and i % 2 == 0),
    ({"stock": {"in": [3, 4.0, 5.5]}}, lambda i: i in (3, 4)),
    ({"stock": {"gt": 1000}}, lambda i: False),
    ({"stock": {"gt": 2.5, "lte": 5.5}}, lambda i: 3 <= i <= 5),
    ({"stock": {"gte": -2.5, "lt": 3.5}}, lambda i: i <= 3),
    ({"stock": {"lt": 10**400}}, lambda i: True),
    ({"stock": {"lt": -1e300}}, lambda i: False),
    ({"price": {"lt": 10**400, "gt": -(10**400)}}, lambda i: i != 7),
    ({"price": {"in": [1.5, 10**400]}}, lambda i: i == 3),
    ({"code": {"gt": 2**62 + 3, "lte": 2**62 + 5}}, lambda i: i in (4, 5)),
    ({"code": {"lt": 2**62 + 2}}, lambda i: i < 2),
    ({"hash": {"gte": 2**63 + 38}}, lambda i: i >= 38),
    ({"hash": {"in": [2**63 + 5]}}, lambda i: i == 5),
    ({"weight": {"in": [0.3]}}, lambda i: i == 3),
    ({"weight": {"gte": 0.3, "lte": 0.7}}, lambda i: 3 <= i <= 7),
    ({"weight": {"lt": 1e300}}, lambda i: True),
    ({"half": {"in": [0.3, 1e300]}}, lambda i: i == 3),
    ({"half": {"not_in": [0.3], "lt": 0.5}}, lambda i: i < 5 and i != 3),
]


@pytest.fixture
def attributes(tmp_path):
    table = pa.table(ATTRIBUTES)
    table = table.set_column(1, "brand", table.column("brand").dictionary_encode())
    pq.write_table(table, tmp_path / "items.parquet")
    return str(tmp_path / "items.parquet")


@pytest.mark.parametrize(("conditions", "holds"), FILTERS)
def test_a_filter_leaves_items_whose_attributes_are_such(conditions, holds, mind, serve, attributes):
    client = serve(mind, items=attributes)
    allowed = [item for item in range(ITEMS) if holds(item)]
    for _ in range(2):  # the second time it is remembered
        answer = recall(client, top_k=1000, hist_item=[[3, 9], []], filter=conditions)
        assert answer["items"][0] == expected(client, [3, 9], 1000, without=set(range(ITEMS)) - set(allowed))[0]
        assert answer["items"][1] == allowed[::-1]


WRONG = [
    ({"hist_item": [[1]], "top_k": 0}, "top_k: Input should be greater than or equal to 1"),
    ({"hist_item": [[1]], "top_k": 11}, "top_k: is 11; the service gives up to 10"),
    ({"hist_item": [[1]], "topk": 3}, "topk: Extra inputs are not permitted"),
    ({"hist_item": [[1]] * 4}, "hist_item: is of 4 users; the service takes up to 3"),
    ({"hist_item": [[1], [1] * 6]}, "hist_item.1: has 6 items; the service takes up to 5"),
    ({"hist_item": [1]}, "hist_item.0: Input should be a valid array"),
    ({"hist_item": [[True]]}, "hist_item.0.0: must be an integer or text of 1 to 512 characters"),
    ({"hist_item": [[1.5]]}, "hist_item.0.0: must be an integer or text of 1 to 512 characters"),
    ({"hist_item": [[""]]}, "hist_item.0.0: must be an integer or text of"),
    ({"hist_item": []}, "hist_item or user_features: must have a user or more"),
    ({}, "hist_item: is required: the model goes by the items that a user took"),
    ({"hist_item": [[1]], "user_features": [{}, {}]}, "user_features: is of 2 users and hist_item of 1"),
    ({"hist_item": [[1]], "user_features": [{"mood": 1}]}, "reads no user feature 'mood'; it reads age, city"),
    ({"hist_item": [[1]], "user_features": [{"city": [1]}]}, "user_features.city: must be one id, not a list"),
    ({"hist_item": [[1]], "user_features": [{"age": "old"}]}, "user_features.age: value 'old' is not a finite number"),
    ({"hist_item": [[1]], "user_features": [{"age": [1]}]}, "user_features.age: must be a number, not a list"),
    ({"hist_item": [[1]], "filter": {"size": {"gt": 1}}}, "filter.size: there is no such attribute of items; there"),
    ({"hist_item": [[1]], "filter": {"brand": {"gt": 1}}}, "filter.brand: is compared with 1, and it is no number"),
    ({"hist_item": [[1]], "filter": {"brand": {"in": [1]}}}, "filter.brand: is compared with 1, and it is of type"),
    ({"hist_item": [[1]], "filter": {"stock": {"in": ["x"]}}}, "filter.stock: is compared with 'x', and it is of"),
    ({"hist_item": [[1]], "filter": {"stock": {"in": [2**70]}}}, "filter.stock: a value does not fit its type int64"),
    ({"hist_item": [[1]], "filter": {"price": {"in": []}}}, "filter.price.in: List should have at least 1 item"),
    ({"hist_item": [[1]], "filter": {"price": {"gt": True}}}, "filter.price.gt: must be a finite number"),
]


@pytest.mark.parametrize(("body", "message"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong(body, message, tmp_path, serve, attributes):
    make_bundle(tmp_path / "bundle", MIND_OF_PROFILE, [USER_ID, AGE, CITY, ITEM_ID, HISTORY])
    client = serve(tmp_path / "bundle", limits=Limits(top_k=10, users=3, history=5), items=attributes)
    assert message in recall(client, 422, **({"top_k": 5} | body))["detail"]


def test_a_body_has_its_limit(mind, serve):
    client = serve(mind, limits=Limits(body_bytes=1024))
    large = json.dumps({"hist_item": [[10**9] * 200]}).encode()
    for content in (large, iter([large[:900], large[900:]])):  # with its length in the header, and without
        answer = client.post("/rec/recall", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "up to 1,024 bytes" in answer.json()["detail"]
    body = json.dumps({"hist_item": [[3]], "top_k": 1}).encode()
    answer = client.post(
        "/rec/recall", content=iter([body[:9], body[9:]]), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200
    assert client.post("/rec/recall", content=b"{").json()["detail"].startswith("body: must be JSON with Content-Type")
    broken = client.post("/rec/recall", content=b"{", headers={"Content-Type": "application/json"})
    assert broken.status_code == 422 and broken.json()["detail"].startswith("body: is no JSON: EOF")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "body: is no JSON: EOF"),
        (b"null", "body: Input should be an object"),
        (b'{"hist_item": [["\xff"]]}', "body: is no JSON: invalid unicode"),
        (b"[" * 100_000, "body: is no JSON: recursion limit exceeded"),
        (b'{"hist_item": [[1' + b"0" * 5000 + b"]]}", "body: is no JSON: number out of range"),
        (b'{"hist_item": [[1]], "filter": {"\\ud800": {"in": [1]}}}', "body: is no JSON: "),
        (b'{"hist_item": [[NaN]]}', "hist_item.0.0: must be an integer or text of"),
        (b'{"hist_item": [[1]], "top_k": 1e400}', "top_k: Input should be a valid integer"),
    ],
)
def test_a_body_that_is_no_request_is_told_so(content, message, mind, serve):
    answer = serve(mind).post("/rec/recall", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"].startswith(message), answer.text


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ('{"bundle": "a\\u0000b"}', 409, "has a null character"),
        ('{"\\ud800": 1}', 422, "body: "),
        ("{", 422, "body: is no JSON: "),
    ],
)
def test_a_wrong_bundle_is_told_what_is_wrong(content, status, message, mind, serve):
    answer = serve(mind).post("/rec/reload", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and message in answer.json()["detail"], answer.text


def test_an_index_whose_server_does_not_answer_is_no_mistake_of_the_caller_s(mind, serve, monkeypatch):
    client = serve(mind)

    def search(*_):
        raise UnavailableError("items_v000001_a: deadline exceeded")

    monkeypatch.setattr(client.service.current.index, "search", search)
    refused = client.post("/rec/recall", json={"hist_item": [[1]]})
    assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
    assert refused.json()["detail"] == "the index does not answer: items_v000001_a: deadline exceeded"


def test_a_defect_is_answered_and_counted(mind, serve, monkeypatch):
    client = serve(mind)
    monkeypatch.setattr(type(client.service.current), "answer", lambda *_: 1 / 0)
    assert recall(client, 500, hist_item=[[1]])["detail"] == "an error of the service itself, which its log has"
    assert 'rectrain_recall_requests_total{code="500",path="/rec/recall"} 1.0' in client.get("/metrics").text


def test_a_body_that_does_not_come_is_not_waited_for():
    sent = []

    async def receive():
        if sent:
            raise AssertionError("asked for more")
        await asyncio.sleep(3600)

    async def send(message):
        sent.append(message)

    async def app(*_):
        raise AssertionError("there is no body")

    headers = [(b"content-length", b"9")]
    asyncio.run(BodyLimit(app, most=10, seconds=0.01)({"type": "http", "headers": headers}, receive, send))
    assert sent[0]["status"] == 408 and b"did not come within 0.01 seconds" in sent[1]["body"]


TOKEN, ADMIN = "t" * 16, "a" * 16
CALLS = {"/rec/recall": "call", "/rec/count": "call"} | dict.fromkeys(
    ("/rec/insert_data", "/rec/reload", "/rec/drop", "/qa/drop"), "admin"
)
ACCESSES = [
    # who may call and change: by access, without a token, with a wrong one, the callers', the administrator's
    (Access(TOKEN, ADMIN), {"call": (401, 401, 200, 200), "admin": (401, 403, 403, 200)}),
    (Access(None, ADMIN), {"call": (200, 200, 200, 200), "admin": (401, 403, 403, 200)}),
    (Access(TOKEN, None), {"call": (401, 401, 200, 401), "admin": (401, 401, 403, 401)}),
    (Access(TOKEN, None, True), {"call": (401, 401, 200, 401), "admin": (401, 401, 200, 401)}),
    (Access(None, None), {"call": (200, 200, 200, 200), "admin": (403, 403, 403, 403)}),
]


@pytest.mark.parametrize(("access", "codes"), ACCESSES)
def test_tokens_say_who_may_call_what(access, codes, mind, serve):
    client = serve(mind, access=access)
    for path, kind in CALLS.items():
        body = {"json": {"hist_item": [[1]]}} if path == "/rec/recall" else {}
        for token, code in zip((None, "x" * 16, TOKEN, ADMIN), codes[kind], strict=True):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            answer = client.post(path, headers=headers, **body)
            assert answer.status_code == code, (path, token, answer.text)
            if path == "/rec/drop" and code == 200:
                client.service.insert()
    for path in ("/healthz", "/metrics", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert TOKEN not in repr(access) and ADMIN not in repr(access)


def copied(source, target):
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target


def publish_items(bundle, folder):
    return publish(FaissStore(open_store(str(folder))), RecallModel(open_store(str(bundle))).items(), keep=3)


def test_the_service_follows_bundle_and_index(mind, serve, tmp_path):
    bundle, index = copied(mind, tmp_path / "bundle"), tmp_path / "index"
    publish_items(bundle, index)
    client = serve(bundle, index=str(index))
    before = recall(client, hist_item=[[3]])
    assert client.service.follow() is False
    make_bundle(tmp_path / "newer", MIND, FEATURES, seed=1)
    copied(tmp_path / "newer", bundle)
    # The bundle is there and its index is not yet: what was there answers on.
    with pytest.raises(UserError, match=r"is of model .*, the bundle is .*: publish the bundle's items"):
        client.service.follow()
    refused = client.post("/rec/reload")
    assert refused.status_code == 409 and "publish the bundle's items" in refused.json()["detail"]
    assert recall(client, hist_item=[[3]]) == before
    newest = publish_items(bundle, index)
    assert client.service.follow() is True
    after = recall(client, hist_item=[[3]])
    assert after["index_version"] == newest.name and after["model_version"] == newest.model_version
    assert after["items"][0] == expected(client, [3], 50)[0] != before["items"][0]
    # Back to the older one, by its bundle.
    FaissStore(open_store(str(index))).serve(before["index_version"])
    reloaded = client.post("/rec/reload", json={"bundle": str(mind)})
    assert reloaded.json() == {k: before[k] for k in ("model_version", "index_version")}
    assert recall(client, hist_item=[[3]]) == before
    FaissStore(open_store(str(index))).clear()
    assert client.service.follow() is False
    assert "the index was removed" in recall(client, 503, hist_item=[[3]])["detail"]


def test_an_index_of_its_own_is_made_anew_for_another_bundle(mind, serve, tmp_path):
    bundle = copied(mind, tmp_path / "bundle")
    client = serve(bundle)
    before = recall(client, hist_item=[[3]])
    make_bundle(tmp_path / "newer", MIND, FEATURES, seed=1)
    copied(tmp_path / "newer", bundle)
    assert client.service.follow() is True
    after = recall(client, hist_item=[[3]])
    assert after["model_version"] != before["model_version"]
    assert after["items"][0] == expected(client, [3], 50)[0]
    client.post("/rec/drop")
    assert client.service.follow() is False and client.get("/readyz").status_code == 503


REFUSED = [
    ({"type": "DLRM", "dlrm": {"embeddingDim": 8}}, [ITEM_ID], "a bundle of DLRM has no user vectors"),
    (MIND, [USER_ID, ITEM_ID | {"encoding": "Hashing"}, HISTORY], "feature item_id: has encoding Hashing"),
]


@pytest.mark.parametrize(("model", "features", "message"), REFUSED)
def test_a_bundle_that_cannot_be_served_is_refused(model, features, message, tmp_path):
    make_bundle(tmp_path, model, features)
    with pytest.raises(UserError, match=message):
        RecallService(RecallSettings(str(tmp_path)))


def test_items_that_are_more_than_their_ids_are_published_elsewhere(tmp_path, serve):
    make_bundle(tmp_path, TWO_TOWER, [OWN_USER, ITEM_ID, PRICE])
    client = serve(tmp_path)
    refused = client.post("/rec/insert_data")
    assert refused.status_code == 409 and "`rectrain index publish`" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1]}, "has no column item_id; its columns are id"),
        ({"item_id": [1], "tags": [["a"]]}, "attribute tags is of type list"),
        (None, "is no Parquet file"),
    ],
)
def test_a_table_of_attributes_that_is_none_is_refused(columns, message, mind, serve, tmp_path):
    file = tmp_path / "items.parquet"
    if columns is None:
        file.write_bytes(b"item_id,price\n")
    else:
        pq.write_table(pa.table(columns), file)
    client = serve(mind, items=str(file))
    assert message in client.get("/readyz").json()["detail"]


def test_matrix_factorization_is_served(tmp_path, serve):
    make_bundle(tmp_path, MATRIX, [OWN_USER, ITEM_ID])
    client = serve(tmp_path)
    answer = recall(client, top_k=5, user_features=[{"user_id": 3}])
    assert answer["items"][0] == expected(client, None, 5, user=EncodedUser({"user_id": [3]}))[0]


def test_the_openapi_has_examples_of_every_body(mind, serve):
    document = serve(mind).get("/openapi.json").json()
    for path in CALLS:
        assert path in document["paths"]
    schema = document["components"]["schemas"]
    assert {"top_k": 50, "hist_item": [[43, 23, 65], [675, 3456]]} in schema["RecallRequest"]["examples"]
    assert schema["RecallAnswer"]["examples"] and schema["ReloadRequest"]["examples"]
    assert document["paths"]["/rec/drop"]["post"]["security"]
