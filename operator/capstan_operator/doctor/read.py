"""Reads the facts. Nothing is written: a review of access is a question that the API server answers and forgets."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import orjson

from capstan_operator.api.meta import GROUP, LABEL_MANAGED_BY, MANAGED_BY
from capstan_operator.cluster.errors import ApiError, NotKubernetes
from capstan_operator.cluster.kinds import LEASE_NAME, OWN_KINDS, RULES, Rule
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.crdgen import all_crds
from capstan_operator.doctor.facts import Access, Account, Document, Facts, Seen, Server, Unread, at
from capstan_operator.doctor.operator_checks import NAME

CALL_SECONDS = 10.0
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_REVIEWS = "/apis/authorization.k8s.io/v1"
_WEBHOOKS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")


class Reader:
    """Asks one API server, with the rights of whoever called, for `seconds` in all: what is not answered by then is
    not read."""

    def __init__(self, client: KubeClient, url: str, seconds: float) -> None:
        self._client = client
        self.url = url
        self._seconds = seconds
        self.late_after_seconds: float | None = None
        """How long was waited for what was not answered; None: all was."""
        self._deadline = asyncio.get_running_loop().time() + seconds

    async def get(self, path: str) -> Document:
        """Raises ApiError."""
        return await self._call("GET", path)

    async def list(self, path: str, resource: str, query: Mapping[str, str] | None = None) -> Seen:
        """All objects, page by page. A kind that is not served has none."""
        items: list[Document] = []
        further: str | None = None
        while True:
            params = {"limit": "500", **(query or {}), **({"continue": further} if further else {})}
            try:
                page = await self._call("GET", path, params=params)
            except ApiError as error:
                return [] if error.is_not_found else unread(error, f"list {resource}")
            items += _objects(page, "items", self.url, path)
            further = at(page, "metadata", "continue")
            if not further:
                return items

    async def review(self, kind: str, spec: Document) -> bool | Unread:
        """Whether what `spec` says is allowed."""
        resource = f"{kind[0].lower()}{kind[1:]}s".lower()
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        try:
            answer = await self._call("POST", f"{_REVIEWS}/{resource}", body=orjson.dumps(body))
        except ApiError as error:
            return unread(error, f"create {resource}.authorization.k8s.io")
        return bool(at(answer, "status", "allowed", default=False))

    async def _call(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Document:
        """Raises ApiError."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._client.document(
                    method, path, lane=Lane.SYSTEM, params=params, body=body, seconds=CALL_SECONDS
                )
        except TimeoutError as error:
            self.late_after_seconds = self._seconds
            late = f"{self.url} has not answered {method} {path} within {self._seconds:g} s; raise --timeout"
            raise ApiError(0, "NoAnswer", late) from error


def _objects(answer: Document, field: str, url: str, path: str) -> list[Document]:
    """The list of objects at `field`, which may be null. Raises NotKubernetes for anything else."""
    found = answer.get(field) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise NotKubernetes(url, f"GET {path}", f"{field} that are no list of objects")
    return found


def unread(error: ApiError, right: str) -> Unread:
    """What is said of a call that failed: which right it needs, or what went wrong. Raises `error` where nobody was
    let in at all, or there is no API server."""
    if error.status == 401 or isinstance(error, NotKubernetes):
        raise error
    if error.status == 403:
        return Unread(f"needs the right to {right}")
    return Unread(f"{right}: {error}")


async def read_facts(client: KubeClient, url: str, namespace: str | None, seconds: float) -> Facts:
    """All of them that are answered within `seconds`. Raises ApiError only where the API server cannot be reached at
    all, or lets nobody in."""
    reader = Reader(client, url, seconds)
    before = time.time()
    told = await reader.get("/version")
    if not isinstance(told.get("gitVersion"), str):
        raise NotKubernetes(url, "GET /version", "no gitVersion")
    ahead = _ahead_seconds(client.server_date, before, time.time())
    scope = f"/namespaces/{quote(namespace)}" if namespace else ""
    ours = f"/apis/{GROUP}/v1alpha1{scope}"
    operator = {"labelSelector": f"app.kubernetes.io/name={NAME}"}
    lists = {
        "operator_pods": ("/api/v1/pods", "pods", operator),
        "deployments": ("/apis/apps/v1/deployments", "deployments.apps", {}),
        "leases": (
            "/apis/coordination.k8s.io/v1/leases",
            "leases.coordination.k8s.io",
            {"fieldSelector": f"metadata.name={LEASE_NAME}"},
        ),
        "nodes": ("/api/v1/nodes", "nodes", {}),
        "storage_classes": ("/apis/storage.k8s.io/v1/storageclasses", "storageclasses.storage.k8s.io", {}),
        "claims": (f"/api/v1{scope}/persistentvolumeclaims", "persistentvolumeclaims", {}),
        "endpoint_slices": ("/apis/discovery.k8s.io/v1/endpointslices", "endpointslices.discovery.k8s.io", {}),
        "namespaces": ("/api/v1/namespaces", "namespaces", {}),
        "policies": (
            f"/apis/networking.k8s.io/v1{scope}/networkpolicies",
            "networkpolicies.networking.k8s.io",
            {},
        ),
        "pods": (f"/api/v1{scope}/pods", "pods", {"labelSelector": f"{LABEL_MANAGED_BY}={MANAGED_BY}"}),
        **{
            field: (f"{ours}/{kind.plural}", f"{kind.plural}.{GROUP}", {})
            for field, kind in zip(("jobs", "services", "benchmarks"), OWN_KINDS, strict=True)
        },
    }
    found = dict(
        zip(lists, await asyncio.gather(*(reader.list(*arguments) for arguments in lists.values())), strict=True)
    )
    wanted = {str(crd["metadata"]["name"]): crd for crd in all_crds()}
    crds, groups, webhooks = await asyncio.gather(_crds(reader, wanted), _groups(reader), _webhooks(reader))
    found["deployments"] = _operators(found["deployments"])
    accounts = await _accounts(reader, found["deployments"])
    minor = _leading_number(str(told.get("minor", "0")))
    return Facts(
        server=Server(url, told["gitVersion"], minor, ahead, reader.late_after_seconds),
        now=time.time() + (ahead or 0.0),
        namespace=namespace,
        client_version=version("capstan"),
        crds=crds,
        wanted_crds=wanted,
        groups=groups,
        accounts=accounts,
        webhooks=webhooks,
        **found,
    )


