"""Reading a job: what is wrong is said in a line with the path, the value and what would be right."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.api import InvalidJobError, RecTrainingJob, UserError, dump_job, load_job, parse_job, validate_job
from rectrain.api.yaml_text import dump_yaml, load_yaml

ROOT = Path(__file__).parents[2]

JOB = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: ranking}
spec:
  model: {type: DLRM, dlrm: {}}
  features:
    - {name: price, kind: Dense}
    - {name: brand, kind: Categorical, cardinality: 10}
  labels: [{name: click, task: Binary}]
  data: {train: {uri: train}, validation: {uri: validation}}
"""


def errors_of(*overrides: str, job: str = JOB) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_job(job, source="job.yaml", overrides=overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "error"),
    [
        (
            "training.maxStep=5",
            "spec.training.maxStep: is not a field of Training; did you mean maxSteps? (got 5)",
        ),
        (
            "run_policy.suspend=true",
            "spec.run_policy: is not a field of RecTrainingJobSpec; did you mean runPolicy?",
        ),
        (
            "model.dlrm.zzz=5",
            "spec.model.dlrm.zzz: is not a field of DLRM; its fields are embeddingDim, denseDims, overDims (got 5)",
        ),
        ("training.batchSize=many", 'spec.training.batchSize: must be a valid integer (got "many")'),
        ("training.batchSize='64'", 'spec.training.batchSize: must be a valid integer (got "64")'),
        ("training.batchSize=true", "spec.training.batchSize: must be a valid integer (got true)"),
        ("training.batchSize=1.5", "spec.training.batchSize: must be a valid integer (got 1.5)"),
        ("runPolicy.suspend=1", "spec.runPolicy.suspend: must be a valid boolean (got 1)"),
        ("metadata.labels.a=1", "metadata.labels.a: must be a valid string (got 1)"),
        ("training.batchSize=0", "spec.training.batchSize: must be greater than or equal to 1 (got 0)"),
        ("training.batchSize=", "spec.training.batchSize: must not be empty: Rows in a step, on each rank."),
        ("spec=", "spec: must not be empty: What is wanted."),
        ("spec.training=3", "spec.training: must be a mapping (got 3)"),
        ("metadata.labels=[a]", 'metadata.labels: must be a mapping (got ["a"])'),
        ("features=[]", "spec.features: must have at least 1 item, not 0 (got [])"),
        ("features={a: 1}", 'spec.features: must be a list (got {"a": 1})'),
        (
            "features[price].kind=dense",
            "spec.features[0].kind: must be 'Categorical', 'Dense' or 'Sequence' (got \"dense\")",
        ),
        (
            "features[price].name=unit price",
            "spec.features[0].name: must match ^[A-Za-z_][A-Za-z0-9_]*$: Name of the feature; the column of the shards "
            'has the same name. (got "unit price")',
        ),
        ("apiVersion=v1", "apiVersion: must be 'rectrain.io/v1alpha1' (got \"v1\")"),
        (
            "training.optimizers.dense.learningRate=.inf",
            "spec.training.optimizers.dense.learningRate: must be a finite number (got Infinity)",
        ),
        ("training={yes: 1}", "spec.training.true: is not a field of Training"),
        (
            "workers.resources.limits.cpu=0.5",
            "spec.workers.resources.limits.cpu: must be text such as 500m or 16Gi, or a whole number, and not "
            "negative (got 0.5)",
        ),
        (
            "evaluation.metrics=[auk]",
            "spec.evaluation.metrics[0]: unknown metric 'auk': did you mean auc?",
        ),
    ],
)
def test_problem_names_path_value_and_remedy(override: str, error: str) -> None:
    (line,) = errors_of(override)
    assert line.startswith(f"job.yaml: {error}")


def test_missing_parts_are_all_named() -> None:
    assert errors_of(job="spec: {model: {type: DLRM}}") == [
        "job.yaml: apiVersion: is required: 'rectrain.io/v1alpha1'",
        "job.yaml: kind: is required: 'RecTrainingJob'",
        "job.yaml: metadata: is required: Name and labels.",
        "job.yaml: spec.model.dlrm: is required for type DLRM; {} takes the defaults",
        "job.yaml: spec.features: is required: The features that the model reads.",
        "job.yaml: spec.data: is required: The data.",
    ]


