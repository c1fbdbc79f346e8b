"""The Python client and its commands against a real API server; the test plays the controller and the workers."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from harness.api_server import ApiServer, ControlPlane
from harness.waiting import wait_until

from rectrain import AsyncClient, Client, RecTrainingJob
from rectrain.cli.main import cli
from rectrain.sdk import (
    ClusterError,
    ClusterUnreachableError,
    JobExistsError,
    JobFailedError,
    JobNotFoundError,
    JobRefusedError,
    NotInstalledError,
    NotPermittedError,
    WaitTimeoutError,
)

pytestmark = pytest.mark.usefixtures("job_type")
NOW = "2026-01-01T00:00:00Z"
JOB = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: small, labels: {team: ads}}
spec:
  model: {type: TwoTower, twoTower: {embeddingDim: 8}}
  features:
    - {name: user_id, kind: Categorical, side: User, cardinality: 10}
    - {name: item_id, kind: Categorical, side: Item, cardinality: 10}
  data: {train: {uri: "s3://bucket/train"}}
  output: {uri: "s3://bucket/out"}
"""


class Cluster:
    """A namespace of the API server, with what the controller would do there."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self.api, self.namespace = api, namespace

    @property
    def client(self) -> Client:
        return Client(self.namespace, kubeconfig=str(self.api.kubeconfig))

    def tell(self, name: str, **status: Any) -> None:
        """Write a job's status."""
        patch = json.dumps({"status": status})
        self.api.kubectl(
            *("-n", self.namespace, "patch", "rtj", name, "--subresource=status", "--type=merge", "-p", patch)
        )

    def run(self, *arguments: str) -> Result:
        """Run a command of rectrain in this namespace."""
        where = ("-n", self.namespace, "--kubeconfig", str(self.api.kubeconfig))
        return CliRunner().invoke(cli, [*arguments, *where])


def condition(type_: str, reason: str = "Because", message: str = "") -> dict[str, Any]:
    return {"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": NOW}


def progress(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "totalSteps": 100,
        "completed": f"{step}%",
        "epoch": 0,
        "examplesPerSecond": 1234.5,
        "loss": 0.25,
        "estimatedRemainingSeconds": 600,
        "lastUpdateTime": NOW,
    }


RESULTS = {"metrics": [{"name": "recall@20", "value": 0.18}], "modelUri": "s3://bucket/out/bundle", "mlflowRunId": "r1"}


