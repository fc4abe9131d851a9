"""What can go wrong between the operator and its peers.

ApiError            the API server refused, or gave no usable answer
  NotKubernetes     what answers is no Kubernetes API server
  Stranger          a child's name is taken by an object that is not its owner's
  Predecessor       a child's name is still taken by a child of a deleted owner of the same name
SupervisorError     a pod's supervisor refused, or gave no usable answer
  TokenRefused      it does not know the token of its job
ScrapeError         a serving replica gave no numbers that can be counted
  ScrapeTimeout     it gave no answer at all, in all the time it had
"""

import msgspec

NAMESPACE_TERMINATING = "NamespaceTerminating"


class ApiError(Exception):
    """The API server's answer to a request that did not succeed."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0: there was no answer, so the request may or may not have been carried out."""
        self.reason = reason
        """Kubernetes' own CamelCase reason, such as AlreadyExists; NoAnswer with status 0."""
        self.message = message
        self.retry_after = retry_after
        """Seconds the server asks to wait; None: it does not say."""

    def __str__(self) -> str:
        return f"{self.reason} ({self.status}): {self.message}"

    @property
    def is_not_found(self) -> bool:
        return self.status == 404

    @property
    def is_expired(self) -> bool:
        """The resource version or continue token is too old."""
        return self.status == 410

    @property
    def is_already_exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def is_refusal(self) -> bool:
        """The server understood and will not do it: a quota, an admission rule, a wrong field, a name that is taken.
        Only a person can change that."""
        if self.reason == NAMESPACE_TERMINATING:
            return False  # the owner is about to go the same way
        return self.status in (400, 403, 413, 422) or isinstance(self, Stranger)

    @property
    def is_conflict(self) -> bool:
        """The object changed meanwhile, or a precondition does not hold."""
        return self.status == 409 and not (self.is_already_exists or isinstance(self, Stranger | Predecessor))

    @property
    def is_invalid(self) -> bool:
        """The object breaks a rule, such as that an immutable Secret cannot change."""
        return self.status == 422


class NotKubernetes(ApiError):
    """A login page of a proxy, a captive portal, another service on that port. It may yet become one."""

    def __init__(self, server: str, request: str, what: str) -> None:
        message = f"{server} is no Kubernetes API server: it answers {request} with {what}; see clusters[].server of "
        super().__init__(0, "NotKubernetes", f"{message}the kubeconfig, and what stands between")

    def __str__(self) -> str:
        return self.message


class Stranger(ApiError):
    """A child's computed name belongs to an object that its owner does not own. It is never touched."""

    def __init__(self, kind: str, namespace: str, name: str, holder: str, owner_kind: str) -> None:
        super().__init__(
            409,
            "NameTaken",
            f"{kind} {namespace}/{name} exists and is not this {owner_kind}'s ({holder}); delete it or rename the "
            f"{owner_kind}",
        )


class Predecessor(ApiError):
    """A child's computed name belongs to a child of a deleted owner. It leaves by itself, and is waited for."""

    def __init__(self, kind: str, namespace: str, name: str, owner_kind: str) -> None:
        super().__init__(
            409,
            "PredecessorLeaving",
            f"{kind} {namespace}/{name} is left of a deleted {owner_kind} of the same name; this one starts when it is "
            "gone",
        )


class SupervisorError(Exception):
    """A supervisor did not do as asked; the text is one line that says why."""


class TokenRefused(SupervisorError):
    """It answers, but not to the token computed for its job."""


class ScrapeError(Exception):
    """A replica's numbers could not be had; the text is one line that says why."""


class ScrapeTimeout(ScrapeError):
    """It did not answer in time: asking it took as long as it takes to ask many others."""


class ErrorCause(msgspec.Struct, gc=False):
    reason: str = ""


class ErrorDetails(msgspec.Struct, gc=False):
    causes: list[ErrorCause] | None = None


class ErrorStatus(msgspec.Struct, gc=False):
    """The parts of a Kubernetes `Status` object that matter."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: ErrorDetails | None = None

    def nearest_reason(self) -> str:
        """The reason, or that of its cause where that says more."""
        causes = (self.details.causes if self.details is not None else None) or ()
        return NAMESPACE_TERMINATING if any(c.reason == NAMESPACE_TERMINATING for c in causes) else self.reason


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: text that is no UTF-8 and deep nesting, too."""

_decode_status = msgspec.json.Decoder(ErrorStatus).decode


def api_error(status: int, body: bytes, request: str, retry_after: float | None = None) -> ApiError:
    """The ApiError for an answer with HTTP `status` >= 400; a body that is not a Status is quoted, cut short."""
    try:
        answer = _decode_status(body)
    except UNREADABLE:
        answer = ErrorStatus(message=body[:200].decode("utf-8", "replace"))
    message = " ".join(answer.message.split()) or "no message"
    return ApiError(status, answer.nearest_reason() or f"Http{status}", f"{request}: {message}", retry_after)
