"""The way to an API server, and its refusals as errors of ours."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rectrain.api.crd import PLURAL
from rectrain.api.job import GROUP, KIND
from rectrain.sdk.errors import (
    ClusterError,
    ClusterUnreachableError,
    JobExistsError,
    JobNotFoundError,
    JobRefusedError,
    NotInstalledError,
    NotPermittedError,
    ObjectNotFoundError,
)

DEFAULT_NAMESPACE = "default"
_SERVICE_ACCOUNT_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


def connect(kubeconfig: str | None, context: str | None) -> tuple[Any, str]:
    """Find the cluster as kubectl does: the kubeconfig, or else the pod's own service account.

    Args:
        kubeconfig: File; None for $KUBECONFIG or ~/.kube/config.
        context: Context of that file; None for its current one.

    Returns:
        The client's connection (kubernetes.client.ApiClient) and the namespace that the context names.

    Raises:
        ClusterUnreachableError: There is neither, or no such context.
    """
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException
    from yaml import YAMLError

    settings = client.Configuration()
    shown = f"kubeconfig {kubeconfig}" if kubeconfig is not None else "kubeconfig"
    try:
        config.load_kube_config(kubeconfig, context=context, client_configuration=settings)
        contexts, active = config.list_kube_config_contexts(kubeconfig)
        if context is not None:
            active = next(c for c in contexts if c["name"] == context)
        namespace = active["context"].get("namespace") or DEFAULT_NAMESPACE
    except (ConfigException, OSError) as error:
        if kubeconfig is not None or context is not None:
            raise ClusterUnreachableError(f"{shown}: {error}") from None
        try:
            config.load_incluster_config(client_configuration=settings)
        except ConfigException:
            raise ClusterUnreachableError(
                f"no cluster: {error}; name a kubeconfig by --kubeconfig or $KUBECONFIG"
            ) from None
        with open(_SERVICE_ACCOUNT_NAMESPACE) as file:
            namespace = file.read().strip()
    except (AttributeError, KeyError, TypeError, ValueError, YAMLError) as error:
        raise ClusterUnreachableError(f"{shown}: is none: {' '.join(str(error).split())}") from None
    settings.retries = 2
    return client.ApiClient(settings), namespace


@contextmanager
def translated(job: str | None = None) -> Iterator[None]:
    """Turn what a call raises into errors of ours.

    Args:
        job: Namespace and name of the job that the call is about, as ``namespace/name``.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _error_of(error.status, _status_of(error.body), job) from None
    except HTTPError as error:
        cause = getattr(error, "reason", None) or error
        raise ClusterUnreachableError(f"the API server does not answer: {' '.join(str(cause).split())}") from None


def _status_of(body: Any) -> dict[str, Any]:
    """Return the Status object that an API server explains a refusal with; others may answer anything."""
    try:
        status = json.loads(body or "")
    except ValueError:
        return {"message": " ".join(str(body or "").split())[:300]}
    return status if isinstance(status, dict) else {}


def _error_of(code: int | None, status: dict[str, Any], job: str | None) -> ClusterError:
    message = str(status.get("message") or f"HTTP {code}")
    name = f"{KIND} {job}" if job is not None else KIND
    # A missing job has details, a missing type has none: the whole path is unknown.
    if code == 404 and (kind := (status.get("details") or {}).get("kind")):
        return JobNotFoundError(f"{name}: not found") if kind == PLURAL else ObjectNotFoundError(f"{name}: {message}")
    if code == 404:
        return NotInstalledError(f"the cluster has no {KIND} ({GROUP}): install the chart charts/rectrain, or its CRD")
    if code == 409 and status.get("reason") == "AlreadyExists":
        return JobExistsError(f"{name}: exists already; delete it, or use another name")
    if code == 401:
        return NotPermittedError(
            f"the API server does not know this user ({message}): log in anew, or name a --context"
        )
    if code == 403:
        return NotPermittedError(message)
    if code in (400, 422):
        causes = (status.get("details") or {}).get("causes") or []
        lines = [f"{name}: {cause.get('field', '')}: {cause.get('message', '')}" for cause in causes]
        return JobRefusedError("\n".join(lines) or f"{name}: {message}")
    return ClusterError(f"{name}: {message}")
