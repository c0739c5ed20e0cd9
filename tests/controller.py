"""The test in the part of a cluster's controllers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Object = dict[str, Any]


class Controller:
    """The test in the part of Trainer, JobSet and kubelet: what they do to objects, through the API."""

    def __init__(self, kubeconfig: Path, namespace: str = "unirg") -> None:
        from kubernetes import client, config

        api = config.new_client_from_config(str(kubeconfig))
        self.core, self.custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self.namespace = namespace
        self.place = ("trainer.kubeflow.org", "v1alpha1", namespace, "trainjobs")

    def jobs(self) -> list[Object]:
        return list(self.custom.list_namespaced_custom_object(*self.place)["items"])

    def condition(
        self, job: str, name: str, status: str = "True", reason: str = "", message: str = ""
    ) -> None:
        """Set one condition of a TrainJob."""
        thing = self.custom.get_namespaced_custom_object(*self.place, job)
        others = [one for one in thing.get("status", {}).get("conditions", []) if one["type"] != name]
        new = {"type": name, "status": status, "reason": reason or name, "message": message}
        new["lastTransitionTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        thing["status"] = {"conditions": [*others, new]}
        self.custom.replace_namespaced_custom_object_status(*self.place, job, thing)

    def finalizers(self, job: str, *names: str) -> None:
        """Set what must be done before a TrainJob is gone; none: let it go."""
        thing = self.custom.get_namespaced_custom_object(*self.place, job)
        thing["metadata"]["finalizers"] = list(names)
        self.custom.replace_namespaced_custom_object(*self.place, job, thing)

    def delete(self, job: str) -> None:
        self.custom.delete_namespaced_custom_object(*self.place, job)

    def pod(self, job: str, rank: int = 0, name: str = "") -> str:
        """Make a node's pod, which waits; its name."""
        name = name or f"{job}-node-0-{rank}"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(rank),
        }
        spec = {"containers": [{"name": "node", "image": "x"}], "schedulerName": "none"}
        self.core.create_namespaced_pod(
            self.namespace, {"metadata": {"name": name, "labels": labels}, "spec": spec}
        )
        return name

    def state(self, pod: str, phase: str, state: Object, **status: Any) -> None:
        """Set a pod's phase and its container's state, such as `{"terminated": {"exitCode": 137}}`."""
        container = {"name": "node", "image": "x", "imageID": "x", "ready": False, "restartCount": 0}
        body = {"phase": phase, "containerStatuses": [container | {"state": state}], **status}
        self.core.patch_namespaced_pod_status(pod, self.namespace, {"status": body})