@pytest.fixture
def cluster(api_server: ApiServer, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    namespace = f"sdk-{abs(hash(request.node.name)) % 10**8}"
    api_server.kubectl("create", "namespace", namespace)
    yield Cluster(api_server, namespace)
    api_server.kubectl("-n", namespace, "delete", "rtj", "--all", "--wait=false")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.fixture
def job(file: Path) -> RecTrainingJob:
    return RecTrainingJob.from_yaml(file)


def test_a_job_is_submitted_read_listed_suspended_resumed_and_deleted(cluster: Cluster, job: RecTrainingJob) -> None:
    client = cluster.client
    created = client.submit(job)
    assert created.metadata.uid and created.metadata.namespace == cluster.namespace
    assert created.spec == job.spec
    assert client.get("small").spec == job.spec
    assert [found.metadata.name for found in client.list()] == ["small"]
    assert [found.metadata.name for found in client.list(selector="team=ads")] == ["small"]
    assert client.list(selector="team=search") == []
    assert cluster.namespace in {found.metadata.namespace for found in client.list(all_namespaces=True)}
    assert client.suspend("small").spec.run_policy.suspend
    assert not client.resume("small").spec.run_policy.suspend
    assert client.progress("small") is None
    client.delete("small")
    with pytest.raises(JobNotFoundError, match=f"RecTrainingJob {cluster.namespace}/small: not found"):
        client.get("small")


def test_a_job_is_the_same_as_yaml(job: RecTrainingJob, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(job.to_yaml())
    assert RecTrainingJob.from_yaml(tmp_path / "again.yaml") == job


def test_a_dry_run_creates_nothing(cluster: Cluster, job: RecTrainingJob) -> None:
    assert cluster.client.submit(job, dry_run=True).metadata.name == "small"
    assert cluster.client.list() == []


def test_refusals_have_types_and_words(cluster: Cluster, job: RecTrainingJob, api_server: ApiServer) -> None:
    client = cluster.client
    client.submit(job)
    with pytest.raises(JobExistsError, match="small: exists already; delete it, or use another name"):
        client.submit(job)
    for call in (client.suspend, client.delete, client.progress, lambda name: next(client.watch(name))):
        with pytest.raises(JobNotFoundError):
            call("other")
    longer = job.model_copy(update={"metadata": job.metadata.model_copy(update={"name": "small-" * 10 + "x"})})
    with pytest.raises(JobRefusedError, match=r"metadata\.name"):
        client.submit(longer)
    with pytest.raises(ClusterError, match='RecTrainingJob nowhere/small: namespaces "nowhere" not found'):
        client.submit(job, namespace="nowhere")
    with pytest.raises(ClusterUnreachableError, match="none"):
        Client(kubeconfig=str(api_server.kubeconfig), context="none")
    with pytest.raises(ClusterUnreachableError):
        Client(kubeconfig="/nowhere/config")


def test_an_api_server_that_does_not_answer(api_server: ApiServer, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(api_server.kubeconfig.read_text().replace(api_server.url, "https://127.0.0.1:9"))
    with pytest.raises(ClusterUnreachableError, match=r"does not answer: .*refused"):
        Client(kubeconfig=str(config)).list()


def test_a_user_without_rights(cluster: Cluster) -> None:
    cluster.api.kubectl("-n", cluster.namespace, "create", "serviceaccount", "nobody")
    token = cluster.api.kubectl("-n", cluster.namespace, "create", "token", "nobody").strip()
    client = cluster.client
    client.connection.configuration.cert_file = client.connection.configuration.key_file = None
    client.connection.rest_client.pool_manager.clear()
    client.connection.rest_client.pool_manager.connection_pool_kw.update(cert_file=None, key_file=None)
    client.connection.configuration.api_key["authorization"] = f"Bearer {token}"
    with pytest.raises(NotPermittedError, match="cannot list resource"):
        client.list()


def test_who_may_see_jobs_alone_sees_the_job(cluster: Cluster, job: RecTrainingJob, tmp_path: Path) -> None:
    cluster.client.submit(job)
    where = ("-n", cluster.namespace)
    cluster.api.kubectl(*where, "create", "serviceaccount", "viewer")
    cluster.api.kubectl(
        *where, "create", "role", "viewer", "--verb=get,list,watch", "--resource=rectrainingjobs.rectrain.io"
    )
    account = f"--serviceaccount={cluster.namespace}:viewer"
    cluster.api.kubectl(*where, "create", "rolebinding", "viewer", "--role=viewer", account)
    token = cluster.api.kubectl(*where, "create", "token", "viewer").strip()
    config = yaml.safe_load(cluster.api.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    (tmp_path / "viewer").write_text(yaml.safe_dump(config))
    seen = CliRunner().invoke(cli, ["describe", "small", *where, "--kubeconfig", str(tmp_path / "viewer")])
    assert seen.exit_code == 0 and "State:      Pending" in seen.stdout
    assert 'cannot list resource "pods"' in seen.stderr and 'cannot list resource "events"' in seen.stderr
    refused = CliRunner().invoke(cli, ["suspend", "small", *where, "--kubeconfig", str(tmp_path / "viewer")])
    assert refused.exit_code == 2 and "cannot patch resource" in refused.stderr


def test_wait_sees_progress_and_returns_the_results(cluster: Cluster, job: RecTrainingJob) -> None:
    client = cluster.client
    client.submit(job)
    steps: list[int | None] = []
    seen = threading.Event()

    def look(found: RecTrainingJob) -> None:
        now = found.status.progress if found.status is not None else None
        steps.append(now.step if now is not None else None)
        seen.set()

    def play() -> None:
        assert seen.wait(60)
        cluster.tell("small", conditions=[condition("Running")], progress=progress(40))
        wait_until("the progress is seen", lambda: 40 in steps, 60)
        cluster.tell("small", conditions=[condition("Succeeded")], progress=progress(100), results=RESULTS)

    player = threading.Thread(target=play)
    player.start()
    done = client.wait("small", timeout=120, on_progress=look)
    player.join()
    assert steps[0] is None and 40 in steps
    assert done.status is not None and done.status.results is not None
    assert {m.name: m.value for m in done.status.results.metrics} == {"recall@20": 0.18}


def test_wait_tells_failure_time_out_and_deletion_apart(cluster: Cluster, job: RecTrainingJob) -> None:
    client = cluster.client
    client.submit(job)
    with pytest.raises(WaitTimeoutError, match="small: has not ended within 1 seconds"):
        client.wait("small", timeout=1)
    cluster.tell("small", conditions=[condition("Failed", "OutOfMemory", "pod small-master-0 was killed")])
    with pytest.raises(JobFailedError, match="small failed: OutOfMemory: pod small-master-0 was killed") as caught:
        client.wait("small")
    assert caught.value.reason == "OutOfMemory"
    cluster.tell("small", conditions=[condition("Running")])
    with pytest.raises(JobNotFoundError, match="was deleted"):
        client.wait("small", on_progress=lambda _: client.delete("small"))


def test_a_pod_that_is_removed_before_its_log_is_read(
    cluster: Cluster, job: RecTrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.client
    client.submit(job)
    labels = {"training.kubeflow.org/replica-type": "master", "training.kubeflow.org/replica-index": "0"}
    metadata = {"name": "small-master-0", "namespace": cluster.namespace, "uid": "removed", "labels": labels}
    started = {"containerStatuses": [{"name": "pytorch", "state": {"running": {}}}]}
    monkeypatch.setattr(Client, "pods", lambda *_, **__: [{"metadata": metadata, "status": started}])
    with pytest.raises(ClusterError, match="pod small-master-0: was removed just now"):
        list(client.logs("small"))
    cluster.tell("small", conditions=[condition("Succeeded")])
    assert list(client.logs("small", follow=True)) == []


def test_the_asyncio_client_does_the_same(cluster: Cluster, job: RecTrainingJob) -> None:
    async def use() -> list[Any]:
        client = AsyncClient(cluster.namespace, kubeconfig=str(cluster.api.kubeconfig))
        await client.submit(job)
        found = [(await client.get("small")).metadata.name, len(await client.list())]
        found.append((await client.suspend("small")).spec.run_policy.suspend)
        found.append((await client.resume("small")).spec.run_policy.suspend)
        async for seen in client.watch("small", timeout=1):
            found.append(seen.metadata.name)
            break
        await asyncio.to_thread(cluster.tell, "small", conditions=[condition("Succeeded")])
        seen_states: list[RecTrainingJob] = []
        await client.wait("small", timeout=60, on_progress=seen_states.append)
        found.append(bool(seen_states))
        await client.delete("small")
        await client.close()
        return found

    assert asyncio.run(use()) == ["small", 1, True, False, "small", True]


def test_commands(cluster: Cluster, file: Path) -> None:
    run = cluster.run
    none = run("get")
    assert (none.exit_code, none.stdout) == (0, "") and f"found in namespace {cluster.namespace}" in none.stderr
    assert run("submit", str(file), "--dry-run").stdout.endswith("/small created (server dry run)\n")
    assert run("submit", str(file)).stdout == "rectrainingjob.rectrain.io/small created\n"
    cluster.tell("small", state="Running", conditions=[condition("Running")], progress=progress(40), restarts=1)

    lines = run("get").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "STEP", "PROGRESS", "EXAMPLES/S", "RESTARTS", "AGE"]
    assert lines[1].split()[:4] == ["small", "Running", "40", "40%"] and max(map(len, lines)) <= 80
    wide = run("get", "small", "-o", "wide").stdout.splitlines()
    assert len(wide[0].split()) > len(lines[0].split()) and "0.25" in wide[1]
    assert run("get", "-A").stdout.startswith("NAMESPACE")
    assert run("get", "-o", "name").stdout == "rectrainingjob.rectrain.io/small\n"
    assert json.loads(run("get", "small", "-o", "json").stdout)["spec"]["model"]["type"] == "TwoTower"
    assert "kind: List" in run("get", "-o", "yaml").stdout

    described = run("describe", "small").stdout
    for text in ("Running  step 40/100 (40%)  1,234 examples/s  loss 0.2500  10m left", "1 restarts", "Because"):
        assert text in described
    top = run("top").stdout.splitlines()
    assert top[1].split() == ["small", "40/100", "40%", "1,234", "0.2500", "10m"]

    assert run("suspend", "small").stdout == "rectrainingjob.rectrain.io/small suspended\n"
    assert run("resume", "small").stdout == "rectrainingjob.rectrain.io/small resumed\n"
    timed_out = run("wait", "small", "--timeout", "1s")
    assert timed_out.exit_code == 124 and "has not ended within 1 seconds" in timed_out.stderr
    cluster.tell("small", conditions=[condition("Succeeded")], results=RESULTS)
    done = run("wait", "small")
    assert done.exit_code == 0 and "recall@20            0.18000" in done.stdout and "r1" in done.stdout
    assert "s3://bucket/out/bundle" in run("describe", "small").stdout
    cluster.tell("small", conditions=[condition("Failed", "Diverged", "the loss is not finite")])
    failed = run("wait", "small")
    assert failed.exit_code == 3 and "small failed: Diverged: the loss is not finite" in failed.stderr
    assert run("top").stdout == "No job runs.\n"
    no_log = run("logs", "small")
    assert no_log.exit_code == 2 and "its pods are gone" in no_log.stderr
    assert run("delete", "small").stdout == "rectrainingjob.rectrain.io/small deleted\n"


def test_commands_on_several_jobs_do_what_they_can(cluster: Cluster, file: Path) -> None:
    for name in ("one", "two"):
        assert cluster.run("submit", str(file), "--set", f"metadata.name={name}").exit_code == 0
    names = cluster.run("get", "-o", "name").stdout.split()
    done = cluster.run("delete", "missing", "rtj/one", names[1])
    assert done.exit_code == 2
    assert done.stdout.split("\n")[:2] == [f"rectrainingjob.rectrain.io/{name} deleted" for name in ("one", "two")]
    assert done.stderr.count("error:") == 1 and "missing: not found" in done.stderr


def test_a_job_comes_from_standard_input(cluster: Cluster) -> None:
    where = ("-n", cluster.namespace, "--kubeconfig", str(cluster.api.kubeconfig))
    created = CliRunner().invoke(cli, ["submit", "-", *where], input=JOB)
    assert created.stdout == "rectrainingjob.rectrain.io/small created\n"


def test_one_job_that_breaks_a_rule_does_not_hide_the_others(cluster: Cluster, file: Path) -> None:
    """The API server cannot check all rules."""
    two = "{name: a, kind: Categorical, side: User, cardinality: 5, table: t}"
    other = two.replace("name: a", "name: b").replace("5", "6")
    cluster.api.kubectl("-n", cluster.namespace, "apply", "-f", str(file))
    broken = JOB.replace("small", "broken").replace("  data:", f"    - {two}\n    - {other}\n  data:")
    cluster.api.kubectl("-n", cluster.namespace, "apply", "-f", "-", stdin=broken)
    assert sorted(job.metadata.name for job in cluster.client.list()) == ["broken", "small"]
    assert cluster.run("describe", "broken").exit_code == 0
    assert cluster.run("suspend", "broken").exit_code == 0


def test_waiting_goes_on_while_the_api_server_is_restarted(
    cluster: Cluster, job: RecTrainingJob, control_plane: ControlPlane
) -> None:
    client = cluster.client
    client.submit(job)
    seen = threading.Event()

    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(client.wait, "small", timeout=180, on_progress=lambda _: seen.set())
        assert seen.wait(60)
        control_plane.kube_apiserver.kill()  # not in a thread: what a thread starts ends with it
        control_plane.start()
        cluster.tell("small", conditions=[condition("Succeeded")], results=RESULTS)
        assert waiting.result().state == "Succeeded"


def test_commands_refuse_in_a_line(cluster: Cluster, file: Path) -> None:
    for arguments, message in (
        (("get", "other"), "other: not found"),
        (("delete", "other"), "other: not found"),
        (("wait", "other"), "other: not found"),
        (("get", "other", "-A"), "is looked for in one namespace"),
        (("get", ""), "must not be empty"),
        (("get", "pod/other"), "'pod/other' is no RecTrainingJob"),
        (("wait", "other", "--timeout", "soon"), "'soon' is no length of time such as 90s"),
        (("submit", str(file), "--set", "data.train.uri=shards"), "must be s3://"),
        (("submit", str(file), "--set", "training.epochs=0"), "spec.training.epochs"),
    ):
        result = cluster.run(*arguments)
        assert result.exit_code == 2 and message in result.stderr, (arguments, result.output)
        assert "Traceback" not in result.output
    assert cluster.client.list() == []


def test_a_cluster_without_the_type(control_plane: Any, tmp_path: Path, cluster: Cluster) -> None:
    api: ApiServer = control_plane.api
    manifest = api.kubectl("get", "crd", "rectrainingjobs.rectrain.io", "-o", "json")
    api.kubectl("delete", "crd", "rectrainingjobs.rectrain.io")
    try:
        wait_until("the type to go", lambda: "rectrainingjobs" not in api.kubectl("api-resources", "-o", "name"), 60)
        with pytest.raises(NotInstalledError, match="the cluster has no RecTrainingJob"):
            cluster.client.list()
    finally:
        known = json.loads(manifest)
        body = {key: known[key] for key in ("apiVersion", "kind", "spec")}
        body["metadata"] = {"name": "rectrainingjobs.rectrain.io"}
        api.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(body))
        api.kubectl("wait", "--for=condition=Established", "crd/rectrainingjobs.rectrain.io", "--timeout=30s")
