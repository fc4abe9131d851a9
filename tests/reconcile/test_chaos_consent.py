"""Faults are injected where the operator and the namespace both consent, and the namespace may change its mind."""

from __future__ import annotations

import asyncio
from typing import Any

from capstan_operator.api.meta import LABEL_CHAOS
from capstan_operator.cluster.kinds import NAMESPACES, TRAINING_JOBS
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed
from tests.support.fake_api import FakeApi
from tests.support.operators import eventually, run_one
from tests.support.small_decide import decide_small, job_document


class Consents:
    """Decides as usual, and notes what every look said about chaos."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def __call__(self, observed: Observed, now: float) -> Decision:
        self.seen.append(observed.is_chaos_allowed)
        return decide_small(observed, now)


def namespace(value: str | None) -> dict[str, Any]:
    labels = {} if value is None else {LABEL_CHAOS: value}
    return {"metadata": {"name": "default", "namespace": "", "labels": labels}}


async def test_a_namespace_gives_and_takes_back_its_consent_and_its_jobs_are_looked_at_again(api: FakeApi) -> None:
    decide = Consents()
    api.put(NAMESPACES, namespace("allowed"))
    async with run_one(api.kubeconfig, decide, allow_chaos=True):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: decide.seen)
        assert set(decide.seen) == {True}
        api.put(NAMESPACES, namespace("forbidden"))
        await eventually(lambda: not decide.seen[-1])
        api.put(NAMESPACES, namespace("allowed"))
        await eventually(lambda: decide.seen[-1])
    assert [call for call in api.calls if call.status == 403] == []
    assert [
        call.verb for call in api.calls if call.resource == "namespaces" and call.verb not in ("list", "watch")
    ] == []


async def test_no_job_is_looked_at_before_the_consents_are_known(api: FakeApi) -> None:
    decide = Consents()
    api.put(NAMESPACES, namespace("allowed"))
    api.fail("list", "namespaces", times=3, status=503)
    api.put(TRAINING_JOBS, job_document("train"))
    async with run_one(api.kubeconfig, decide, allow_chaos=True):
        await eventually(lambda: decide.seen)
    assert set(decide.seen) == {True}


async def test_without_the_flag_nobody_asks_for_namespaces_and_no_label_counts(api: FakeApi) -> None:
    decide = Consents()
    api.put(NAMESPACES, namespace("allowed"))
    async with run_one(api.kubeconfig, decide):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: decide.seen)
        await asyncio.sleep(0.2)
    assert set(decide.seen) == {False}
    assert [call for call in api.calls if call.resource == "namespaces"] == []
