"""Exact search of the items with the highest inner product, over the full corpus, in bounded memory.

A user may have several vectors, as a multi-interest model gives them; an item's score is then its highest with any of
them. The top k by that score is what the lists of each vector merge to, without repeats and by score.

Scores are compared as 64-bit keys: the float32 score's bits, made to sort as numbers, above the complement of the
item's row. Keys are distinct, so every top k is one definite list (higher score first, at equal score the lower row
first), and lists from blocks and shards merge by a plain top k of their keys. Equal means equal as computed: a matrix
product may round two items with the same vector differently in the last bit.

A block of scores is cut into runs of 64 columns. The k runs with the highest maxima hold the top k, so only they are
looked at closer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rectrain_jobs.evaluation.collectives import gather_rows, max_over_ranks, rank_and_size, sum_over_ranks
from rectrain_jobs.evaluation.items import Array, ItemCorpus, ItemLists, finite_user_vectors

# Columns that share a maximum, and those of a run that share one.
_RUN, _SUBRUN = 64, 8
# Users and items of one block of scores: 256 x 65,536 float32 are 64 MiB; on a GPU 2,048 x 131,072 are 1 GiB.
_CPU_BLOCK = (256, 1 << 16)
_GPU_BLOCK = (2048, 1 << 17)

_LOW = 0xFFFFFFFF
_NO_KEY = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class TopK:
    """The best items of each user, best first.

    Attributes:
        ids: Item ids, int64 [users, k] on the CPU; -1 where fewer than k items are left.
        scores: Inner products, float32 [users, k] on the CPU; -inf where the id is -1.
    """

    ids: Tensor
    scores: Tensor


@dataclass(frozen=True)
class _Queries:
    """What to search for: user vectors with the rows to leave out, and the rows to look for."""

    vectors: Tensor  # float32 [users, vectors of a user, dim] on the corpus's device
    seen: ItemLists  # rows
    relevant: ItemLists  # rows


def top_k(user_vectors: Array, corpus: ItemCorpus, k: int, seen: ItemLists | None = None) -> TopK:
    """Find the k items with the highest inner product for each user, or the highest with any of a user's vectors.

    With a sharded corpus every rank must call it the same number of times, each with its own users (0 users
    included), and gets its own users' items. Memory beyond the inputs: one block of scores (64 MiB on a CPU, 1 GiB on
    a GPU), and for a sharded corpus the vectors and keys of all ranks' users of this call.

    Args:
        user_vectors: [users, dim] or [users, vectors of a user, dim], any float type, on any device.
        corpus: The items.
        k: Items per user, 1 or more.
        seen: Item ids to leave out for each user; ids that the corpus does not have are ignored.

    Returns:
        The items and scores; at equal scores the item with the lower row comes first.

    Raises:
        UserError: A user vector is not finite, or a seen id is out of range.
        ValueError: k is below 1, or the shapes do not fit.
    """
    if k < 1:
        raise ValueError(f"k is {k}: it must be 1 or more")
    keys = _search(_queries(user_vectors, corpus, seen, None), corpus, k)
    scores, rows = _unpack(keys)
    return TopK(corpus.ids_of(rows), scores.cpu())


def best_ranks(user_vectors: Array, corpus: ItemCorpus, relevant: ItemLists, seen: ItemLists | None = None) -> Tensor:
    """Find the rank, from 1, of each user's highest relevant item in the ranking of the whole corpus.

    It computes the scores twice, and runs on all ranks together as `top_k` does.

    Returns:
        int64 [users] on the CPU; 0 when all of the user's relevant items are seen or not in the corpus.
    """
    queries = _queries(user_vectors, corpus, seen, relevant)
    here = slice(0, len(queries.vectors))
    if corpus.is_sharded:
        queries, here = _gather(queries, corpus)
    best = _best_relevant_keys(queries, corpus)
    if corpus.is_sharded:
        best = max_over_ranks(best, corpus.group)
    above = _count_above(queries, corpus, best)
    if corpus.is_sharded:
        above = sum_over_ranks(above, corpus.group)
    return torch.where(_unpack(best)[1] >= 0, above + 1, 0)[here].cpu()


def _queries(user_vectors: Array, corpus: ItemCorpus, seen: ItemLists | None, relevant: ItemLists | None) -> _Queries:
    vectors = finite_user_vectors(user_vectors).to(corpus.vectors.device)
    users, _, dim = vectors.shape
    if dim != corpus.vectors.shape[1]:
        raise ValueError(f"user vectors have {dim} dimensions, item vectors {corpus.vectors.shape[1]}")
    for lists in (seen, relevant):
        if lists is not None and len(lists) != users:
            raise ValueError(f"item lists of {len(lists)} users for {users} user vectors")
    none = ItemLists.empty(users)
    return _Queries(
        vectors,
        none if seen is None else corpus.rows_of(seen),
        none if relevant is None else corpus.rows_of(relevant),
    )


def _search(queries: _Queries, corpus: ItemCorpus, k: int) -> Tensor:
    """Return the keys of each user's top k of the whole corpus, int64 [users, k], highest first."""
    if not corpus.is_sharded:
        return _search_here(queries, corpus, k)
    everyone, here = _gather(queries, corpus)
    keys = _search_here(everyone, corpus, k)
    ranks = rank_and_size(corpus.group)[1]
    if ranks == 1:
        return keys
    counts = [len(part) for part in gather_rows(keys.new_empty((len(queries.vectors), 0)), corpus.group)]
    mine = here.stop - here.start
    received = keys.new_empty((ranks * mine, k))
    dist.all_to_all_single(received, keys, [mine] * ranks, counts, group=corpus.group)
    return received.view(ranks, mine, k).transpose(0, 1).reshape(mine, ranks * k).topk(k).values


