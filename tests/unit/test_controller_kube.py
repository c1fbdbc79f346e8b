"""What answers of the API server come to."""

import json

import pytest

from rectrain.controller.errors import ApiError, ConflictError, KindMissingError, NotFoundError, RefusedError
from rectrain.controller.kube import error_of

WEBHOOK = 'admission webhook "policy.example.com" denied the request: no GPUs on Fridays'
POLICY = (
    "pytorchjobs.kubeflow.org \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"
)


@pytest.mark.parametrize(
    ("code", "reason", "message", "kind", "permanent"),
    [
        (404, None, "404 page not found", KindMissingError, None),
        (404, "NotFound", "not found", NotFoundError, None),
        (409, "Conflict", "the object has been modified", ConflictError, None),
        (422, "Invalid", "spec.template: Required value", RefusedError, True),
        (400, "BadRequest", 'strict decoding error: unknown field "spec.nodeSelektor"', RefusedError, True),
        (403, "Forbidden", "exceeded quota", RefusedError, False),
        (400, "BadRequest", WEBHOOK, RefusedError, False),
        (422, "Invalid", POLICY, RefusedError, False),
        (500, "InternalError", "etcdserver: request timed out", ApiError, None),
    ],
)
def test_errors(code: int, reason: str | None, message: str, kind: type[ApiError], permanent: bool | None) -> None:
    body = message if reason is None else json.dumps({"kind": "Status", "reason": reason, "message": message})
    error = error_of("POST /apis", code, body)
    assert type(error) is kind
    assert message in str(error)
    assert getattr(error, "permanent", None) is permanent
