"""Every call to a KFP API server (v2beta1): pipelines, experiments, runs, recurring runs.

    server = connect("https://kfp.hospital.example", namespace="radiology")
    reference = server.version(package("retrain"))  # uploaded once, found by its digest afterwards

The generated client is used as it is, with time limits: `kfp.Client` has none, prints on standard output and
asks for health in a loop before anything else. What is asked again by itself is what changes nothing when it
is asked twice: reading, deleting, and a connection that was never made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import kfp_server_api as kfp
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH
from kfp.client.client import KF_PIPELINES_ENDPOINT_ENV
from urllib3.exceptions import HTTPError, SSLError
from urllib3.util import Retry

from pipelines.package import Package
from unirg.errors import Unavailable, UserError

TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two pieces of an answer."""
AGAIN = Retry(
    total=4,
    backoff_factor=0.5,
    backoff_max=8.0,
    status_forcelist=(429, 502, 503, 504),
    allowed_methods=("GET", "DELETE"),
    raise_on_status=False,
    respect_retry_after_header=False,  # it may ask for hours
)
PAGE = 100
UNFINISHED = {"PENDING", "RUNNING", "CANCELING", "PAUSED"}
STATELESS_S = 600.0
"""How long a run without a state counts as one that begins; later, as one that never will."""
EQUALS = 1
"""KFP's number for a predicate of a filter."""


class Refused(UserError):
    """The API refuses: what was asked, at which host, and what to do."""


class Gone(Refused):
    """There is no such thing, any more or yet."""


class Taken(Refused):
    """The name is taken."""


class Away(Unavailable):
    """The API does not answer, or not for now; whether it did what was asked is not known."""


@dataclass(frozen=True)
class Seen:
    """A run as the API shows it."""

    name: str
    run_id: str
    unfinished: bool


def connect(host: str = "", namespace: str = "", token_file: str = "") -> Server:
    """The API server at an address.

    Args:
        host: its URL; empty = `$KF_PIPELINES_ENDPOINT`.
        namespace: the user's, where KFP has several users; empty elsewhere.
        token_file: holds the bearer token, read anew for each call, as tokens expire. Empty = the file of
            `$KF_PIPELINES_SA_TOKEN_PATH`, or the token that KFP's documentation has mounted into pods.

    Raises:
        UserError: no address, one that is none, or a token that cannot be read.
    """
    host = (host or os.environ.get(KF_PIPELINES_ENDPOINT_ENV, "")).rstrip("/")
    if not host:
        raise UserError(
            f"no KFP server: give --host or {KF_PIPELINES_ENDPOINT_ENV}, such as "
            "http://ml-pipeline.kubeflow:8888 in the cluster"
        )
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise UserError("--host is no URL such as https://kfp.example.org, without user, password or query")
    mounted = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH
    file = token_file or (mounted if Path(mounted).is_file() else "")
    settings = kfp.Configuration(host=host)
    settings.retries = AGAIN
    settings.ssl_ca_cert = os.environ.get("SSL_CERT_FILE") or None
    if settings.ssl_ca_cert and not Path(settings.ssl_ca_cert).is_file():
        raise UserError(
            f"SSL_CERT_FILE={settings.ssl_ca_cert}: no such file; name the authority's certificate"
        )
    if file:
        settings.api_key_prefix["authorization"] = "Bearer"
        settings.refresh_api_key_hook = lambda config: config.api_key.update(authorization=_token(file))
        settings.api_key["authorization"] = _token(file)
    return Server(host, namespace, kfp.ApiClient(settings))


def _token(file: str) -> str:
    try:
        token = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read KFP's token file {file} ({type(error).__name__})") from None
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(f"{file} holds no token for KFP: write printable ASCII on one line")
    return token


