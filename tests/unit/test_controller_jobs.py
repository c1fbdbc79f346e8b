"""Jobs as the API server has them: what other versions of the controller have written is read as far as it goes."""

from typing import Any

import pytest
from controller_objects import T0, document

from rectrain.api.status import State
from rectrain.controller.jobs import JobReader, read_status

TIME = T0.isoformat()
SUCCEEDED = {"type": "Succeeded", "status": "True", "reason": "Done", "lastTransitionTime": TIME}
PROGRESS = {"step": 1, "totalSteps": 2, "epoch": 0, "examplesPerSecond": 3.0, "lastUpdateTime": TIME}
STATUSES: dict[str, dict[str, Any]] = {
    "a field that is not known": {"new": 1},
    "a state that is not known": {"state": "Resizing"},
    "a field of a condition that is not known": {"conditions": [SUCCEEDED | {"new": 1}]},
    "a condition without a time": {"conditions": [{"type": "Up", "status": "True", "reason": "Up"}, SUCCEEDED]},
    "a field of progress that is not known": {"progress": PROGRESS | {"new": 1}},
    "progress of another form": {"progress": {"share": 0.5}},
    "conditions of another form": {"progress": PROGRESS, "restarts": "none"},
}


@pytest.mark.parametrize("status", STATUSES.values(), ids=STATUSES)
def test_that_a_job_has_ended_is_read_whatever_else_is_there(status: dict[str, Any]) -> None:
    raw = document() | {"status": {"conditions": [SUCCEEDED], "attempt": 4} | status}
    job = JobReader().read(raw)
    assert job.problem == ""
    assert job.status.attempt == 4
    assert [c.type for c in job.status.conditions if c.status == State.SUCCEEDED or c.type == "Succeeded"] == [
        "Succeeded"
    ]


def test_progress_is_read_without_what_is_new_in_it() -> None:
    found = read_status({"progress": PROGRESS | {"new": 1}}).progress
    assert found is not None
    assert found.step == 1
