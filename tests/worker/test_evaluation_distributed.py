"""Evaluation on several gloo processes equals evaluation in one. Run as a script, this file is one of the processes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rectrain.api.errors import UserError
from rectrain.api.metric_names import parse_metric
from rectrain_jobs.evaluation.auc import exact_auc
from rectrain_jobs.evaluation.items import ItemCorpus, ItemLists
from rectrain_jobs.evaluation.pointwise import PointwiseMetrics
from rectrain_jobs.evaluation.ranking import UserChunk, rank_all_items
from rectrain_jobs.evaluation.search import top_k

POINTWISE = ["auc", "log_loss", "normalized_entropy", "calibration", "rmse"]
RANKING = ["recall@5", "ndcg@5", "ndcg_comirec@5", "ndcg_comirec_paper@70", "mrr", "mrr@70", "hit_rate@5"]
USERS, ITEMS, EXAMPLES, TOP = 23, 150, 1001, 70


def scores_and_labels():
    rng = np.random.default_rng(5)
    return rng.random(EXAMPLES).round(2), (rng.random(EXAMPLES) < 0.2).astype(np.int64)


def ranking_world():
    rng = np.random.default_rng(6)
    lists = [[rng.integers(0, 2 * ITEMS, rng.integers(0, most)).tolist() for _ in range(USERS)] for most in (9, 40)]
    ids = rng.permutation(2 * ITEMS)[:ITEMS]
    return rng.integers(-2, 3, (USERS, 3)), rng.integers(-2, 3, (ITEMS, 3)), ids, *lists


def share(length, rank, ranks):
    """Uneven parts: with three ranks the second has nothing."""
    cuts = {1: [0, length], 2: [0, length // 3, length], 3: [0, length // 3, length // 3, length]}[ranks]
    return np.arange(cuts[rank], cuts[rank + 1])


def evaluate(rank, ranks):
    predictions, labels = scores_and_labels()
    metrics = PointwiseMetrics("click", "Binary", [parse_metric(name) for name in POINTWISE])
    rows = share(EXAMPLES, rank, ranks)
    if len(rows):
        # A last batch that is padded with a repeated row.
        mask = np.append(np.ones(len(rows), dtype=bool), False)
        metrics.update(predictions[np.append(rows, rows[0])], labels[np.append(rows, rows[0])], mask)
    pointwise = metrics.compute()

    small_chunks = exact_auc(torch.from_numpy(predictions[rows]).float(), torch.from_numpy(labels[rows] == 1), chunk=7)

    users, items, ids, relevant, seen = ranking_world()
    mine = share(USERS, rank, ranks)
    chunks = [
        UserChunk(users[part], ItemLists.of([relevant[u] for u in part]), ItemLists.of([seen[u] for u in part]))
        for part in np.array_split(mine, 1 + 2 * rank)
    ]
    several = [UserChunk(np.stack([c.vectors, -c.vectors[:, ::-1]], 1), c.relevant, c.seen) for c in chunks]
    here = share(ITEMS, rank, ranks)
    names = [parse_metric(name) for name in RANKING]
    corpora = {"replicated": ItemCorpus.replicated(items, ids), "sharded": ItemCorpus.sharded(items[here], ids[here])}
    by_row = ItemCorpus.sharded(items[here])
    return {
        "pointwise": [pointwise.values, pointwise.examples],
        "auc in small chunks": small_chunks,
        **{
            name: [
                (result := rank_all_items(chunks, corpus, names)).values,
                result.users,
                result.relevant_not_in_corpus,
            ]
            for name, corpus in corpora.items()
        },
        "several vectors": rank_all_items(several[len(mine) == 0 :], corpora["sharded"], names).values,
        "top_k": {int(u): ids_ for u, ids_ in zip(mine, top_k(users[mine], by_row, TOP).ids.tolist(), strict=True)},
        "empty": [refusal(rank_all_items, [], corpus, names) for corpus in corpora.values()],
    }


def refusal(call, *arguments):
    try:
        call(*arguments)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_give_what_one_gives(ranks, tmp_path):
    command = [sys.executable, __file__, str(tmp_path), str(ranks)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(ranks)]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    expected = json.loads(json.dumps(evaluate(0, 1)))

    for result in results:
        values, examples = result["pointwise"]
        assert values == pytest.approx(expected["pointwise"][0], rel=1e-12)
        assert values["auc"] == result["auc in small chunks"] == expected["pointwise"][0]["auc"]
        assert examples == EXAMPLES
        for corpus in ("replicated", "sharded"):
            assert result[corpus][0] == pytest.approx(expected["replicated"][0], rel=1e-12)
            assert result[corpus][1:] == expected["replicated"][1:]
        assert result["several vectors"] == pytest.approx(expected["several vectors"], rel=1e-12)
        assert all("no user with a relevant item" in message for message in result["empty"])
    assert {user: ids for result in results for user, ids in result["top_k"].items()} == expected["top_k"]
    assert all(0 < value < 1 for value in expected["replicated"][0].values())


if __name__ == "__main__":
    folder, world_size, own_rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=own_rank, world_size=world_size)
    outcome = evaluate(own_rank, world_size)
    with open(f"{folder}/{own_rank}.json", "w") as file:
        json.dump(outcome, file)
    dist.barrier()
    dist.destroy_process_group()
