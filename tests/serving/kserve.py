"""The test in the part of KServe: what its controller and the kubelet do to objects, through the API."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unirg.serving.inference_service import DIGEST, SLOT

Object = dict[str, Any]
GROUP, VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"


class KServe:
    """KServe's controller in a namespace, one step at a time."""

    def __init__(self, kubeconfig: Path, namespace: str = "unirg") -> None:
        from kubernetes import client, config

        api = config.new_client_from_config(str(kubeconfig))
        self.core, self.custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self.namespace = namespace
        self.place = (GROUP, VERSION, namespace, PLURAL)

    def services(self) -> list[Object]:
        return list(self.custom.list_namespaced_custom_object(*self.place)["items"])

    def get(self, name: str) -> Object:
        return dict(self.custom.get_namespaced_custom_object(*self.place, name))

    def create(self, thing: Object) -> None:
        self.custom.create_namespaced_custom_object(*self.place, thing)

    def replace(self, thing: Object) -> None:
        self.custom.replace_namespaced_custom_object(*self.place, thing["metadata"]["name"], thing)

    def delete(self, name: str) -> None:
        self.custom.delete_namespaced_custom_object(*self.place, name)

    def report(self, name: str, **status: Any) -> None:
        """Set a service's status, of the generation that it has now."""
        thing = self.get(name)
        thing["status"] = {"observedGeneration": thing["metadata"]["generation"]} | status
        self.custom.replace_namespaced_custom_object_status(*self.place, name, thing)

    def ready(self, name: str, url: str = "", **status: Any) -> None:
        """Report that everything a service asks for is there."""
        canaries = self.get(name)["spec"].get("canary", [])
        own: Object = {
            "conditions": [
                {"type": one, "status": "True"} for one in ("IngressReady", "PredictorReady", "Ready")
            ],
            "url": url or f"http://{name}-{self.namespace}.example.com",
            "address": {"url": f"http://{name}-predictor.{self.namespace}.svc.cluster.local"},
            "canaryStatuses": [
                {"name": one["predictor"]["name"], "ready": True, "trafficPercent": one["trafficPercent"]}
                for one in canaries
            ],
        }
        self.report(name, **own | status)

    def pod(self, service: str, slot: str, digest: str, name: str) -> str:
        """Make a pod of a slot, as it is before it runs; its name."""
        metadata = {
            "name": name,
            "labels": {"serving.kserve.io/inferenceservice": service},
            "annotations": {DIGEST: digest, SLOT: slot},
        }
        spec = {"containers": [{"name": "kserve-container", "image": "x"}], "schedulerName": "none"}
        self.core.create_namespaced_pod(self.namespace, {"metadata": metadata, "spec": spec})
        return name

    def pod_status(self, pod: str, **status: Any) -> None:
        self.core.patch_namespaced_pod_status(pod, self.namespace, {"status": status})

    @contextmanager
    def at_work(self, url: str = "") -> Iterator[None]:
        """Make every service ready soon after it is made or changed."""
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                for thing in self.services():
                    seen = thing.get("status", {}).get("observedGeneration", 0)
                    if seen < thing["metadata"]["generation"]:
                        self.ready(thing["metadata"]["name"], url)
                time.sleep(0.02)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
