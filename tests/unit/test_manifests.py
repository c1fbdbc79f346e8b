"""The objects of a job: owners, attempts, the user's template, and what is refused before anything is created."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.api import InvalidJobError, RecTrainingJob, parse_job
from rectrain.manifests import (
    Settings,
    config_map,
    conversion_job,
    memory_problem,
    pytorch_job,
    unreachable_files,
)

JOB = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: ranking, namespace: team, uid: 5f3c1d2e-0000-4000-8000-000000000000, resourceVersion: "7"}
spec:
  model: {type: DLRM, dlrm: {embeddingDim: 64}}
  features:
    - {name: user, kind: Categorical, cardinality: 999998}
    - {name: shop, kind: Categorical, cardinality: 98}
  labels: [{name: click, task: Binary}]
  data: {train: {uri: s3://bucket/train}, source: {format: Parquet, uri: s3://bucket/raw}}
  output: {uri: s3://bucket/run}
"""
SETTINGS = Settings(worker_image="worker:1")


def job(*overrides: str) -> RecTrainingJob:
    return parse_job(JOB, source="job", overrides=overrides)


def worker_pod(made: RecTrainingJob, settings: Settings = SETTINGS) -> dict[str, Any]:
    spec = pytorch_job(made, settings, attempt=0, suspended=False)["spec"]
    pod = spec["pytorchReplicaSpecs"]["Master"]["template"]
    assert isinstance(pod, dict)
    return pod


def worker(made: RecTrainingJob) -> dict[str, Any]:
    container = worker_pod(made)["spec"]["containers"][0]
    assert isinstance(container, dict)
    return container


