"""The chart renders what its values say, refuses what they may not say, and names only metrics that there are."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import gotools
import pytest
import yaml

from rectrain.api.crd import custom_resource_definition
from rectrain.controller.metrics import REGISTRY, JobsCollector

CHART = Path(__file__).parents[2] / "charts" / "rectrain"
RECALL = {"recall.enabled": "true", "recall.bundle": "s3://models/mind/bundle"}
ALL_MONITORING = {
    "metrics.serviceMonitor.enabled": "true",
    "metrics.prometheusRule.enabled": "true",
    "metrics.dashboard.enabled": "true",
}


def helm(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [gotools.build("helm")["helm"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def render(**values: str) -> list[dict[str, Any]]:
    """Return the objects of a release named rectrain in the namespace system; values as `--set` takes them."""
    settings = [f"--set={name}={value}" for name, value in values.items()]
    rendered = helm("template", "rectrain", CHART, "--namespace=system", "--kube-version=1.34.0", *settings)
    assert rendered.returncode == 0, rendered.stderr
    return [one for one in yaml.safe_load_all(rendered.stdout) if one]


def one(objects: list[dict[str, Any]], kind: str, name: str = "rectrain") -> dict[str, Any]:
    return next(each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))


def kinds(objects: list[dict[str, Any]]) -> set[str]:
    return {each["kind"] for each in objects}


def test_lint_has_nothing_to_say() -> None:
    assert helm("lint", "--strict", CHART).returncode == 0


def test_default_release_has_what_it_needs_and_no_more() -> None:
    assert kinds(render()) == {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "Pod",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    }


def test_custom_resource_is_the_generated_one_and_is_kept() -> None:
    rendered = one(render(), "CustomResourceDefinition", "rectrainingjobs.rectrain.io")
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered == custom_resource_definition()


@pytest.mark.parametrize(
    ("value", "kind", "present"),
    [
        ("crds.enabled=false", "CustomResourceDefinition", False),
        ("rbac.create=false", "ClusterRoleBinding", False),
        ("serviceAccount.create=false", "ServiceAccount", False),
        ("replicas=2", "PodDisruptionBudget", True),
        ("networkPolicy.enabled=true", "NetworkPolicy", True),
        ("metrics.serviceMonitor.enabled=true", "ServiceMonitor", True),
        ("metrics.prometheusRule.enabled=true", "PrometheusRule", True),
        ("metrics.dashboard.enabled=true", "ConfigMap", True),
    ],
)
def test_value_switches_an_object(value: str, kind: str, present: bool) -> None:
    name, _, setting = value.partition("=")
    assert (kind in kinds(render())) is not present
    assert (kind in kinds(render(**{name: setting}))) is present


@pytest.mark.parametrize(
    ("values", "arguments"),
    [
        ({}, []),
        ({"watchNamespaces": "{team-a,team-b}"}, ["--namespaces=team-a,team-b"]),
        ({"controller.workers": "4"}, ["--workers=4"]),
        ({"controller.progressSeconds": "5"}, ["--progress-seconds=5"]),
        ({"controller.logLevel": "debug"}, ["--log-level=debug"]),
        ({"jobDefaults.workerImage": "r.example/w:1"}, ["--worker-image=r.example/w:1"]),
        ({"jobDefaults.outputUri": "s3://bucket/runs"}, ["--output-uri=s3://bucket/runs"]),
        ({"jobDefaults.mlflowTrackingUri": "http://mlflow:5000"}, ["--mlflow-tracking-uri=http://mlflow:5000"]),
    ],
    ids=str,
)
def test_values_are_options_that_the_controller_has(values: dict[str, str], arguments: list[str]) -> None:
    from rectrain.controller.__main__ import main

    [container] = one(render(**values), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert set(arguments) <= set(container["args"])
    context = main.make_context("controller", list(container["args"]))  # raises on an option or value that is none
    assert context.params["lease_namespace"] == "system"


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "rectrain-operator:0.1.0"),
        ({"image.repository": "r.example/op", "image.tag": "x"}, "r.example/op:x"),
        ({"image.digest": f"sha256:{'a' * 64}", "image.tag": "x"}, f"rectrain-operator@sha256:{'a' * 64}"),
    ],
    ids=str,
)
def test_image(values: dict[str, str], image: str) -> None:
    objects = render(**values)
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == image
    assert one(objects, "Pod", "rectrain-test")["spec"]["containers"][0]["image"] == image


def test_named_namespaces_need_no_rights_on_the_cluster() -> None:
    objects = render(watchNamespaces="{team-a,team-b}", **{"rbac.aggregatedRoles": "false"})
    assert kinds(objects).isdisjoint({"ClusterRole", "ClusterRoleBinding"})
    roles = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in objects if each["kind"] == "Role"}
    controller, election = "rectrain-controller", "rectrain-leader-election"
    assert roles == {("team-a", controller), ("team-b", controller), ("system", election)}


def test_rules_are_spelled_out_and_read_no_secrets() -> None:
    for values in ({}, {"watchNamespaces": "{team-a}"}):
        for role in render(**values):
            for rule in role.get("rules", []) if role["kind"] in ("Role", "ClusterRole") else []:
                assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
                assert "secrets" not in rule["resources"]


def test_the_controller_has_the_rights_that_it_uses_and_no_others() -> None:
    """Each is a call of `Kube` in the controller, or a watch; the finalizers an API server may ask for."""
    role = one(render(watchNamespaces="{team-a}"), "Role", "rectrain-controller")
    verbs = {resource: " ".join(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert verbs == {
        "rectrainingjobs": "get list watch delete",
        "rectrainingjobs/status": "patch",
        "rectrainingjobs/finalizers": "update",
        "pytorchjobs": "get list watch create delete",
        "jobs": "get list watch create patch delete",
        "pods": "list watch",
        "configmaps": "get create patch",
        "events": "create list",
    }


def test_texts_that_yaml_would_take_for_something_else_stay_texts() -> None:
    texts = {"nameOverride": "12", "serviceAccount.name": "34", "priorityClassName": "true"}
    settings = [f"--set-string={name}={value}" for name, value in texts.items()]
    settings += ["--set=watchNamespaces={y}", "--set-string=jobDefaults.outputUri=s3://bucket/a #1"]
    rendered = helm("template", "56", CHART, "--namespace=78", "--kube-version=1.34.0", *settings)
    assert rendered.returncode == 0, rendered.stderr
    objects = [each for each in yaml.safe_load_all(rendered.stdout) if each]
    deployment = one(objects, "Deployment", "56-12")
    pod = deployment["spec"]["template"]
    assert {"app.kubernetes.io/name": "12", "app.kubernetes.io/instance": "56"}.items() <= pod["metadata"][
        "labels"
    ].items()
    assert (deployment["metadata"]["namespace"], pod["spec"]["priorityClassName"]) == ("78", "true")
    assert "--output-uri=s3://bucket/a #1" in pod["spec"]["containers"][0]["args"]
    for each in objects:
        for subject in each.get("subjects", []):
            assert (subject["name"], subject["namespace"]) == ("34", "78")
    assert 'namespace: "y"' in rendered.stdout, "which is text to this reader, and a truth value to Kubernetes"


@pytest.mark.parametrize(
    "values", [{"imagePullSecrets[0].name": "registry.example.com"}, {"serviceAccount.name": "a.b"}]
)
def test_names_of_objects_may_have_dots(values: dict[str, str]) -> None:
    render(**values)


@pytest.mark.parametrize(
    ("kind", "name"), [("Deployment", "rectrain"), ("Deployment", "rectrain-recall"), ("Pod", "rectrain-test")]
)
def test_pods_are_fit_for_the_restricted_standard(kind: str, name: str) -> None:
    found = one(render(**RECALL), kind, name)
    pod = found["spec"]["template"]["spec"] if kind == "Deployment" else found["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("replica=2", "replica"),
        ("image.name=x", "name"),
        ("replicas=-1", "replicas"),
        ("image.digest=latest", "digest"),
        ("controller.logLevel=loud", "logLevel"),
        ("jobDefaults.outputUri=bucket", "outputUri"),
        ("watchNamespaces={Team_A}", "watchNamespaces"),
        ("metrics.serviceMonitor.interval=often", "interval"),
        ("recall.limits.topK=0", "topK"),
        ("recall.tokenSecret=My_Secret", "tokenSecret"),
        ("jobDefaults.mlflowTrackingUri=http://me:secret@mlflow:5000", "mlflowTrackingUri"),
        (r"podLabels.app\.kubernetes\.io/name=other", "app.kubernetes.io/name"),
    ],
)
def test_value_that_may_not_be_is_refused_by_name(setting: str, named: str) -> None:
    refused = helm("template", "rectrain", CHART, "--kube-version=1.34.0", f"--set={setting}")
    assert refused.returncode != 0
    assert named in refused.stderr


RECALL_OBJECTS = {
    ("Deployment", "rectrain-recall"),
    ("Service", "rectrain-recall"),
    ("PodDisruptionBudget", "rectrain-recall"),
}


def named(objects: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in objects}


@pytest.mark.parametrize(
    ("values", "more", "less"),
    [
        ({}, set(), set()),
        ({"recall.replicas": "1"}, set(), {"PodDisruptionBudget"}),
        ({"recall.podDisruptionBudget.enabled": "false"}, set(), {"PodDisruptionBudget"}),
        ({"recall.autoscaling.enabled": "true"}, {"HorizontalPodAutoscaler"}, set()),
        (
            {"recall.autoscaling.enabled": "true", "recall.autoscaling.minReplicas": "1"},
            {"HorizontalPodAutoscaler"},
            {"PodDisruptionBudget"},
        ),
        ({"metrics.serviceMonitor.enabled": "true"}, {"ServiceMonitor"}, set()),
    ],
    ids=str,
)
def test_recall_adds_its_objects(values: dict[str, str], more: set[str], less: set[str]) -> None:
    added = named(render(**RECALL, **values)) - named(render(**values))
    wanted = {(kind, name) for kind, name in RECALL_OBJECTS if kind not in less}
    assert added == wanted | {(kind, "rectrain-recall") for kind in more}


@pytest.mark.parametrize(
    ("values", "arguments"),
    [
        ({}, ["--bundle=s3://models/mind/bundle", "--host=0.0.0.0", "--follow-seconds=10", "--max-body-bytes=1048576"]),
        ({"recall.index": "http://milvus:19530", "recall.collection": "mind"}, ["--index=http://milvus:19530"]),
        ({"recall.items": "s3://models/items.parquet"}, ["--items=s3://models/items.parquet"]),
        ({"recall.followSeconds": "0", "recall.limits.topK": "77"}, ["--follow-seconds=0", "--max-top-k=77"]),
        ({"recall.storage.endpointUrl": "http://minio:9000"}, ["--endpoint-url=http://minio:9000"]),
    ],
    ids=str,
)
def test_recall_values_are_options_that_the_service_has(values: dict[str, str], arguments: list[str]) -> None:
    from rectrain_jobs.cli.serve import serve

    deployment = one(render(**RECALL, **values), "Deployment", "rectrain-recall")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == "recall" and set(arguments) <= set(container["args"])
    serve.commands["recall"].make_context("recall", container["args"][1:])  # raises on an option or value that is none


def test_recall_takes_values_that_yaml_would_read_otherwise(tmp_path: Path) -> None:
    recall: dict[str, Any] = {
        "enabled": True,
        "bundle": "s3://models/mind #1/bundle",
        "index": "/indexes/a: b",
        "collection": "_1",
        "items": 's3://models/"new" items.parquet',
        "storage": {"region": "yes # no"},
        "serviceAccountName": "10",
        "priorityClassName": "1e3",
        "tokenSecret": "7",
        "adminTokenSecret": "0x8",
    }
    values = tmp_path / "values.json"
    values.write_text(json.dumps({"recall": recall}))
    rendered = helm("template", "rectrain", CHART, "--namespace=2026", "--kube-version=1.34.0", f"--values={values}")
    assert rendered.returncode == 0, rendered.stderr
    objects = [each for each in yaml.safe_load_all(rendered.stdout) if each]
    deployment = one(objects, "Deployment", "rectrain-recall")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    told = dict(argument[2:].split("=", 1) for argument in container["args"][1:])
    assert {name: told[name] for name in ("bundle", "index", "collection", "items", "region")} == {
        **{name: recall[name] for name in ("bundle", "index", "collection", "items")},
        "region": recall["storage"]["region"],
    }
    secrets = [each["valueFrom"]["secretKeyRef"]["name"] for each in container["env"]]
    assert [pod["serviceAccountName"], pod["priorityClassName"], *secrets] == ["10", "1e3", "7", "0x8"]
    assert {each["metadata"].get("namespace", "2026") for each in objects} == {"2026"}


def test_recall_is_selected_apart_and_takes_tokens_from_secrets() -> None:
    values = {
        "recall.tokenSecret": "callers",
        "recall.adminTokenSecret": "admins",
        "recall.autoscaling.enabled": "true",
    }
    objects = render(**RECALL, **values)
    deployment, service = (one(objects, kind, "rectrain-recall") for kind in ("Deployment", "Service"))
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector == service["spec"]["selector"] != one(objects, "Service")["spec"]["selector"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert "replicas" not in deployment["spec"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    [container] = pod["containers"]
    assert container["image"] == "rectrain-serving:0.1.0"
    assert {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"]} == {
        "RECTRAIN_RECALL_TOKEN": {"name": "callers", "key": "token"},
        "RECTRAIN_RECALL_ADMIN_TOKEN": {"name": "admins", "key": "token"},
    }


def test_recall_needs_a_bundle() -> None:
    refused = helm("template", "rectrain", CHART, "--kube-version=1.34.0", "--set=recall.enabled=true")
    assert refused.returncode != 0 and "recall.bundle: is required" in refused.stderr


def test_schema_knows_exactly_the_values_that_there_are() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema["properties"].pop("global")  # which Helm adds

    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        if schema.get("additionalProperties") is not False:
            return
        assert values.keys() == schema["properties"].keys(), path
        for name, value in values.items():
            if isinstance(value, dict):
                compare(value, schema["properties"][name], f"{path}.{name}")

    compare(values, schema, "")


def test_alerts_and_dashboard_ask_for_metrics_that_the_controller_has() -> None:
    objects = render(**ALL_MONITORING)
    rules = one(objects, "PrometheusRule")["spec"]["groups"][0]["rules"]
    dashboard = json.loads(one(objects, "ConfigMap", "rectrain-dashboard")["data"]["rectrain.json"])
    asked = [rule["expr"] for rule in rules]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"\brectrain_\w+", expression)}
    families = [*REGISTRY.collect(), *JobsCollector(list, int, float).collect()]
    has = {family.name for family in families}
    stripped = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in names}
    assert names
    assert stripped - has == set()


def test_every_label_of_a_metric_is_one_that_it_has() -> None:
    dashboard = json.loads((CHART / "dashboards" / "rectrain.json").read_text())
    labels = {"rectrain_jobs": {"state"}} | {
        name: set(metric._labelnames)  # type: ignore[attr-defined]
        for name, metric in REGISTRY._names_to_collectors.items()
        if hasattr(metric, "_labelnames")
    }
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            by = re.search(r"by \(([^)]*)\)", target["expr"])
            name = re.search(r"\brectrain_\w+", target["expr"])
            assert name
            if by:
                assert {label.strip() for label in by[1].split(",")} <= labels[name[0]] | {"le"}
