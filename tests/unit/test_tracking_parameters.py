import pytest

from rectrain.api.job import RecTrainingJob
from rectrain_jobs.tracking.credentials import without_credentials
from rectrain_jobs.tracking.parameters import MAX_KEY, MAX_PARAMETERS, MAX_VALUE, metric_key, parameters_of


def job_with(features=2, over_dims=(8,), source=None) -> RecTrainingJob:
    spec = {
        "model": {"type": "DLRM", "dlrm": {"overDims": list(over_dims)}},
        "features": [{"name": f"c{i}", "kind": "Categorical", "cardinality": 10 + i} for i in range(features)],
        "labels": [{"name": "label", "task": "Binary"}],
        "data": {"train": {"uri": "s3://bucket/train"}, "source": source},
        "workers": {"replicas": 2, "processesPerReplica": 4},
    }
    return RecTrainingJob.model_validate({"metadata": {"name": "test"}, "spec": spec})


def test_parameters_are_the_resolved_spec_by_path_and_name():
    parameters = parameters_of(job_with())
    expected = {
        "model.type": "DLRM",
        "model.dlrm.embeddingDim": "64",  # a default
        "model.dlrm.overDims": "[8]",
        "features.c1.cardinality": "11",
        "labels.label.task": "Binary",
        "training.optimizers.dense.type": "Adam",
        "workers.worldSize": "8",
    }
    assert expected.items() <= parameters.items()
    assert "training.maxSteps" not in parameters  # not set


def test_huge_jobs_stay_within_the_limits():
    parameters = parameters_of(job_with(features=2000))
    assert len(parameters) < MAX_PARAMETERS and parameters["features"] == "2000 features"
    assert not any(key.startswith("features.") for key in parameters)


def test_many_other_entries_stay_within_the_limits_too():
    columns = {f"c{i}": "y" for i in range(2000)}
    parameters = parameters_of(job_with(2000, source={"format": "Triples", "uri": "x.csv", "columns": columns}))
    assert len(parameters) <= MAX_PARAMETERS
    assert parameters["data.source.columns"] == "2000 columns" and parameters["training.batchSize"] == "1024"


def test_long_values_are_cut():
    job = job_with()
    boundaries = [i + 0.123456789 for i in range(900)]
    price = {"name": "price", "kind": "Dense", "transform": "Bucket", "boundaries": boundaries}
    spec = job.spec.model_dump(mode="json", exclude_unset=True)
    spec["features"].append(price)
    parameters = parameters_of(RecTrainingJob.model_validate({"metadata": {"name": "test"}, "spec": spec}))
    value = parameters["features.price.boundaries"]
    assert len(str(boundaries)) > MAX_VALUE
    assert len(value) == MAX_VALUE and value.startswith("[0.123456789") and value.endswith("…")
    assert max(map(len, parameters)) <= MAX_KEY


def test_metric_keys_have_no_at_sign():
    assert metric_key("recall@20") == "recall_at_20"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:password@host:5000", "http://***@host:5000"),
        ("https://user:p@ss:word@host/path", "https://***@host/path"),
        ("http://token@host", "http://***@host"),
        ("to http://u:p@h/a and postgresql://v:q@d/b", "to http://***@h/a and postgresql://***@d/b"),
        ("http://host/user@example.com", "http://host/user@example.com"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("recall@20", "recall@20"),
    ],
)
def test_credentials_are_left_out(text, shown):
    assert without_credentials(text) == shown