def test_long_values_are_cut() -> None:
    (line,) = errors_of(f"evaluation.maskTrainItems={'a' * 500}")
    assert line.endswith("aaa...)")
    assert len(line) < 160


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "must hold one RecTrainingJob, a mapping with apiVersion, kind, metadata and spec"),
        ("# nothing\n", "must hold one RecTrainingJob"),
        ("- a\n- b\n", "must hold one RecTrainingJob"),
        ("just text", "must hold one RecTrainingJob"),
        ("spec: {model: 1, model: 2}", "is not valid YAML: line 1: the key 'model' is there twice"),
        ("kind: a\nspec: {}\nkind: b\n", "is not valid YAML: line 3: the key 'kind' is there twice"),
        ("spec: {model", "is not valid YAML: line 1: "),
        ("a: 1\n\tb: 2\n", "is not valid YAML: line 2: "),
        ("a: 1\n---\nb: 2\n", "is not valid YAML: it holds 2 documents, and must hold one"),
        ("kind: y", "is not valid YAML: line 1: y is text to some and a truth value to kubectl: put it in quotes"),
        ("a: 1\nN: 2", "is not valid YAML: line 2: N is text to some and a truth value to kubectl"),
        ("a: \x00", "is not valid YAML: unacceptable character #x0000"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML: line 1: could not determine a constructor"),
        ("spec: &a {model: *a}", "is not valid YAML: it is nested too deeply, or an alias holds itself"),
        ("[" * 5000, "is not valid YAML: it is nested too deeply"),
        ("seed: " + "1" * 5000, "is not valid YAML: Exceeds the limit"),
        ("!!binary aGk=: 1", "is not valid YAML: the key b'hi' is no text"),
        (r'a: "x\0y"', r"is not valid YAML: the text 'x\x00y' holds a character that is none"),
        (r'a: ["\ud800"]', r"is not valid YAML: the text '\ud800' holds a character that is none"),
    ],
)
def test_text_that_holds_no_job(text: str, error: str) -> None:
    (line,) = errors_of(job=text)
    assert line.startswith(f"job.yaml: {error}")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe\x00\x80", "cannot be read: it is not UTF-8 text"),
        (b"", "must hold one RecTrainingJob"),
    ],
)
def test_file_that_holds_no_job(tmp_path: Path, content: bytes | None, error: str) -> None:
    file = tmp_path / "job.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_job(file)
    assert str(caught.value).startswith(f"{file}: {error}")


def test_folder_holds_no_job(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_job(tmp_path)


def test_json_is_a_job_too(tmp_path: Path) -> None:
    job = parse_job(JOB, source="job.yaml")
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json(exclude_none=True))
    assert load_job(file) == job


def test_byte_order_mark_is_no_part_of_the_job() -> None:
    assert parse_job("\ufeff" + JOB.lstrip(), source="job.yaml") == parse_job(JOB, source="job.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2.5e+2", -250.0),
        (".5e1", 5.0),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("2024-01-31", "2024-01-31"),
        ("2024-13-45", "2024-13-45"),
        ("null", None),
        ("on", True),
        ("'y'", "y"),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
    ],
)
def test_yaml_scalars(text: str, value: object) -> None:
    loaded = load_yaml(f"a: {text}")["a"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_empty_documents_around_the_job_are_none() -> None:
    assert parse_job("---\n" + JOB + "---\n", source="job.yaml") == parse_job(JOB, source="job.yaml")


def test_aliases_that_multiply_without_end_are_refused_at_once() -> None:
    levels = [f"{name}: &{name} [{', '.join(['*' + before] * 10)}]" for before, name in itertools.pairwise("abcdefghi")]
    (line,) = errors_of(job="\n".join(["a: &a [x, x]", *levels]))
    assert line == "job.yaml: is not valid YAML: it holds more than 1,000,000 values, with what its aliases repeat"


@pytest.mark.parametrize("text", ["y", "N", "0o17", "1:30", "yes", "1e3", "null", "2024-01-31"])
def test_text_that_kubectl_would_take_for_something_else_is_dumped_in_quotes(text: str) -> None:
    assert dump_yaml({"value": text}) == f"value: '{text}'\n"


def test_merge_keys_and_aliases_are_copies() -> None:
    document = load_yaml("base: &b {x: [1]}\nsame: *b\nmore: {<<: *b, z: 2}")
    document["base"]["x"].append(2)
    assert document == {"base": {"x": [1, 2]}, "same": {"x": [1]}, "more": {"x": [1], "z": 2}}


YAML_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
    | st.from_regex(r"[-+]?[0-9._]{0,3}[eE]?[-+]?[0-9]{1,2}", fullmatch=True),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text("abe15.-", max_size=4), values, max_size=3),
    max_leaves=8,
)


