"""The cluster of the tests is one: its node runs pods that find each other, under the real training-operator."""

import json

import pytest
from harness.cluster import Cluster

TRAIN = """
import datetime, torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: sum {total.item():.0f}")
"""

JOB = """
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {{name: pair}}
spec:
  runPolicy: {{cleanPodPolicy: None}}
  pytorchReplicaSpecs:
    Master: {{replicas: 1, restartPolicy: Never, template: &template {{spec: {spec}}}}}
    Worker: {{replicas: 1, restartPolicy: Never, template: *template}}
"""

SPEC = """{
  runtimeClassName: host-environment,
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}},
  containers: [{
    name: pytorch, image: "rectrain.test/worker:host", command: [python, -c, $(PROGRAM)],
    env: [{name: PROGRAM, value: %s}, {name: OMP_NUM_THREADS, value: "1"}],
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}},
    volumeMounts: [{name: tmp, mountPath: /tmp}],
  }],
  volumes: [{name: tmp, emptyDir: {}}],
}"""


@pytest.fixture(autouse=True)
def started_here(cluster: Cluster) -> None:
    if cluster.node is None:
        pytest.skip("about the node that the tests start, and RECTRAIN_TEST_KUBECONFIG names another")


def test_two_pods_of_a_pytorchjob_form_a_group(cluster: Cluster, namespace: str) -> None:
    manifest = JOB.format(spec=SPEC % json.dumps(TRAIN))
    cluster.api.kubectl("-n", namespace, "apply", "-f", "-", stdin=manifest)
    cluster.api.kubectl("-n", namespace, "wait", "--for=condition=Succeeded", "pytorchjob/pair", "--timeout=180s")
    said = {cluster.api.kubectl("-n", namespace, "logs", f"pair-{role}-0") for role in ("master", "worker")}
    assert said == {"rank 0 of 2: sum 3\n", "rank 1 of 2: sum 3\n"}
