import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.api.errors import UserError
from rectrain.api.metric_names import parse_metric
from rectrain_jobs.evaluation import search
from rectrain_jobs.evaluation.items import ItemCorpus, ItemLists
from rectrain_jobs.evaluation.ranking import UserChunk, rank_all_items, ranking_metrics
from rectrain_jobs.evaluation.search import top_k

KINDS = ["recall", "recall_comirec", "hit_rate", "ndcg", "ndcg_comirec", "ndcg_comirec_paper", "mrr"]


def discount(rank):
    return 1 / math.log2(rank + 2)


def naive_metric(kind, k, shown, relevant):
    """The definitions, user by user, in plain Python; `shown` is the whole ranking."""
    top, wanted = shown[:k], set(relevant)
    hits = sum(item in wanted for item in top)
    dcg = sum(discount(rank) for rank, item in enumerate(top) if item in wanted)
    entries = [place for place, item in enumerate(relevant) if item in set(top)]
    ideal = lambda n: sum(discount(rank) for rank in range(n))  # noqa: E731
    return {
        "recall": lambda: hits / len(wanted),
        "recall_comirec": lambda: hits / len(relevant),
        "hit_rate": lambda: float(hits > 0),
        "ndcg": lambda: dcg / ideal(min(len(wanted), len(top) if k is None else k)),
        "ndcg_comirec": lambda: dcg / ideal(hits) if hits else 0.0,
        "ndcg_comirec_paper": lambda: sum(map(discount, entries)) / ideal(len(entries)) if entries else 0.0,
        "mrr": lambda: next((1 / (rank + 1) for rank, item in enumerate(top) if item in wanted), 0.0),
    }[kind]()


def naive_ranking(user, items, ids, seen):
    scores = [(-float(np.dot(user, item)), row) for row, item in enumerate(items) if ids[row] not in set(seen)]
    return [int(ids[row]) for _, row in sorted(scores)]


@st.composite
def worlds(draw):
    """Users, items with few distinct scores (so ties abound), and lists; products of small integers are exact."""
    seed = draw(st.integers(0, 2**32 - 1))
    users, items = draw(st.integers(1, 9)), draw(st.integers(1, 300))
    rng = np.random.default_rng(seed)
    spread = draw(st.sampled_from([0, 1, 3, 50]))
    vectors = [rng.integers(-spread, spread + 1, (count, 2)).astype(np.float32) for count in (users, items)]
    ids = rng.permutation(items * 3)[:items] if draw(st.booleans()) else None
    known = np.arange(items) if ids is None else ids
    unknown = [] if ids is None else [items * 3 + 1, 2**62]
    lists = lambda most: [  # noqa: E731
        [int(i) for i in rng.choice([*known, *unknown], rng.integers(0, most + 1))] for _ in range(users)
    ]
    return *vectors, ids, lists(8), lists(draw(st.sampled_from([0, 5, 400])))


BLOCKS = st.sampled_from([(256, 1 << 16), (2, 100), (4, 64)])


@given(worlds(), st.sampled_from([1, 2, 7, 70, 400]), BLOCKS)
@settings(deadline=None, max_examples=150)
def test_top_k_equals_a_full_sort_with_the_lower_row_first(world, k, block):
    users, items, ids, _, seen = world
    with patch.object(search, "_CPU_BLOCK", block):
        found = top_k(users, ItemCorpus.replicated(items, ids), k, ItemLists.of(seen))
    known = np.arange(len(items)) if ids is None else ids
    score = {int(i): vector for i, vector in zip(known, items, strict=True)}
    for u, user in enumerate(users):
        expected = naive_ranking(user, items, known, seen[u])[:k]
        missing = k - len(expected)
        assert found.ids[u].tolist() == expected + [-1] * missing
        assert found.scores[u].tolist() == [float(np.dot(user, score[i])) for i in expected] + [-math.inf] * missing