@given(YAML_VALUES)
def test_dumped_yaml_is_read_back_as_it_was(value: object) -> None:
    loaded = load_yaml(dump_yaml({"value": value}))["value"]
    assert loaded == value
    assert repr(loaded) == repr(value), "True is not 1"


CATEGORICAL = st.fixed_dictionaries(
    {"kind": st.just("Categorical"), "cardinality": st.integers(1, 2**40)},
    optional={
        "encoding": st.sampled_from(["Identity", "Vocabulary", "Hashing"]),
        "side": st.sampled_from(["User", "Item"]),
    },
)
DENSE = st.fixed_dictionaries(
    {"kind": st.just("Dense")},
    optional={
        "transform": st.sampled_from(["None", "Standard", "Log", "Bucket"]),
        "fillMissing": st.floats(allow_nan=False, allow_infinity=False),
    },
)
DOCUMENTS = st.builds(
    lambda features, name, training, workers, labels: {
        "apiVersion": "rectrain.io/v1alpha1",
        "kind": "RecTrainingJob",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "model": {"type": "DCNv2", "dcnV2": {}},
            "features": [{"name": f"f{i}", **feature} for i, feature in enumerate(features)],
            "labels": [{"name": "click", "task": "Binary"}],
            "data": {"train": {"uri": "train"}, "cache": {"sizeLimit": "1.5Gi"}},
            "training": training,
            "workers": workers,
        },
    },
    features=st.builds(lambda first, rest: [first, *rest], CATEGORICAL, st.lists(CATEGORICAL | DENSE, max_size=5)),
    name=st.from_regex(r"[a-z][a-z0-9]{0,20}", fullmatch=True),
    training=st.fixed_dictionaries(
        {},
        optional={
            "batchSize": st.integers(1, 2**24),
            "maxSteps": st.integers(1, 2**31 - 1),
            "optimizers": st.fixed_dictionaries(
                {"dense": st.fixed_dictionaries({"learningRate": st.floats(1e-300, 1e300)})}
            ),
            "precision": st.sampled_from(["Auto", "Float32", "BFloat16"]),
        },
    ),
    workers=st.fixed_dictionaries(
        {},
        optional={
            "replicas": st.integers(1, 10_000),
            "template": st.fixed_dictionaries(
                {"spec": st.dictionaries(st.text("abe15", min_size=1, max_size=3), YAML_VALUES, max_size=2)}
            ),
        },
    ),
    labels=st.dictionaries(st.text("abe15", min_size=1, max_size=3), st.text("a1e5.-", max_size=5), max_size=2),
)


@given(DOCUMENTS)
def test_dumped_job_is_read_back_as_it_was(document: dict[str, object]) -> None:
    job = validate_job(document, source="job")
    assert parse_job(dump_job(job), source="dump") == job


def test_dump_leaves_out_defaults() -> None:
    assert "training" not in dump_job(parse_job(JOB, source="job.yaml"))


def test_job_from_a_cluster_is_read_with_what_the_server_added() -> None:
    job = parse_job(
        JOB.replace(
            "{name: ranking}", "{name: ranking, uid: u-1, generation: 3, creationTimestamp: 2024-01-31T00:00:00Z}"
        )
        + "status: {conditions: [{type: Up, status: 'True', reason: Up, lastTransitionTime: 2024-01-31T00:00:00Z}]}",
        source="job.yaml",
    )
    assert job.metadata.uid == "u-1"
    assert job.status is not None
    assert job.status.conditions[0].last_transition_time.year == 2024


def test_problems_can_be_read_by_programs() -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(JOB, source="job.yaml", overrides=["labels=[]"])
    (problem,) = caught.value.problems
    assert (caught.value.source, problem.path, problem.value) == ("job.yaml", ("spec", "labels"), None)


def test_jobs_cannot_be_changed() -> None:
    job = parse_job(JOB, source="job.yaml")
    with pytest.raises(ValueError, match="frozen"):
        job.spec.training.batch_size = 5  # type: ignore[misc]


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*/*.yaml")), ids=lambda file: file.parent.name)
def test_examples_are_valid(file: Path) -> None:
    assert isinstance(load_job(file), RecTrainingJob)