def _gather(queries: _Queries, corpus: ItemCorpus) -> tuple[_Queries, slice]:
    """Return the queries of all ranks, and which of them are this rank's."""
    rank, _ = rank_and_size(corpus.group)
    vectors = gather_rows(queries.vectors, corpus.group)
    start = sum(len(part) for part in vectors[:rank])
    everyone = _Queries(
        torch.cat(vectors), _gather_lists(queries.seen, corpus), _gather_lists(queries.relevant, corpus)
    )
    return everyone, slice(start, start + len(queries.vectors))


def _gather_lists(lists: ItemLists, corpus: ItemCorpus) -> ItemLists:
    device = corpus.vectors.device
    lengths = torch.cat(gather_rows(lists.offsets.diff().to(device), corpus.group))
    rows = torch.cat(gather_rows(lists.ids.to(device), corpus.group))
    return ItemLists(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), rows)


def _search_here(queries: _Queries, corpus: ItemCorpus, k: int) -> Tensor:
    """Return the keys of each user's top k of the rows on this rank, int64 [users, k], highest first."""
    keys = torch.full((len(queries.vectors), k), _NO_KEY, dtype=torch.int64, device=corpus.vectors.device)
    for users, first_row, scores in _score_blocks(queries, corpus):
        merged = torch.cat([keys[users], _block_keys(scores, first_row, k)], dim=1)
        keys[users] = merged.topk(k).values
    return keys


def _best_relevant_keys(queries: _Queries, corpus: ItemCorpus) -> Tensor:
    """Return the highest key among each user's relevant rows on this rank, int64 [users]."""
    best = torch.full((len(queries.vectors),), _NO_KEY, dtype=torch.int64, device=corpus.vectors.device)
    for users, first_row, scores in _score_blocks(queries, corpus):
        owners, columns = _cells(queries.relevant, users, first_row, scores)
        keys = _pack(scores.flatten(1)[owners, columns], columns + first_row)
        best[users] = best[users].scatter_reduce(0, owners, keys, "amax")
    return best


def _count_above(queries: _Queries, corpus: ItemCorpus, best: Tensor) -> Tensor:
    """Count each user's rows on this rank that are not relevant and have a higher key than `best`, int64 [users]."""
    above = torch.zeros_like(best)
    best_scores, best_rows = _unpack(best)
    # Nothing is above, or level with, infinity: users with no best item cost nothing.
    best_scores = torch.where(best_rows < 0, torch.inf, best_scores)
    for users, first_row, scores in _score_blocks(queries, corpus):
        # Without the relevant rows the count is of others only, so a score never has to equal itself computed anew.
        owners, columns = _cells(queries.relevant, users, first_row, scores)
        flat = scores.flatten(1)
        flat[owners, columns] = -torch.inf
        score = best_scores[users, None]
        # Summing ones of float32 is several times faster than counting booleans, and exact for a block's columns.
        above[users] += torch.gt(flat, score, out=torch.empty_like(flat)).sum(1).long()
        level_users, level_columns = (flat == score).nonzero(as_tuple=True)
        earlier = level_columns + first_row < best_rows[users][level_users]
        above[users].index_add_(0, level_users, earlier.long())
    return above


