"""How a pod gets at a store of checkpoints: variables, credentials, a volume."""

from typing import Any

from capstan_operator.api.store import Store
from capstan_operator.build.children import Owner
from capstan_runtime.contract import env

STORE_VOLUME = "store"
STORE_FOLDER = "/var/lib/capstan/store"


def run_folder(job: Owner) -> str:
    """Where in a store the checkpoints of this TrainingJob are."""
    return f"{job.namespace}/{job.name}/{job.uid}"


def job_of(run: str) -> str:
    """Name of the TrainingJob whose folder `run` is."""
    return run.split("/")[1]


def store_place(store: Store) -> str:
    """All of the store, as a pod sees it: a folder, or the URL of a bucket."""
    return store.object.url.rstrip("/") if store.object else STORE_FOLDER


def store_env(store: Store, run: str) -> dict[str, str]:
    """Where the checkpoints in folder `run` are, and what the client of an object store reads by itself."""
    return {env.STORE: f"{store_place(store)}/{run}", **store_access(store)}


def store_access(store: Store) -> dict[str, str]:
    """What the client of an object store reads by itself."""
    variables: dict[str, str] = {}
    if not store.object:
        return variables
    if store.object.endpoint:
        variables["AWS_ENDPOINT_URL"] = store.object.endpoint
        if store.object.endpoint.startswith("http://"):
            variables["AWS_ALLOW_HTTP"] = "true"
    if store.object.region:
        variables["AWS_REGION"] = store.object.region
    return variables


def store_env_from(store: Store) -> dict[str, Any]:
    """The credentials of an object store, which never pass through the operator."""
    if not store.object or not store.object.secret_name:
        return {}
    return {"envFrom": [{"secretRef": {"name": store.object.secret_name}}]}


def store_volume(store: Store) -> dict[str, Any]:
    """The volume of a store that is none of an object store's."""
    if store.claim:
        return {"name": STORE_VOLUME, "persistentVolumeClaim": {"claimName": store.claim.name}}
    if store.host_path:
        # Directory, not DirectoryOrCreate: where the file system is not mounted, the pod must not fill the root disk.
        return {"name": STORE_VOLUME, "hostPath": {"path": store.host_path.path, "type": "Directory"}}
    raise AssertionError("the model sets exactly one kind of store, and a bucket is no volume")