def env(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def test_everything_is_owned_by_the_job() -> None:
    made = job()
    for document in (config_map(made, SETTINGS), pytorch_job(made, SETTINGS, 0, False), conversion_job(made, SETTINGS)):
        assert document["metadata"]["namespace"] == "team"
        assert document["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "rectrain.io/v1alpha1",
                "kind": "RecTrainingJob",
                "name": "ranking",
                "uid": "5f3c1d2e-0000-4000-8000-000000000000",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]


def test_attempt_is_on_the_job_its_pods_and_in_the_worker() -> None:
    document = pytorch_job(job("workers.replicas=2"), SETTINGS, attempt=3, suspended=False)
    assert document["metadata"]["annotations"] == {"rectrain.io/attempt": "3"}
    for replicas in document["spec"]["pytorchReplicaSpecs"].values():
        assert replicas["template"]["metadata"]["annotations"] == {"rectrain.io/attempt": "3"}
        assert env(replicas["template"]["spec"]["containers"][0])["RECTRAIN_ATTEMPT"] == "3"


@pytest.mark.parametrize(
    ("labels", "suspended", "expected"),
    [("{}", False, False), ("{}", True, True), ("{kueue.x-k8s.io/queue-name: q}", False, True)],
)
def test_suspended_when_asked_or_queued(labels: str, suspended: bool, expected: bool) -> None:
    document = pytorch_job(job(f"metadata.labels={labels}"), SETTINGS, 0, suspended)
    assert document["spec"]["runPolicy"]["suspend"] is expected


def test_a_priority_without_a_queue_is_not_passed_on() -> None:
    document = pytorch_job(job("metadata.labels={kueue.x-k8s.io/priority-class: high}"), SETTINGS, 0, False)
    assert not [label for label in document["metadata"]["labels"] if label.startswith("kueue")]


@pytest.mark.parametrize(
    ("overrides", "replicas"),
    [
        ([], {"Master": 1}),
        (["workers.replicas=4"], {"Master": 1, "Worker": 3}),
        (["workers={replicas: 2, elastic: {minReplicas: 1, maxReplicas: 3}}"], {"Worker": 2}),
    ],
)
def test_replicas(overrides: list[str], replicas: dict[str, int]) -> None:
    spec = pytorch_job(job(*overrides), SETTINGS, 0, False)["spec"]
    assert {name: part["replicas"] for name, part in spec["pytorchReplicaSpecs"].items()} == replicas
    assert all(part["restartPolicy"] == "Never" for part in spec["pytorchReplicaSpecs"].values())


class TestConfigMap:
    def test_holds_the_job_that_a_worker_reads(self) -> None:
        text = config_map(job(), SETTINGS)["data"]["job.yaml"]
        read = parse_job(text, source="job.yaml")
        assert (read.spec, read.metadata.uid) == (job().spec, job().metadata.uid)
        assert "resourceVersion" not in text

    def test_name_changes_with_what_workers_see_and_nothing_else(self) -> None:
        def name(*overrides: str) -> str:
            return str(config_map(job(*overrides), SETTINGS)["metadata"]["name"])

        assert name() == name("runPolicy.suspend=true", "metadata.resourceVersion='8'")
        assert len({name(), name("training.batchSize=8"), name("metadata.uid=other")}) == 3

    def test_has_what_the_operator_adds(self) -> None:
        settings = Settings(output_uri="s3://results/", mlflow_tracking_uri="http://mlflow:5000")
        spec = parse_job(config_map(job("output={}"), settings)["data"]["job.yaml"], source="job").spec
        assert spec.output.uri == "s3://results/team/ranking-5f3c1d2e"
        assert spec.tracking.mlflow.tracking_uri == "http://mlflow:5000"

    def test_the_job_goes_before_the_operator(self) -> None:
        settings = Settings(output_uri="s3://results/", mlflow_tracking_uri="http://mlflow:5000")
        made = job("tracking.mlflow.trackingUri=http://other")
        spec = parse_job(config_map(made, settings)["data"]["job.yaml"], source="job").spec
        assert (spec.output.uri, spec.tracking.mlflow.tracking_uri) == ("s3://bucket/run", "http://other")


class TestConversion:
    def test_is_shared_by_jobs_whose_shards_go_to_the_same_place(self) -> None:
        def name(*overrides: str) -> str:
            return str(conversion_job(job(*overrides), SETTINGS)["metadata"]["name"])

        assert name() == name("metadata.name=other", "training.batchSize=8")
        assert name() != name("data.train.uri=s3://bucket/other")

    def test_asks_for_no_devices(self) -> None:
        made = job("workers.resources={requests: {cpu: 2}, limits: {nvidia.com/gpu: 8, memory: 8Gi}}")
        container = conversion_job(made, SETTINGS)["spec"]["template"]["spec"]["containers"][0]
        assert container["resources"] == {"requests": {"cpu": 2}, "limits": {"memory": "8Gi"}}


def template(**pod: Any) -> RecTrainingJob:
    document = job().model_dump(mode="json", exclude_none=True)
    document["spec"]["workers"]["template"] = {"spec": pod}
    return RecTrainingJob.model_validate(document)


class TestTemplate:
    def test_containers_are_merged_by_name(self) -> None:
        made = template(
            containers=[
                {"name": "sidecar", "image": "s"},
                {"name": "pytorch", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}},
            ]
        )
        first, second = worker_pod(made)["spec"]["containers"]
        assert second == {"name": "sidecar", "image": "s"}
        assert first["image"] == "worker:1"
        assert first["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        }

    def test_a_variable_is_replaced_whole(self) -> None:
        document = job("data.storage.credentialsSecretRef.name=s3").model_dump(mode="json", exclude_none=True)
        variable = {"name": "AWS_ACCESS_KEY_ID", "value": "key"}
        document["spec"]["workers"]["template"] = {"spec": {"containers": [{"name": "pytorch", "env": [variable]}]}}
        container = worker(RecTrainingJob.model_validate(document))
        assert [v for v in container["env"] if v["name"] == "AWS_ACCESS_KEY_ID"] == [variable]

    def test_null_takes_nothing_away(self) -> None:
        made = template(securityContext=None, volumes=None, containers=[{"name": "pytorch", "securityContext": None}])
        pod, plain = worker_pod(made)["spec"], worker_pod(job())["spec"]
        assert pod["containers"] == plain["containers"]
        assert pod["securityContext"] == plain["securityContext"]
        assert [volume["name"] for volume in pod["volumes"]] == [volume["name"] for volume in plain["volumes"]]

    @pytest.mark.parametrize(("grace", "wait"), [(300, 270), (900, 870), (40, 20)])
    def test_ranks_have_the_pods_time_to_save(self, grace: int, wait: int) -> None:
        made = template(terminationGracePeriodSeconds=grace)
        assert worker_pod(made)["spec"]["terminationGracePeriodSeconds"] == grace
        assert f"--shutdown-timeout={wait}" in worker(made)["args"]

    def test_is_for_the_conversion_too(self) -> None:
        made = template(
            nodeSelector={"disk": "fast"}, containers=[{"name": "pytorch", "env": [{"name": "A", "value": "b"}]}]
        )
        pod = conversion_job(made, SETTINGS)["spec"]["template"]["spec"]
        assert pod["nodeSelector"] == {"disk": "fast"}
        assert [(c["name"], env(c)["A"]) for c in pod["containers"]] == [("convert", "b")]

    @pytest.mark.parametrize(
        ("override", "path", "message"),
        [
            ("spec.restartPolicy=Always", "spec.restartPolicy", "must be left out: the operator restarts all workers"),
            ("spec.automountServiceAccountToken=true", "spec.automountServiceAccountToken", "must be left out"),
            ("spec.subdomain=x", "spec.subdomain", "must be left out: the training operator names the pods"),
            ("spec.volumes=[{name: rectrain-tmp}]", "spec.volumes[0].name", "must not begin with rectrain-"),
            ("spec.volumes=[{emptyDir: {}}]", "spec.volumes[0]", "must be a mapping with name"),
            ("spec.volumes={}", "spec.volumes", "must be a list"),
            ("spec=[]", "spec", "must be a mapping"),
            ("metadata.labels=[a]", "metadata.labels", "must be a mapping"),
            ("metadata.labels={rectrain.io/job: x}", "metadata.labels.rectrain.io/job", "must be left out"),
            ("containers=[]", "containers", "is not a field of a PodTemplateSpec, which has metadata and spec"),
            ("metadata.labels={a: 1}", "metadata.labels.a", "must be text: put it in quotes (got 1)"),
            ("metadata.annotations={a: true}", "metadata.annotations.a", "must be text: put it in quotes"),
            ("spec.volumes=[{name: [1]}]", "spec.volumes[0].name", "must be text: put it in quotes"),
            ("spec.volumes=[{name: a}, {name: a}]", "spec.volumes[1].name", "must not be there twice"),
            (
                "spec.containers=[{name: pytorch}, {name: pytorch}]",
                "spec.containers[1].name",
                "must not be there twice",
            ),
            *(
                (
                    f"spec.terminationGracePeriodSeconds={value}",
                    "spec.terminationGracePeriodSeconds",
                    "must be a whole number of seconds, 0 or more",
                )
                for value in ("60s", "-1", "1.5", "true")
            ),
        ],
    )
    def test_reserved_parts_of_the_pod(self, override: str, path: str, message: str) -> None:
        with pytest.raises(InvalidJobError) as refusal:
            job(f"workers.template.{override}")
        assert f"spec.workers.template.{path}: {message}" in str(refusal.value)

    @pytest.mark.parametrize(
        ("field", "path", "message"),
        [
            ("command: [sh]", "command", "must be left out: a worker runs the job"),
            ("args: [x]", "args", "must be left out: a worker runs the job"),
            ("image: other", "image", "must be left out: set workers.image"),
            ("resources: {}", "resources", "must be left out: set workers.resources"),
            ("env: [{name: RANK, value: '0'}]", "env[0].name", "must be left out: torchrun or the operator sets it"),
            ("env: [{name: PET_NNODES, value: '0'}]", "env[0].name", "must be left out"),
            ("env: [{name: RECTRAIN_CACHE, value: x}]", "env[0].name", "must be left out"),
            ("env: {A: b}", "env", "must be a list"),
            ("volumeMounts: [{name: v, mountPath: /tmp/}]", "volumeMounts[0].mountPath", "must be none of"),
            ("volumeMounts: [{name: v, mountPath: /etc/../tmp}]", "volumeMounts[0].mountPath", "must be none of"),
            ("volumeMounts: [{name: v, mountPath: 5}]", "volumeMounts[0].mountPath", "must be text: put it in quotes"),
            ("env: [{name: LEVEL, value: 1}]", "env[0].value", "must be text: put it in quotes"),
            ("ports: [{containerPort: 8471}]", "ports[0].containerPort", "must be neither 8471 nor 23456"),
            ("ports: [{containerPort: '9000'}]", "ports[0].containerPort", "must be a whole number"),
            (
                "ports: [{containerPort: 9000, name: progress}]",
                "ports[0].name",
                "must be neither progress nor pytorchj",
            ),
        ],
    )
    def test_reserved_parts_of_the_worker(self, field: str, path: str, message: str) -> None:
        with pytest.raises(InvalidJobError) as refusal:
            job(f"workers.template.spec.containers=[{{name: pytorch, {field}}}]")
        assert f"spec.workers.template.spec.containers[0].{path}: {message}" in str(refusal.value)

    def test_other_containers_are_the_users(self) -> None:
        job(
            "workers.template.spec.containers=[{name: sidecar, image: x, command: [sh], env: [{name: RANK, value: a}]}]"
        )


def test_a_grace_period_of_null_is_none() -> None:
    made = job("workers.template.spec.terminationGracePeriodSeconds=null")
    pod = pytorch_job(made, SETTINGS, 0, False)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 300


@pytest.mark.parametrize(
    ("resources", "path", "message"),
    [
        (
            "{limits: {memory: lots}}",
            "limits.memory",
            "must be text such as 500m or 16Gi, or a whole number, and not neg",
        ),
        ("{limits: {memory: -1Gi}}", "limits.memory", "must be text such as 500m"),
        ("{requests: {cpu: -1}}", "requests.cpu", "must be text such as 500m"),
        ("{limit: {memory: 1Gi}}", "limit", "is not a field of Resources; did you mean limits?"),
    ],
)
def test_resources_that_are_none(resources: str, path: str, message: str) -> None:
    with pytest.raises(InvalidJobError) as refusal:
        job(f"workers.resources={resources}")
    assert f"spec.workers.resources.{path}: {message}" in str(refusal.value)


NODE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "spec",
                    "labels",
                    "containers",
                    "volumes",
                    "name",
                    "env",
                    "ports",
                    "volumeMounts",
                    "mountPath",
                    "containerPort",
                    "value",
                    "terminationGracePeriodSeconds",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.sampled_from(["metadata", "spec"]), NODE))
