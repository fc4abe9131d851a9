"""The Pod Security Standards' profile `restricted` for Linux pods, as published for Kubernetes 1.25 and later.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
_SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def violations(spec: Json) -> list[str]:
    """What the profile forbids in a pod's spec, as `field: rule`; empty for a pod that it lets pass."""
    return [*_of_pod(spec), *_of_containers(spec)]


def _of_pod(spec: Json) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field}: must not be set"
    for volume in spec.get("volumes", ()):
        for kind in sorted(set(volume) - {"name"} - _VOLUMES):
            yield f"volumes[{volume['name']}]: {kind} is not allowed"
    context = spec.get("securityContext", {})
    for sysctl in context.get("sysctls", ()):
        if sysctl["name"] not in _SYSCTLS:
            yield f"sysctls: {sysctl['name']} is not allowed"
    yield from _of_context(context, "securityContext")


def _of_containers(spec: Json) -> Iterator[str]:
    pod = spec.get("securityContext", {})
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(group, ()):
            name, context = f"{group}[{container['name']}]", container.get("securityContext", {})
            yield from _of_context(context, name)
            yield from _of_privileges(context, name)
            if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
                yield f"{name}.runAsNonRoot: must be true"
            seccomp = context.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
            if seccomp not in ("RuntimeDefault", "Localhost"):
                yield f"{name}.seccompProfile: must be RuntimeDefault or Localhost"
            if any(port.get("hostPort") for port in container.get("ports", ())):
                yield f"{name}.hostPort: must not be set"
            handlers = [container.get(probe, {}) for probe in ("livenessProbe", "readinessProbe", "startupProbe")]
            handlers += container.get("lifecycle", {}).values()
            if any(handler.get(way, {}).get("host") for handler in handlers for way in ("httpGet", "tcpSocket")):
                yield f"{name}: probes must not name a host"


def _of_privileges(context: Json, name: str) -> Iterator[str]:
    if context.get("privileged"):
        yield f"{name}.privileged: must not be set"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}.allowPrivilegeEscalation: must be false"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield f"{name}.capabilities: must drop ALL"
    if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield f"{name}.capabilities: may add NET_BIND_SERVICE alone"
    if context.get("procMount", "Default") != "Default":
        yield f"{name}.procMount: must be Default"


def _of_context(context: Json, name: str) -> Iterator[str]:
    """What may stand in the context of the pod and of a container alike."""
    if context.get("runAsUser") == 0:
        yield f"{name}.runAsUser: must not be 0"
    if context.get("runAsNonRoot") is False:
        yield f"{name}.runAsNonRoot: must not be false"
    if context.get("seccompProfile", {}).get("type") == "Unconfined":
        yield f"{name}.seccompProfile: must not be Unconfined"
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield f"{name}.appArmorProfile: must not be Unconfined"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{name}.hostProcess: must not be set"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{name}.seLinuxOptions: only a container's types, neither user nor role"
