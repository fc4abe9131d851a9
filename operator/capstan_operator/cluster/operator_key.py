"""The operator's own key, from which each job's token is computed. It lives in one Secret, made at first start."""

import base64
import binascii
import secrets

import orjson

from capstan_operator.api.meta import LABEL_MANAGED_BY, MANAGED_BY
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import KEY_SECRET_NAME, SECRETS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.trail import Cause, because

KEY_BYTES = 32


class OperatorKeyError(Exception):
    """The Secret exists but holds no usable key; the text says what to do."""


async def fetch_or_create_key(client: KubeClient, namespace: str) -> bytes:
    """The key: the stored one, or a new one if there is none. Two replicas that start together agree.

    Raises ApiError, or OperatorKeyError when the Secret is not what it should be.
    """
    try:
        return await _fetch(client, namespace)
    except ApiError as error:
        if not error.is_not_found:
            raise
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": KEY_SECRET_NAME, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
        "type": "Opaque",
        "data": {"key": base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()},
    }
    try:
        with because(Cause("FirstStart", "there is no key of the operator's yet")):
            await client.create(SECRETS, namespace, orjson.dumps(manifest), lane=Lane.SYSTEM)
    except ApiError as error:
        if not error.is_already_exists:
            raise
    return await _fetch(client, namespace)


async def _fetch(client: KubeClient, namespace: str) -> bytes:
    secret = orjson.loads(await client.get(SECRETS, namespace, KEY_SECRET_NAME))
    try:
        key = base64.b64decode(secret["data"]["key"], validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise OperatorKeyError(
            f"Secret {namespace}/{KEY_SECRET_NAME}: data.key is missing or not base64; delete the Secret and restart "
            f"the operator (running jobs are then started again)"
        ) from error
    if len(key) < KEY_BYTES:
        raise OperatorKeyError(
            f"Secret {namespace}/{KEY_SECRET_NAME}: data.key has {len(key)} bytes, {KEY_BYTES} are needed; delete the "
            f"Secret and restart the operator (running jobs are then started again)"
        )
    return key
