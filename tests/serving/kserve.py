"""The test in the part of KServe: what its controller and the kubelet do to objects, through the API."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

from unirg import artifact
from unirg.artifact import Artifact
from unirg.config import Config
from unirg.serving import rollout
from unirg.serving.inference_service import DIGEST, SLOT

Object = dict[str, Any]
GROUP, VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"


class _Made(Config):
    seed: int
    """Tells checkpoints apart."""


def make_checkpoint(store: str, seed: int = 0) -> Artifact:
    """An artifact that looks like a checkpoint to whoever does not load it, as only a cluster does."""
    with artifact.draft(store, "base", 1, _Made(seed=seed), {}) as draft:
        if draft.committed:
            return draft.committed
        (draft.out / "model").mkdir()
        (draft.out / "model" / "config.json").write_text(f'{{"seed": {seed}}}')
        return draft.commit()


Answer = Callable[[str, str, Object], tuple[int, Object]]
"""(host, path, request) -> (status, answer)."""


@contextmanager
def vllm(*names: str) -> Iterator[str]:
    """A server with vLLM's manners: no digest in a header, 404 for a model that it does not have; its URL."""

    def answer(_: str, path: str, asked: Object) -> tuple[int, Object]:
        if path == "/v1/chat/completions" and asked["model"] in names:
            return said("Clear lungs.")
        return 404, {"error": {"code": 404}}

    with chats(answer) as url:
        yield url


def said(text: str) -> tuple[int, Object]:
    """A completion."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}


@contextmanager
def chats(answer: Answer) -> Iterator[str]:
    """A server on loopback that answers JSON with JSON; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, found = answer(self.headers["Host"], self.path, asked)
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def inside() -> Iterator[None]:
    """This process as one inside the cluster, whose services are on this machine."""
    known = socket.getaddrinfo

    def resolved(host: Any, port: Any, *more: Any, **named: Any) -> Any:
        ours = isinstance(host, str) and host.endswith(".svc.cluster.local")
        return known("127.0.0.1" if ours else host, port, *more, **named)

    with (
        mock.patch.object(socket, "getaddrinfo", resolved),
        mock.patch.object(rollout, "POLL_S", 0.02),
        # Artifacts of this machine pass for some in object storage.
        mock.patch.object(rollout, "storage_uri", lambda model: f"s3://m/{model.digest}/model"),
    ):
        yield


class KServe:
    """KServe's controller in a namespace, one step at a time."""

    def __init__(self, kubeconfig: Path, namespace: str = "unirg") -> None:
        from kubernetes import client, config

        api = config.new_client_from_config(str(kubeconfig))
        self.core, self.custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self.namespace = namespace
        self.place = (GROUP, VERSION, namespace, PLURAL)
        self.url = ""
        """The gateway's address of every service; empty: one of their own."""
        self.domain = "svc.cluster.local"
        """Of the services inside the cluster; with a port where they are asked."""

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

    def ready(self, name: str, **status: Any) -> None:
        """Report that everything a service asks for is there."""
        canaries = self.get(name)["spec"].get("canary", [])
        own: Object = {
            "conditions": [
                {"type": one, "status": "True"} for one in ("IngressReady", "PredictorReady", "Ready")
            ],
            "url": self.url or f"http://{name}-{self.namespace}.example.com",
            "address": {"url": f"http://{name}-predictor.{self.namespace}.{self.domain}"},
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
    def at_work(self) -> Iterator[None]:
        """Make every service ready soon after it is made or changed."""
        from kubernetes.client import ApiException

        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                for thing in self.services():
                    seen = thing.get("status", {}).get("observedGeneration", 0)
                    if seen < thing["metadata"]["generation"]:
                        try:
                            self.ready(thing["metadata"]["name"])
                        except ApiException as error:  # changed or deleted meanwhile: look again
                            if error.status not in (404, 409):
                                raise
                time.sleep(0.02)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
