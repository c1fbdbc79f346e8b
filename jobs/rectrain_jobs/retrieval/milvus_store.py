"""An item index in Milvus: each version is a collection, the served one has the index's name as its alias.

The description of a version is in its collection's properties, and so is whether it is complete. A URI that is no
http(s) address but a path to a file ``*.db`` is Milvus Lite: the same API in this process.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import grpc
import numpy as np
from pydantic import ValidationError
from pymilvus import DataType, MilvusClient, MilvusException

from rectrain.api.errors import UserError
from rectrain_jobs.retrieval.base import (
    EXACT_UP_TO,
    VERSION_NAME,
    DamagedError,
    Hits,
    Ids,
    IndexVersion,
    Mask,
    UnavailableError,
    Vectors,
    check_items,
    no_hits,
    plain,
)
from rectrain_jobs.retrieval.opening import served_version

_VERSION, _STATE, _COMPLETE = "rectrain.version", "rectrain.state", "complete"
_HNSW = {"M": 16, "efConstruction": 200}
_EF = 256
"""Candidates of an HNSW search: more find more of the exact neighbours."""
_SEARCHED = "Bounded"
"""Searches see what is there for five seconds: a strong one waits for the server's clock, 0.4 s instead of 3 ms."""
_SEARCH_SECONDS = 5.0
"""Time after which a search is given up: a request waits for it, and the client alone would try for a minute."""
_ROWS_OF_A_REQUEST = 5_000
TOKEN = "MILVUS_TOKEN"
"""Environment variable with the credentials, as token or user:password."""


class MilvusIndex:
    """A version, searched on the server."""

    is_local = False

    def __init__(self, client: MilvusClient, collection: str, version: IndexVersion) -> None:
        """Hold the client; the collection is loaded."""
        self.version = version
        self._client = client
        self._collection = collection

    def count(self) -> int:
        """Return the exact number of items: counted, as the server's statistics lag behind."""
        with _told(self._collection, UnavailableError):
            found = self._client.query(self._collection, output_fields=["count(*)"], consistency_level="Strong")
        return int(found[0]["count(*)"])

    def search(self, vectors: Vectors, k: int, allowed: Mask | None = None) -> Hits:
        """Find for each vector [queries, dim] the k items with the highest inner product, among the allowed ids."""
        found = no_hits(len(vectors), k)
        if not len(vectors) or (allowed is not None and not allowed.any()):
            return found
        # Written out: Milvus Lite knows no parameters of filters.
        wanted = {} if allowed is None else {"filter": f"id in {np.flatnonzero(allowed).tolist()}"}
        parameters = {"ef": max(_EF, k)} if self.version.algorithm == "HNSW" else {}
        with _told(self._collection, UnavailableError):
            lists = self._client.search(
                self._collection,
                plain(vectors).tolist(),
                anns_field="vector",
                limit=k,
                consistency_level=_SEARCHED,
                timeout=_SEARCH_SECONDS,
                search_params={"metric_type": "IP", "params": parameters},
                **wanted,
            )
        for row, hits in enumerate(lists):
            found.ids[row, : len(hits)] = [hit["id"] for hit in hits]
            found.scores[row, : len(hits)] = [hit["distance"] for hit in hits]
        return found

    def contains(self, ids: Ids) -> Mask:
        """Tell for each id whether the collection has the item."""
        with _told(self._collection, UnavailableError):
            there = self._client.query(
                self._collection, ids=np.unique(ids).tolist(), output_fields=["id"], consistency_level="Strong"
            )
        return np.isin(ids, [row["id"] for row in there])


