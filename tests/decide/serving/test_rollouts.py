"""Whole rollouts while pods fail, operators die half-way and users change their minds."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest

from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.observe_serving import ServedTraffic
from tests.support.serving_world import BOUNDS, GATEWAY, SERVICE, World, live, trained

STRATEGIES: dict[str, dict[str, Any]] = {
    "rolling": {"rolling": {"maxSurge": 2}},
    "canary": {
        "rolling": None,
        "canary": {"steps": [{"weight": 25, "holdSeconds": 30}, {"weight": 50, "holdSeconds": 30}]},
    },
    "comparing": {
        "rolling": None,
        "canary": {"steps": [{"weight": 25, "holdSeconds": 30}], "gates": {"minAgreement": 0.9}},
    },
    "blueGreen": {"rolling": None, "blueGreen": {"holdSeconds": 60}},
}
STRATEGIES |= {
    "rolling behind a gateway": STRATEGIES["rolling"],
    "canary by a gateway": {
        "rolling": None,
        "canary": {"steps": [{"weight": 10, "holdSeconds": 30}, {"weight": 90, "holdSeconds": 30}]},
    },
}
REPLICAS = 3
REFUSED_PATCH = {"metadata": {"labels": {"capstan.dev/service": "another"}}}
CORRUPT_STEP, BAD_STEP, WRONG_STEP = 777, 888, 999


class Rollouts:
    """A service that follows a job's checkpoints, in a world where pods break one at a time."""

    size: dict[str, Any] = {"replicas": REPLICAS}
    """What of the spec says how many pods there are."""

    def __init__(self, strategy: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world: World = live(
            modelRef={"trainingJob": {"track": True}},
            **self.size,
            rollout={"strategy": STRATEGIES[strategy], "progressDeadlineSeconds": 300},
            **({"gateway": GATEWAY} if "gateway" in strategy else {}),
        )
        self.world.gateway.is_quick = False
        self.steps = {str(self.world.stable): 200}
        self.refused: set[str] = set()
        """Revisions that failed their gates and whose traffic was taken away."""
        self.refused_by_gateway: set[str] = set()
        self.promoted = [self.world.stable]

    def live_on(self, moments: int) -> None:
        for _ in range(moments):
            self._change()
            self._operate()
            self._serve()
            self.world.now += self.chance.choice([0.5, 2.0, 10.0])

    def _change(self) -> None:
        """Something happens that the operator did not do."""
        world = self.world
        match self.chance.randrange(10):
            case 0:
                world.job = trained(self.chance.choice([200, 300, 400, 500, CORRUPT_STEP, BAD_STEP, WRONG_STEP]))
            case 1 if all(pod.is_ready for pod in world.pods.values()):
                victim = self.chance.choice(sorted(world.pods))
                world.pods[victim] = replace(world.pods[victim], is_ready=False, restarts=1, exit_code=137)
            case 2:
                self._resize()
            case 3:
                self.change_validity(is_valid="podPatch" in world.spec or self.chance.random() < 0.9)
            case 4:
                self.change_validity(is_valid=True)
            case _:
                for pod in list(world.pods.values()):
                    if self.chance.random() < 0.5:
                        self._start(pod.name)
        if world.gateway.route and self.chance.random() < 0.5:
            world.gateway.hear()

    def change_validity(self, *, is_valid: bool) -> None:
        """A spec that the API server admits, but that cannot be acted on, or none of these any more."""
        rest = {name: value for name, value in self.world.spec.items() if name != "podPatch"}
        self.world.spec = rest if is_valid else {**rest, "podPatch": REFUSED_PATCH}

    def _resize(self) -> None:
        size = self.chance.choice([REPLICAS, REPLICAS + 2])
        self.world.spec = {**self.world.spec, "replicas": size}

    def _start(self, name: str) -> None:
        """The pod has loaded its checkpoint, or found that it cannot."""
        pod = self.world.pods[name]
        if self._step_of(pod.revision) == CORRUPT_STEP:
            self.world.pods[name] = replace(pod, exit_code=65, exit_message="leaf 3 does not match")
        else:
            self.world.pods[name] = replace(pod, is_ready=True)

    def _operate(self) -> None:
        """A few looks, each carried out in full or only up to some write, before status."""
        for _ in range(self.chance.randrange(1, 4)):
            world = self.world
            behind = world.behind()
            decision = decide_inference_service(world.look(), world.now)
            has_acted = decision.status == world.status
            if self.chance.random() < 0.15:
                has_acted = False
                decision = replace(
                    decision,
                    status=world.status,
                    events=(),
                    apply=decision.apply[: self.chance.randrange(1 + len(decision.apply))],
                    scale=(),
                    delete=(),
                )
            before = world.status.stable
            answering = {name for name in world.through_gateway() if self._ready(name)}
            world.carry_out(decision)
            self._check(behind)
            assert not answering - world.services, "what a Gateway leads to, and what answers, was deleted"
            self._check_gateway(has_acted=has_acted)
            if world.status.stable != before:
                self.promoted.append(world.status.stable)

    def _check(self, before: dict[str, int]) -> None:
        world = self.world
        behind = world.behind()
        assert self._good(behind) >= min(self._good(before), REPLICAS), world.status
        assert sum(behind.values()) > 0, world.status
        assert not self.refused & behind.keys(), world.status
        assert not {name for name in behind if self._step_of(name) == CORRUPT_STEP}
        if world.route is not None and world.route.revision is not None:
            self.refused |= self._answering_badly() - {world.route.revision}
        assert world.secrets >= world.deployments.keys()

    def _check_gateway(self, *, has_acted: bool) -> None:
        """`has_acted`: the route is as the operator wants it now."""
        world, route = self.world, self.world.gateway.look()
        if route is None:
            return
        if has_acted:
            assert all(self._ready(name) for name in route.weights if name != SERVICE), route.weights
        shares = world.through_gateway()
        assert not {name for name in shares if name and self._step_of(name) == CORRUPT_STEP}
        assert not self.refused_by_gateway & shares.keys(), world.status
        self.refused_by_gateway |= self._answering_badly() - shares.keys()
        rollout, canary = world.status.rollout, world.spec["rollout"]["strategy"].get("canary")
        if canary and rollout and rollout.phase in ("Starting", "Canary"):
            allowed = 0 if rollout.phase == "Starting" else canary["steps"][rollout.step or 0]["weight"]
            assert shares.get(rollout.candidate, 0) <= allowed, shares
            assert rollout.candidate not in world.behind()

    def _ready(self, revision: str) -> int:
        return sum(pod.is_ready for pod in self.world.pods.values() if pod.revision == revision)

    def _answering_badly(self) -> set[str]:
        failures = {one.name: one.failure for one in self.world.status.revisions}
        return {name for name, failure in failures.items() if failure and failure.reason == "GateFailed"}

    def _good(self, behind: dict[str, int]) -> int:
        """Of these pods, those of no canary that was found to answer badly: they go at once."""
        bad = self._answering_badly()
        return sum(count for name, count in behind.items() if name not in bad)

    def _serve(self) -> None:
        """Traffic since the step began, in proportion to the pods; a bad revision fails every third request, a
        wrong one names another class in every third answer that is compared."""
        world = self.world
        rollout = world.status.rollout
        if rollout is None or rollout.since is None:
            world.traffic = {}
            return
        arriving = {name: 300 * pods for name, pods in world.behind().items()}
        for name, percent in world.through_gateway().items():
            arriving[name] = arriving.get(name, 0) + 20 * percent
        for name, arrived in arriving.items():
            known = world.traffic.get(name, ServedTraffic(latencies=(0,) * len(BOUNDS)))
            requests = known.requests + arrived
            is_bad = self._step_of(name) == BAD_STEP
            within = tuple(requests if bound >= 0.01 else 0 for bound in BOUNDS)
            errors = requests // 3 if is_bad else 0
            compared = known.compared + (100 if world.proven and world.proven.revision != name else 0)
            different = compared // 3 if self._step_of(name) == WRONG_STEP else 0
            world.traffic[name] = ServedTraffic(requests, errors, within, requests, compared, different)

    def _step_of(self, name: str) -> int:
        for one in self.world.status.revisions:
            if one.step is not None:
                self.steps[one.name] = one.step
        return self.steps[name]


class ScaledRollouts(Rollouts):
    """The same with a size that follows the requests, which come and go."""

    most = REPLICAS + 4
    size: dict[str, Any] = {
        "replicas": None,
        "autoscaling": {"minReplicas": REPLICAS, "maxReplicas": most, "downscaleDelaySeconds": 30},
    }

    def __init__(self, strategy: str, seed: int) -> None:
        self.ongoing = 0
        super().__init__(strategy, seed)
        self.sizes = [REPLICAS]

    def _resize(self) -> None:
        self.ongoing = self.chance.choice([0, 16 * REPLICAS, 16 * self.most, 1000])

    def _serve(self) -> None:
        super()._serve()
        self.world.note_load(self.ongoing, silent=self.chance.choice([0, 0, 0, 1]))
        self.world.load = self.world.load[-20:]

    def _check(self, before: dict[str, int]) -> None:
        super()._check(before)
        status, size = self.world.status, self.world.status.replicas
        assert size is not None
        assert REPLICAS <= size <= self.most
        if size < self.sizes[-1]:
            assert status.rollout is None, status
            assert set(self.world.deployments) == {status.stable}, status
        if size != self.sizes[-1]:
            self.sizes.append(size)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whatever_happens_somebody_answers_and_what_failed_does_not(strategy: str, seed: int) -> None:
    rollouts = Rollouts(strategy, seed)
    rollouts.live_on(200)
    assert len(rollouts.promoted) > 1, "nothing was ever rolled out"
    assert CORRUPT_STEP not in {rollouts.steps[str(name)] for name in rollouts.promoted}
    promoted = {rollouts.steps[str(name)] for name in rollouts.promoted}
    if "canary" in strategy or strategy == "comparing":
        assert BAD_STEP not in promoted
    if strategy == "comparing":
        assert WRONG_STEP not in promoted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whatever_happens_the_size_follows_the_requests_and_shrinks_only_between_rollouts(
    strategy: str, seed: int
) -> None:
    rollouts = ScaledRollouts(strategy, seed)
    rollouts.live_on(400)
    assert len(rollouts.promoted) > 1, "nothing was ever rolled out"
    steps = list(pairwise(rollouts.sizes))
    assert any(after > before for before, after in steps), "it never grew"
    assert any(after < before for before, after in steps), "it never shrank"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rollout_ends_although_the_size_grows_all_the_time(strategy: str) -> None:
    rollouts = ScaledRollouts(strategy, seed=7)
    world = rollouts.world
    world.job = trained(600)
    for moment in range(150):
        world.get_ready()
        world.gateway.hear()
        rollouts._operate()
        rollouts.ongoing = min(16 * rollouts.most, 16 * REPLICAS + moment)
        rollouts._serve()
        world.now += 5.0
    assert (world.status.reason, world.status.served) == ("Live", "digits@600")
    assert (world.status.ready, world.deployments) == (
        f"{rollouts.most}/{rollouts.most}",
        {world.stable: rollouts.most},
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_after_all_trouble_the_newest_good_checkpoint_has_all_traffic(strategy: str) -> None:
    rollouts = Rollouts(strategy, seed=99)
    rollouts.live_on(100)
    rollouts.change_validity(is_valid=True)
    world = rollouts.world
    world.job = trained(600)
    for _ in range(150):
        world.get_ready()
        world.gateway.hear()
        rollouts._operate()
        rollouts._serve()
        world.now += 5.0
    assert world.status.reason == "Live"
    assert world.status.served == "digits@600"
    assert set(world.behind()) == set(world.deployments) == {world.stable}
    assert world.services == world.secrets == {world.stable}
    assert (world.proven and world.proven.revision) == (world.stable if strategy == "comparing" else None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_however_long_operators_are_away_no_good_revision_is_given_up(strategy: str, seed: int) -> None:
    """They leave between any two writes, and for longer than any deadline."""
    rollouts = Rollouts(strategy, seed)
    world, chance = rollouts.world, rollouts.chance
    for _ in range(200):
        if chance.random() < 0.1:
            world.job = trained(chance.choice([200, 300, 400]))
        world.now += 2.0
        if chance.random() < 0.1:
            world.now += chance.choice([60.0, 400.0, 5000.0])
            world.get_ready()
            world.gateway.hear()
            world.replace_operator()
        world.get_ready(count=1)
        world.gateway.hear()
        rollouts._operate()
        rollouts._serve()
        assert not [one for one in world.status.revisions if one.failure]
    assert len(rollouts.promoted) > 1, "nothing was ever rolled out"


@pytest.mark.parametrize("holds", [60, 3600])
def test_a_hold_ends_although_pods_are_lost_now_and_then(holds: int) -> None:
    world = live(replicas=3, rollout={"strategy": {"blueGreen": {"holdSeconds": holds}}})
    world.job, world.spec = trained(300), {**world.spec, "timeoutSeconds": 31.0}
    world.settle()
    world.get_ready()
    world.settle()
    candidate, began = world.candidate, world.now
    chance = random.Random(holds)
    while world.candidate:
        world.lose_pods(candidate, min(chance.randrange(3), world.behind()[candidate] - 1))
        world.settle()
        world.get_ready(count=chance.randrange(2))
        world.now += 10.0
        world.settle()
        assert world.now - began <= holds + 600 + 10
    assert world.stable == candidate


def test_a_first_revision_is_tried_for_ever_with_pauses_that_grow_to_ten_minutes() -> None:
    world, tries = World(spec={}), []
    for _ in range(12):
        world.settle()
        world.change_pods(world.candidate, exit_code=78, exit_message="tls.secretRef: tls.key does not belong")
        world.settle()
        assert world.deployments == {}
        pause = world.decide().requeue_after
        assert pause is not None
        tries.append(pause)
        world.now += pause
    assert tries == [30, 60, 120, 240, 480] + 7 * [600]
    world.settle()
    world.get_ready()
    world.settle()
    assert (world.status.reason, world.behind()) == ("Live", {world.stable: 2})


def test_status_stays_small_however_many_revisions_fail() -> None:
    world = live(modelRef={"trainingJob": {"track": True}})
    for step in range(1000, 1030):
        world.job = trained(step)
        world.settle()
        world.change_pods(world.candidate, exit_code=65, exit_message="x" * 5000)
        world.settle()
    failed = [one for one in world.status.revisions if one.failure]
    assert [one.step for one in failed] == list(range(1025, 1030))
    assert len(orjson.dumps(world.status.document())) < 8192
    assert len(world.deployments) == 1
