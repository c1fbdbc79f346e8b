"""The job's types: RecTrainingJob and everything in it, its rules, and how a job file is read."""

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJob, RecTrainingJobSpec
from rectrain.api.loading import InvalidJobError, dump_job, load_job, parse_job, validate_job

__all__ = [
    "InvalidJobError",
    "RecTrainingJob",
    "RecTrainingJobSpec",
    "UserError",
    "dump_job",
    "load_job",
    "parse_job",
    "validate_job",
]
