"""The chart's recall service on a real cluster, from its image, over a model that a job trained there."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from harness import built_images, services
from harness.cluster import Cluster
from harness.waiting import wait_until
from installed import ITEMS, RELEASE, USERS, Place, Release

SERVICE = f"{RELEASE}-recall"
PODS = "app.kubernetes.io/component=recall"


@pytest.fixture(scope="module")
def serving_image(running_cluster: Cluster, release: Release) -> str:
    """The name of the services' image, on the node."""
    assert running_cluster.node is not None
    running_cluster.node.load_image(built_images.build("serving"))
    return built_images.name_of("serving")


@pytest.fixture
def recall(release: Release, serving_image: str, place: Place) -> Iterator[dict[str, str]]:
    """The values of a recall service over a bundle that a job of `place` has trained; without it again at the end."""
    place.apply("model", epochs=3)
    place.wait_for("model", "Succeeded")
    keys = {"AWS_ACCESS_KEY_ID": place.storage.access_key, "AWS_SECRET_ACCESS_KEY": place.storage.secret_key}
    release.kubectl("create", "secret", "generic", "bundles", *(f"--from-literal={k}={v}" for k, v in keys.items()))
    yield {
        "recall.enabled": "true",
        "recall.image.repository": serving_image,
        "recall.bundle": place.status("model")["results"]["modelUri"],
        "recall.storage.endpointUrl": services.STORAGE_URL,
        "recall.envFrom[0].secretRef.name": "bundles",
        "recall.resources.requests.cpu": "100m",
    }
    release.upgrade()
    release.kubectl("delete", "secret", "bundles")


def test_a_trained_model_is_served_while_its_pods_are_replaced(release: Release, recall: dict[str, str]) -> None:
    release.upgrade(**recall)
    service = json.loads(release.kubectl("get", "service", SERVICE, "-o", "json"))["spec"]
    url = f"http://{service['clusterIP']}:{service['ports'][0]['port']}"
    found = answer_of(url, top_k=20)
    assert [len(items) for items in found["items"]] == [20, 20] and found["sources"] == ["model", "popularity"]
    assert all(0 <= item < ITEMS for items in found["items"] for item in items)
    budget = json.loads(release.kubectl("get", "poddisruptionbudget", SERVICE, "-o", "json"))
    first = pods(release)
    assert budget["spec"]["maxUnavailable"] == 1 and len(first) == 2

    with asking(url) as asked:
        release.upgrade(**recall, **{"recall.limits.topK": "10", "recall.autoscaling.enabled": "true"})
        wait_until("the first pods to go", lambda: not first & pods(release), 120)
    assert asked.answers > 50 and not asked.failures, asked.failures[:3]
    scaler = json.loads(release.kubectl("get", "horizontalpodautoscaler", SERVICE, "-o", "json"))
    assert scaler["spec"]["scaleTargetRef"]["name"] == SERVICE
    assert answer_of(url, top_k=10)["model_version"] == found["model_version"]
    with pytest.raises(urllib.error.HTTPError, match="422"):
        answer_of(url, top_k=20)


def pods(release: Release) -> set[str]:
    return set(release.kubectl("get", "pods", "-l", PODS, "-o", "name").split())


def answer_of(url: str, top_k: int) -> Any:
    """Ask for a known and an unknown user's items."""
    users = [{"user_id": 3}, {"user_id": USERS + 5}]
    body = json.dumps({"top_k": top_k, "user_features": users}).encode()
    request = urllib.request.Request(f"{url}/rec/recall", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


class Asked:
    """What became of requests.

    Attributes:
        answers: Number of answers.
        failures: What went wrong with others.
    """

    def __init__(self) -> None:
        self.answers = 0
        self.failures: list[str] = []


@contextmanager
def asking(url: str) -> Iterator[Asked]:
    """Send requests one after another, each on a connection of its own, while the context lasts."""
    asked, ended = Asked(), threading.Event()

    def ask() -> None:
        while not ended.wait(0.05):
            try:
                answer_of(url, top_k=5)
                asked.answers += 1
            except OSError as error:
                asked.failures.append(f"{time.strftime('%X')} {error}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()
