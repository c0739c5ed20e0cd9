"""Every call to a Kubernetes API: objects of any kind, their changes until a condition holds, pods' logs.

    cluster = connect(namespace="unirg")
    made = cluster.create(KIND, manifest)               # Conflict where the name is taken
    for seen in cluster.follow(KIND, name, uid(made)):  # now, and at every change, until it is gone
        if holds(seen, "Complete"):
            break

What fails for a while (429, 5xx, no connection) is repeated with growing pauses, a watch that ends or is too
old (410) begins again from the object as it is, a log goes on after its last line, credentials that have
expired (401) are read again. What no repetition helps against is a `ClusterError` that names the remedy.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any
from urllib.parse import urlencode

from urllib3 import Timeout
from urllib3.exceptions import HTTPError

from unirg.errors import UserError
from unirg.objects import POD, Kind, Object, terminated, uid
from unirg.telemetry import InternalError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TRANSIENT = {408, 410, 429, 500, 502, 503, 504}
STREAM_S = 60
"""Length of one watch, and of a log's silence; a connection that died without a word is noticed this late."""
LONGEST_PAUSE_S = 20.0


class ClusterError(UserError):
    """The API refuses: what was asked, and what to do."""


class Unreachable(InternalError):
    """The API was out of reach for longer than the patience; another attempt may succeed."""


class Conflict(ClusterError):
    """The object exists already, or is no longer the one that was meant."""


class _Missing(ClusterError):
    """There is no such object, kind or namespace."""


class _Refused(Exception):  # an answer other than success
    def __init__(self, status: int, message: str, pause_s: float = 0.0) -> None:
        super().__init__(f"{status}, {message}")
        self.status, self.pause_s = status, pause_s


class _Broken(Exception):
    """No answer, or one that broke off."""


def connect(namespace: str = "", context: str = "", kubeconfig: str = "") -> Cluster:
    """The cluster that a kubeconfig names, or in a pod the one that it runs in.

    Args:
        namespace: where the objects lie; empty = the context's, or the pod's own.
        context: of the kubeconfig; empty = its current one.
        kubeconfig: a file; empty = `$KUBECONFIG`, a pod's service account, `~/.kube/config`, in this order.

    Raises:
        ClusterError: there is no such configuration.
    """
    kubeconfig = kubeconfig or os.environ.get("KUBECONFIG", "")  # the package reads it only when imported
    inside = not (context or kubeconfig) and (SERVICE_ACCOUNT / "token").is_file()

    def load() -> Any:
        from kubernetes import client, config

        settings = client.Configuration()
        try:
            if inside:
                config.load_incluster_config(settings)
            else:
                config.load_kube_config(kubeconfig or None, context or None, settings)
        except (config.ConfigException, OSError) as error:
            raise ClusterError(
                f"no Kubernetes cluster to talk to ({error}): name a kubeconfig in KUBECONFIG"
            ) from None
        return client.ApiClient(settings)

    if find_spec("kubernetes") is None:
        raise ClusterError("the kubernetes package is missing: pip install 'unirg[pipelines]'")
    return Cluster(namespace or _namespace(inside, context, kubeconfig), load)


def _namespace(inside: bool, context: str, kubeconfig: str) -> str:
    if inside:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip()
    from kubernetes import config

    try:
        every, current = config.list_kube_config_contexts(kubeconfig or None)
    except config.ConfigException:
        return "default"  # the first call says what is wrong with the file
    chosen = next((one for one in every if one["name"] == context), current)["context"]
    return str(chosen.get("namespace", "default"))


