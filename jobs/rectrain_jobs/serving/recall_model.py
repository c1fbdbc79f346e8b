"""What a recall is answered from: a model bundle and, with an index of its items, one object that never changes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from rectrain.api.errors import UserError
from rectrain_jobs.bundle.files import open_bundle, trained
from rectrain_jobs.retrieval.base import Hits, Ids, ItemIndex, Mask
from rectrain_jobs.retrieval.merging import merge
from rectrain_jobs.retrieval.opening import check_model
from rectrain_jobs.retrieval.publishing import Items
from rectrain_jobs.serving.catalogue import Attributes, ItemNames, popular_items
from rectrain_jobs.serving.encoder import EncodedUser, encoder_of, item_rows
from rectrain_jobs.serving.recall_api import RecallRequest
from rectrain_jobs.serving.users import ReadUser, UserReader
from rectrain_jobs.storage import ObjectStore

_LOG = logging.getLogger(__name__)
_POPULAR = 10_000
"""Most popular items that those without a history are answered from."""


class RecallModel:
    """The user side of a bundle, ready to encode.

    Attributes:
        version: Version of the bundle.
        spec: The job's model and features.
        features: The features as fitted.
        users: Reads requests.
        encoder: Gives vectors.
        names: Ids of items.
        popular: Rows of the most popular items, most popular first.
        counts: By row of the item table in how many training rows the item is; None where the bundle does not say.

    Args:
        store: The bundle's folder.

    Raises:
        UserError: It is no bundle of a retrieval model, or it is damaged.
    """

    def __init__(self, store: ObjectStore) -> None:
        """Read the bundle."""
        files = open_bundle(store)
        self.version, self.spec, self.features = files.version, files.spec, files.features
        self._job = files.manifest.name
        self.encoder = encoder_of(self.spec, files.arrays())
        self.users = UserReader(self.spec, self.features)
        self.names = ItemNames(self.spec, self.features)
        self.counts = files.item_counts()
        self.popular = popular_items(self.counts, _POPULAR)
        if self.counts is None:
            _LOG.warning("%s: has no item counts: who has no known item in the history gets no items", store.uri)

    def items(self) -> Items:
        """Compute the vectors of all items that training saw.

        Raises:
            UserError: Items are more than their ids.
        """
        rows = trained(item_rows(self.spec, self.names.known_values), self.counts)
        return Items(rows, self.encoder.items(rows), self.version, self._job)


@dataclass(frozen=True)
class Answer:
    """Items for each user of a request; see RecallAnswer."""

    items: list[list[int | str]]
    scores: list[Any]
    sources: list[str]
    unknown: list[int]


class Recaller:
    """A model and an index of its items, which belong together.

    Args:
        model: The model.
        index: An index of its items.
        attributes: Attributes of the items.

    Raises:
        UserError: The index is of another model.
    """

    def __init__(self, model: RecallModel, index: ItemIndex, attributes: Attributes) -> None:
        """Check that they belong together."""
        check_model(index.version, model.version)
        self.model, self.index = model, index
        self._attributes = attributes
        # What was deleted from the index is not to come back by its popularity.
        self._popular = model.popular[index.contains(model.popular)] if len(model.popular) else model.popular
        self._popularity = np.zeros(0, np.float32) if model.counts is None else model.counts.astype(np.float32)

    def answer(self, request: RecallRequest) -> Answer:
        """Find items for each user of a request.

        Raises:
            UserError: The request names something that is not there.
        """
        users = self._read(request)
        allowed = self._attributes.allowed(request.filter) if request.filter else None
        excluded = [user.seen if request.exclude_seen else frozenset[int]() for user in users]
        depth = request.top_k + max(map(len, excluded))
        lists = iter(self._search([user.encoded for user in users if user.is_known], depth, allowed))
        items, scores = [], []
        for user, unwanted in zip(users, excluded, strict=True):
            if user.is_known:
                found, found_scores = merge(next(lists), request.top_k, unwanted)
            else:
                found = self._popular_for(request.top_k, unwanted, allowed)
                found_scores = self._popularity[found]
            items.append(self.model.names.of(found))
            scores.append(found_scores)
        sources = ["model" if user.is_known else "popularity" for user in users]
        return Answer(items, scores, sources, [user.unknown for user in users])

    def _read(self, request: RecallRequest) -> list[ReadUser]:
        histories, features = request.hist_item, request.user_features
        if histories is None and self.model.users.history is not None:
            raise UserError("hist_item: is required: the model goes by the items that a user took")
        if histories is not None and features is not None and len(histories) != len(features):
            raise UserError(
                f"user_features: is of {len(features)} users and hist_item of {len(histories)}; both must have the "
                "same users in the same order"
            )
        if not histories and not features:
            raise UserError("hist_item or user_features: must have a user or more")
        rows = zip_longest(histories or (), features or ())
        return [self.model.users.read(history or (), given or {}) for history, given in rows]

    def _search(self, users: Sequence[EncodedUser], depth: int, allowed: Mask | None) -> list[Hits]:
        """Return for each user a list of each of the user's vectors."""
        if not users:
            return []
        vectors = self.model.encoder.users(users)
        of_user = vectors.shape[1]
        hits = self.index.search(vectors.reshape(-1, vectors.shape[2]), depth, allowed)
        parts = [slice(first, first + of_user) for first in range(0, len(hits.ids), of_user)]
        return [Hits(hits.ids[part], hits.scores[part]) for part in parts]

    def _popular_for(self, k: int, unwanted: frozenset[int], allowed: Mask | None) -> Ids:
        found = self._popular
        if allowed is not None:
            found = found[allowed[found]]
        if unwanted:
            found = found[~np.isin(found, np.fromiter(unwanted, np.int64))]
        return found[:k]
