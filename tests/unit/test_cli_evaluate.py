"""`rectrain evaluate`: a bundle is measured on data whose ids are its own."""

from pathlib import Path

import pytest
from bundles import ITEMS, MATRIX, NAMED_ITEM, OWN_USER, job_of, make_bundle
from click.testing import CliRunner

from rectrain.api import UserError, dump_job
from rectrain.api.job import RecTrainingJob
from rectrain.cli.main import cli
from rectrain_jobs.bundle import load_bundle
from rectrain_jobs.data.convert import ensure_converted
from rectrain_jobs.training.publish import check_data, items_of

NAMES = [f"item {number}".replace(" ", "-") for number in range(ITEMS)]


@pytest.fixture
def job(tmp_path: Path) -> RecTrainingJob:
    """A job with its shards, in which the items are known by the names NAMES, in this order."""
    (tmp_path / "raw.txt").write_text("".join(f"{user} {' '.join(NAMES)}\n" for user in range(3)))
    described = job_of(MATRIX, [OWN_USER, NAMED_ITEM]).model_dump(mode="json")
    source = {"format": "Interactions", "uri": str(tmp_path / "raw.txt"), "validationUri": str(tmp_path / "raw.txt")}
    shards = {split: {"uri": str(tmp_path / split)} for split in ("train", "validation")}
    described["spec"]["data"] = {"source": source, **shards}
    made = RecTrainingJob.model_validate(described)
    ensure_converted(made.spec)
    (tmp_path / "job.yaml").write_text(dump_job(made))
    return made


def test_data_of_the_same_vocabulary_are_taken(job: RecTrainingJob, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", MATRIX, [OWN_USER, NAMED_ITEM], values=sorted(NAMES))
    check_data(load_bundle(str(tmp_path / "bundle")), job)


def test_data_of_another_vocabulary_are_refused(job: RecTrainingJob, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", MATRIX, [OWN_USER, NAMED_ITEM], values=[*sorted(NAMES), NAMES[-1]])
    arguments = ["evaluate", str(tmp_path / "job.yaml"), "--bundle", str(tmp_path / "bundle")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr == (
        f"error: {tmp_path}/train/features.json: was fitted on other data than the bundle of tiny: "
        "ids stand for other values; use the data that the bundle was trained on\n"
    )
    with pytest.raises(UserError, match="was fitted on other data than the bundle"):
        items_of(load_bundle(str(tmp_path / "bundle")), job)
