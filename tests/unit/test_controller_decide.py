"""Every policy of the controller, one case for each behaviour."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from controller_objects import (
    CHILD_UID,
    JOB_UID,
    SOURCE,
    T0,
    child,
    condition,
    conversion,
    job,
    message,
    pod,
)

from rectrain.api.status import Condition, ConditionStatus, Progress, Status
from rectrain.controller.conditions import ConditionType as C
from rectrain.controller.decide import decide
from rectrain.controller.decision import (
    CreateChild,
    CreateConfigMap,
    CreateConversion,
    DeleteChild,
    DeleteConversion,
    DeleteJob,
    JoinConversion,
)
from rectrain.controller.observed import Job, Observed, Phase, Refusal
from rectrain.controller.stages.outcome import backoff


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def status(*true: C, since: datetime = T0, **fields: Any) -> Status:
    conditions = [
        Condition(
            type=t, status=ConditionStatus.TRUE, observed_generation=1, last_transition_time=since, reason="Before"
        )
        for t in true
    ]
    return Status(conditions=conditions, **fields)


CREATE = (CreateConfigMap(), CreateChild(0, suspended=False))
STARTED = {"start_time": T0}
RUNNING, PENDING, SUCCEEDED, FAILED = Phase.RUNNING, Phase.PENDING, Phase.SUCCEEDED, Phase.FAILED


REFUSED = Condition(
    type=C.RUNNING,
    status=ConditionStatus.FALSE,
    observed_generation=1,
    last_transition_time=T0,
    reason="PodsRefused",
    message="exceeded quota",
)


STOPPING = REFUSED.model_copy(update={"reason": "Stopping"})


@dataclass(frozen=True)
class Case:
    job: Job
    observed: Observed = field(default_factory=Observed)
    actions: tuple[Any, ...] = ()
    conditions: dict[C, tuple[str, str]] = field(default_factory=dict)
    says: str = ""
    """Part of the message of the first of the conditions."""
    status: dict[str, Any] = field(default_factory=dict)
    now: datetime = T0
    again: datetime | None = None
    """When to look again, at the latest."""


def failed(*pods: Any) -> Observed:
    return Observed(child=child(FAILED), pods=pods)


CASES = {
    "a new job gets its ConfigMap, then its PyTorchJob": Case(
        job(),
        actions=CREATE,
        conditions={
            C.RUNNING: ("False", "Pending"),
            C.SUSPENDED: ("False", "NotSuspended"),
            C.RESTARTING: ("False", "NotNeeded"),
            C.SUCCEEDED: ("False", "NotFinished"),
            C.FAILED: ("False", "NotFinished"),
        },
        status={"observed_generation": 1, "attempt": 0, "start_time": T0},
        again=at(15),
    ),
    "a job that is being deleted is left alone": Case(job(deleting=True), Observed(child=child())),
    "workers run": Case(
        job(status(**STARTED)),
        Observed(child=child(), pods=(pod(),)),
        conditions={C.RUNNING: ("True", "Training"), C.RESTARTING: ("False", "NotNeeded")},
    ),
    "the start time is when the workers were let run, not when they run": Case(
        job(status(**STARTED)), Observed(child=child()), now=at(60), status={"start_time": T0}
    ),
    "while a pod is prepared it is asked whether what it mounts is there": Case(
        job(status(**STARTED)),
        Observed(child=child(PENDING), pods=(pod(phase="Pending"),)),
        conditions={C.RUNNING: ("False", "Pending")},
        again=at(60),
    ),
    "what a pod mounts is made again": Case(
        job(status(**STARTED)),
        Observed(child=child(PENDING), pods=(pod(phase="Pending"),), config_map_missing=True),
        actions=(CreateConfigMap(),),
        conditions={C.RUNNING: ("False", "Pending")},
        again=at(60),
    ),
    "what a pod mounts is made again while the others run": Case(
        job(status(**STARTED)),
        Observed(child=child(), pods=(pod(), pod("clicks-worker-0", phase="Pending")), config_map_missing=True),
        actions=(CreateConfigMap(),),
        conditions={C.RUNNING: ("True", "Training")},
        again=at(60),
    ),
    # Suspension
    "a suspended job creates nothing": Case(
        job(run_policy={"suspend": True}), conditions={C.SUSPENDED: ("True", "SuspendedByUser")}
    ),
    "suspending deletes the PyTorchJob, and the deadline starts anew": Case(
        job(status(C.RUNNING, **STARTED), run_policy={"suspend": True}),
        Observed(child=child()),
        actions=(DeleteChild(CHILD_UID),),
        conditions={C.SUSPENDED: ("True", "SuspendedByUser"), C.RUNNING: ("False", "Suspended")},
        status={"start_time": None},
    ),
    "suspending waits for a PyTorchJob that is being deleted": Case(
        job(status(C.SUSPENDED), run_policy={"suspend": True}), Observed(child=child(deleting=True))
    ),
    "suspending leaves another's PyTorchJob alone": Case(
        job(run_policy={"suspend": True}), Observed(child=child(owner_uid="other"))
    ),
    "a job that succeeded while it was being suspended has succeeded": Case(
        job(status(C.RUNNING), run_policy={"suspend": True}),
        Observed(child=child(SUCCEEDED)),
        conditions={C.SUCCEEDED: ("True", "TrainingCompleted")},
    ),
    "resuming creates the PyTorchJob again, of the same attempt": Case(
        job(status(C.SUSPENDED, attempt=2)),
        actions=(CreateConfigMap(), CreateChild(2, suspended=False)),
        conditions={C.SUSPENDED: ("False", "NotSuspended")},
        status={"start_time": T0},
    ),
    "resuming waits until the pods have gone": Case(
        job(status(C.SUSPENDED)),
        Observed(pods=(pod(owner_uid="old"),)),
        conditions={C.RUNNING: ("False", "Pending")},
        says="clicks-master-0",
        again=at(15),
    ),
    # Kueue
    "a queued job's PyTorchJob is created suspended": Case(
        job(queue="gpus"),
        actions=(CreateConfigMap(), CreateChild(0, suspended=True)),
        conditions={C.SUSPENDED: ("True", "WaitingForAdmission")},
        says="queue gpus",
        status={"start_time": None},
    ),
    "a queued job that is admitted runs": Case(
        job(status(C.SUSPENDED), queue="gpus"),
        Observed(child=child()),
        conditions={C.SUSPENDED: ("False", "NotSuspended"), C.RUNNING: ("True", "Training")},
        status={"start_time": T0},
    ),
    "a job that Kueue preempts waits, and nothing is done to it": Case(
        job(status(C.RUNNING, **STARTED), queue="gpus"),
        Observed(child=child(PENDING, suspended=True)),
        conditions={C.SUSPENDED: ("True", "WaitingForAdmission"), C.RUNNING: ("False", "WaitingForAdmission")},
        status={"start_time": None},
    ),
    # Deadline
    "a deadline is looked at again when it is due": Case(
        job(status(**STARTED), run_policy={"activeDeadlineSeconds": 100}),
        Observed(child=child()),
        now=at(40),
        again=at(100),
    ),
    "a new job's deadline is looked at again when it is due": Case(
        job(run_policy={"activeDeadlineSeconds": 10}), actions=CREATE, again=at(10)
    ),
    "a deadline that is over fails the job": Case(
        job(status(**STARTED), run_policy={"activeDeadlineSeconds": 100}),
        Observed(child=child()),
        now=at(100),
        conditions={C.FAILED: ("True", "DeadlineExceeded"), C.RUNNING: ("False", "DeadlineExceeded")},
        says="activeDeadlineSeconds, 100 s",
    ),
    "success counts though the deadline is over": Case(
        job(status(**STARTED), run_policy={"activeDeadlineSeconds": 100}),
        Observed(child=child(SUCCEEDED)),
        now=at(200),
        conditions={C.SUCCEEDED: ("True", "TrainingCompleted"), C.FAILED: ("False", "NotFinished")},
    ),
    # The end
    "a failed job's running PyTorchJob is deleted": Case(
        job(status(C.FAILED)), Observed(child=child()), actions=(DeleteChild(CHILD_UID),)
    ),
    "a finished job's finished PyTorchJob stays": Case(job(status(C.SUCCEEDED)), Observed(child=child(SUCCEEDED))),
    "a finished job's finished PyTorchJob goes with all its pods where none shall stay": Case(
        job(status(C.SUCCEEDED), run_policy={"cleanPodPolicy": "All"}),
        Observed(child=child(SUCCEEDED)),
        actions=(DeleteChild(CHILD_UID),),
    ),
    "a finished job whose PyTorchJob is gone is left as it is": Case(job(status(C.SUCCEEDED))),
    "a failed job leaves another's PyTorchJob alone": Case(
        job(status(C.FAILED)), Observed(child=child(owner_uid="other"))
    ),
    "time to live: looked at again when it is over": Case(
        job(status(C.SUCCEEDED), run_policy={"ttlSecondsAfterFinished": 60}), now=at(10), again=at(60)
    ),
    "time to live: the job is deleted when it is over": Case(
        job(status(C.FAILED), run_policy={"ttlSecondsAfterFinished": 60}),
        Observed(child=child()),
        now=at(60),
        actions=(DeleteJob(JOB_UID),),
    ),
    "time to live: zero deletes at once": Case(
        job(status(C.SUCCEEDED), run_policy={"ttlSecondsAfterFinished": 0}), actions=(DeleteJob(JOB_UID),)
    ),
    "results are what a worker left": Case(
        job(status(C.RUNNING)),
        Observed(
            child=child(SUCCEEDED),
            pods=(pod(exit_code=0, message='{"metrics": [{"name": "auc", "value": 0.8}], "modelUri": "s3://b/m"}'),),
        ),
        conditions={C.SUCCEEDED: ("True", "TrainingCompleted")},
        says="the model is trained",
    ),
    # Restarts
    "a failure is counted before anything is deleted": Case(
        job(status(C.RUNNING, **STARTED)),
        failed(pod(exit_code=1, message="boom")),
        conditions={C.RESTARTING: ("True", "WorkerFailed"), C.RUNNING: ("False", "WorkerFailed")},
        says="pod clicks-master-0: exit code 1: boom",
        status={"restarts": 1, "attempt": 1, "restart_after": at(5), "start_time": T0},
        again=T0,
    ),
    "the failed attempt's PyTorchJob is deleted then": Case(
        job(status(C.RESTARTING, restarts=1, attempt=1, restart_after=at(5))),
        failed(pod(exit_code=1)),
        actions=(DeleteChild(CHILD_UID),),
        conditions={C.RESTARTING: ("True", "Before"), C.RUNNING: ("False", "Restarting")},
        status={"restarts": 1, "attempt": 1},
        again=at(15),
    ),
    "it is deleted once": Case(
        job(status(C.RESTARTING, restarts=1, attempt=1)), Observed(child=child(FAILED, deleting=True)), again=at(15)
    ),
    "the next attempt waits for the pods of the last": Case(
        job(status(C.RESTARTING, restarts=1, attempt=1)),
        Observed(pods=(pod(exit_code=1), pod("clicks-worker-0"))),
        conditions={C.RUNNING: ("False", "Restarting")},
        says="clicks-master-0, clicks-worker-0",
        again=at(15),
    ),
    "the next attempt waits for its time": Case(
        job(status(C.RESTARTING, restarts=1, attempt=1, restart_after=at(5))),
        now=at(1),
        conditions={C.RUNNING: ("False", "Restarting")},
        again=at(5),
    ),
    "the next attempt is created under the same name": Case(
        job(status(C.RESTARTING, restarts=1, attempt=1, restart_after=at(5), **STARTED)),
        now=at(5),
        actions=(CreateConfigMap(), CreateChild(1, suspended=False)),
        conditions={C.RESTARTING: ("True", "Before")},
        status={"restart_after": None, "start_time": T0},
    ),
    "a restart is over when the workers run": Case(
        job(status(C.RESTARTING, restarts=1, attempt=1)),
        Observed(child=child(attempt=1)),
        conditions={C.RESTARTING: ("False", "Restarted"), C.RUNNING: ("True", "Training")},
    ),
    "the attempt is the child's where the status was lost": Case(
        job(), Observed(child=child(attempt=3)), status={"attempt": 3}, conditions={C.RUNNING: ("True", "Training")}
    ),
    "failures beyond maxRestarts fail the job": Case(
        job(status(C.RUNNING, restarts=2), run_policy={"maxRestarts": 2}),
        failed(pod(exit_code=1, message="boom")),
        conditions={C.FAILED: ("True", "MaxRestartsExceeded")},
        says="failed after 2 restarts, the most that runPolicy.maxRestarts allows; last: pod clicks-master-0",
        status={"restarts": 2, "attempt": 0},
    ),
    "without restarts, the first failure is the reason": Case(
        job(run_policy={"maxRestarts": 0}),
        failed(pod(exit_code=1, reason="OOMKilled")),
        conditions={C.FAILED: ("True", "OOMKilled")},
    ),
    "raising maxRestarts takes effect": Case(
        job(status(C.RUNNING, restarts=2), run_policy={"maxRestarts": 5}),
        failed(pod(exit_code=1)),
        status={"restarts": 3, "attempt": 1},
    ),
    "a user's error is not tried again": Case(
        job(status(C.RUNNING)),
        failed(pod(exit_code=2, message="spec.data.train: no such bucket")),
        conditions={C.FAILED: ("True", "UserError"), C.RESTARTING: ("False", "UserError")},
        says="no such bucket",
        status={"restarts": 0, "attempt": 0},
    ),
    "a preempted worker's restart is not counted": Case(
        job(status(C.RUNNING, restarts=3, attempt=4), run_policy={"maxRestarts": 3}),
        Observed(child=child(FAILED, attempt=4), pods=(pod(exit_code=143),)),
        conditions={C.RESTARTING: ("True", "Stopped")},
        status={"restarts": 3, "attempt": 5, "restart_after": at(5)},
    ),
    # Nodes
    "a failure is judged when all pods have ended": Case(
        job(status(C.RUNNING, **STARTED)),
        failed(pod(exit_code=1, message="lost a peer", finished_at=T0), pod("clicks-worker-0")),
        conditions={C.RUNNING: ("False", "Stopping"), C.RESTARTING: ("False", "NotNeeded")},
        says="exit code 1: lost a peer; waits for the others: clicks-worker-0",
        status={"restarts": 0, "attempt": 0},
        again=at(90),
    ),
    "a node whose clock is ahead does not prolong the wait": Case(
        job(Status(conditions=[STOPPING], **STARTED)),
        failed(pod(exit_code=1, finished_at=at(3600)), pod("clicks-worker-0")),
        now=at(90),
        conditions={C.RESTARTING: ("True", "WorkerFailed")},
    ),
    "a node whose clock is ahead is waited for like others": Case(
        job(status(C.RUNNING, **STARTED)),
        failed(pod(exit_code=1, finished_at=at(3600)), pod("clicks-worker-0")),
        conditions={C.RUNNING: ("False", "Stopping")},
        again=at(90),
    ),
    **{
        f"a node that turned the pod away as {reason} is not the job's failure": Case(
            job(status(C.RUNNING, **STARTED), run_policy={"maxRestarts": 0}),
            failed(pod(phase="Failed", reason=reason, message="Node didn't have enough resource")),
            conditions={C.RESTARTING: ("True", reason)},
            status={"restarts": 0, "attempt": 1},
        )
        for reason in ("OutOfcpu", "OutOfnvidia.com/gpu", "UnexpectedAdmissionError", "TopologyAffinityError")
    },
    "a failure of a pod that is gone is judged when the others have ended": Case(
        job(status(C.RUNNING, **STARTED)),
        failed(pod(), pod("clicks-worker-0", gone=True)),
        now=at(7),
        conditions={C.RUNNING: ("False", "Stopping"), C.RESTARTING: ("False", "NotNeeded")},
        says="waits for the others: clicks-master-0",
        status={"restarts": 0, "attempt": 0},
        again=at(97),
    ),
    "and is the one that they show": Case(
        job(status(C.RUNNING, **STARTED)),
        failed(pod(exit_code=143, finished_at=T0), pod("clicks-worker-0", gone=True)),
        conditions={C.RESTARTING: ("True", "Stopped")},
        status={"restarts": 0, "attempt": 1},
    ),
    "a cause that comes after its consequence counts": Case(
        job(status(C.RUNNING, **STARTED)),
        failed(pod(exit_code=1, finished_at=T0), pod("clicks-worker-0", exit_code=2, finished_at=at(5))),
        conditions={C.FAILED: ("True", "UserError")},
    ),
    "a pod that does not end is not waited for without end": Case(
        job(status(C.RUNNING, **STARTED)),
        failed(pod(exit_code=1, finished_at=T0), pod("clicks-worker-0")),
        now=at(90),
        conditions={C.RESTARTING: ("True", "WorkerFailed")},
        status={"restarts": 1, "attempt": 1},
    ),
    "a worker that failed because a node was lost is not counted": Case(
        job(status(C.RUNNING, **STARTED), run_policy={"maxRestarts": 0}),
        failed(pod(exit_code=1, finished_at=T0), pod("clicks-worker-0", unreachable=True)),
        now=at(50),
        conditions={C.RESTARTING: ("True", "NodeLost")},
        says="pod clicks-worker-0: its node does not answer",
        status={"restarts": 0, "attempt": 1},
    ),
    "a node that does not answer for a while is waited for": Case(
        job(status(C.RUNNING, **STARTED)),
        Observed(child=child(), pods=(pod(), pod("clicks-worker-0", unreachable=True))),
        conditions={C.RUNNING: ("True", "Training")},
    ),
    "a pod that is given up with its node ends the attempt, though the others run": Case(
        job(status(C.RUNNING, **STARTED)),
        Observed(
            child=child(), pods=(pod(), pod("clicks-worker-0", unreachable=True, disruption="DeletionByTaintManager"))
        ),
        conditions={C.RESTARTING: ("True", "DeletionByTaintManager")},
        status={"restarts": 0, "attempt": 1},
    ),
    "a pod that is evicted saves its checkpoint before the attempt ends": Case(
        job(status(C.RUNNING, **STARTED)),
        Observed(child=child(), pods=(pod(), pod("clicks-worker-0", disruption="EvictionByEvictionAPI"))),
        conditions={C.RUNNING: ("True", "Training")},
    ),
    "elastic workers wait in vain as well, and start again with those that there are": Case(
        job(status(C.RUNNING, **STARTED), workers={"replicas": 2, "elastic": {"minReplicas": 1, "maxReplicas": 2}}),
        Observed(child=child(), pods=(pod(unreachable=True, disruption="DeletionByTaintManager"), pod("w"))),
        conditions={C.RESTARTING: ("True", "DeletionByTaintManager")},
        status={"restarts": 0, "attempt": 1},
    ),
    "a pod that nobody can stop is named": Case(
        job(status(C.RESTARTING, attempt=1)),
        Observed(child=child(deleting=True), pods=(pod(gone=True), pod("clicks-worker-0", unreachable=True))),
        conditions={C.RUNNING: ("False", "Restarting")},
        says="the node of clicks-worker-0 does not answer",
        again=at(15),
    ),
    # Before it runs
    "tables that cannot fit are refused before anything is created": Case(
        job(
            features=[{"name": "item", "kind": "Categorical", "cardinality": 2_000_000_000}],
            sharding={"hbmPerDevice": "16Gi"},
        ),
        conditions={C.FAILED: ("True", "OutOfDeviceMemory")},
        says="item",
    ),
    "pods without a node are explained": Case(
        job(status(**STARTED)),
        Observed(child=child(PENDING), pods=(pod(phase="Pending", unschedulable="0/3 nodes: Insufficient gpu"),)),
        conditions={C.RUNNING: ("False", "Unschedulable")},
        says="pod clicks-master-0: 0/3 nodes: Insufficient gpu",
    ),
    "a pod without a node is counted among those that run": Case(
        job(status(**STARTED)),
        Observed(child=child(), pods=(pod(), pod("w", phase="Pending", unschedulable="0/3 nodes"))),
        conditions={C.RUNNING: ("True", "Training")},
        says="pod w: 0/3 nodes",
    ),
    "an image that cannot be pulled is waited for": Case(
        job(status(**STARTED)),
        Observed(
            child=child(PENDING), pods=(pod(phase="Pending", waiting_reason="ErrImagePull", waiting_message="no tag"),)
        ),
        now=at(60),
        conditions={C.RUNNING: ("False", "ImagePullBackOff")},
        says="no tag",
        again=at(600),
    ),
    "an image that cannot be pulled fails the job in the end": Case(
        job(status(**STARTED)),
        Observed(child=child(PENDING), pods=(pod(phase="Pending", waiting_reason="ImagePullBackOff"),)),
        now=at(600),
        conditions={C.FAILED: ("True", "ImagePullBackOff")},
    ),
    "an image name that is none fails the job at once": Case(
        job(status(**STARTED)),
        Observed(child=child(PENDING), pods=(pod(phase="Pending", waiting_reason="InvalidImageName"),)),
        conditions={C.FAILED: ("True", "InvalidImageName")},
    ),
    "pods that are missing are asked for": Case(
        job(status(**STARTED)),
        Observed(child=child(PENDING)),
        conditions={C.RUNNING: ("False", "Pending")},
        again=at(15),
    ),
    "pods that cannot be created are a condition, with the words of the event": Case(
        job(status(**STARTED)),
        Observed(child=child(PENDING), pods_refused='Error creating: pods "x" is forbidden: exceeded quota'),
        now=at(15),
        conditions={C.RUNNING: ("False", "PodsRefused")},
        says="exceeded quota",
        again=at(60),
    ),
    "that pods cannot be created holds until it is asked again": Case(
        job(Status(conditions=[REFUSED], **STARTED)),
        Observed(child=child(PENDING)),
        now=at(20),
        conditions={C.RUNNING: ("False", "PodsRefused")},
        says="exceeded quota",
    ),
    "pods that are there were not refused": Case(
        job(Status(conditions=[REFUSED], **STARTED)),
        Observed(child=child(PENDING), pods=(pod(phase="Pending"),)),
        conditions={C.RUNNING: ("False", "Pending")},
    ),
    # What is not ours, or not there
    "the PyTorchJob of a former job of the same name is waited for": Case(
        job(),
        Observed(child=child(owner_uid="former", owner="RecTrainingJob/clicks")),
        conditions={C.RUNNING: ("False", "Pending")},
        says="the job that had this name before",
        again=at(15),
    ),
    "another's Job of the conversion's name is left alone": Case(
        job(source=SOURCE),
        Observed(conversion=conversion(FAILED, owners=(), is_managed=False)),
        conditions={C.RUNNING: ("False", "NameTaken"), C.DATA_PREPARED: ("False", "NameTaken")},
        says="was not made by rectrain",
        again=at(30),
    ),
    "another's PyTorchJob of the same name is left alone": Case(
        job(),
        Observed(child=child(SUCCEEDED, owner_uid="other")),
        conditions={C.RUNNING: ("False", "NameTaken"), C.SUCCEEDED: ("False", "NotFinished")},
        says="belongs to another owner, other",
        again=at(30),
    ),
    "an orphaned PyTorchJob of the same name is left alone": Case(
        job(), Observed(child=child(owner_uid=None)), conditions={C.RUNNING: ("False", "NameTaken")}, says="to nobody"
    ),
    "a missing PyTorchJob kind is a condition": Case(
        job(),
        Observed(refusal=Refusal("PyTorchJobNotInstalled", "install it")),
        conditions={C.RUNNING: ("False", "PyTorchJobNotInstalled"), C.FAILED: ("False", "NotFinished")},
        says="install it",
        status={"start_time": None},
        again=at(30),
    ),
    "what the API server refuses for good fails the job": Case(
        job(),
        Observed(refusal=Refusal("InvalidPodTemplate", "spec.template: bad", permanent=True)),
        conditions={C.FAILED: ("True", "InvalidPodTemplate")},
    ),
    # Data
    "the data are converted first": Case(
        job(source=SOURCE),
        actions=(CreateConfigMap(), CreateConversion()),
        conditions={C.DATA_PREPARED: ("False", "Converting"), C.RUNNING: ("False", "Converting")},
    ),
    "a suspended job does not convert": Case(job(source=SOURCE, run_policy={"suspend": True})),
    "a conversion that runs is waited for": Case(
        job(source=SOURCE), Observed(conversion=conversion()), conditions={C.DATA_PREPARED: ("False", "Converting")}
    ),
    "a conversion whose pod does not start says why": Case(
        job(source=SOURCE),
        Observed(
            conversion=conversion(pod_waits=True),
            conversion_pods=(
                pod("convert-x", phase="Pending", waiting_reason="ErrImagePull", waiting_message="worker:1: not found"),
            ),
        ),
        conditions={C.RUNNING: ("False", "ImagePullBackOff"), C.DATA_PREPARED: ("False", "Converting")},
        says="pod convert-x: worker:1: not found",
        again=at(15),
    ),
    "a conversion whose pod is about to start is waited for": Case(
        job(source=SOURCE),
        Observed(conversion=conversion(pod_waits=True), conversion_pods=(pod("convert-x", phase="Pending"),)),
        conditions={C.RUNNING: ("False", "Converting")},
        again=at(15),
    ),
    "a queued job's conversion is created suspended": Case(
        job(queue="gpus", source=SOURCE),
        actions=(CreateConfigMap(), CreateConversion()),
        conditions={C.SUSPENDED: ("True", "WaitingForAdmission"), C.RUNNING: ("False", "WaitingForAdmission")},
    ),
    "a conversion is admitted by the queue like the training": Case(
        job(queue="gpus", source=SOURCE),
        Observed(conversion=conversion(suspended=True)),
        conditions={C.SUSPENDED: ("True", "WaitingForAdmission"), C.RUNNING: ("False", "WaitingForAdmission")},
        says="the conversion waits for admission by queue gpus",
    ),
    "a conversion that another job asked for is joined": Case(
        job(source=SOURCE),
        Observed(conversion=conversion(owners=("other",))),
        actions=(JoinConversion("convert", "conversion-uid", "first-0123456789"),),
        conditions={C.DATA_PREPARED: ("False", "Converting")},
    ),
    "training begins when the conversion is done": Case(
        job(source=SOURCE),
        Observed(conversion=conversion(SUCCEEDED)),
        actions=CREATE,
        conditions={C.DATA_PREPARED: ("True", "Converted")},
    ),
    "a job that has its data never asks again": Case(
        job(status(C.DATA_PREPARED), source=SOURCE), Observed(conversion=conversion(FAILED)), actions=CREATE
    ),
    "a conversion that failed fails the job": Case(
        job(source=SOURCE),
        Observed(conversion=conversion(FAILED, message="line 3: no number")),
        conditions={C.FAILED: ("True", "ConversionFailed"), C.DATA_PREPARED: ("False", "ConversionFailed")},
        says="Job convert: line 3: no number",
    ),
    "a conversion that failed says what its pod said last": Case(
        job(source=SOURCE),
        Observed(
            conversion=conversion(FAILED, message="failed with exit code 2 matching FailJob rule"),
            conversion_pods=(pod("convert-x", exit_code=2, message="raw.csv: line 3: no number"),),
        ),
        conditions={C.FAILED: ("True", "ConversionFailed"), C.DATA_PREPARED: ("False", "ConversionFailed")},
        says="Job convert: pod convert-x: exit code 2: raw.csv: line 3: no number",
    ),
    "a conversion that needed more memory says what to raise": Case(
        job(source=SOURCE),
        Observed(
            conversion=conversion(FAILED, message="has reached the specified backoff limit"),
            conversion_pods=(pod("convert-x", exit_code=137, reason="OOMKilled"),),
        ),
        conditions={C.FAILED: ("True", "ConversionFailed")},
        says="pod convert-x: needed more memory than its limit, workers.resources.limits.memory",
    ),
    "a conversion that ended for others is done anew": Case(
        job(source=SOURCE),
        Observed(conversion=conversion(FAILED, owners=("other",))),
        actions=(DeleteConversion("convert", "conversion-uid"),),
        again=at(5),
    ),
    "a conversion that is going away is waited for": Case(
        job(source=SOURCE), Observed(conversion=conversion(SUCCEEDED, owners=(), deleting=True)), again=at(5)
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_decides(case: Case) -> None:
    decision = decide(case.job, case.observed, case.now)
    assert decision.actions == case.actions
    for type_, wanted in case.conditions.items():
        assert condition(decision.status, type_) == wanted
    if case.says:
        assert case.says in message(decision.status, next(iter(case.conditions)))
    for name, value in case.status.items():
        assert getattr(decision.status, name) == value
    if case.again is not None:
        assert decision.requeue_at == case.again


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_pass_that_changes_nothing_writes_nothing(case: Case) -> None:
    first = decide(case.job, case.observed, case.now)
    again = decide(replace_status(case.job, first.status), case.observed, case.now + timedelta(milliseconds=900))
    if first.status.attempt == case.job.status.attempt and not first.actions:
        assert again.status == first.status
        assert again.events == ()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_end_is_looked_at_again_at_once(case: Case) -> None:
    """What is left to do about a job that has ended must not wait for an event, which may bring no news."""
    decision = decide(case.job, case.observed, case.now)
    ends = {C.SUCCEEDED, C.FAILED}
    before = {c.type for c in case.job.status.conditions if c.status == "True"} & ends
    after = {c.type for c in decision.status.conditions if c.status == "True"} & ends
    if after and not before:
        assert decision.requeue_at == case.now.replace(microsecond=0)


def replace_status(before: Job, after: Status) -> Job:
    return replace(before, status=after)


@pytest.mark.parametrize("ended", [C.SUCCEEDED, C.FAILED])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_end_is_never_left(case: Case, ended: C) -> None:
    before = status(ended, attempt=1, restarts=1)
    assert decide(replace_status(case.job, before), case.observed, case.now).status == before


def test_a_status_begins_and_ends_a_restart_once() -> None:
    running = job(status(C.RUNNING, **STARTED))
    first = decide(running, failed(pod(exit_code=1)), T0)
    second = decide(replace_status(running, first.status), failed(pod(exit_code=1)), at(1))
    assert (first.status.restarts, second.status.restarts) == (1, 1)


@pytest.mark.parametrize(
    ("restarts", "seconds"), [(0, 5), (1, 5), (2, 10), (3, 20), (6, 160), (7, 300), (8, 300), (10_000, 300)]
)
def test_backoff_doubles_up_to_five_minutes(restarts: int, seconds: int) -> None:
    assert backoff(restarts) == timedelta(seconds=seconds)


def test_an_invalid_spec_fails_a_job_that_never_began() -> None:
    invalid = replace(job(), definition=None, problem="spec.model: is required")
    decision = decide(invalid, Observed(), T0)
    assert condition(decision.status, C.FAILED) == ("True", "InvalidSpec")
    assert message(decision.status, C.FAILED) == "spec.model: is required"


def test_an_invalid_spec_leaves_a_job_that_runs_to_run() -> None:
    invalid = replace(job(status(C.RUNNING, **STARTED)), definition=None, problem="spec.new: is not a field")
    decision = decide(invalid, Observed(child=child()), T0)
    assert decision.actions == ()
    assert condition(decision.status, C.RUNNING) == ("True", "SpecNotUnderstood")
    assert condition(decision.status, C.FAILED) == ("False", "NotFinished")


def test_an_invalid_spec_leaves_a_suspended_job_as_it_is() -> None:
    invalid = replace(job(status(C.SUSPENDED)), definition=None, problem="spec.new: is not a field")
    decision = decide(invalid, Observed(), T0)
    assert condition(decision.status, C.FAILED) == ("False", "NotFinished")


def test_what_others_say_is_cut_to_what_a_condition_may_hold() -> None:
    endless = Refusal("InvalidPodTemplate", "x" * 40_000, permanent=True)
    said = message(decide(job(), Observed(refusal=endless), T0).status, C.FAILED)
    assert len(said) == 4096
    assert said.endswith("x...")


def test_a_condition_that_only_another_controller_knows_stays_and_is_not_told() -> None:
    foreign = Condition(type="Audited", status=ConditionStatus.TRUE, last_transition_time=T0, reason="Audited")
    decision = decide(job(Status(conditions=[foreign])), Observed(), T0)
    assert foreign in decision.status.conditions
    assert [event.reason for event in decision.events] == ["Pending"]


def progress(step: int, seconds: float = 0) -> Progress:
    return Progress(step=step, total_steps=100, epoch=0, examples_per_second=10.0, last_update_time=at(seconds))


@pytest.mark.parametrize(("now_at", "written"), [(progress(2, 15), True), (progress(1, 15), False)])
def test_progress_is_written_only_where_training_moved(now_at: Progress, written: bool) -> None:
    before = decide(job(status(**STARTED)), Observed(child=child(), progress=progress(1)), T0).status
    after = decide(job(before), Observed(child=child(), progress=now_at), at(15)).status
    assert before.progress == progress(1)
    assert (after != before) is written
    assert after.progress == (now_at if written else progress(1))


EVENTS = {
    "creation": (job(), Observed(), [("Pending", False)]),
    "running": (job(status(**STARTED)), Observed(child=child()), [("Training", False)]),
    "failure": (job(status(C.RUNNING)), failed(pod(exit_code=2)), [("UserError", True)]),
    "restart": (job(status(C.RUNNING)), failed(pod(exit_code=1)), [("WorkerFailed", True)]),
    "success": (job(status(C.RUNNING)), Observed(child=child(SUCCEEDED)), [("TrainingCompleted", False)]),
    "another failure of a restart": (
        job(status(C.RESTARTING, attempt=1)),
        Observed(child=child(FAILED, attempt=1), pods=(pod(exit_code=1),)),
        [("WorkerFailed", True)],
    ),
    "resuming": (job(status(C.SUSPENDED)), Observed(), [("Resumed", False), ("Pending", False)]),
    "unschedulable": (
        job(status(**STARTED)),
        Observed(child=child(PENDING), pods=(pod(phase="Pending", unschedulable="no room"),)),
        [("Unschedulable", True)],
    ),
}


@pytest.mark.parametrize(("before", "observed", "wanted"), EVENTS.values(), ids=EVENTS)
def test_each_transition_is_told_once(before: Job, observed: Observed, wanted: list[tuple[str, bool]]) -> None:
    decision = decide(before, observed, T0)
    assert [(e.reason, e.is_warning) for e in decision.events] == wanted
