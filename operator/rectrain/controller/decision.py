"""What a pass decides: what to do, what to write, what to tell, and when to look again."""

from dataclasses import dataclass
from datetime import datetime

from rectrain.api.status import Status


@dataclass(frozen=True, slots=True)
class CreateConfigMap:
    """Create the ConfigMap that the workers read the job from; one that is there already is taken."""


@dataclass(frozen=True, slots=True)
class CreateChild:
    """Create the job's PyTorchJob; one that is there already is looked at in the next pass.

    Attributes:
        attempt: Number of the attempt.
        suspended: Whether its pods are held back, for Kueue to admit.
    """

    attempt: int
    suspended: bool


@dataclass(frozen=True, slots=True)
class DeleteChild:
    """Delete the job's PyTorchJob and wait for its pods: it goes when they are gone.

    Attributes:
        uid: Identity of the one that is meant.
    """

    uid: str


@dataclass(frozen=True, slots=True)
class CreateConversion:
    """Create the batch/v1 Job that makes the shards; one that is there already is looked at in the next pass."""


@dataclass(frozen=True, slots=True)
class JoinConversion:
    """Become an owner of a conversion that another job asked for, so that it stays for as long as either does.

    Attributes:
        name: Name of the conversion.
        uid: Identity of the one that is meant.
        config_map: What its pods read the job from, which has to stay with it; empty where that is not known.
    """

    name: str
    uid: str
    config_map: str


@dataclass(frozen=True, slots=True)
class DeleteConversion:
    """Delete a conversion that failed for others, to try it anew.

    Attributes:
        name: Name of the conversion.
        uid: Identity of the one that is meant.
    """

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the job itself: its time to live is over.

    Attributes:
        uid: Identity of the one that is meant.
    """

    uid: str


Action = CreateConfigMap | CreateChild | DeleteChild | CreateConversion | JoinConversion | DeleteConversion | DeleteJob


@dataclass(frozen=True, slots=True)
class Event:
    """A line in `kubectl describe`.

    Attributes:
        reason: One CamelCase word.
        message: The reason for people.
        is_warning: Whether somebody should look at it.
    """

    reason: str
    message: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from what is observed.

    Attributes:
        actions: What to do, in this order, before the status is written.
        status: The status that the job should have then.
        events: What to tell once the status is written.
        requeue_at: When to look again though nothing happens, or None.
    """

    actions: tuple[Action, ...]
    status: Status
    events: tuple[Event, ...] = ()
    requeue_at: datetime | None = None
