"""User names and passwords in a tracking URI are for the connection alone: nothing shown or recorded has them."""

import re

from rectrain.api.job import RecTrainingJob

# Up to the last @ before the path: a password may hold one itself.
_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")


def without_credentials(text: str) -> str:
    """Return a text with the user name and password of every URI in it replaced by ***."""
    return _USER_INFO.sub("***@", text)


def job_without_credentials(job: RecTrainingJob) -> RecTrainingJob:
    """Return the job as it may be recorded: without the user name and password of its tracking URI."""
    mlflow = job.spec.tracking.mlflow
    if mlflow.tracking_uri is None:
        return job
    shown = mlflow.model_copy(update={"tracking_uri": without_credentials(mlflow.tracking_uri)})
    tracking = job.spec.tracking.model_copy(update={"mlflow": shown})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"tracking": tracking})})
