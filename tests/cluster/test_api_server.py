"""The API server of the tests is one: it keeps objects, and knows the types that a training job becomes."""

import subprocess

import pytest
from harness.api_server import ApiServer, ControlPlane

JOB = """
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: served, namespace: default}
spec:
  pytorchReplicaSpecs:
    Master: {replicas: 1, template: {spec: {containers: [{name: pytorch, image: none}]}}}
"""


def test_keeps_pytorchjobs(api_server: ApiServer) -> None:
    assert (
        api_server.kubectl("apply", "--server-side", "-f", "-", stdin=JOB)
        == "pytorchjob.kubeflow.org/served serverside-applied\n"
    )
    assert api_server.get("pytorchjob", "served")["kind"] == "PyTorchJob"
    api_server.kubectl("delete", "pytorchjob", "served")


def test_refuses_what_the_type_does_not_allow(api_server: ApiServer) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        api_server.kubectl("apply", "--server-side", "-f", "-", stdin=JOB.replace("replicas: 1", "replicas: one"))
    assert "spec.pytorchReplicaSpecs.Master.replicas" in refusal.value.stderr


def test_survives_a_crash_of_both_programs(control_plane: ControlPlane) -> None:
    api = control_plane.api
    api.kubectl("create", "configmap", "kept")
    control_plane.kube_apiserver.kill()
    control_plane.etcd.kill()
    control_plane.start()
    assert api.kubectl("get", "configmap", "kept", "-o", "name") == "configmap/kept\n"
    api.kubectl("delete", "configmap", "kept")