@dataclass(frozen=True)
class Server:
    """A KFP API server, and whose part of it."""

    host: str
    namespace: str
    client: Any

    def version(self, of: Package) -> Any:
        """Upload a pipeline if this version of it is not there; the reference by which a run names it."""
        pipeline = self._found_or_made(
            lambda: self._pipeline(of.name),
            lambda: self._call(
                f"create pipeline {of.name}",
                kfp.PipelineServiceApi(self.client).pipeline_service_create_pipeline,
                kfp.V2beta1Pipeline(name=of.name, display_name=of.name, namespace=self.namespace or None),
            ),
        )
        version = self._found_or_made(
            lambda: self._version(of, pipeline.pipeline_id),
            lambda: self._upload(of, pipeline.pipeline_id),
        )
        return kfp.V2beta1PipelineVersionReference(
            pipeline_id=pipeline.pipeline_id, pipeline_version_id=version.pipeline_version_id
        )

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is made if it is not there."""
        api = kfp.ExperimentServiceApi(self.client)

        def find() -> Any:
            every = self._every(
                f"look for experiment {name}",
                api.experiment_service_list_experiments,
                "experiments",
                **self._named(name),
                **self._mine(),
            )
            return _of_name(every, name)

        def make() -> Any:
            wanted = kfp.V2beta1Experiment(display_name=name, namespace=self.namespace or None)
            return self._call(f"create experiment {name}", api.experiment_service_create_experiment, wanted)

        return str(self._found_or_made(find, make).experiment_id)

    def run(
        self, name: str, version: Any, given: Mapping[str, Any], experiment: str, service_account: str = ""
    ) -> str:
        """Start a run; its id. An answer that was lost may have started it: look for its name."""
        wanted = kfp.V2beta1Run(
            display_name=name,
            experiment_id=experiment,
            pipeline_version_reference=version,
            runtime_config=kfp.V2beta1RuntimeConfig(parameters=dict(given)),
            service_account=service_account or None,
        )
        started = self._call(
            f"start run {name}", kfp.RunServiceApi(self.client).run_service_create_run, wanted
        )
        return str(started.run_id)

    def recent(self, pipeline_id: str, experiment: str) -> list[Seen]:
        """The newest runs of a pipeline in an experiment, started by whatever; the newest first.

        A run whose pipeline is not told counts as one of it: to wait for it is the smaller mistake.
        """
        found = self._call(
            "list runs",
            kfp.RunServiceApi(self.client).run_service_list_runs,
            experiment_id=experiment,
            sort_by="created_at desc",
            page_size=PAGE,
        )
        return [
            Seen(one.display_name, one.run_id, _unfinished(one))
            for one in found.runs or ()
            if getattr(one.pipeline_version_reference, "pipeline_id", None) in (None, pipeline_id)
        ]

    def recurring(self, name: str = "") -> list[Any]:
        """Recurring runs of a name, or all."""
        found = self._every(
            "list recurring runs",
            kfp.RecurringRunServiceApi(self.client).recurring_run_service_list_recurring_runs,
            "recurring_runs",
            **(self._named(name) if name else {}),
            **self._mine(),
        )
        return [one for one in found if not name or one.display_name == name]

    def create_recurring(self, wanted: Any) -> Any:
        return self._call(
            f"create recurring run {wanted.display_name}",
            kfp.RecurringRunServiceApi(self.client).recurring_run_service_create_recurring_run,
            wanted,
        )

    def enable_recurring(self, one: Any) -> None:
        """Raises Gone where somebody has removed it meanwhile."""
        self._call(
            f"enable recurring run {one.display_name}",
            kfp.RecurringRunServiceApi(self.client).recurring_run_service_enable_recurring_run,
            one.recurring_run_id,
        )

    def delete_recurring(self, one: Any) -> None:
        """What is gone is deleted. Its runs go on: by default Kubernetes ends them with their owner."""
        with suppress(Gone):
            self._call(
                f"delete recurring run {one.display_name}",
                kfp.RecurringRunServiceApi(self.client).recurring_run_service_delete_recurring_run,
                one.recurring_run_id,
                propagation_policy=kfp.V2beta1DeletePropagationPolicy.ORPHAN,  # KFP 2.15 had no choice
            )

    def page_of(self, run_id: str) -> str:
        """Where KFP's UI shows a run, if it is served under the same address."""
        return f"{self.host}/#/runs/details/{run_id}"

    def _pipeline(self, name: str) -> Any:
        api = kfp.PipelineServiceApi(self.client)
        what = f"look for pipeline {name}"
        every = self._every(
            what, api.pipeline_service_list_pipelines, "pipelines", **self._named(name), **self._mine()
        )
        return _of_name(every, name)

    def _version(self, of: Package, pipeline_id: str) -> Any:
        api = kfp.PipelineServiceApi(self.client)
        every = self._every(
            f"look for version {of.version}",
            lambda **given: api.pipeline_service_list_pipeline_versions(pipeline_id, **given),
            "pipeline_versions",
            **self._named(of.version),
        )
        return _of_name(every, of.version)

    def _upload(self, of: Package, pipeline_id: str) -> Any:
        api = kfp.PipelineUploadServiceApi(self.client)
        with TemporaryDirectory(prefix="unirg-") as folder:
            file = Path(folder, "pipeline.yaml")
            file.write_bytes(of.text)
            return self._call(
                f"upload {of.version}",
                api.upload_pipeline_version,
                str(file),
                name=of.version,
                pipelineid=pipeline_id,
            )

    def _found_or_made(self, find: Callable[[], Any], make: Callable[[], Any]) -> Any:
        """What is found, else made; made by another at the same moment, it is found."""
        found = find()
        if found is not None:
            return found
        try:
            return make()
        except Taken:
            found = find()
            if found is None:
                raise
            return found

    def _mine(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}

    def _named(self, name: str) -> dict[str, str]:
        alike = {"operation": EQUALS, "key": "display_name", "stringValue": name}
        return {"filter": json.dumps({"predicates": [alike]})}

    def _every(self, what: str, ask: Callable[..., Any], part: str, **query: Any) -> Iterator[Any]:
        """All pages of a list."""
        token = ""
        while True:
            answer = self._call(what, ask, page_token=token, page_size=PAGE, **query)
            yield from getattr(answer, part) or ()
            token = answer.next_page_token or ""
            if not token:
                return

    def _call(self, what: str, ask: Callable[..., Any], *given: Any, **named: Any) -> Any:
        try:
            return ask(*given, _request_timeout=TIMEOUT_S, **named)
        except kfp.ApiException as error:
            raise self._refusal(what, error) from None
        except (HTTPError, OSError) as error:
            if isinstance(getattr(error, "reason", error), SSLError):
                raise self._untrusted(what) from None
            raise Away(
                f"cannot {what}: {self.host} does not answer ({type(error).__name__}); check --host and the "
                "network, and run the same command again"
            ) from None

    def _untrusted(self, what: str) -> Refused:
        remedy = "check --host, or name the file of its authority in SSL_CERT_FILE"
        return Refused(f"cannot {what} at {self.host}: there is no TLS that can be trusted; {remedy}")

    def _refusal(self, what: str, error: Any) -> UserError:
        where = f"cannot {what} at {self.host}"
        if not error.status:  # the generated client's form of a failure of TLS
            return self._untrusted(what)
        said = f"{error.status}, {_message(error.body)}"
        if error.status in (408, 429) or error.status >= 500:
            return Away(f"{where} ({said}): run the same command again later")
        if error.status == 404:
            return Gone(f"{where} ({said}): is it the address of KFP's API?")
        if error.status == 409:
            return Taken(f"{where} ({said}): the name is taken")
        remedies = {
            401: ": it refuses the credentials; renew the token and name its file with --kfp-token-file",
            403: ": ask for a role that allows it, or check --namespace",
        }
        return Refused(f"{where} ({said}){remedies.get(error.status, '')}")


def _of_name(every: Iterator[Any], name: str) -> Any:
    return next((one for one in every if one.display_name == name), None)


def _unfinished(run: Any) -> bool:
    if run.state in UNFINISHED:
        return True
    begun = run.created_at or datetime.min.replace(tzinfo=UTC)
    unknown = run.state in (None, "RUNTIME_STATE_UNSPECIFIED") and not run.finished_at
    return bool(unknown and datetime.now(UTC) - begun < timedelta(seconds=STATELESS_S))


def _message(body: Any) -> str:
    """What the API says of itself, on one line."""
    try:
        told = str(json.loads(body or b"")["message"])
    except (ValueError, KeyError, TypeError):
        return "without a reason"
    return " ".join(told.split())[:300]