class MilvusStore:
    """The versions of an index on a Milvus server, or in a file.

    Args:
        uri: Address of the server, or path of a file ``*.db``.
        name: Alias of the served collection; versions are collections ``<name>_v<version>``.
    """

    def __init__(self, uri: str, name: str) -> None:
        """Connect.

        Raises:
            UserError: The server cannot be reached, or the URI is neither an address nor a file ``*.db``.
        """
        if not uri.startswith(("http://", "https://")) and not uri.endswith(".db"):
            raise UserError(f"Milvus at {uri}: must be http://host:port, https://host:port or a path that ends in .db")
        # Errors are told by exceptions; the client, and Milvus Lite's server in this process, would print each with a
        # traceback, too, even of calls that only some servers know.
        for logger in ("pymilvus", "grpc._server"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self.uri = f"Milvus at {uri}, {name}"
        self._name = name
        with _told(self.uri):
            self._client = MilvusClient(uri, token=os.environ.get(TOKEN, ""))

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def versions(self) -> list[IndexVersion]:
        """Return the complete versions, oldest first."""
        found = [self._properties(name) for name in self._names()]
        return [self._version_of(properties) for properties in found if properties.get(_STATE) == _COMPLETE]

    def version(self, name: str) -> IndexVersion:
        """Return a complete version."""
        names = self._names()
        properties = self._properties(name) if name in names else {}
        if properties.get(_STATE) != _COMPLETE:
            raise UserError(f"{self.uri}: has no version {name}; there are: {', '.join(names) or 'none'}")
        return self._version_of(properties)

    def changing(self) -> AbstractContextManager[None]:
        """Hold nothing: a server has no locks. Of two that build the same version at once the second fails."""
        return nullcontext()

    def served(self) -> str | None:
        """Return the name of the version that searches go to."""
        with _told(self.uri):
            for name in self._names():
                aliases = self._client.list_aliases(self._collection(name))["aliases"]
                if self._name in aliases:
                    return name
        return None

    def revision(self) -> str | None:
        """Return the served version; changes of its single items are seen by who has it open."""
        return self.served()

    def build(self, version: IndexVersion, ids: Ids, vectors: Vectors) -> IndexVersion:
        """Write a version that nobody sees yet: FLAT for few items, HNSW for many."""
        flat = len(ids) <= EXACT_UP_TO
        update: dict[str, Any] = {"algorithm": "Flat" if flat else "HNSW", "parameters": {} if flat else _HNSW}
        version = version.model_copy(update=update)
        collection = self._collection(version.name)
        with _told(self.uri):
            if self._client.has_collection(collection):
                raise UserError(f"{self.uri}: another process is building {version.name}; let one publish")
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=version.dim)
            self._client.create_collection(collection, schema=schema, consistency_level="Strong")
            self._insert(collection, ids, vectors)
            self._client.flush(collection)
            index = self._client.prepare_index_params()
            index.add_index(
                "vector", index_type=version.algorithm.upper(), metric_type="IP", params=dict(version.parameters)
            )
            self._client.create_index(collection, index)
        return version

    def open(self, version: IndexVersion) -> MilvusIndex:
        """Load a version on the server."""
        collection = self._collection(version.name)
        with _told(self.uri):
            self._client.load_collection(collection)
        return MilvusIndex(self._client, collection, version)

    def complete(self, version: IndexVersion) -> None:
        """Record that a version is whole and verified."""
        properties = {_VERSION: version.model_dump_json(), _STATE: _COMPLETE}
        with _told(self.uri):
            self._client.alter_collection_properties(self._collection(version.name), properties=properties)

    def serve(self, name: str) -> None:
        """Direct searches to a complete version: the alias is moved in one atomic step."""
        with _told(self.uri):
            self._client.load_collection(self._collection(name))
            if self.served() is None:
                self._client.create_alias(self._collection(name), self._name)
            else:
                self._client.alter_alias(self._collection(name), self._name)

    def remove(self, names: Sequence[str]) -> None:
        """Remove versions, complete or not."""
        with _told(self.uri):
            for name in names:
                self._client.drop_collection(self._collection(name))

    def clear(self) -> None:
        """Remove the index: first no version is served, then there are none."""
        with _told(self.uri):
            if self.served() is not None:
                self._client.drop_alias(self._name)
        self.remove(self._names())

    def unfinished(self) -> list[str]:
        """Return the names of versions that were begun and are not complete."""
        return [name for name in self._names() if self._properties(name).get(_STATE) != _COMPLETE]

    def upsert(self, ids: Ids, vectors: Vectors) -> None:
        """Add items to the served version, or replace their vectors; searches see it within seconds."""
        served = served_version(self)
        check_items(ids, vectors, served.dim, self.uri)
        with _told(self.uri):
            self._client.upsert(self._collection(served.name), _rows(ids, vectors))

    def delete(self, ids: Ids) -> int:
        """Delete items from the served version; returns how many there were of them."""
        collection = self._collection(served_version(self).name)
        with _told(self.uri):
            wanted = np.unique(ids).tolist()
            found = self._client.query(collection, ids=wanted, output_fields=["id"], consistency_level="Strong")
            if found:
                self._client.delete(collection, ids=[row["id"] for row in found])
        return len(found)

    def _insert(self, collection: str, ids: Ids, vectors: Vectors) -> None:
        for first in range(0, len(ids), _ROWS_OF_A_REQUEST):
            part = slice(first, first + _ROWS_OF_A_REQUEST)
            self._client.insert(collection, _rows(ids[part], vectors[part]))

    def _collection(self, name: str) -> str:
        return f"{self._name}_v{name}"

    def _names(self) -> list[str]:
        """Return the names of all versions, complete or not; collections of other names are not ours."""
        prefix = self._collection("")
        with _told(self.uri):
            found = [c.removeprefix(prefix) for c in self._client.list_collections() if c.startswith(prefix)]
        return sorted(name for name in found if VERSION_NAME.fullmatch(name))

    def _properties(self, name: str) -> dict[str, Any]:
        with _told(self.uri):
            return dict(self._client.describe_collection(self._collection(name)).get("properties") or {})

    def _version_of(self, properties: dict[str, Any]) -> IndexVersion:
        try:
            return IndexVersion.model_validate_json(properties.get(_VERSION, ""))
        except ValidationError as error:
            raise DamagedError(f"{self.uri}: a version's properties are damaged: {error.errors()[0]['msg']}") from None


def _rows(ids: Ids, vectors: Vectors) -> list[dict[str, Any]]:
    return [{"id": i, "vector": v} for i, v in zip(ids.tolist(), plain(vectors).tolist(), strict=True)]


@contextmanager
def _told(what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn the client's errors into one line."""
    try:
        yield
    except (MilvusException, grpc.RpcError) as error:  # the client lets its transport's own through when time is up
        message = error.message if isinstance(error, MilvusException) else error.details()
        raise kind(f"{what}: {' '.join(str(message).split())[:300]}") from None
