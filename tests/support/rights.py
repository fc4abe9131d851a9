"""An account that may do what the chart lets the operator do, and nothing else."""

from __future__ import annotations

from pathlib import Path

import yaml
from kubernetes import client, config

from tests.support.control_planes import ControlPlane, write_kubeconfig

RIGHTS = Path("charts/capstan/files/rights.yaml")
NAME = "capstan-operator"
TOKEN_SECONDS = 24 * 3600


def operators_kubeconfig(plane: ControlPlane, path: Path, namespace: str) -> Path:
    """Writes a kubeconfig of the operator's account, made here, to `path`. The server must enforce RBAC."""
    api = config.new_client_from_config(str(plane.kubeconfig))
    core, rbac = client.CoreV1Api(api), client.RbacAuthorizationV1Api(api)
    rights = yaml.safe_load(RIGHTS.read_text())
    core.create_namespaced_service_account(namespace, {"metadata": {"name": NAME}})
    subjects = [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "name": NAME}
    metadata = {"metadata": {"name": NAME}}
    rbac.create_cluster_role({**metadata, "rules": rights["watched"] + rights["chaos"]})
    rbac.create_cluster_role_binding(
        {**metadata, "roleRef": {**reference, "kind": "ClusterRole"}, "subjects": subjects}
    )
    rbac.create_namespaced_role(namespace, {**metadata, "rules": rights["own"]})
    rbac.create_namespaced_role_binding(
        namespace, {**metadata, "roleRef": {**reference, "kind": "Role"}, "subjects": subjects}
    )
    request = {"spec": {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": TOKEN_SECONDS}}
    token = core.create_namespaced_service_account_token(NAME, namespace, request).status.token
    write_kubeconfig(path, plane.url, plane.ca_file, token)
    return path
