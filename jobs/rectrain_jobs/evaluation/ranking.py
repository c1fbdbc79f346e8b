"""Ranking metrics, of given lists and of models that rank the full corpus."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rectrain.api.errors import UserError
from rectrain.api.metric_names import MetricName
from rectrain_jobs.evaluation.collectives import max_over_ranks, sum_over_ranks
from rectrain_jobs.evaluation.items import Array, ItemCorpus, ItemLists
from rectrain_jobs.evaluation.search import best_ranks, top_k


@dataclass(frozen=True)
class UserChunk:
    """Some of a rank's users.

    Attributes:
        vectors: User vectors [users, dim], or several a user [users, vectors of a user, dim], any float type. With a
            sharded corpus every rank has the same number.
        relevant: The item ids each user should be shown, in the user's own order.
        seen: The item ids never shown to each user, as those of the training set; None hides nothing. An item that is
            both seen and relevant is hidden, and so is missed.
    """

    vectors: Array
    relevant: ItemLists
    seen: ItemLists | None = None


@dataclass(frozen=True)
class RankingResult:
    """Ranking metrics over all ranks' users.

    Attributes:
        values: Metric name to the mean over `users`.
        users: Users with at least one relevant item: those that the means are over.
        users_without_relevant: Users left out because they have no relevant item.
        relevant_not_in_corpus: Relevant items that no ranking could hit because the corpus does not have them.
    """

    values: dict[str, float]
    users: int
    users_without_relevant: int
    relevant_not_in_corpus: int


def rank_all_items(chunks: Iterable[UserChunk], corpus: ItemCorpus, metrics: Sequence[MetricName]) -> RankingResult:
    """Rank the whole corpus for every user and average the metrics over all ranks' users.

    Every rank calls it with its own users: a user given twice counts twice. The sums are float64, and reduced once, so
    the result does not depend on the number of ranks but for the order of adding. Memory is that of one chunk and one
    block of scores (see `search.top_k`); with a sharded corpus, of one chunk of every rank.

    Args:
        chunks: This rank's users; may be empty if another rank has some.
        corpus: The items, replicated or sharded.
        metrics: Ranking metrics; `mrr` without a cut-off ranks every item, which costs two more passes.

    Returns:
        The metrics, on every rank.

    Raises:
        UserError: No rank has a user with a relevant item, a vector is not finite, or an id is out of range.
        ValueError: There is no metric, or shapes do not fit.
    """
    if not metrics:
        raise ValueError("give at least one ranking metric")
    _check_family(metrics)
    depth = max((metric.k or 1) for metric in metrics)
    device = corpus.vectors.device
    totals = torch.zeros(len(metrics) + 3, dtype=torch.float64)
    for chunk in _in_step(chunks, corpus):
        first = None
        if any(metric.k is None for metric in metrics):
            first = best_ranks(chunk.vectors, corpus, chunk.relevant, chunk.seen)
        shown = top_k(chunk.vectors, corpus, depth, chunk.seen).ids
        counted = chunk.relevant.offsets.diff() > 0
        totals[:-3] += ranking_metrics(shown, chunk.relevant, metrics, first_ranks=first)[counted].sum(0)
        unknown = ~corpus.contains(chunk.relevant.ids)
        totals[-3:] += torch.stack([counted.sum(), (~counted).sum(), unknown.sum()])
    *sums, users, without, unknown_items = sum_over_ranks(totals.to(device), corpus.group).tolist()
    if users == 0:
        raise UserError(
            f"the evaluation set has no user with a relevant item ({without:.0f} users without): nothing to rank for"
        )
    values = {str(metric): total / users for metric, total in zip(metrics, sums, strict=True)}
    return RankingResult(values, int(users), int(without), int(unknown_items))


def _in_step(chunks: Iterable[UserChunk], corpus: ItemCorpus) -> Iterator[UserChunk]:
    """Yield the chunks; with a sharded corpus, empty ones after the last until every rank has had its last."""
    if not corpus.is_sharded:
        yield from chunks
        return
    device = corpus.vectors.device
    own = iter(chunks)
    while True:
        chunk = next(own, None)
        here = 0 if chunk is None else chunk.vectors.shape[1] if chunk.vectors.ndim == 3 else 1
        of_user = int(max_over_ranks(torch.tensor(here, device=device), corpus.group))
        if not of_user:
            return
        empty = corpus.vectors.new_empty((0, of_user, corpus.vectors.shape[1]))
        yield chunk or UserChunk(empty, ItemLists.empty(0))


def ranking_metrics(
    shown: Tensor, relevant: ItemLists, metrics: Sequence[MetricName], *, first_ranks: Tensor | None = None
) -> Tensor:
    """Compute ranking metrics of given lists, for each user.

    Definitions and sources are in `rectrain.api.metric_names` and on the page docs/metrics.md. A relevant item that is
    listed twice counts once, except where ComiRec's code counts it twice.

    Args:
        shown: Item ids by rank, int64 [users, depth] on the CPU, distinct within a user; -1 for no item. The depth
            should be the largest cut-off or more, unless there is nothing more to show.
        relevant: Relevant item ids of each user.
        metrics: Ranking metrics.
        first_ranks: Rank from 1 of each user's first relevant item in the whole ranking, 0 if it is not in it, int64
            [users]; needed for `mrr` without a cut-off.

    Returns:
        float64 [users, metrics]; 0 for a user without relevant items, whom a mean should leave out.
    """
    _check_family(metrics)
    hits = _Hits.of(shown, relevant)
    columns = [_metric(metric, hits, first_ranks) for metric in metrics]
    return torch.stack(columns, dim=1) if columns else torch.zeros((len(relevant), 0), dtype=torch.float64)


def _check_family(metrics: Sequence[MetricName]) -> None:
    for metric in metrics:
        if metric.definition.family != "ranking":
            raise ValueError(f"{metric} is not a ranking metric")


@dataclass(frozen=True)
class _Hits:
    """What the lists hit: by rank, and by place in the user's relevant list.

    Attributes:
        by_rank: Whether the item at a rank is relevant, bool [users, depth].
        distinct: Distinct relevant items of each user, int64 [users].
        listed: Relevant items of each user with repeats, int64 [users].
        owners: User of each entry of the relevant lists, int64 [total].
        places: Place from 0 of each entry in its user's list, int64 [total].
        entry_ranks: Rank from 0 at which each entry was shown, int64 [total]; the depth when it was not.
    """

    by_rank: Tensor
    distinct: Tensor
    listed: Tensor
    owners: Tensor
    places: Tensor
    entry_ranks: Tensor

    @classmethod
    def of(cls, shown: Tensor, relevant: ItemLists) -> "_Hits":
        users, depth = shown.shape
        if users != len(relevant):
            raise ValueError(f"relevant items of {len(relevant)} users for the lists of {users} users")
        owners = relevant.owners()
        # Ids may be any 64-bit numbers; numbered anew, a pair of user and item is one number.
        vocabulary, codes = torch.unique(relevant.ids, return_inverse=True)
        items = max(len(vocabulary), 1)
        pairs, entry_pairs = torch.unique(owners * items + codes, return_inverse=True)
        by_rank = torch.zeros_like(shown, dtype=torch.bool)
        entry_ranks = torch.full((len(owners),), depth, dtype=torch.int64)
        if len(pairs) and depth:
            shown_codes = torch.searchsorted(vocabulary, shown).clamp(max=items - 1)
            shown_pairs = torch.arange(users)[:, None] * items + shown_codes
            places = torch.searchsorted(pairs, shown_pairs).clamp(max=len(pairs) - 1)
            by_rank = (vocabulary[shown_codes] == shown) & (pairs[places] == shown_pairs)
            pair_ranks = torch.full((len(pairs),), depth, dtype=torch.int64)
            pair_ranks[places[by_rank]] = torch.arange(depth).expand(users, depth)[by_rank]
            entry_ranks = pair_ranks[entry_pairs]
        return cls(
            by_rank=by_rank,
            distinct=torch.bincount(pairs // items, minlength=users),
            listed=relevant.offsets.diff(),
            owners=owners,
            places=torch.arange(len(owners)) - relevant.offsets[owners],
            entry_ranks=entry_ranks,
        )


def _metric(metric: MetricName, hits: _Hits, first_ranks: Tensor | None) -> Tensor:
    """Return the metric of each user, float64 [users]."""
    users, depth = hits.by_rank.shape
    if metric.k is None:
        if first_ranks is None:
            raise ValueError("mrr without a cut-off needs the rank of the first relevant item")
        return torch.where(first_ranks > 0, 1.0 / first_ranks.clamp(min=1), 0.0).double()
    k = metric.k
    top = hits.by_rank[:, :k].double()
    hit_count = top.sum(1).long()
    match metric.kind:
        case "recall":
            return _ratio(hit_count, hits.distinct)
        case "recall_comirec":
            return _ratio(hit_count, hits.listed)
        case "hit_rate":
            return (hit_count > 0).double()
        case "mrr":
            return (top / torch.arange(1, top.shape[1] + 1)).amax(1) if top.shape[1] else top.sum(1)
        case "ndcg":
            return _ratio(top @ _discounts(top.shape[1]), _ideal(hits.distinct.clamp(max=k)))
        case "ndcg_comirec":
            return _ratio(top @ _discounts(top.shape[1]), _ideal(hit_count))
        case "ndcg_comirec_paper":
            hit = hits.entry_ranks < min(k, depth)
            gains = (1.0 / torch.log2(hits.places[hit] + 2.0)).double()
            dcg = torch.zeros(users, dtype=torch.float64).index_add_(0, hits.owners[hit], gains)
            return _ratio(dcg, _ideal(torch.bincount(hits.owners[hit], minlength=users)))
    raise ValueError(f"{metric} is not a ranking metric")


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Divide, with 0 / 0 as 0."""
    return torch.where(whole > 0, part.double() / whole.double().clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def _discounts(depth: int) -> Tensor:
    """Return 1 / log2(rank + 1) for ranks 1 to depth, float64 [depth]."""
    return torch.tensor([1.0 / math.log2(rank + 1) for rank in range(1, depth + 1)], dtype=torch.float64)


def _ideal(counts: Tensor) -> Tensor:
    """Return the highest possible DCG of `counts` hits (int64 [users]), float64 [users]."""
    longest = int(counts.max()) if len(counts) else 0
    return torch.cat([torch.zeros(1, dtype=torch.float64), _discounts(longest).cumsum(0)])[counts]