@dataclass
class Cluster:
    """A namespace of a cluster. Safe to use from several threads."""

    namespace: str
    load: Callable[[], Any]
    """Reads the credentials; a `kubernetes.client.ApiClient`."""
    patience_s: float = 300.0
    """How long a call is repeated: a control plane's upgrade fits in."""
    pause_s: float = 0.2
    """The first pause before a repetition; each is twice the one before."""
    _client: Any = field(default=None, repr=False)

    def create(self, kind: Kind, thing: Object) -> Object:
        """Create an object, with no unknown field in it.

        Raises:
            Conflict: the name is taken, perhaps by this very call, whose answer was lost.
            ClusterError: it is invalid, or must not be made.
        """
        what = f"create {kind} {thing['metadata']['name']}"
        return self._asked(what, "POST", kind.path(self.namespace), {"fieldValidation": "Strict"}, thing)

    def get(self, kind: Kind, name: str) -> Object | None:
        """The object as it is now; None where there is none."""
        with suppress(_Missing):
            return self._asked(f"get {kind} {name}", "GET", kind.path(self.namespace, name), {})
        return None

    def list(self, kind: Kind, labels: Mapping[str, str]) -> list[Object]:
        """Objects with these labels, the oldest first."""
        chosen = {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items())}
        found = self._asked(f"list {kind}s", "GET", kind.path(self.namespace), chosen)
        return sorted(found["items"], key=lambda one: str(one["metadata"].get("creationTimestamp", "")))

    def replace(self, kind: Kind, thing: Object) -> Object:
        """Put an object in the place of what it was read as, with no unknown field in it.

        Raises:
            Conflict: it has changed since it was read, perhaps by this very call, whose answer was lost.
            ClusterError: it is gone, invalid, or must not be changed.
        """
        name = thing["metadata"]["name"]
        path = kind.path(self.namespace, name)
        return self._asked(f"replace {kind} {name}", "PUT", path, {"fieldValidation": "Strict"}, thing)

    def delete(self, kind: Kind, thing: Object) -> None:
        """Delete this very object, not a later one of its name, and wait until all that it owns is gone."""
        name = thing["metadata"]["name"]
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        body["preconditions"] = {"uid": uid(thing)}
        with suppress(_Missing, Conflict):  # it is gone, and another may have its name
            self._asked(f"delete {kind} {name}", "DELETE", kind.path(self.namespace, name), {}, body)
        for _ in self.follow(kind, name, uid(thing)):
            pass

    def follow(self, kind: Kind, name: str, of: str) -> Iterator[Object]:
        """The object as it is, at every change and at least once a minute, until it is gone.

        Args:
            of: its uid: one created later under the same name is not it.
        """
        backoff, query = _Backoff(self), {"fieldSelector": f"metadata.name={name}"}
        watch = query | {"watch": "true", "timeoutSeconds": str(STREAM_S)}
        while True:
            now = self._asked(f"get {kind} {name}", "GET", kind.path(self.namespace), query)
            seen = next((one for one in now["items"] if uid(one) == of), None)
            if seen is None:
                return
            yield seen
            # From now on: the object's own version may be older than what the API remembers.
            watch["resourceVersion"] = now["metadata"]["resourceVersion"]
            try:
                answer = self._send("GET", kind.path(self.namespace), watch, quiet_s=STREAM_S * 1.5)
                with closing(answer):
                    backoff.answered()
                    for event in map(_event, _lines(answer)):
                        backoff = _Backoff(self)
                        if event["type"] == "DELETED":
                            return
                        yield event["object"]
                time.sleep(self.pause_s)  # a watch ends from time to time
            except (_Broken, _Refused) as error:
                backoff.pause(error, f"watch {kind} {name}")

    def logs(
        self, pod: Object, container: str, over: Callable[[], bool] = lambda: True, tail: int | None = None
    ) -> Iterator[str]:
        """Lines of a container as they come, each once, until it has ended.

        Args:
            over: whether to stop waiting for a container that has not begun, and for more lines.
            tail: begin with the last so many lines.
        """
        name, of = pod["metadata"]["name"], uid(pod)
        begin = {"tailLines": str(tail)} if tail else {}
        second, seen = "", Counter[str]()  # the newest second, and its lines, which come again after a break
        backoff = _Backoff(self)
        while True:
            # Before the lines are read: if it has ended by now, they are all there.
            now = self.get(POD, name)
            if now is None or uid(now) != of:
                return
            ended = now.get("status", {}).get("phase") in ("Succeeded", "Failed")
            last = over() or ended or bool(terminated(now, container))
            query = {"container": container, "timestamps": "true", "follow": str(not last).lower()} | begin
            again = seen.copy()
            try:
                answer = self._send("GET", POD.path(self.namespace, name, "log"), query, quiet_s=STREAM_S)
                with closing(answer):
                    backoff.answered()
                    for line in _lines(answer, torn=last):  # 2026-01-31T12:00:00.123456789Z and the text
                        if again[line]:
                            again[line] -= 1
                            continue
                        if line[:19] > second:
                            second, begin = line[:19], {"sinceTime": f"{line[:19]}Z"}
                            seen.clear()
                        seen[line] += 1
                        backoff = _Backoff(self)
                        yield line.partition(" ")[2]
                if last:
                    return
                time.sleep(self.pause_s)
            except (_Broken, _Refused) as error:
                if not (isinstance(error, _Refused) and error.status in (400, 404)):
                    backoff.pause(error, f"read the log of Pod {name}")
                elif last:  # it never began, or is gone
                    return
                else:
                    time.sleep(self.pause_s * 25)

    def _asked(
        self, what: str, verb: str, path: str, query: Mapping[str, str], body: Object | None = None
    ) -> Object:
        """The answer to a request, repeated while it fails for a while."""
        backoff = _Backoff(self)
        while True:
            try:
                with closing(self._send(verb, path, query, body)) as answer:
                    return dict(json.loads(answer.read()))
            except (HTTPError, OSError, ValueError) as error:
                backoff.pause(_Broken(type(error).__name__), what)
            except (_Refused, _Broken) as error:
                backoff.pause(error, what)

    def _send(
        self, verb: str, path: str, query: Mapping[str, str], body: Object | None = None, quiet_s: float = 30
    ) -> Any:
        """One request; a good answer with its body unread. Raises _Refused or _Broken."""
        client = self._client = self._client or self.load()
        # Not by the package's own calls: they deserialise into its models, and lose what these do not know.
        headers = {"Accept": "*/*", "Content-Type": "application/json"}
        client.update_params_for_auth(headers, [], ["BearerToken"])
        try:
            answer = client.rest_client.pool_manager.request(
                verb,
                f"{client.configuration.host}{path}?{urlencode(query)}",
                headers=headers,
                body=None if body is None else json.dumps(body),
                preload_content=False,
                retries=False,  # ours are counted, paused and told apart by status
                timeout=Timeout(connect=30.0, read=quiet_s),
            )
            if 200 <= answer.status < 300:
                return answer
            with closing(answer):
                raise _refusal(answer)
        except (HTTPError, OSError) as error:
            # Not every failure of TLS is for good: a balancer may close during the handshake.
            if isinstance(error.__context__, SSLCertVerificationError):
                remedy = "put right the certificate-authority in the kubeconfig"
                raise ClusterError(f"the Kubernetes API cannot be trusted ({error}): {remedy}") from None
            raise _Broken(type(error).__name__) from None