def test_a_template_of_any_shape_is_merged_or_refused(shape: dict[str, Any]) -> None:
    document = job().model_dump(mode="json", exclude_none=True)
    document["spec"]["workers"]["template"] = shape
    try:
        made = RecTrainingJob.model_validate(document)
    except ValueError:
        return
    assert worker(made)["command"][0] == "python"


@pytest.mark.parametrize(
    ("overrides", "paths"),
    [
        ([], []),
        (["data.train.uri=train"], ["data.train.uri"]),
        (["data.train.uri=file:///train"], ["data.train.uri"]),
        (["data.source.uri=/raw/x", "training.checkpoint.uri=c"], ["data.source.uri", "training.checkpoint.uri"]),
        (["output={}"], ["output.uri"]),
        (["data.validation.uri=v"], ["data.validation.uri"]),
    ],
)
def test_files_that_pods_cannot_reach_are_named(overrides: list[str], paths: list[str]) -> None:
    found = unreachable_files(job(*overrides), SETTINGS)
    assert [".".join(map(str, problem.path)) for problem in found] == [f"spec.{path}" for path in paths]


@pytest.mark.parametrize(
    ("mount", "uri", "is_reachable"),
    [
        ("/data", "/data/train", True),
        ("/data/", "/data", True),
        ("/data", "file:///data/train", True),
        ("/data", "/data2/train", False),
        ("/", "/train", True),
        ("/data", "data/train", False),
    ],
)
def test_a_path_is_reachable_below_a_mounted_volume(mount: str, uri: str, is_reachable: bool) -> None:
    mounts = f"workers.template.spec.containers=[{{name: pytorch, volumeMounts: [{{name: d, mountPath: {mount}}}]}}]"
    assert (unreachable_files(job(mounts, f"data.train.uri={uri}"), SETTINGS) == []) is is_reachable