def _ahead_seconds(date: str | None, before: float, after: float) -> float | None:
    """A Date says whole seconds, cut off: half a second more is as often too much as too little."""
    if date is None:
        return None
    difference = parsedate_to_datetime(date).timestamp() + 0.5 - (before + after) / 2
    return difference if abs(difference) > (after - before) / 2 + 0.5 else 0.0


def _leading_number(text: str) -> int:
    """Of `34+` or `34`."""
    digits = "".join(letter for letter in text if letter.isdigit())
    return int(digits or 0)


async def _crds(reader: Reader, wanted: Mapping[str, Document]) -> Mapping[str, Document | None] | Unread:
    async def one(name: str) -> Document | None:
        try:
            return await reader.get(f"{_CRDS}/{name}")
        except ApiError as error:
            if error.is_not_found:
                return None
            raise

    try:
        return dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))
    except ApiError as error:
        return unread(error, "get customresourcedefinitions.apiextensions.k8s.io")


async def _groups(reader: Reader) -> frozenset[str] | Unread:
    try:
        answer = await reader.get("/apis")
    except ApiError as error:
        return unread(error, "get /apis")
    return frozenset(
        str(one.get("groupVersion"))
        for group in _objects(answer, "groups", reader.url, "/apis")
        for one in _objects(group, "versions", reader.url, "/apis")
    )


async def _webhooks(reader: Reader) -> Seen:
    kinds = [
        await reader.list(f"/apis/admissionregistration.k8s.io/v1/{kind}", f"{kind}.admissionregistration.k8s.io")
        for kind in _WEBHOOKS
    ]
    found: list[Document] = []
    for kind in kinds:
        if isinstance(kind, Unread):
            return kind
        found += kind
    return found


def _operators(deployments: Seen) -> Seen:
    if isinstance(deployments, Unread):
        return deployments
    label = ("spec", "template", "metadata", "labels", "app.kubernetes.io/name")
    return [one for one in deployments if at(one, *label) == NAME]


async def _accounts(reader: Reader, deployments: Seen) -> list[Account] | Unread:
    if isinstance(deployments, Unread):
        return deployments
    if not deployments:
        return Unread("needs the operator's Deployment, which names its ServiceAccount")
    return list(await asyncio.gather(*(_account(reader, one) for one in deployments)))


async def _account(reader: Reader, deployment: Document) -> Account:
    """The rights of the ServiceAccount under which an operator runs; of whoever asks, where it has a kubeconfig."""
    namespace = str(deployment["metadata"]["namespace"])
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    arguments = [*container.get("command", []), *container.get("args", [])]
    asked = list(_asked(arguments, namespace))
    if any(entry["name"] == "KUBECONFIG" for entry in container.get("env") or []):
        answers = await _reviews(reader, "SelfSubjectAccessReview", asked, {})
        return Account("you, whose kubeconfig the operator has,", _accesses(asked, answers))
    user = f"system:serviceaccount:{namespace}:{pod.get('serviceAccountName', 'default')}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    answers = await _reviews(reader, "SubjectAccessReview", asked, {"user": user, "groups": groups})
    return Account(user, _accesses(asked, answers))


def _asked(arguments: Sequence[str], own: str) -> list[tuple[Rule, str, str | None]]:
    """(rule, verb, namespace) of all that an operator started like this does."""
    flags = dict(part.removeprefix("--").split("=", 1) for part in arguments if part.startswith("--") and "=" in part)
    watched = flags.get("namespace")
    return [
        (rule, verb, own if rule.scope == "own" else None if rule.resource == "namespaces" else watched)
        for rule in RULES
        for verb in rule.verbs
        if rule.resource != "namespaces" or "--allow-chaos" in arguments
    ]


async def _reviews(
    reader: Reader, kind: str, asked: Sequence[tuple[Rule, str, str | None]], subject: Document
) -> list[bool | Unread]:
    async def one(rule: Rule, verb: str, namespace: str | None) -> bool | Unread:
        resource, _, subresource = rule.resource.partition("/")
        attributes: dict[str, Any] = {"group": rule.group, "resource": resource, "verb": verb}
        optional = {"subresource": subresource, "namespace": namespace, "name": rule.name}
        attributes |= {field: value for field, value in optional.items() if value}
        return await reader.review(kind, {**subject, "resourceAttributes": attributes})

    return list(await asyncio.gather(*(one(*each) for each in asked)))


def _accesses(asked: Sequence[tuple[Rule, str, str | None]], answers: Sequence[bool | Unread]) -> list[Access] | Unread:
    found = []
    for (rule, verb, namespace), answer in zip(asked, answers, strict=True):
        if isinstance(answer, Unread):
            return answer
        resource = f"{rule.resource}.{rule.group}" if rule.group else rule.resource
        found.append(Access(verb, resource, namespace, answer, rule.why))
    return found
