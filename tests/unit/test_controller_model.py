"""The controller under faults: a state machine over an API server in memory, and what has to hold whatever happens."""

from collections import deque
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any

from controller_objects import KEY, SOURCE, T0, document
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from memory_api import Fault, MemoryApi, TrainingOperator, mounted_by

from rectrain.api import validate_job
from rectrain.controller.errors import ApiError
from rectrain.controller.kinds import Kind
from rectrain.controller.observed import Key, Raw, conversion_of, is_managed
from rectrain.controller.reconcile import Reconciler
from rectrain.controller.store import Store
from rectrain.manifests import Settings, conversion_name

KEYS = [KEY, Key(KEY.namespace, "ads")]
MAX_RESTARTS = 2
keys = st.sampled_from(KEYS)
sides = st.sampled_from([0, 0, 0, 1])
applied = st.fixed_dictionaries({"queue": st.booleans(), "source": st.sampled_from([False, False, True])})
faults = st.lists(st.none() | st.sampled_from(Fault), max_size=6)
lost = st.sets(st.sampled_from([Kind.CHILD, Kind.POD, Kind.CONVERSION]))
CONVERSION = Key(KEY.namespace, conversion_name(validate_job(document(source=SOURCE), source="test")))
FOREIGN = {"kind": "Notebook", "name": "n", "uid": "foreign-owner", "controller": True}


class Controller:
    """A controller as a process: what it believes is lost when it is restarted."""

    def __init__(self, api: MemoryApi, clock: Any) -> None:
        self._api, self._clock = api, clock
        self.restart()

    def restart(self) -> None:
        if hasattr(self, "events"):
            self._api.unwatch(self.events)
        self.events = self._api.watch()
        self.store = Store(clock=lambda: 0.0)
        self.queue: deque[Key] = deque()
        self.due: dict[Key, datetime] = {}
        self._reconciler = Reconciler(self._api, self.store, Settings(), {}, clock=self._clock)

    def take(self, kind: Kind, *, twice: bool = False) -> None:
        if self.events[kind]:
            type_, raw = self.events[kind].popleft()
            for _ in range(1 + twice):
                for key in sorted(self.store.take_event(kind, raw, deleted=type_ == "DELETED")):
                    if key not in self.queue:
                        self.queue.append(key)

    def lose(self, kind: Kind) -> None:
        self.events[kind].clear()

    def take_all(self) -> None:
        while any(self.events.values()):
            for kind in self.events:
                self.take(kind)

    def run(self, key: Key, *, read: bool) -> None:
        """Pass over a job as a worker of the controller does."""
        try:
            due = finish(self._reconciler.reconcile(key, read=read))
        except ApiError:
            due = self._clock()  # with a back-off, which here is none
        if due is None:
            self.due.pop(key, None)
        else:
            self.due[key] = due

    def work(self) -> None:
        """Pass over what is queued, and what is due."""
        while self.queue:
            self.run(self.queue.popleft(), read=False)
        for key in [k for k, at in self.due.items() if at <= self._clock()]:
            del self.due[key]
            self.run(key, read=True)


