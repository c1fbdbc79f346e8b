"""What can go wrong between a client and a cluster, each as a type of its own."""

from rectrain.api.errors import UserError


class ClusterError(UserError):
    """The cluster said no, or could not be asked."""


class ClusterUnreachableError(ClusterError):
    """There is no way to an API server: no kubeconfig, no such context, nobody answers."""


class NotPermittedError(ClusterError):
    """The API server does not let this user do that."""


class NotInstalledError(ClusterError):
    """The cluster does not know RecTrainingJobs."""


class JobNotFoundError(ClusterError):
    """There is no job of that name, or there is no longer."""


class ObjectNotFoundError(ClusterError):
    """Something other than a job is not there, or no longer: a namespace, a pod."""


class JobExistsError(ClusterError):
    """There is a job of that name already."""


class JobRefusedError(ClusterError):
    """The API server refused the job; the message has its words."""


class JobFailedError(ClusterError):
    """The job ended without success.

    Attributes:
        reason: The cause, as one CamelCase word.
    """

    def __init__(self, message: str, reason: str) -> None:
        """Hold the cause for programs beside the message for people."""
        super().__init__(message)
        self.reason = reason


class WaitTimeoutError(ClusterError):
    """The time to wait was over before the job had come that far."""