@given(worlds(), st.lists(st.integers(1, 320), min_size=1, max_size=3), st.integers(1, 3), BLOCKS)
@settings(deadline=None, max_examples=150)
def test_metrics_equal_the_plain_definitions_however_users_are_cut_into_chunks(world, ks, parts, block):
    users, items, ids, relevant, seen = world
    names = [f"{kind}@{k}" for kind in KINDS for k in ks] + ["mrr"]
    metrics = [parse_metric(name) for name in dict.fromkeys(names)]
    chunks = [
        UserChunk(users[rows], ItemLists.of([relevant[u] for u in rows]), ItemLists.of([seen[u] for u in rows]))
        for rows in np.array_split(np.arange(len(users)), parts)
    ]
    counted = [u for u in range(len(users)) if relevant[u]]
    corpus = ItemCorpus.replicated(items, ids)
    if not counted:
        with pytest.raises(UserError, match="no user with a relevant item"):
            rank_all_items(chunks, corpus, metrics)
        return
    known = np.arange(len(items)) if ids is None else ids
    ranked = {u: naive_ranking(users[u], items, known, seen[u]) for u in counted}
    with patch.object(search, "_CPU_BLOCK", block):
        result = rank_all_items(chunks, corpus, metrics)
    assert result.values == pytest.approx(
        {
            str(metric): np.mean([naive_metric(metric.kind, metric.k, ranked[u], relevant[u]) for u in counted])
            for metric in metrics
        }
    )
    assert (result.users, result.users_without_relevant) == (len(counted), len(users) - len(counted))
    assert result.relevant_not_in_corpus == sum(item not in known for items_ in relevant for item in items_)


@given(worlds(), st.integers(1, 5), st.sampled_from([1, 7, 70]), BLOCKS)
@settings(deadline=None, max_examples=100)
def test_several_vectors_of_a_user_give_the_merged_lists_of_each(world, interests, k, block):
    _, items, ids, relevant, seen = world
    rng = np.random.default_rng(len(items))
    users = rng.integers(-3, 4, (len(seen), interests, 2)).astype(np.float32)
    corpus, seen_items = ItemCorpus.replicated(items, ids), ItemLists.of(seen)
    with patch.object(search, "_CPU_BLOCK", block):
        found = top_k(users, corpus, k, seen_items)
    known = np.arange(len(items)) if ids is None else ids
    row_of = {int(item): row for row, item in enumerate(known)}
    lists = [top_k(users[:, interest], corpus, k, seen_items) for interest in range(interests)]
    for user in range(len(users)):
        best = {}
        for one in lists:
            for item, score in zip(one.ids[user].tolist(), one.scores[user].tolist(), strict=True):
                best[item] = max(score, best.get(item, -math.inf))
        best.pop(-1, None)
        merged = sorted(best, key=lambda item: (-best[item], row_of[item]))[:k]
        assert [item for item in found.ids[user].tolist() if item >= 0] == merged
        assert found.scores[user].tolist()[: len(merged)] == [best[item] for item in merged]
    # A user with the same vector again and again is a user with that vector.
    once, again = users[:, :1], np.repeat(users[:, :1], interests, axis=1)
    if any(relevant):
        chunks = [[UserChunk(v, ItemLists.of(relevant), seen_items)] for v in (once[:, 0], again)]
        metrics = [parse_metric(name) for name in ("ndcg@7", "mrr")]
        assert rank_all_items(chunks[0], corpus, metrics) == rank_all_items(chunks[1], corpus, metrics)


def test_metrics_of_a_small_table():
    # Ranks 1 and 3 hit; 9 is shown at rank 3 and listed twice, 5 is never shown.
    shown = torch.tensor([[4, 1, 9, 2]])
    relevant = ItemLists.of([[9, 5, 4, 9]])
    d = [1, 1 / math.log2(3), 1 / 2, 1 / math.log2(5)]
    table = {
        "recall@1": 1 / 3,
        "recall@4": 2 / 3,
        "recall_comirec@4": 2 / 4,
        "hit_rate@1": 1,
        "mrr@4": 1,
        "ndcg@1": 1,
        "ndcg@4": (d[0] + d[2]) / (d[0] + d[1] + d[2]),
        "ndcg@2": d[0] / (d[0] + d[1]),
        "ndcg_comirec@4": (d[0] + d[2]) / (d[0] + d[1]),
        # Places 0, 2 and 3 of the user's list are hit.
        "ndcg_comirec_paper@4": (d[0] + d[2] + d[3]) / (d[0] + d[1] + d[2]),
        "ndcg_comirec_paper@1": d[2] / d[0],
    }
    values = ranking_metrics(shown, relevant, [parse_metric(name) for name in table])
    assert dict(zip(table, values[0].tolist(), strict=True)) == pytest.approx(table)


def test_full_mrr_counts_the_items_above_and_misses_hidden_ones():
    items = np.arange(500, dtype=np.float32)[:, None]
    users = np.ones((3, 1), dtype=np.float32)
    relevant = ItemLists.of([[300, 200], [300], [300]])
    seen = ItemLists.of([[499, 400], [], [300]])
    result = rank_all_items([UserChunk(users, relevant, seen)], ItemCorpus.replicated(items), [parse_metric("mrr")])
    assert result.values["mrr"] == pytest.approx((1 / 198 + 1 / 200 + 0) / 3)


