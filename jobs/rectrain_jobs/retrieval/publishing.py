"""Publishing: build a new version, verify it, swap it in, keep the last few, go back."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rectrain.api.errors import UserError
from rectrain_jobs.retrieval.base import (
    VERSION_NAME,
    DamagedError,
    Ids,
    IndexStore,
    IndexVersion,
    ItemIndex,
    Vectors,
    check_items,
)
from rectrain_jobs.retrieval.opening import check_model

SAMPLED_QUERIES, SAMPLED_K = 200, 50
"""Searches of a verification, and the neighbours that each is to find."""
LEAST_RECALL = 0.95
"""Share of the exact neighbours below which a version is not served."""
_ITEMS_OF_A_BLOCK = 1 << 16


class Items(NamedTuple):
    """The items of a model.

    Attributes:
        ids: int64 [items], distinct.
        vectors: float32 [items, dim].
        model_version: Version of the bundle that the vectors are from.
        job: Name of the job that trained it.
    """

    ids: Ids
    vectors: Vectors
    model_version: str
    job: str


def publish(store: IndexStore, items: Items, *, keep: int, say: Callable[[str], None] = lambda _: None) -> IndexVersion:
    """Build, verify and serve a version; whatever interrupts it leaves the version served that was.

    Args:
        store: The index.
        items: What the version holds.
        keep: Number of versions that are kept, the new one among them.
        say: Told what is done.

    Raises:
        UserError: There are no items, an id is there twice, a vector is not finite, another process is publishing, or
            the verification failed; the version is removed then.
    """
    with store.changing():
        version = _built(store, items, say)
        store.serve(version.name)
        say(f"serving {version.name}")
        prune(store, keep)
    return version


def build(store: IndexStore, items: Items, *, say: Callable[[str], None] = lambda _: None) -> IndexVersion:
    """Build and verify a version, and leave it complete but not served.

    Raises:
        UserError: As of `publish`.
    """
    with store.changing():
        return _built(store, items, say)


def _built(store: IndexStore, items: Items, say: Callable[[str], None]) -> IndexVersion:
    if not len(items.ids):
        raise UserError(f"{store.uri}: there are no items to publish")
    check_items(items.ids, items.vectors, items.vectors.shape[-1], store.uri)
    leftovers = set(store.unfinished())
    # A served version that cannot be read stays until another is served: who has it in memory answers from it.
    kept = leftovers & {_served_if_known(store)}
    store.remove(sorted(leftovers - kept))
    numbers = [_number(name) for name in [*(version.name for version in store.versions()), *sorted(kept)]]
    name = f"{max(numbers, default=0) + 1:06d}_{items.model_version}"
    wanted = IndexVersion(
        name=name,
        model_version=items.model_version,
        job=items.job,
        items=len(items.ids),
        dim=items.vectors.shape[1],
    )
    say(f"building {name}: {len(items.ids):,} items of width {wanted.dim}")
    version = store.build(wanted, items.ids, items.vectors)
    try:
        recall = verify(store.open(version), items)
    except UserError:
        store.remove([name])
        raise
    version = version.model_copy(update={"recall": recall})
    store.complete(version)
    say(f"verified {name}: {version.algorithm}, {recall:.4f} of the exact neighbours found")
    return version


def _served_if_known(store: IndexStore) -> str | None:
    try:
        return store.served()
    except DamagedError:  # the next publishing mends it
        return None


def _number(name: str) -> int:
    match = VERSION_NAME.fullmatch(name)
    assert match is not None, f"{name} is no name of a version"
    return int(match["number"])


def verify(index: ItemIndex, items: Items) -> float:
    """Check an index against the items that it should hold; returns the recall of sampled searches.

    Raises:
        UserError: It is of another model, has another number of items, or finds too few of the exact neighbours.
    """
    version = index.version
    check_model(version, items.model_version)
    count = index.count()
    if count != len(items.ids):
        raise UserError(f"index version {version.name} has {count:,} items; must have the model's {len(items.ids):,}")
    recall = sampled_recall(index, items)
    if recall < LEAST_RECALL:
        raise UserError(
            f"index version {version.name} finds {recall:.4f} of the exact neighbours; must be {LEAST_RECALL} or more"
        )
    return recall


def sampled_recall(index: ItemIndex, items: Items) -> float:
    """Return the share of the exact SAMPLED_K neighbours of SAMPLED_QUERIES items that the index finds.

    Neighbours as close as the last of the exact ones count as exact, as equal vectors may come in any order; one whose
    score is not that of its vector does not count.
    """
    rng = np.random.default_rng(1)
    chosen = rng.choice(len(items.ids), min(SAMPLED_QUERIES, len(items.ids)), replace=False)
    queries, k = items.vectors[chosen], min(SAMPLED_K, len(items.ids))
    highest, kth = _exact_scores(queries, items.vectors, k)
    found = index.search(queries, k)
    order = np.argsort(items.ids)
    rows = order[np.searchsorted(items.ids[order], found.ids).clip(max=len(order) - 1)]
    scores = np.einsum("qd,qkd->qk", queries, items.vectors[rows])
    slack = 1e-4 * np.abs(highest)
    is_right = (items.ids[rows] == found.ids) & (np.abs(scores - found.scores) <= slack)
    return float(np.mean(is_right & (scores >= kth - slack)))


def _exact_scores(queries: Vectors, vectors: Vectors, k: int) -> tuple[Vectors, Vectors]:
    """Return the highest and the k-th highest inner product of each query, [queries, 1] each."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    for first in range(0, len(vectors), _ITEMS_OF_A_BLOCK):
        scores = np.concatenate([best, queries @ vectors[first : first + _ITEMS_OF_A_BLOCK].T], axis=1)
        best = np.partition(scores, -k, axis=1)[:, -k:]
    return best.max(axis=1, keepdims=True), best.min(axis=1, keepdims=True)


def rollback(store: IndexStore, to: str | None = None) -> IndexVersion:
    """Serve an older version again.

    Args:
        store: The index.
        to: Name of the version. Default: the newest that is older than the served one.

    Raises:
        UserError: There is no such version.
    """
    with store.changing():
        versions = {version.name: version for version in store.versions()}
        known = ", ".join(versions) or "none"
        if to is None:
            served = store.served()
            older = [name for name in versions if served is not None and name < served]
            if not older:
                raise UserError(f"{store.uri}: has no version older than {served}; there are: {known}")
            to = max(older)
        if to not in versions:
            raise UserError(f"{store.uri}: has no version {to}; there are: {known}")
        store.serve(to)
        return versions[to]


def prune(store: IndexStore, keep: int) -> None:
    """Remove all but the newest versions; the served one stays, whatever its age."""
    names, served = [version.name for version in store.versions()], store.served()
    store.remove([name for name in names[: max(0, len(names) - keep)] if name != served])


def drop(store: IndexStore, name: str) -> None:
    """Remove a version that is not served.

    Raises:
        UserError: It is served, or there is none of that name.
    """
    with store.changing():
        if name == store.served():
            raise UserError(f"{store.uri}: version {name} is served; roll back or publish another first")
        names = [version.name for version in store.versions()]
        if name not in names and name not in store.unfinished():
            raise UserError(f"{store.uri}: has no version {name}; there are: {', '.join(names) or 'none'}")
        store.remove([name])
