"""Exit codes of a worker process, also those of `rectrain run`.

Kubernetes' ExitCode restart policy takes 1 to 127 as permanent and 128 to 255 as worth a retry; these keep to it.
"""

SUCCEEDED = 0
"""Training and evaluation are done."""
FAILED = 1
"""Something unexpected; the traceback is in the log."""
USER_ERROR = 2
"""The job, the data or the environment is wrong; the message says what. A retry would end the same way."""
DIVERGED = 4
"""The loss is not finite; the message names the step and the rows."""
STOPPED = 143
"""SIGTERM came: the step was finished and a checkpoint saved. A restart continues from it."""
ENDED_BY_SIGNAL = 128
"""What shells and Kubernetes add to the number of the signal that ended a process."""
