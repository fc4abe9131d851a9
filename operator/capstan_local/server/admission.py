"""Checks and additions that depend on other objects: namespaces, priorities, service addresses."""

import ipaddress
from typing import Any

from capstan_local.server.errors import ApiError, Cause, forbidden, invalid, invalid_value, not_found
from capstan_local.server.resources import Resource
from capstan_local.server.storage import Store

Object = dict[str, Any]

PROTECTED_CLAIM = "kubernetes.io/pvc-protection"
NODE_PORTS = range(30000, 32768)
_SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}


class Admission:
    """Admission over the objects of `store`; Services get addresses out of `service_network`."""

    def __init__(self, store: Store, service_network: ipaddress.IPv4Network) -> None:
        self._store = store
        self._service_network = service_network

    def check_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        """Refuse to create in a namespace that does not exist or is going away."""
        entry = self._store.get("namespaces", "", namespace)
        if entry is None:
            raise not_found("namespaces", "", namespace)
        if entry.deleting:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            going = Cause("NamespaceTerminating", f"namespace {namespace} is being terminated", "metadata.namespace")
            raise forbidden(resource.plural, resource.group, name, why, [going])

    def prepare_create(self, resource: Resource, obj: Object) -> None:
        if resource.kind_key == "v1/Pod":
            self._settle_priority(resource, obj)
            obj["spec"].setdefault("serviceAccountName", "default")
            obj["spec"].setdefault("serviceAccount", obj["spec"]["serviceAccountName"])
        elif resource.kind_key == "v1/Service":
            self._allocate(resource, obj)
        elif resource.kind_key == "v1/PersistentVolumeClaim":
            finalizers = obj["metadata"].get("finalizers") or []
            if PROTECTED_CLAIM not in finalizers:
                obj["metadata"]["finalizers"] = [*finalizers, PROTECTED_CLAIM]

    def prepare_update(self, resource: Resource, obj: Object, old: Object) -> None:
        if resource.kind_key == "v1/Service":
            self._allocate(resource, obj, old["spec"].get("clusterIP", ""))

    def _settle_priority(self, resource: Resource, pod: Object) -> None:
        spec = pod["spec"]
        name = spec.get("priorityClassName")
        if not name:
            return
        if name in _SYSTEM_PRIORITIES:
            spec["priority"] = _SYSTEM_PRIORITIES[name]
            return
        entry = self._store.get("priorityclasses.scheduling.k8s.io", "", name)
        if entry is None:
            why = f"no PriorityClass with name {name} was found"
            raise forbidden(resource.plural, resource.group, pod["metadata"].get("name", ""), why)
        priority_class = entry.load()
        spec["priority"] = priority_class.get("value", 0)
        spec["preemptionPolicy"] = priority_class.get("preemptionPolicy", "PreemptLowerPriority")

    def _allocate(self, resource: Resource, service: Object, held: str = "") -> None:
        """Give a Service its address and node ports; refuse those that are taken or out of range.

        `held` is the address it has already, which stays good even if the range has become another since.
        """
        spec, metadata = service["spec"], service["metadata"]
        kind = spec.get("type")
        if kind == "ExternalName":
            return
        addresses, ports = self._taken(metadata["uid"])
        wanted = spec.get("clusterIP")
        if not wanted:
            spec["clusterIP"] = self._free_address(addresses)
        elif wanted not in ("None", held):
            problem = self._address_problem(wanted, addresses)
            if problem:
                cause = invalid_value("spec.clusterIPs", [wanted], problem)
                raise invalid(resource.kind, resource.group, metadata["name"], [cause])
        spec["clusterIPs"] = [spec["clusterIP"]]
        if kind in ("NodePort", "LoadBalancer"):
            for at, port in enumerate(spec.get("ports") or ()):
                if not port.get("nodePort"):
                    port["nodePort"] = next(number for number in NODE_PORTS if number not in ports)
                elif port["nodePort"] in ports:
                    why = "provided port is already allocated"
                    cause = invalid_value(f"spec.ports[{at}].nodePort", port["nodePort"], why)
                    raise invalid(resource.kind, resource.group, metadata["name"], [cause])
                ports.add(port["nodePort"])

    def _taken(self, but_uid: str) -> tuple[set[str], set[int]]:
        addresses: set[str] = set()
        ports: set[int] = set()
        for entry in self._store.scan("services"):
            if entry.uid != but_uid:
                spec = entry.load()["spec"]
                addresses.add(spec.get("clusterIP", ""))
                ports.update(port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort"))
        return addresses, ports

    def _free_address(self, taken: set[str]) -> str:
        for address in self._service_network.hosts():
            if str(address) not in taken:
                return str(address)
        raise ApiError(500, "failed to allocate a serviceIP: range is full")

    def _address_problem(self, wanted: str, taken: set[str]) -> str:
        try:
            address = ipaddress.ip_address(wanted)
        except ValueError:
            return "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
        if address not in self._service_network:
            valid = f"the provided IP is not in the valid range of {self._service_network}"
            return f"failed to allocate IP {wanted}: {valid}"
        return "failed to allocate IP: provided IP is already allocated" if wanted in taken else ""