class ControllerModel(RuleBasedStateMachine):
    """Two controllers, each of which may believe that it is the leader, and everything that can go wrong."""

    @initialize(options=st.tuples(applied, applied), ahead=st.sampled_from([0, 0, -86400, -30, 30, 86400]))
    def begin(self, options: tuple[dict[str, bool], dict[str, bool]], ahead: int = 0) -> None:
        """Begin with two jobs, on a cluster whose clocks are so many seconds ahead of the controllers'."""
        self.now = T0
        self.api = MemoryApi(lambda: self.now + timedelta(seconds=ahead))
        self.training = TrainingOperator(self.api)
        self.failures: dict[str, set[str]] = {}
        self.api.on_write.append(self.check_write)
        self.controllers = [Controller(self.api, lambda: self.now) for _ in range(2)]
        for key, chosen in zip(KEYS, options, strict=True):
            self.apply(key, chosen)

    # Users

    @rule(key=keys, what=st.sampled_from(["suspend", "resume", "resume", "delete", "delete and apply"]), chosen=applied)
    def use(self, key: Key, what: str, chosen: dict[str, bool]) -> None:
        if what in ("suspend", "resume"):
            self.suspend(key, what == "suspend")
        if what.startswith("delete") and (Kind.JOB, key) in self.api.objects:
            self.api.remove(Kind.JOB, key, foreground=chosen["source"])
        if what.endswith("apply"):
            self.apply(key, chosen)

    def apply(self, key: Key, chosen: dict[str, bool]) -> None:
        if (Kind.JOB, key) not in self.api.objects:
            labels = {"kueue.x-k8s.io/queue-name": "q"} if chosen["queue"] else {}
            source = SOURCE if chosen["source"] else None
            policy = {"maxRestarts": MAX_RESTARTS}
            self.api.put(Kind.JOB, document(name=key.name, run_policy=policy, source=source, labels=labels))

    def suspend(self, key: Key, suspended: bool) -> None:
        raw = self.api.objects.get((Kind.JOB, key))
        if raw is not None and raw["spec"]["runPolicy"].get("suspend", False) is not suspended:
            spec = {**raw["spec"], "runPolicy": {**raw["spec"]["runPolicy"], "suspend": suspended}}
            metadata = {**raw["metadata"], "generation": raw["metadata"]["generation"] + 1}
            self.api.change(Kind.JOB, key, spec=spec, metadata=metadata)

    # What else can happen

    @rule(
        key=keys,
        side=sides,
        what=st.sampled_from(
            [
                *("delete child", "orphan", "foreign", "free", "uninstall", "install", "restart"),
                "delete config map",
                *("foreign conversion", "unlabel conversion", "free conversion"),
            ]
        ),
        foreground=st.booleans(),
    )
    def meddle(self, key: Key, side: int, what: str, foreground: bool) -> None:
        child = self.api.objects.get((Kind.CHILD, key))
        if what == "delete child" and child is not None and not is_foreign(child):
            self.api.remove(Kind.CHILD, key, foreground=foreground)
        if what in ("orphan", "foreign") and child is None:
            metadata = {"namespace": key.namespace, "name": key.name, "labels": {"foreign": "yes"}}
            metadata |= {"ownerReferences": [FOREIGN]} if what == "foreign" else {}
            self.api.put(Kind.CHILD, {"metadata": metadata, "spec": {"runPolicy": {"suspend": True}}})
        if what == "delete config map" and child is not None:
            self.delete_config_maps(key, child)
        if what == "free":
            self.free_the_name(key)
        if what.endswith(" conversion"):
            self.meddle_with_conversion(what.split()[0])
        if what in ("install", "uninstall"):
            self.api.missing = {Kind.CHILD} if what == "uninstall" else set()
        if what == "restart":
            self.controllers[side].restart()

    def delete_config_maps(self, key: Key, child: Raw) -> None:
        """Delete what the pods of a PyTorchJob mount; what a conversion mounts too stays."""
        conversions = {
            conversion_of(raw).config_map for (kind, _), raw in self.api.objects.items() if kind is Kind.CONVERSION
        }
        for name in mounted_by(child) - conversions:
            if (Kind.CONFIG_MAP, Key(key.namespace, name)) in self.api.objects:
                self.api.remove(Kind.CONFIG_MAP, Key(key.namespace, name), foreground=False)

    def meddle_with_conversion(self, what: str) -> None:
        """Put a Job of another's in the place of the conversion, take the label from it, or free its name."""
        found = self.api.objects.get((Kind.CONVERSION, CONVERSION))
        if what == "foreign" and found is None:
            self.api.put(Kind.CONVERSION, {"metadata": {"namespace": CONVERSION.namespace, "name": CONVERSION.name}})
        if what == "unlabel" and found is not None and is_managed(found["metadata"]):
            self.api.change(Kind.CONVERSION, CONVERSION, metadata={**found["metadata"], "labels": {}})
        if what == "free" and found is not None and not is_managed(found["metadata"]):
            self.api.remove(Kind.CONVERSION, CONVERSION, foreground=False)

    def free_the_name(self, key: Key) -> None:
        child = self.api.objects.get((Kind.CHILD, key))
        if child is not None and is_foreign(child):
            self.api.remove(Kind.CHILD, key, foreground=False)

    # The cluster

    @rule(key=keys, admitted=st.sampled_from([True, True, False]))
    def run_cluster(self, key: Key, admitted: bool) -> None:
        """Kueue, the training operator, the kubelet and the garbage collector do what there is to do."""
        self.admit(key, admitted)
        self.training.sync(key)
        self.training.start(key)
        self.api.collect_garbage()

    def admit(self, key: Key, admitted: bool) -> None:
        child = self.api.objects.get((Kind.CHILD, key))
        if child is not None and not is_foreign(child) and "kueue.x-k8s.io/queue-name" in child["metadata"]["labels"]:
            spec = {**child["spec"], "runPolicy": {**child["spec"]["runPolicy"], "suspend": not admitted}}
            self.api.change(Kind.CHILD, key, spec=spec)

    @rule(key=keys)
    def sync(self, key: Key) -> None:
        self.training.sync(key)

    @rule(key=keys, exit_code=st.sampled_from([0, 0, 1, 1, 1, 2, 143]), alone=st.booleans())
    def end(self, key: Key, exit_code: int, alone: bool = False) -> None:
        child = self.api.objects.get((Kind.CHILD, key))
        running = any(p["status"]["phase"] == "Running" for p in self.api.pods(key))
        if child is not None and not is_foreign(child) and running:
            if exit_code == 1 and not self.training.has_ended(key):
                owner = child["metadata"]["ownerReferences"][0]["uid"]
                self.failures.setdefault(owner, set()).add(child["metadata"]["uid"])
            self.training.end(key, exit_code, alone=alone)

    @rule(type_=st.sampled_from(["Complete", "Complete", "Failed"]))
    def convert(self, type_: str) -> None:
        for kind, key in list(self.api.objects):
            if kind is Kind.CONVERSION and not self.api.objects[kind, key].get("status"):
                self.training.convert(key, type_)

    @rule(seconds=st.sampled_from([1, 5, 30, 600]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    # The controllers

    @rule(side=sides, kind=st.sampled_from([Kind.JOB, Kind.CHILD, Kind.POD, Kind.CONVERSION]), twice=st.booleans())
    def deliver(self, side: int, kind: Kind, twice: bool) -> None:
        self.controllers[side].take(kind, twice=twice)

    @rule(side=sides, key=keys, read=st.booleans(), faults=faults)
    def pass_over(self, side: int, key: Key, read: bool, faults: list[Fault | None]) -> None:
        self.api.faults.extend(faults)
        self.controllers[side].run(key, read=read)
        self.api.faults.clear()

    @rule(side=sides, lost=lost, faults=faults)
    def work(self, side: int, lost: set[Kind], faults: list[Fault | None]) -> None:
        for kind in lost:
            self.controllers[side].lose(kind)
        self.controllers[side].take_all()
        self.api.faults.extend(faults)
        self.controllers[side].work()
        self.api.faults.clear()

    @rule(keys=st.sets(keys), exit_code=st.sampled_from([None, 0, 1]))
    def all_is_well(self, keys: set[Key], exit_code: int | None) -> None:
        """A while without mishaps: the leader and the cluster do their parts."""
        for _ in range(2):
            self.work(0, set(), [])
            for key in sorted(keys):
                self.run_cluster(key, True)
        self.work(0, set(), [])
        for key in sorted(keys) if exit_code is not None else ():
            self.end(key, exit_code)

    # What has to hold

    def check_write(self, kind: Kind, before: Raw | None, after: Raw | None) -> None:
        """Check a controller's write as it happens."""
        if kind is Kind.CHILD:
            assert before is None or not is_foreign(before), "another's PyTorchJob was touched"
            assert before is None or after is None, "a PyTorchJob is created and deleted, and never changed"
        if kind is Kind.CONVERSION and before is not None:
            assert is_managed(before["metadata"]), "another's Job was touched"
        if kind is Kind.CONVERSION and before is not None and after is None:
            assert before.get("status", {}).get("conditions"), "a conversion that runs was deleted"
        if kind is Kind.JOB and before is not None and after is not None:
            old, new = before.get("status") or {}, after["status"]
            assert ends(old) <= ends(new), "a terminal state was left"
            assert len(ends(new)) <= 1, "a job both succeeded and failed"
            assert old.get("restarts", 0) <= new["restarts"] <= MAX_RESTARTS
            assert old.get("attempt", 0) <= new["attempt"]
            assert new["restarts"] <= len(self.failures.get(after["metadata"]["uid"], ())), "a failure counted twice"
            assert new != old, "a write that changes nothing"

    @invariant()
    def every_child_is_of_its_job(self) -> None:
        for (kind, _), raw in getattr(self, "api", MemoryApi(lambda: T0)).objects.items():
            if kind is Kind.CHILD and not is_foreign(raw):
                owners = raw["metadata"]["ownerReferences"]
                assert len(owners) == 1 and owners[0]["name"] == raw["metadata"]["name"]

    @invariant()
    def every_conversion_has_what_its_pods_read(self) -> None:
        api = getattr(self, "api", MemoryApi(lambda: T0))
        for (kind, key), raw in api.objects.items():
            is_going = raw.get("status") or "deletionTimestamp" in raw["metadata"]
            if kind is Kind.CONVERSION and is_managed(raw["metadata"]) and not is_going:
                name = conversion_of(raw).config_map
                assert (Kind.CONFIG_MAP, Key(key.namespace, name)) in api.objects, f"ConfigMap {name} is gone"

    def teardown(self) -> None:
        if hasattr(self, "api"):
            self.converge()

    def converge(self) -> None:
        """From here on nothing goes wrong: every job comes to an end within a bounded number of passes."""
        self.api.missing = set()
        self.meddle_with_conversion("free")
        leader = self.controllers[0]
        for key in KEYS:
            self.free_the_name(key)
            self.suspend(key, False)
            if (Kind.JOB, key) in self.api.objects:  # a watch that is alive tells of every job
                leader.events[Kind.JOB].append(("MODIFIED", self.api.objects[Kind.JOB, key]))
        for _ in range(60):
            self.now += timedelta(seconds=61)
            leader.take_all()
            leader.work()
            self.convert("Complete")
            for key in KEYS:
                self.run_cluster(key, True)
                self.end(key, 0)
            leader.take_all()
            leader.work()
            if self.is_quiet():
                break
        self.check_ended(leader)

    def is_quiet(self) -> bool:
        """Return whether every job has ended, and what is left of others."""
        return all(
            ends(raw.get("status") or {}) if kind is Kind.JOB else self.training.has_ended(key)
            for (kind, key), raw in self.api.objects.items()
            if kind in (Kind.JOB, Kind.CHILD)
        )

    def check_ended(self, leader: Controller) -> None:
        jobs = {key: raw for (kind, key), raw in self.api.objects.items() if kind is Kind.JOB}
        for key, raw in jobs.items():
            assert ends(raw["status"]), f"{key} does not end: {raw['status']}"
        children = [key for kind, key in self.api.objects if kind is Kind.CHILD]
        for key in children:
            assert key in jobs and self.training.has_ended(key), f"PyTorchJob {key} is left to run"
        before = len(self.api.writes)
        for read in (True, False):
            for key in jobs:
                leader.run(key, read=read)
            for key in [key for kind, key in self.api.objects if kind is Kind.CHILD]:
                self.api.remove(Kind.CHILD, key, foreground=False)
            leader.take_all()
        assert len(self.api.writes) == before, "writes though nothing changes"


def finish(passing: Coroutine[Any, Any, datetime | None]) -> datetime | None:
    """Run a pass to its end: over an API server in memory it never waits."""
    try:
        passing.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a pass waits for something")


def is_foreign(child: Raw) -> bool:
    return child["metadata"].get("labels", {}).get("foreign") == "yes"


def ends(status: Raw) -> set[str]:
    conditions = status.get("conditions") or []
    return {c["type"] for c in conditions if c["type"] in ("Succeeded", "Failed") and c["status"] == "True"}


TestControllerModel = ControllerModel.TestCase
TestControllerModel.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_conversion_keeps_what_its_pods_read_when_the_job_that_asked_first_is_deleted() -> None:
    source = {"queue": False, "source": True}
    model = ControllerModel()
    model.begin((source, source))
    for _ in range(2):
        model.work(0, set(), [])
    first, second = KEYS
    model.use(first, "delete", source)
    model.run_cluster(second, True)
    ((_, conversion),) = [key for key in model.api.objects if key[0] is Kind.CONVERSION]
    assert [o["name"] for o in model.api.objects[Kind.CONVERSION, conversion]["metadata"]["ownerReferences"]] == ["ads"]
    model.every_conversion_has_what_its_pods_read()
    model.teardown()


def test_a_job_goes_on_after_its_childs_type_was_not_served_for_a_while() -> None:
    plain = {"queue": False, "source": False}
    model = ControllerModel()
    model.begin((plain, plain))
    model.all_is_well(set(), None)
    model.meddle(KEY, 0, "uninstall", foreground=False)
    model.all_is_well(set(KEYS), 1)
    model.all_is_well(set(), None)
    model.teardown()


def test_a_job_begins_though_its_config_map_was_deleted_before_its_pods_were_there() -> None:
    queued = {"queue": True, "source": False}
    model = ControllerModel()
    model.begin((queued, queued))
    model.work(0, set(), [])
    model.meddle(KEY, 0, "delete config map", foreground=False)
    assert Kind.CONFIG_MAP not in {kind for kind, key in model.api.objects if key.name.startswith(KEY.name)}
    model.teardown()


def test_a_job_that_the_api_server_refuses_for_good_fails_and_nothing_of_it_is_left_to_run() -> None:
    plain = {"queue": False, "source": False}
    model = ControllerModel()
    model.begin((plain, plain))
    model.controllers[0].take_all()
    model.pass_over(0, KEY, read=False, faults=[None, Fault.INVALID])  # the ConfigMap is created, the PyTorchJob is not
    assert ends(model.api.objects[Kind.JOB, KEY]["status"]) == {"Failed"}
    assert (Kind.CHILD, KEY) not in model.api.objects
    model.teardown()
