"""Authentication and authorisation reviews. There is one kind of user, and it may do everything."""

from typing import Any

from capstan_local.server.identity import User

Object = dict[str, Any]


def review(kind: str, obj: Object, user: User, of_token: User | None) -> Object:
    """The review `obj` with its answer. `of_token` is whom a TokenReview's token belongs to, None for a bad one."""
    answered = {**obj, "metadata": {**(obj.get("metadata") or {}), "creationTimestamp": None}}
    if kind == "SelfSubjectReview":
        answered["status"] = {"userInfo": user.as_dict()}
    elif kind == "TokenReview":
        answered["status"] = _token_status(of_token)
    elif kind == "SelfSubjectRulesReview":
        everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
        urls = {"verbs": ["*"], "nonResourceURLs": ["*"]}
        answered["status"] = {"resourceRules": [everything], "nonResourceRules": [urls], "incomplete": False}
    else:
        answered["status"] = {"allowed": True, "reason": "this development server allows everything"}
    return answered


def _token_status(of_token: User | None) -> Object:
    if of_token is None:
        return {"user": {}, "error": "invalid bearer token"}
    return {"authenticated": True, "user": of_token.as_dict(), "audiences": ["https://kubernetes.default.svc"]}
