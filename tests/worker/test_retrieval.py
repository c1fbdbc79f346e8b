"""The item index in FAISS and in Milvus (Lite: the same client and API, in this process)."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_stores import DIM, KINDS, items_of, open_store, publish_until_killed

from rectrain.api.errors import UserError
from rectrain_jobs.retrieval import faiss_index
from rectrain_jobs.retrieval.base import Hits, IndexVersion
from rectrain_jobs.retrieval.faiss_store import FaissStore
from rectrain_jobs.retrieval.merging import merge, retrieve
from rectrain_jobs.retrieval.milvus_store import MilvusStore
from rectrain_jobs.retrieval.publishing import Items, build, drop, prune, publish, rollback, sampled_recall, verify
from rectrain_jobs.storage import open_store as open_folder


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    with open_store(request.param, tmp_path) as opened:
        yield opened


def served_index(store):
    return store.open(next(version for version in store.versions() if version.name == store.served()))


def exact(items, queries, k):
    scores = queries @ items.vectors.T
    order = np.argsort(-scores, axis=1)[:, :k]
    return items.ids[order], np.take_along_axis(scores, order, axis=1)


def test_what_is_published_is_found(store):
    items, queries = items_of("a"), items_of("queries", 5).vectors
    assert store.served() is None and store.versions() == []
    version = publish(store, items, keep=2)
    assert store.served() == version.name == "000001_a"
    assert [v.model_dump() for v in store.versions()] == [version.model_dump()]
    assert (version.model_version, version.items, version.dim, version.recall) == ("a", 60, DIM, 1.0)
    index = served_index(store)
    assert index.count() == 60
    ids, scores = exact(items, queries, 7)
    found = index.search(queries, 7)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    beyond = index.search(queries[:1], 70)
    assert (beyond.ids[0, :60] >= 0).all() and (beyond.ids[0, 60:] == -1).all()
    assert np.isneginf(beyond.scores[0, 60:]).all()
    assert index.search(queries[:0], 7).ids.shape == (0, 7)


def test_only_allowed_items_are_found(store):
    items, queries = items_of("a"), items_of("queries", 3).vectors
    publish(store, items, keep=1)
    index = served_index(store)
    allowed = np.zeros(150, bool)  # ids go up to 177
    allowed[[3, 30, 31, 60, 90, 147]] = True
    some = np.array([1, 10, 20, 30, 49])
    ids, scores = exact(items._replace(ids=items.ids[some], vectors=items.vectors[some]), queries, 5)
    found = index.search(queries, 7, allowed)
    np.testing.assert_array_equal(found.ids[:, :5], ids)
    np.testing.assert_allclose(found.scores[:, :5], scores, rtol=1e-5)
    assert (found.ids[:, 5:] == -1).all() and np.isneginf(found.scores[:, 5:]).all()
    assert (index.search(queries, 2, np.zeros(178, bool)).ids == -1).all()
    assert index.contains(np.array([3, 4, 177, 180, 3])).tolist() == [True, False, True, False, True]


def test_the_revision_tells_what_is_served(store):
    assert store.revision() is None
    revisions = []
    for model in "ab":
        publish(store, items_of(model), keep=2)
        revisions.append(store.revision())
    rollback(store)
    assert store.revision() == revisions[0] != revisions[1]
    store.clear()
    assert store.revision() is store.served() is None and store.versions() == [] == store.unfinished()
    assert publish(store, items_of("c"), keep=1).name == "000001_c"


def test_versions_are_kept_rolled_back_and_dropped(store):
    for model in "abcd":
        publish(store, items_of(model), keep=3)
    names = ["000002_b", "000003_c", "000004_d"]
    assert [v.name for v in store.versions()] == names and store.served() == names[2]
    assert rollback(store).name == store.served() == names[1]
    assert served_index(store).version.model_version == "c"
    assert rollback(store, names[0]).name == store.served() == names[0]
    for wrong, message in ((None, "has no version older than 000002_b"), ("000001_a", "has no version 000001_a")):
        with pytest.raises(UserError, match=message):
            rollback(store, wrong)
    with pytest.raises(UserError, match="version 000002_b is served"):
        drop(store, names[0])
    with pytest.raises(UserError, match="has no version 9; there are: 000002_b"):
        drop(store, "9")
    drop(store, names[2])
    assert [v.name for v in store.versions()] == names[:2]
    prune(store, 1)
    assert [v.name for v in store.versions()] == names[:2], "the served one stays, though it is not the newest"
    assert publish(store, items_of("e"), keep=1).name == "000004_e"
    assert [v.name for v in store.versions()] == ["000004_e"]


def test_a_version_may_be_built_and_served_later(store):
    publish(store, items_of("a"), keep=2)
    version = build(store, items_of("b"))
    assert store.served() == "000001_a" and version.recall == 1.0
    store.serve(version.name)
    assert served_index(store).version.model_version == "b"


def test_single_items_are_added_replaced_and_deleted(store):
    items = items_of("a")
    for change in (lambda: store.upsert(items.ids, items.vectors), lambda: store.delete(items.ids)):
        with pytest.raises(UserError, match="has no served version yet"):
            change()
    publish(store, items, keep=1)
    far = np.zeros((2, DIM), np.float32)
    far[:, 0] = 100, 200
    store.upsert(np.array([3, 1000]), far)
    assert served_index(store).count() == 61
    assert served_index(store).search(far[:1], 2).ids.tolist() == [[1000, 3]]
    assert store.delete(np.array([1000, 3, 3, 5])) == 2
    assert store.delete(np.array([5])) == 0
    index = served_index(store)
    assert index.count() == 59 and index.search(far[:1], 60).ids.max() <= 177
    with pytest.raises(UserError, match=r"shape \[1, 3\]: must be \[1, 8\]"):
        store.upsert(np.array([1]), np.ones((1, 3), np.float32))
    with pytest.raises(UserError, match="item 7 has more than one vector"):
        store.upsert(np.array([5, 7, 7]), np.ones((3, DIM), np.float32))
    assert served_index(store).count() == 59


def test_verification_tells_another_model_another_count_and_wrong_vectors(store):
    items = items_of("a")
    publish(store, items, keep=1)
    index = served_index(store)
    assert verify(index, items) == 1.0
    with pytest.raises(UserError, match="is of model a, the bundle is b"):
        verify(index, items_of("b"))
    with pytest.raises(UserError, match="has 60 items; must have the model's 59"):
        verify(index, items_of("a", 59))
    other = items._replace(vectors=items_of("b").vectors)
    assert sampled_recall(index, other) < 0.2, "an item that is found with another's vector is not found"
    with pytest.raises(UserError, match=r"of the exact neighbours; must be 0\.95 or more"):
        verify(index, other)


def test_what_cannot_be_published_leaves_everything_as_it_was(store, monkeypatch):
    publish(store, items_of("a"), keep=2)
    wrong = items_of("b")
    with pytest.raises(UserError, match="no items to publish"):
        publish(store, items_of("b", 0), keep=2)
    with pytest.raises(UserError, match="item 0 has more than one vector"):
        publish(store, wrong._replace(ids=np.zeros(60, np.int64)), keep=2)
    with pytest.raises(UserError, match="an item has id -3: ids must not be negative"):
        publish(store, wrong._replace(ids=wrong.ids - 3), keep=2)
    for value in (np.nan, np.inf):
        vectors = wrong.vectors.copy()
        vectors[7, 2] = value
        with pytest.raises(UserError, match="the vector of item 21 is not finite: has the training diverged"):
            publish(store, wrong._replace(vectors=vectors), keep=2)
    monkeypatch.setattr("rectrain_jobs.retrieval.publishing.sampled_recall", lambda *_: 0.3)
    with pytest.raises(UserError, match=r"finds 0\.3000 of the exact neighbours"):
        publish(store, wrong, keep=2)
    assert store.served() == "000001_a" and [v.name for v in store.versions()] == ["000001_a"]
    assert store.unfinished() == []


@pytest.mark.parametrize("kind", KINDS)
def test_publishing_that_is_killed_at_any_step_leaves_an_index_that_serves(kind, tmp_path):
    with open_store(kind, tmp_path) as store:
        publish(store, items_of("a"), keep=2)
        publish(store, items_of("b"), keep=2)
    served, killed_before_swap, step = "b", 0, 0
    while True:
        step += 1
        model = f"m{step}"
        was_killed = publish_until_killed(kind, tmp_path, model, step)
        with open_store(kind, tmp_path) as store:
            index = served_index(store)
            assert index.version.model_version in ((served, model) if was_killed else (model,))
            killed_before_swap += index.version.model_version == served
            served = index.version.model_version
            items = items_of(served)
            assert verify(index, items) == 1.0, "whole, and of one model"
        if not was_killed:
            break
    assert killed_before_swap >= 3, "a kill in each of building, completing and swapping"
    with open_store(kind, tmp_path) as store:
        publish(store, items_of("z"), keep=2)
        assert store.unfinished() == [] and len(store.versions()) == 2
        if kind == "faiss":
            files = sorted(info.key for info in store._store.list())
            assert len([key for key in files if key.endswith(".faiss")]) == 2, "nothing is left behind"


def version_file(folder):
    return max(folder.glob("versions/*/version.json"))


def edit(file, **changes):
    found = json.loads(file.read_text())
    found.get("version", found).update(changes)
    file.write_text(json.dumps(found))


def test_a_damaged_version_is_in_nobody_s_way(tmp_path):
    store = FaissStore(open_folder(str(tmp_path)))
    for model in "abc":
        publish(store, items_of(model), keep=3)
    (tmp_path / "versions" / "000001_a" / "version.json").write_text("{")
    assert [v.name for v in store.versions()] == ["000002_b", "000003_c"] and store.unfinished() == ["000001_a"]
    assert served_index(store).version.name == "000003_c" and rollback(store).name == "000002_b"
    # Nor is the served one: it stays until another is served, as it may be in somebody's memory.
    (tmp_path / "versions" / "000002_b" / "version.json").write_text("{")
    assert build(store, items_of("d")).name == "000004_d" and store.unfinished() == ["000002_b"]
    assert rollback(store, "000004_d").name == store.served() == "000004_d"
    (tmp_path / "served.json").write_text("{")
    assert rollback(store, "000003_c").name == store.served() == "000003_c"
    (tmp_path / "served.json").write_text("{")
    assert publish(store, items_of("e"), keep=2).name == store.served() == "000005_e"


def test_what_is_not_an_index_s_own_is_left_alone(tmp_path):
    store = FaissStore(open_folder(str(tmp_path)))
    publish(store, items_of("a"), keep=1)
    folder = tmp_path / "versions"
    shutil.copytree(folder / "000001_a", folder / "backup")
    (folder / "notes.txt").write_text("mine")
    edit(folder / "000001_a" / "version.json", formatVersion=2)
    for change in (lambda: publish(store, items_of("b"), keep=1), store.versions, lambda: rollback(store)):
        with pytest.raises(UserError, match="has format version 2; this rectrain reads 1"):
            change()
    edit(folder / "000001_a" / "version.json", formatVersion=1)
    assert publish(store, items_of("b"), keep=1).name == "000002_b"
    (folder / "000003_c").mkdir()
    (folder / "000003_c" / ".tmp-1").write_text("what a killed publishing was writing")
    store.clear()
    assert sorted(path.name for path in folder.iterdir()) == ["backup", "notes.txt"]


def test_one_process_at_a_time_changes_an_index(tmp_path):
    store, other = (FaissStore(open_folder(str(tmp_path))) for _ in range(2))
    publish(store, items_of("a"), keep=2)
    publish(store, items_of("b"), keep=2)
    with other.changing():
        for change in (
            lambda: publish(store, items_of("c"), keep=1),
            lambda: build(store, items_of("c")),
            lambda: rollback(store),
            lambda: drop(store, "000001_a"),
            lambda: store.delete(np.array([0])),
            store.clear,
        ):
            with pytest.raises(UserError, match="another process is changing the index; try again when it has ended"):
                change()
        assert served_index(store).count() == 60, "it is searched meanwhile"
    assert rollback(store).name == "000001_a"


def test_a_version_that_was_removed_while_it_was_built_is_not_served(tmp_path, monkeypatch):
    store = FaissStore(open_folder(str(tmp_path)))
    publish(store, items_of("a"), keep=2)
    monkeypatch.setattr(store, "changing", nullcontext)  # as in S3

    def verified_while_another_publishes(*_):
        FaissStore(open_folder(str(tmp_path))).remove(["000002_b"])
        return 1.0

    monkeypatch.setattr("rectrain_jobs.retrieval.publishing.verify", verified_while_another_publishes)
    with pytest.raises(UserError, match="another process removed 000002_b while it was built; let one publish"):
        publish(store, items_of("b"), keep=1)
    assert store.served() == "000001_a" and store.unfinished() == [] and served_index(store).count() == 60


def test_a_server_does_what_milvus_lite_does(milvus_server):
    store = MilvusStore(milvus_server, "items")
    for model in "abc":
        publish(store, items_of(model), keep=2)
    assert [v.name for v in store.versions()] == ["000002_b", "000003_c"] and store.unfinished() == []
    assert store.served() == store.revision() == "000003_c"
    assert rollback(store).name == store.served() == "000002_b"
    items, index = items_of("b"), served_index(store)
    assert index.count() == 60 and verify(index, items) == 1.0
    allowed = items.ids < 60
    ids, _ = exact(items._replace(ids=items.ids[allowed], vectors=items.vectors[allowed]), items.vectors[:2], 5)
    mask = np.zeros(178, bool)
    mask[items.ids[allowed]] = True
    np.testing.assert_array_equal(index.search(items.vectors[:2], 5, mask).ids, ids)
    assert index.contains(np.array([0, 1, 3])).tolist() == [True, False, True]
    far = np.full((2, DIM), 50, np.float32)
    store.upsert(np.array([3, 1000]), far)
    assert index.count() == 61 and set(index.search(far[:1], 2).ids[0].tolist()) == {3, 1000}
    assert store.delete(np.array([1000, 3, 5])) == 2
    assert index.count() == 59 and not {3, 1000} & set(index.search(far[:1], 59).ids[0].tolist())
    # A collection of another process's, that is being built.
    store._client.create_collection("items_v000004_d", dimension=DIM)
    with pytest.raises(UserError, match="version 000003_c is served"):
        rollback(store, "000003_c")
        drop(store, "000003_c")
    drop(store, "000004_d")
    store.clear()
    assert store._client.list_collections() == [] and store.served() is None
    store.close()


def test_collections_of_others_are_left_alone(tmp_path):
    with open_store("milvus", tmp_path) as store:
        publish(store, items_of("a"), keep=1)
        other = MilvusStore(str(tmp_path / "index.db"), "items_v2")  # its collections begin as ours do
        publish(other, items_of("other"), keep=1)
        build(other, items_of("next"))
        store._client.create_collection("items_vectors", dimension=4)
        publish(store, items_of("b"), keep=1)
        assert [v.name for v in store.versions()] == ["000002_b"] and store.unfinished() == []
        store.clear()
        assert sorted(store._client.list_collections()) == [
            "items_v2_v000001_other",
            "items_v2_v000002_next",
            "items_vectors",
        ]
        other.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: next(f.glob("versions/*/*.faiss")).write_bytes(b"x"), r"\.faiss: is damaged: its SHA-256"),
        (lambda f: next(f.glob("versions/*/version.json")).write_text("{"), r"version\.json: is damaged"),
        (lambda f: (f / "served.json").write_text("{}"), r"served\.json: is damaged"),
        (lambda f: edit(f / "served.json", name="000009_x"), "has no version 000009_x; there are: 000001_a"),
        (
            lambda f: edit(f / "served.json", name="a\0b"),
            r"served\.json: is damaged: 'a\\x00b' is no name of a version",
        ),
        (lambda f: edit(version_file(f), formatVersion=2), r"has format version 2; this rectrain reads 1"),
        (lambda f: edit(version_file(f), name="000001_b"), r"is damaged: it is of version 000001_b"),
        (lambda f: edit(version_file(f), algorithm="IVFPQ"), r"\.faiss: is no IVFPQ index"),
        (lambda f: edit(version_file(f), dim=9), r"\.faiss: is no Flat index: its width is 8, the version's 9"),
    ],
    ids=["index", "version", "served", "absent", "no name", "newer", "renamed", "algorithm", "width"],
)
def test_damaged_files_are_named(damage, message, tmp_path):
    store = FaissStore(open_folder(str(tmp_path)))
    publish(store, items_of("a"), keep=1)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        store.delete(np.array([0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("milvus", r"must be http://host:port.*ends in \.db"),
        ("http://127.0.0.1:1", "Milvus at http://127.0.0.1:1, items:"),
    ],
)
def test_a_milvus_that_cannot_be_reached_is_one_line(uri, message):
    with pytest.raises(UserError, match=message) as caught:
        MilvusStore(uri, "items")
    assert "\n" not in str(caught.value)


def test_many_items_get_inverted_lists_that_find_what_they_should(monkeypatch, tmp_path):
    monkeypatch.setattr(faiss_index, "EXACT_UP_TO", 3999)
    store, items = FaissStore(open_folder(str(tmp_path))), items_of("a", 4000)
    version = publish(store, items, keep=1)
    assert version.algorithm == "IVFPQ" and version.parameters["nlist"] == 252
    assert 0.95 <= version.recall <= 1 and version.parameters["nprobe"] < 252
    opened = served_index(store)
    queries = items_of("users", 50).vectors
    found, (ids, scores) = opened.search(queries, 20), exact(items, queries, 20)
    assert np.mean([np.isin(e, f).mean() for e, f in zip(ids, found.ids, strict=True)]) >= 0.95
    same = found.ids == ids  # scores are those of the vectors, not of their codes
    np.testing.assert_allclose(found.scores[same], scores[same], rtol=1e-5)
    index = served_index(store)
    assert index.search(items.vectors[:1], 3).ids.shape == (1, 3)
    assert index.contains(np.array([0, 1, 3, 11_997, 12_000])).tolist() == [True, False, True, True, False]
    allowed = np.zeros(12_000, bool)
    allowed[: 40 * 3] = True  # so few that the usual number of lists has hardly any of them
    ids, _ = exact(items._replace(ids=items.ids[:40], vectors=items.vectors[:40]), items.vectors[50:60], 10)
    np.testing.assert_array_equal(index.search(items.vectors[50:60], 10, allowed).ids, ids)
    far = np.full((1, DIM), 50, np.float32)
    store.upsert(np.array([9]), far)
    assert store.delete(np.array([3])) == 1
    index = served_index(store)
    assert index.search(far, 1).ids.tolist() == [[9]] and index.count() == 3999
    assert index.contains(np.array([3, 9])).tolist() == [False, True]
    assert index.search(items.vectors[1:2], 1).ids.tolist() != [[3]]
    store.upsert(np.array([3, 9]), items.vectors[[1, 3]])
    assert served_index(store).count() == 4000 and served_index(store).search(far, 1).ids.tolist() != [[9]]


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 40),
    k=st.integers(1, 12),
    deleted=st.lists(st.integers(0, 29), unique=True),
    replaced=st.lists(st.integers(0, 40), unique=True),
    masked=st.none() | st.lists(st.booleans(), min_size=45, max_size=45),
)
def test_an_exact_index_finds_the_same_however_many_queries_come_at_once(queries, k, deleted, replaced, masked):
    rng = np.random.default_rng(len(deleted))
    vectors = rng.standard_normal((41, DIM)).astype(np.float32)
    version = IndexVersion(name="000001_a", model_version="a", job="tiny", items=30, dim=DIM)
    index = faiss_index.build_index(version, np.arange(30), vectors[:30])
    assert index.delete(np.array(deleted, np.int64)) == len(deleted)
    vectors[replaced] = rng.standard_normal((len(replaced), DIM))
    index.upsert(np.array(replaced, np.int64), vectors[replaced])
    there = np.isin(np.arange(41), [*(set(range(30)) - set(deleted)), *replaced])
    allowed = None if masked is None else np.array(masked)
    names = np.flatnonzero(there if allowed is None else there & allowed[:41])
    wanted = rng.standard_normal((queries, DIM)).astype(np.float32)
    found = index.search(wanted, k, allowed)
    ids, scores = exact(Items(names, vectors[names], "a", "tiny"), wanted, k)
    depth = min(k, len(names))
    np.testing.assert_array_equal(found.ids[:, :depth], ids)
    np.testing.assert_allclose(found.scores[:, :depth], scores, rtol=1e-4, atol=1e-5)
    assert (found.ids[:, depth:] == -1).all() and np.isneginf(found.scores[:, depth:]).all()


@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 50), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_the_highest_scores_are_found_whatever_lies_beside_them(count, k, values, share, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, count).astype(np.float32)
    scores[rng.random(count) > share] = -np.inf
    k = min(k, count)
    assert faiss_index.highest(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_an_index_of_an_unknown_algorithm_is_refused(tmp_path):
    store = FaissStore(open_folder(str(tmp_path)))
    name = publish(store, items_of("a"), keep=1).name
    file = tmp_path / "versions" / name / "version.json"
    file.write_text(file.read_text().replace('"Flat"', '"HNSW"'))
    with pytest.raises(UserError, match=r"has algorithm 'HNSW'; this rectrain knows Flat and IVFPQ: publish it again"):
        served_index(store)


@st.composite
def lists(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors, k, found = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(1, 12))
    ids = np.stack([rng.permutation(15)[:found] for _ in range(vectors)])
    scores = -np.sort(-rng.integers(0, 6, (vectors, found)), axis=1).astype(np.float32)
    missing = np.arange(found) >= rng.integers(0, found + 1, (vectors, 1))
    excluded = rng.permutation(15)[: draw(st.integers(0, 4))].tolist()
    return Hits(np.where(missing, -1, ids), np.where(missing, -np.inf, scores).astype(np.float32)), k, excluded


@given(lists())
@settings(deadline=None)
def test_merged_lists_have_each_item_once_with_its_highest_score(drawn):
    hits, k, excluded = drawn
    best = {}
    for item, score in zip(hits.ids.ravel().tolist(), hits.scores.ravel().tolist(), strict=True):
        if item >= 0 and item not in excluded:
            best[item] = max(score, best.get(item, -np.inf))
    ids, scores = merge(hits, k, excluded)
    assert scores.tolist() == sorted(best.values(), reverse=True)[:k]
    assert len(set(ids.tolist())) == len(ids)
    assert [best[item] for item in ids.tolist()] == scores.tolist()


def test_a_user_s_several_vectors_find_the_best_items_of_all(store):
    items = items_of("a")
    publish(store, items, keep=1)
    interests = items_of("user", 3).vectors
    scores = (items.vectors @ interests.T).max(axis=1)
    wanted = items.ids[np.argsort(-scores)]
    seen = wanted[:2].tolist()
    ids, found = retrieve(served_index(store), interests, 5, excluded=seen)
    assert ids.tolist() == wanted[2:7].tolist()
    np.testing.assert_allclose(found, np.sort(scores)[::-1][2:7], rtol=1e-5)
    alone, _ = retrieve(served_index(store), interests[0], 5)
    assert alone.tolist() == items.ids[np.argsort(-(items.vectors @ interests[0]))][:5].tolist()
