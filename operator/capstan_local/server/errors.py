"""Failures as clients see them: every error of the API is a metav1.Status."""

from collections.abc import Sequence
from typing import Any, NamedTuple

_REASON_OF_CODE = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Cause(NamedTuple):
    """One entry of Status.details.causes; `field` "" means the object as a whole."""

    reason: str
    message: str
    field: str = ""

    def as_dict(self) -> dict[str, str]:
        cause = {"reason": self.reason, "message": self.message}
        return {**cause, "field": self.field} if self.field else cause


class ApiError(Exception):
    """A request that fails: HTTP `code` and the Status that the client gets."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = _REASON_OF_CODE.get(code, "Unknown") if reason is None else reason
        self.details = details
        self.headers = headers or {}

    def status(self) -> dict[str, Any]:
        """The metav1.Status."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details is not None:
            status["details"] = self.details
        return status


def _details(group: str, kind: str, name: str = "", causes: Sequence[Cause] = ()) -> dict[str, Any]:
    details: dict[str, Any] = {"name": name, "group": group, "kind": kind}
    details = {key: value for key, value in details.items() if value}
    if causes:
        details["causes"] = [cause.as_dict() for cause in causes]
    return details


def qualified(plural: str, group: str) -> str:
    """`pods`, `jobs.batch`: how Kubernetes names a resource in messages."""
    return f"{plural}.{group}" if group else plural


def not_found(plural: str, group: str, name: str) -> ApiError:
    return ApiError(404, f'{qualified(plural, group)} "{name}" not found', details=_details(group, plural, name))


def path_not_found() -> ApiError:
    """The path names nothing that is served."""
    return ApiError(404, "the server could not find the requested resource", details={})


def already_exists(plural: str, group: str, name: str) -> ApiError:
    return ApiError(
        409,
        f'{qualified(plural, group)} "{name}" already exists',
        reason="AlreadyExists",
        details=_details(group, plural, name),
    )


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(plural: str, group: str, name: str, why: str = MODIFIED) -> ApiError:
    return ApiError(
        409,
        f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}',
        details=_details(group, plural, name),
    )


def apply_conflict(message: str, causes: Sequence[Cause]) -> ApiError:
    return ApiError(409, message, details={"causes": [cause.as_dict() for cause in causes]})


def forbidden(plural: str, group: str, name: str, why: str, causes: Sequence[Cause] = ()) -> ApiError:
    return ApiError(
        403,
        f'{qualified(plural, group)} "{name}" is forbidden: {why}',
        details=_details(group, plural, name, causes),
    )


def bad_request(message: str) -> ApiError:
    return ApiError(400, message)


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> ApiError:
    """422 with Kubernetes' sentence: `Pod "x" is invalid: spec.a: Required value`, several in brackets."""
    lines = list(dict.fromkeys(f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes))
    text = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    return ApiError(
        422, f'{qualified(kind, group)} "{name}" is invalid: {text}', details=_details(group, kind, name, causes)
    )


def method_not_allowed(method: str = "") -> ApiError:
    what = f": {method}" if method else ""
    return ApiError(405, f"the server does not allow this method on the requested resource{what}", details={})


def not_acceptable() -> ApiError:
    return ApiError(406, "only the following media types are accepted: application/json, application/yaml")


def unsupported_media_type(media_type: str, accepted: Sequence[str]) -> ApiError:
    return ApiError(
        415, f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    )


def gone(message: str) -> ApiError:
    return ApiError(410, message)


def not_implemented(what: str) -> ApiError:
    return ApiError(501, f"{what} is not implemented by this development server")


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized")


def required(field: str, hint: str = "") -> Cause:
    return Cause("FieldValueRequired", f"Required value: {hint}" if hint else "Required value", field)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def invalid_value(field: str, value: Any, why: str) -> Cause:
    return Cause("FieldValueInvalid", f"Invalid value: {_shown(value)}: {why}", field)


def not_supported(field: str, value: Any, supported: Sequence[str]) -> Cause:
    listed = ", ".join(f'"{item}"' for item in supported)
    return Cause("FieldValueNotSupported", f"Unsupported value: {_shown(value)}: supported values: {listed}", field)


def forbidden_value(field: str, why: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {why}", field)


def duplicate(field: str, value: Any) -> Cause:
    return Cause("FieldValueDuplicate", f"Duplicate value: {_shown(value)}", field)