# Tables of the job: 1,000,000 and 100 rows of 64 float32 and, for RowWiseAdagrad, one float32 of state.
BYTES = 1_000_100 * (64 * 4 + 4)


@pytest.mark.parametrize(
    ("overrides", "fits"),
    [
        ([], True),
        ([f"sharding.hbmPerDevice='{int(BYTES / 0.85) + 1}'"], True),
        ([f"sharding.hbmPerDevice='{int(BYTES / 0.85) - 1}'"], False),
        (
            [f"sharding.hbmPerDevice='{int(BYTES / 0.85 / 4) + 1}'", "workers={replicas: 2, processesPerReplica: 2}"],
            True,
        ),
        (["sharding.hbmPerDevice=300Mi"], True),
        (["sharding.hbmPerDevice=300Mi", "training.optimizers.embedding.type=Adam"], False),
        (
            [
                "sharding.hbmPerDevice=300Mi",
                "training.optimizers.embedding.type=Adam",
                "sharding.constraints=[{table: user, kernels: [Fused, FusedUVMCaching]}]",
            ],
            True,
        ),
        (["sharding.hbmPerDevice=200Mi", "workers.replicas=2"], True),
        (
            [
                "sharding.hbmPerDevice=200Mi",
                "workers.replicas=2",
                "sharding.constraints=[{table: user, types: [DataParallel]}]",
            ],
            False,
        ),
    ],
)
def test_memory(overrides: list[str], fits: bool) -> None:
    assert (memory_problem(job(*overrides)) is None) is fits


def test_tables_that_do_not_fit_are_named_with_what_would_make_them_fit() -> None:
    assert memory_problem(job("sharding.hbmPerDevice=100Mi")) == (
        "the embedding tables do not fit: weights and optimizer state take 248.0 MiB, and 1 device of 100.0 MiB have "
        "85.0 MiB for them. Largest tables: user 248.0 MiB (1,000,000 x 64); shop 25.4 KiB (100 x 64). What would make "
        "it fit: 3 or more ranks (workers.replicas, workers.processesPerReplica); or kernel FusedUVMCaching for the "
        "largest tables (sharding.constraints), in main memory; or a smaller embeddingDim or cardinality"
    )
