"""A cluster in which TrainingJobs run, seen through the official Kubernetes client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from tests.support.gitops import differences

GROUP, VERSION, PLURAL = "capstan.dev", "v1alpha1", "trainingjobs"
NAMESPACE = "default"
Status = dict[str, Any]
ENDED = ("Failed", "Invalid", "Succeeded")


class TimedOut(AssertionError):
    """What was waited for did not come; the message holds all that is known about the job."""


@dataclass
class Cluster:
    """API server, node and operator, all running."""

    name: str
    kubeconfig: Path
    home: Path
    """Where the node keeps its volumes."""
    restart_operator: Callable[[], None]
    """Kills the operator without warning and lets it come back."""

    def __post_init__(self) -> None:
        api = config.new_client_from_config(str(self.kubeconfig))
        self.core = client.CoreV1Api(api)
        self.custom = client.CustomObjectsApi(api)
        self.api = api

    def apply_file(self, path: Path) -> None:
        """Creates every object of a manifest."""
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] == "TrainingJob":
                self.create_job(document)
            else:
                self.core.create_namespaced_persistent_volume_claim(NAMESPACE, document)

    def differences(self, path: Path) -> list[str]:
        """Between the objects of ours in a manifest and what is there, as a client and as a dry run on the server find
        them."""
        found = []
        for document in yaml.safe_load_all(path.read_text()):
            if document["apiVersion"] == f"{GROUP}/{VERSION}":
                kind, name = document["kind"], document["metadata"]["name"]
                place = (GROUP, VERSION, NAMESPACE, f"{kind.lower()}s", name)
                live = self.custom.get_namespaced_custom_object(*place)
                dry = self.custom.patch_namespaced_custom_object(
                    *place,
                    document,
                    dry_run="All",
                    field_manager="argocd-controller",
                    force=True,
                    _content_type="application/apply-patch+yaml",
                )
                found += [f"{kind} {name}: {line}" for line in differences(document, document, live, dry)]
        return found

    def claim(self, name: str) -> None:
        self.core.create_namespaced_persistent_volume_claim(
            NAMESPACE,
            {
                "metadata": {"name": name},
                "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
            },
        )

    def create_job(self, job: dict[str, Any]) -> dict[str, Any]:
        created: dict[str, Any] = self.custom.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, job)
        return created

    def job(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.custom.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, name)
        return found

    def status(self, name: str) -> Status:
        found: Status = self.job(name).get("status") or {}
        return found

    def patch_job(self, name: str, patch: dict[str, Any]) -> None:
        self.custom.patch_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, name, patch)

    def delete_job(self, name: str) -> None:
        """Asks for the job's deletion; one that is gone already is fine."""
        try:
            self.custom.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, name)
        except ApiException as error:
            if error.status != 404:
                raise

    def pods(self, job: str) -> list[Any]:
        found: list[Any] = self.core.list_namespaced_pod(NAMESPACE, label_selector=f"capstan.dev/job={job}").items
        return found

    def event_reasons(self, job: str) -> list[str]:
        """Reasons of the job's events, oldest first, repetitions dropped."""
        events = self.core.list_namespaced_event(
            NAMESPACE, field_selector=f"involvedObject.kind=TrainingJob,involvedObject.name={job}"
        ).items
        # Times are whole seconds; names of the operator's events end with theirs in microseconds.
        events.sort(
            key=lambda event: (
                event.first_timestamp or event.event_time or event.metadata.creation_timestamp,
                event.metadata.name,
            )
        )
        return list(dict.fromkeys(event.reason for event in events))

    def wait(self, job: str, what: str, holds: Callable[[Status], bool], seconds: float = 120) -> Status:
        """The first status for which `holds`; TimedOut with the whole story after `seconds` or when it cannot come."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status(job)
            if holds(status):
                return status
            if time.monotonic() > deadline or status.get("phase") in ENDED:
                raise TimedOut(f"{job}: not {what}\n{self.story(job)}")
            time.sleep(0.2)

    def wait_committed(self, job: str, seconds: float = 120) -> None:
        """Returns as soon as the job's store holds a committed checkpoint, before status has had time to say so."""
        uid = self.job(job)["metadata"]["uid"]
        deadline = time.monotonic() + seconds
        while not any(self.home.glob(f"**/volumes/*/*/*/{job}/{uid}/*/COMMIT")):
            if time.monotonic() > deadline or self.status(job).get("phase") in ENDED:
                raise TimedOut(f"{job}: no checkpoint was committed\n{self.story(job)}")
            time.sleep(0.05)

    def wait_phase(self, job: str, phase: str, seconds: float = 180) -> Status:
        return self.wait(job, phase, lambda status: status.get("phase") == phase, seconds)

    def wait_pods(self, job: str, phases: list[str], seconds: float = 60) -> None:
        """Returns once the job's pods are in these phases: a job has succeeded before its last process has ended."""
        deadline = time.monotonic() + seconds
        while [pod.status.phase for pod in self.pods(job)] != phases:
            if time.monotonic() > deadline:
                raise TimedOut(f"{job}: its pods are not {phases}\n{self.story(job)}")
            time.sleep(0.2)

    def wait_gone(self, read: Callable[[], Any], what: str, seconds: float = 60) -> None:
        """Returns once `read` answers 404 or nothing."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if not read():
                    return
            except ApiException as error:
                if error.status == 404:
                    return
                raise
            time.sleep(0.2)
        raise TimedOut(f"{what} is still there after {seconds:.0f} s")

    def story(self, job: str) -> str:
        """Status, events and the end of each pod's log: what a person would look at."""
        parts = [json.dumps(self.status(job), indent=1), "events: " + ", ".join(self.event_reasons(job))]
        for pod in self.pods(job):
            parts.append(f"--- {pod.metadata.name}: {pod.status.phase} {pod.status.reason or ''}")
            try:
                parts.append(self.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE, tail_lines=25))
            except ApiException as error:
                parts.append(f"(no log: {error.status} {error.reason})")
        return "\n".join(parts)