def _score_blocks(queries: _Queries, corpus: ItemCorpus) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield the users of a block, its first row, and its scores, [users, runs, 64].

    Seen items, and the columns that fill up the last run, score -inf. The memory is reused by the next block.
    """
    user_block, item_block = _GPU_BLOCK if corpus.vectors.device.type == "cuda" else _CPU_BLOCK
    items, of_user = len(corpus.vectors), queries.vectors.shape[1]
    memory = corpus.vectors.new_empty(min(user_block, len(queries.vectors)) * -(-min(item_block, items) // _RUN) * _RUN)
    for first_user in range(0, len(queries.vectors), user_block):
        users = slice(first_user, min(first_user + user_block, len(queries.vectors)))
        for first_item in range(0, items, item_block):
            block = corpus.vectors[first_item : first_item + item_block]
            rows, runs = users.stop - users.start, -(-len(block) // _RUN)
            scores = memory[: rows * runs * _RUN].view(rows, runs * _RUN)
            for number in range(of_user):
                vectors = queries.vectors[users, number]
                if number == 0:
                    torch.mm(vectors, block.T, out=scores[:, : len(block)])
                else:
                    torch.maximum(scores[:, : len(block)], vectors @ block.T, out=scores[:, : len(block)])
            scores[:, len(block) :] = -torch.inf
            by_run = scores.view(rows, runs, _RUN)
            first_row = corpus.first_row + first_item
            scores[_cells(queries.seen, users, first_row, by_run)] = -torch.inf
            yield users, first_row, by_run


def _cells(lists: ItemLists, users: slice, first_row: int, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the block has the listed rows: user within the block and column, int64 [n] each."""
    part = lists.slice(users.start, users.stop)
    columns = part.ids - first_row
    inside = (columns >= 0) & (columns < scores.shape[1] * _RUN)
    return part.owners()[inside].to(scores.device), columns[inside].to(scores.device)


def _block_keys(scores: Tensor, first_row: int, k: int) -> Tensor:
    """Return the keys of the top k of a block [users, runs, 64], int64 [users, up to k].

    Goes down from runs of 64 columns to runs of 8 and to single columns, each time into the k runs whose maxima have
    the highest keys, with the run's number as the row. The top k are always in them: were k runs ahead of an item's
    own, each would hold an item ahead of it (its maximum, which is higher, or is no lower and in a lower run).
    """
    users, runs, _ = scores.shape
    user = torch.arange(users, device=scores.device)[:, None]
    numbers = torch.arange(runs, device=scores.device).expand(users, runs)
    maxima = scores.amax(2)
    for width, inner in ((_RUN, _SUBRUN), (_SUBRUN, 1)):
        best = _pack(maxima, numbers).topk(min(k, numbers.shape[1]), sorted=False).values
        numbers = _unpack_rows(best)
        per_user = scores.shape[1] * _RUN // width
        candidates = scores.view(users * per_user, width).index_select(0, (user * per_user + numbers).flatten())
        maxima = candidates.view(users, -1, inner).amax(2) if inner > 1 else candidates.view(users, -1)
        numbers = (numbers[:, :, None] * (width // inner) + torch.arange(width // inner, device=scores.device)).flatten(
            1
        )
    keys = _pack(maxima, numbers + first_row)
    return keys.topk(min(k, keys.shape[1])).values


def _pack(scores: Tensor, rows: Tensor) -> Tensor:
    # Adding 0 turns -0.0, whose bits sort below those of 0.0, into 0.0.
    bits = (scores + 0.0).view(torch.int32).long()
    return (_sortable(bits) << 32) | (_LOW - rows)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores float32 and rows int64; -inf and -1 for a left out item or none."""
    scores = _sortable(keys >> 32).to(torch.int32).view(torch.float32)
    found = (keys != _NO_KEY) & (scores > -torch.inf)
    return torch.where(found, scores, -torch.inf), torch.where(found, _unpack_rows(keys), -1)


def _unpack_rows(keys: Tensor) -> Tensor:
    return _LOW - (keys & _LOW)


def _sortable(bits: Tensor) -> Tensor:
    # The bits of negative floats sort backwards, so all but the sign are flipped; doing it twice undoes it.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
