import pytest

from rectrain.api import parse_job
from rectrain.api.features import Encoding, Feature, FeatureKind, Pooling, UnknownPolicy
from rectrain.api.tables import (
    EmbeddingTable,
    embedded_features,
    embedding_tables,
    encoding_of,
    table_of,
    unknown_policy_of,
)

JOB = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: tables}
spec:
  model: {type: TwoTower, twoTower: {embeddingDim: 16}}
  features:
    - {name: user_id, kind: Categorical, side: User, cardinality: 100}
    - {name: item_id, kind: Categorical, side: Item, cardinality: 50, embeddingDim: 8}
    - {name: age, kind: Dense, side: User}
    - {name: history, kind: Sequence, side: User, of: item_id, maxLength: 5, pooling: Sum}
    - {name: brand, kind: Categorical, side: Item, cardinality: 7, table: brands}
    - {name: liked, kind: Categorical, side: User, cardinality: 7, table: brands}
    - {name: seen, kind: Sequence, side: User, of: brand, maxLength: 3}
    - {name: tags, kind: Sequence, side: Item, cardinality: 9, maxLength: 3}
  data: {train: {uri: train}}
"""


def test_tables_of_a_job() -> None:
    spec = parse_job(JOB, source="job").spec
    assert embedding_tables(spec) == [
        EmbeddingTable("user_id", 100, 16, ("user_id",), Pooling.SUM),
        EmbeddingTable("item_id", 50, 8, ("item_id", "history"), Pooling.SUM),
        EmbeddingTable("brands", 7, 16, ("brand", "liked", "seen"), Pooling.MEAN),
        EmbeddingTable("tags", 9, 16, ("tags",), Pooling.MEAN),
    ]


def test_a_user_that_is_only_told_apart_has_no_table() -> None:
    spec = parse_job(JOB, source="job", overrides=["features[user_id].side=None"]).spec
    assert [table.name for table in embedding_tables(spec)] == ["item_id", "brands", "tags"]
    assert "user_id" not in [feature.name for feature in embedded_features(spec)]


def test_two_rows_more_than_ids() -> None:
    table = EmbeddingTable("t", 100, 16, ("f",), Pooling.SUM)
    assert table.num_embeddings == 102


def test_sequence_is_described_by_the_feature_it_is_of() -> None:
    spec = parse_job(JOB, source="job").spec
    assert table_of(spec, spec.feature("history")) == "item_id"
    assert table_of(spec, spec.feature("seen")) == "brands"
    with pytest.raises(KeyError, match="nothing"):
        spec.feature("nothing")


@pytest.mark.parametrize(
    ("encoding", "unknown", "policy"),
    [
        (None, None, UnknownPolicy.REFUSE),
        (Encoding.IDENTITY, None, UnknownPolicy.REFUSE),
        (Encoding.VOCABULARY, None, UnknownPolicy.OUT_OF_VOCABULARY),
        (Encoding.IDENTITY, UnknownPolicy.OUT_OF_VOCABULARY, UnknownPolicy.OUT_OF_VOCABULARY),
        (Encoding.VOCABULARY, UnknownPolicy.REFUSE, UnknownPolicy.REFUSE),
    ],
)
def test_unknown_values(encoding: Encoding | None, unknown: UnknownPolicy | None, policy: UnknownPolicy) -> None:
    feature = Feature(name="f", kind=FeatureKind.CATEGORICAL, cardinality=3, encoding=encoding, unknown=unknown)
    assert encoding_of(feature) is (encoding or Encoding.IDENTITY)
    assert unknown_policy_of(feature) is policy