class _Backoff:
    """Pauses between repetitions of one call: longer and longer, with chance in them, and not for ever."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.next_s, self.renewed = cluster, cluster.pause_s, False
        self.began: float | None = None

    def answered(self) -> None:
        """The API is there: what fails now is a new failure."""
        self.began, self.renewed = None, False

    def pause(self, error: _Refused | _Broken, what: str) -> None:
        """Wait before the next attempt, or raise what ends the call."""
        what = f"{what} in namespace {self.cluster.namespace}"
        now = time.monotonic()
        self.began = self.began or now
        if isinstance(error, _Refused) and error.status not in TRANSIENT:
            if error.status != 401 or self.renewed:
                raise _final(error, what)
            self.renewed, self.cluster._client = True, None  # credentials expire: read them again
        if now - self.began > self.cluster.patience_s:
            patience = f"{self.cluster.patience_s:g} s"
            raise Unreachable(f"could not {what} for {patience} ({error}): run the same command again later")
        asked = error.pause_s if isinstance(error, _Refused) else 0.0
        time.sleep(max(min(asked, 60.0), self.next_s * random.uniform(0.5, 1.0)))
        self.next_s = min(self.next_s * 2, LONGEST_PAUSE_S)


def _final(error: _Refused, what: str) -> ClusterError:
    if error.status == 404:
        return _Missing(f"cannot {what} ({error}): is the namespace right, is the operator installed?")
    if error.status == 409:
        return Conflict(f"cannot {what}: {error}")
    remedies = {
        401: ": the API refuses the credentials; sign in again",
        403: ": ask for a role that allows it",
    }
    return ClusterError(f"cannot {what} ({error}){remedies.get(error.status, '')}")


def _refusal(answer: Any) -> _Refused:
    try:
        message = str(json.loads(answer.read())["message"])
    except (ValueError, KeyError, TypeError):
        message = "without a reason"
    pause = answer.headers.get("Retry-After", "")
    return _Refused(answer.status, message, float(pause) if pause.isdigit() else 0.0)


def _event(line: str) -> Object:
    """A watch's event; the API also puts failures there."""
    try:
        event = json.loads(line)
    except ValueError:
        raise _Broken("a torn event") from None
    if event["type"] == "ERROR":
        raise _Refused(int(event["object"].get("code", 500)), str(event["object"].get("message", "")))
    return dict(event)


def _lines(answer: Any, torn: bool = False) -> Iterator[str]:
    """Lines of a stream; with `torn`, also the last one if it has no end."""
    rest = b""
    try:
        for chunk in answer.stream(amt=2**16):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole if line)
    except (HTTPError, OSError) as error:
        raise _Broken(type(error).__name__) from None
    if rest and torn:
        yield rest.decode(errors="replace")
