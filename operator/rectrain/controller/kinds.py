"""The kinds of objects that the controller reads or writes, and where the API server has them."""

from enum import Enum


class Kind(Enum):
    """A kind: API group and version, plural name."""

    JOB = ("rectrain.io/v1alpha1", "rectrainingjobs")
    CHILD = ("kubeflow.org/v1", "pytorchjobs")
    POD = ("v1", "pods")
    CONVERSION = ("batch/v1", "jobs")
    CONFIG_MAP = ("v1", "configmaps")
    EVENT = ("events.k8s.io/v1", "events")
    LEASE = ("coordination.k8s.io/v1", "leases")

    def __init__(self, api_version: str, plural: str) -> None:
        """Hold both."""
        self.api_version = api_version
        self.plural = plural

    @property
    def resource(self) -> str:
        """Name as rights and kubectl have it: plural.group."""
        group = self.api_version.rpartition("/")[0]
        return f"{self.plural}.{group}" if group else self.plural

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of all of a namespace, or of all of all namespaces where it is empty."""
        root = "/api" if "/" not in self.api_version else "/apis"
        scope = ["namespaces", namespace] if namespace else []
        parts = [root, self.api_version, *scope, self.plural, name, subresource]
        return "/".join(part for part in parts if part)
