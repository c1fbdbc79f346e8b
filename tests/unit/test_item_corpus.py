import numpy as np
import pytest

from rectrain.api.data import DataSource
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.convert import convert
from rectrain_jobs.data.formats import Definition
from rectrain_jobs.data.mds import MDSDataset
from rectrain_jobs.training.data import item_columns

USER = {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": 9}
ITEM = {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": 7}
PRICE = {"name": "price", "kind": "Dense", "side": "Item"}


@pytest.mark.parametrize(
    "features, expected",
    [
        ([USER, ITEM], {"item_id": range(7)}),
        ([USER, {**ITEM, "encoding": "Vocabulary"}], {"item_id": range(3)}),
        ([USER, ITEM, PRICE], {"item_id": [0, 2, 5], "price": [1.0, 4.0, 2.5]}),
    ],
    ids=["ids as they are: every id", "a vocabulary: what it holds", "with features: the items of the data, last row"],
)
def test_the_corpus_is_the_items_that_there_are(tmp_path, features, expected):
    raw = tmp_path / "rows.csv"
    raw.write_text("user_id,item_id,price\n0,5,2.5\n1,2,3.0\n8,0,1.0\n1,2,4.0\n")
    train = tmp_path / "train"
    spec = RecTrainingJobSpec.model_validate(
        {
            "model": {"type": "TwoTower", "twoTower": {}},
            "features": features,
            "data": {"source": {"format": "Triples", "uri": str(raw)}, "train": {"uri": str(train)}},
        }
    )
    convert(Definition(DataSource(format="Triples", uri=str(raw)), spec.features, spec.labels), str(train))
    columns = item_columns(spec, [MDSDataset(str(train))])
    assert {name: values.tolist() for name, values in columns.items()} == {k: list(v) for k, v in expected.items()}
    assert columns["item_id"].dtype.kind == np.dtype(np.int64).kind