@pytest.mark.parametrize("block", [(256, 1 << 16), (1, 100)])
def test_equal_scores_are_ranked_by_row_across_runs_and_blocks(block, monkeypatch):
    monkeypatch.setattr(search, "_CPU_BLOCK", block)
    items = np.ones((700, 3), dtype=np.float32)
    items[[5, 650]] = 2
    found = top_k(np.ones((1, 3)), ItemCorpus.replicated(items, np.arange(700)[::-1].copy()), 6)
    assert found.ids.tolist() == [[694, 49, 699, 698, 697, 696]]


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=False, width=32) | st.sampled_from([0.0, -0.0]), st.integers(0, 2**32 - 1)),
        min_size=2,
    )
)
@settings(deadline=None)
def test_search_keys_sort_by_score_then_lower_row_and_give_both_back(pairs):
    # The product of matrices does not promise which zero it gives, so keys are looked at directly.
    scores, rows = torch.tensor([s for s, _ in pairs]), torch.tensor([r for _, r in pairs])
    keys = search._pack(scores, rows)
    expected = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    found_scores, found_rows = search._unpack(keys.sort(descending=True).values)
    assert found_scores.tolist() == [score for score, _ in expected]
    assert found_rows.tolist() == [row if score > -math.inf else -1 for score, row in expected]


def test_real_valued_scores_agree_with_a_float64_sort():
    rng = np.random.default_rng(3)
    users, items = rng.normal(size=(40, 16)), rng.normal(size=(5000, 16))
    found = top_k(users, ItemCorpus.replicated(items), 50)
    scores = users @ items.T
    expected = np.sort(scores)[:, ::-1][:, :50]
    np.testing.assert_allclose(np.take_along_axis(scores, found.ids.numpy(), 1), expected, atol=1e-5)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def users_of(vectors=((1.0, 0.0),), relevant=((0,),), seen=None):
    return UserChunk(np.array(vectors), ItemLists.of(relevant), None if seen is None else ItemLists.of(seen))


ITEMS = np.eye(2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rank_all_items([], ItemCorpus.replicated(ITEMS), [parse_metric("recall@1")]), "no user"),
        (
            lambda: rank_all_items([users_of(relevant=[[]])], ItemCorpus.replicated(ITEMS), [parse_metric("mrr")]),
            "no user",
        ),
        (lambda: ItemCorpus.replicated(np.zeros((0, 2))), "the corpus has 0 items"),
        (lambda: ItemCorpus.replicated(ITEMS * math.nan), "2 of 2 item vectors are not finite"),
        (lambda: ItemCorpus.replicated(ITEMS, [3, 3]), "item id 3 has more than one vector"),
        (lambda: ItemCorpus.replicated(ITEMS, [-3, 3]), "item id -3 is negative"),
        (lambda: ItemLists.of([[-1]]), "item id -1 is negative"),
        (
            lambda: top_k(np.full((2, 2), math.inf), ItemCorpus.replicated(ITEMS), 1),
            "2 of 2 user vectors are not finite",
        ),
        (
            lambda: top_k(np.full((1, 3, 2), math.nan), ItemCorpus.replicated(ITEMS), 1),
            "3 of 3 user vectors are not finite",
        ),
        (
            lambda: top_k(ITEMS[:1], ItemCorpus.replicated(ITEMS), 1, ItemLists.of([[2]])),
            "item id 2 is not in the corpus",
        ),
    ],
)
def test_wrong_inputs_are_named(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: ItemLists([0, 2, 1], [1]),
        lambda: ItemLists([1, 1], [1]),
        lambda: ItemLists([], []),
        lambda: top_k(ITEMS, ItemCorpus.replicated(np.eye(3)), 1),
        lambda: top_k(ITEMS[None, None], ItemCorpus.replicated(ITEMS), 1),
        lambda: top_k(ITEMS, ItemCorpus.replicated(ITEMS), 0),
        lambda: top_k(ITEMS, ItemCorpus.replicated(ITEMS), 1, ItemLists.of([[1]])),
        lambda: ItemCorpus.replicated(ITEMS, [1]),
        lambda: rank_all_items([users_of()], ItemCorpus.replicated(ITEMS), []),
        lambda: rank_all_items([users_of()], ItemCorpus.replicated(ITEMS), [parse_metric("auc")]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(build):
    with pytest.raises(ValueError):
        build()
