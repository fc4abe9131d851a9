"""Claims that pods use are not pulled away from under them."""

from tests.apiserver.client import Api, eventually, gone
from tests.apiserver.objects import pod

PROTECTED = "kubernetes.io/pvc-protection"
SPEC = {
    "accessModes": ["ReadWriteOnce"],
    "resources": {"requests": {"storage": "1Gi"}},
    "storageClassName": "none-such",
}
VOLUMES = [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]


async def test_a_claim_nobody_uses_goes_when_it_is_deleted(api: Api, namespace: str) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    created = (await api.post(claims, {"metadata": {"name": "c"}, "spec": SPEC})).expect(201)
    assert created["metadata"]["finalizers"] == [PROTECTED]
    (await api.delete(f"{claims}/c")).expect(200)
    await gone(api, f"{claims}/c")


async def test_a_claim_in_use_stays_until_its_pod_is_gone_not_only_ended(api: Api, namespace: str, pods: str) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    metadata = {"name": "c", "finalizers": ["example.com/mine"]}
    (await api.post(claims, {"metadata": metadata, "spec": SPEC})).expect(201)
    (await api.post(claims, {"metadata": {"name": "other"}, "spec": SPEC})).expect(201)
    (await api.post(pods, pod("user", nodeName="absent-node", volumes=VOLUMES))).expect(201)
    (await api.patch(f"{pods}/user/status", {"status": {"phase": "Succeeded"}})).expect(200)
    (await api.delete(f"{claims}/c")).expect(200)
    (await api.delete(f"{claims}/other")).expect(200)
    await gone(api, f"{claims}/other")  # by now the controller has looked at both
    waiting = (await api.get(f"{claims}/c")).expect(200)
    assert sorted(waiting["metadata"]["finalizers"]) == ["example.com/mine", PROTECTED]

    (await api.delete(f"{pods}/user", {"gracePeriodSeconds": 0})).expect(200)

    async def is_released() -> bool:
        seen = (await api.get(f"{claims}/c")).expect(200)
        return bool(seen["metadata"]["finalizers"] == ["example.com/mine"])

    await eventually(is_released, "the claim's release")
    (await api.patch(f"{claims}/c", {"metadata": {"finalizers": None}})).expect(200)
    await gone(api, f"{claims}/c")


async def test_a_pod_that_is_on_no_node_does_not_hold_its_claim(api: Api, namespace: str, pods: str) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    (await api.post(claims, {"metadata": {"name": "c"}, "spec": SPEC})).expect(201)
    (await api.post(pods, pod("waits", volumes=VOLUMES))).expect(201)
    (await api.delete(f"{claims}/c")).expect(200)
    await gone(api, f"{claims}/c")


async def test_protection_that_was_taken_away_is_given_back(api: Api, namespace: str) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    (await api.post(claims, {"metadata": {"name": "c"}, "spec": SPEC})).expect(201)
    (await api.patch(f"{claims}/c", {"metadata": {"finalizers": None}})).expect(200)

    async def is_back() -> bool:
        seen = (await api.get(f"{claims}/c")).expect(200)
        return seen["metadata"].get("finalizers") == [PROTECTED]

    await eventually(is_back, "the finalizer")
