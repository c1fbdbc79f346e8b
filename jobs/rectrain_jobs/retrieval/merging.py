"""From a user's several vectors to one list of items."""

from collections.abc import Collection, Sequence

import numpy as np

from rectrain_jobs.retrieval.base import Hits, Ids, ItemIndex, Vectors


def retrieve(index: ItemIndex, user_vectors: Vectors, k: int, excluded: Collection[int] = ()) -> tuple[Ids, Vectors]:
    """Find the k items with the highest inner product with any of a user's vectors.

    Args:
        index: The items.
        user_vectors: float32 [dim], or [vectors of the user, dim].
        k: Number of items.
        excluded: Ids of items that are not wanted, such as those that the user has seen.

    Returns:
        Distinct ids, int64 [up to k], by falling score, and the scores, float32.
    """
    hits = index.search(np.atleast_2d(user_vectors), k + len(excluded))
    return merge(hits, k, excluded)


def retrieve_all(
    index: ItemIndex, user_vectors: Vectors, k: int, excluded: Sequence[Collection[int]] | None = None
) -> Ids:
    """Find items for many users at once, as `retrieve` does for one.

    Args:
        index: The items.
        user_vectors: float32 [users, dim] or [users, vectors of a user, dim].
        k: Number of items.
        excluded: For each user the ids that are not wanted.

    Returns:
        int64 [users, k], best first; -1 where there is nothing more.
    """
    users, of_user = len(user_vectors), 1 if user_vectors.ndim == 2 else user_vectors.shape[1]
    unwanted = excluded if excluded is not None else [()] * users
    depth = k + max(map(len, unwanted), default=0)
    hits = index.search(user_vectors.reshape(users * of_user, -1), depth)
    found = np.full((users, k), -1, np.int64)
    for user in range(users):
        part = slice(user * of_user, (user + 1) * of_user)
        ids, _ = merge(Hits(hits.ids[part], hits.scores[part]), k, unwanted[user])
        found[user, : len(ids)] = ids
    return found


def merge(hits: Hits, k: int, excluded: Collection[int] = ()) -> tuple[Ids, Vectors]:
    """Merge the lists that a user's vectors found into one, by id: an item's score is its highest.

    Args:
        hits: A list for each vector, of k + len(excluded) items or all that there are.
        k: Number of items.
        excluded: Ids of items that are not wanted.

    Returns:
        As of `retrieve`. With exact lists it is exact: an item among the best k of all is among the best k of the
        vector that it is closest to.
    """
    ids, scores = hits.ids.ravel(), hits.scores.ravel()
    order = np.argsort(-scores, kind="stable")
    known = {-1, *excluded}  # -1 is no item
    kept = []
    for position, item in enumerate(ids[order].tolist()):
        if item not in known:
            known.add(item)
            kept.append(position)
            if len(kept) == k:
                break
    chosen = order[kept]
    return ids[chosen], scores[chosen]
