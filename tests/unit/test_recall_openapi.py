"""The recall service does what its own OpenAPI document says, with requests that it allows and with others."""

import pytest
import schemathesis
from bundles import AGE, CITY, HISTORY, ITEM_ID, MIND_OF_PROFILE, USER_ID, make_bundle
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from rectrain_jobs.serving.access import Access
from rectrain_jobs.serving.recall_app import AppSettings, recall_app
from rectrain_jobs.serving.recall_service import RecallService, RecallSettings

TOKEN, ADMIN = "t" * 16, "a" * 16
# What is dropped answers no recall, so that is left to the other tests.
CALLS = [
    ("POST", "/rec/recall"),
    ("POST", "/rec/count"),
    ("POST", "/rec/insert_data"),
    ("POST", "/rec/reload"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]
# A call without a body may be allowed and not allowed in no other way than by its method.
MODES = {"/rec/recall": list(GenerationMode), "/rec/reload": list(GenerationMode)}


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(folder, MIND_OF_PROFILE, [USER_ID, AGE, CITY, ITEM_ID, HISTORY])
    service = RecallService(RecallSettings(str(folder)))
    app = recall_app(service, AppSettings(access=Access(TOKEN, ADMIN), follow_seconds=0))
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    service.close()


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*call, mode) for call in CALLS for mode in MODES.get(call[1], [GenerationMode.POSITIVE])],
)
def test_every_call_answers_as_documented(method, path, mode, document):
    answered = []

    @given(case=document[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case):
        # Which features and attributes there are, and what they are, a schema does not say: such requests have 422.
        headers = {"Authorization": f"Bearer {ADMIN}"}
        answer = case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])
        answered.append(answer.status_code)

    check()
    assert answered and all(code < 500 for code in answered)
