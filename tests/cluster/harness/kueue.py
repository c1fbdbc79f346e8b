"""Kueue in the cluster, from its own module: its controller and its manifests, for the kinds of jobs that we have."""

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gotools
import yaml

from . import images
from .api_server import ApiServer
from .certificates import Authority
from .cluster import Cluster
from .waiting import wait_until

NAMESPACE = "kueue-system"
IMAGE = "rectrain.test/kueue:1"
SECRET = "kueue-webhook-server-cert"
MANIFESTS = "config/default"
FRAMEWORKS = {"batch/job": "jobs", "kubeflow.org/pytorchjob": "pytorchjobs"}
WEBHOOKS = ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")


@contextmanager
def running(cluster: Cluster) -> Iterator[None]:
    """Install Kueue; at the end it is gone with everything of its kinds."""
    assert cluster.node and cluster.plane
    archive = cluster.node.folder / "kueue.tar"
    binary = gotools.build("kueue")["kueue"]
    files = {"manager": binary}
    cluster.node.load_image(images.write(archive, IMAGE, files=files, entrypoint=["/manager"], user="65532:65532"))
    published = cluster.api.kubectl("kustomize", gotools.module_folder("kueue") / MANIFESTS)
    ours = [changed(one, cluster.plane.authority) for one in yaml.load_all(published, yaml.CSafeLoader)]
    # The API server would wait for the figures that an extension of its own serves, and nobody asks for.
    manifests = yaml.dump_all([one for one in ours if one["kind"] != "APIService"], Dumper=yaml.CSafeDumper)
    cluster.api.kubectl("apply", "--server-side", "-f", "-", stdin=manifests)
    try:
        wait_until_ready(cluster.api)
        yield
        for kind in ("workloads", "localqueues", "clusterqueues", "resourceflavors"):  # Kueue has finalizers on them
            cluster.api.kubectl("delete", f"{kind}.kueue.x-k8s.io", "--all", "--all-namespaces", "--timeout=60s")
    finally:
        cluster.api.kubectl("delete", "-f", "-", "--wait=false", stdin=manifests)


def wait_until_ready(api: ApiServer) -> None:
    try:
        api.kubectl("-n", NAMESPACE, "rollout", "status", "deployment", "--timeout=120s")
    except subprocess.CalledProcessError as error:
        error.add_note(api.kubectl("-n", NAMESPACE, "describe", "pods"))
        error.add_note(api.kubectl("-n", NAMESPACE, "logs", "--tail=50", "-l", "app.kubernetes.io/name=kueue"))
        raise
    # The node sends to a service's pods a moment after they are ready.
    wait_until("Kueue's webhooks to answer", lambda: webhooks_answer(api), 30)


def webhooks_answer(api: ApiServer) -> bool:
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "none"}}
    try:
        api.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(flavor))
    except subprocess.CalledProcessError:
        return False
    return True


def changed(manifest: dict[str, Any], authority: Authority) -> dict[str, Any]:
    """Return one of Kueue's manifests with our image and kinds, and certificates that are there from the beginning."""
    certificates = base64.b64encode(authority.pair.certificate.read_bytes()).decode()
    match manifest["kind"], manifest["metadata"]["name"]:
        case "Deployment", _:
            spec = manifest["spec"]["template"]["spec"]
            (container,) = spec["containers"]
            container |= {"image": IMAGE, "imagePullPolicy": "IfNotPresent", "resources": {}}
            container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
            container["volumeMounts"].append({"name": "cert", "mountPath": "/etc/kueue/metrics/certs"})
            visibility = next(one for one in spec["volumes"] if one["name"] == "visibility")
            del visibility["emptyDir"]
            visibility["secret"] = {"secretName": SECRET}
        case "ConfigMap", "kueue-manager-config":
            (name,) = manifest["data"]
            config = yaml.safe_load(manifest["data"][name])
            config["integrations"]["frameworks"] = list(FRAMEWORKS)
            config["internalCertManagement"] = {"enable": False}
            config["leaderElection"]["leaderElect"] = False
            manifest["data"][name] = json.dumps(config)
        case "Secret", name if name == SECRET:
            pair = authority.issue("kueue", "kueue", hosts=[f"kueue-webhook-service.{NAMESPACE}.svc"])
            manifest["stringData"] = {"tls.crt": pair.certificate.read_text(), "tls.key": pair.key.read_text()}
        case kind, _ if kind in WEBHOOKS:
            manifest["webhooks"] = [one for one in manifest["webhooks"] if is_ours(one)]
            for webhook in manifest["webhooks"]:
                webhook["clientConfig"]["caBundle"] = certificates
        case "CustomResourceDefinition", _ if "conversion" in manifest["spec"]:
            manifest["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"] = certificates
    return manifest


def is_ours(webhook: dict[str, Any]) -> bool:
    """Return whether a webhook is about Kueue's own kinds or about ours: others would stand in other tests' way."""
    kinds = {(group, kind) for rule in webhook["rules"] for group in rule["apiGroups"] for kind in rule["resources"]}
    return any(group == "kueue.x-k8s.io" or kind in FRAMEWORKS.values() for group, kind in kinds)
