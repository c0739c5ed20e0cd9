"""`unirg withdraw`, `unirg lineage`, `unirg gc`: which data is where, and the right to be forgotten."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from unirg import telemetry
from unirg.errors import UserError

if TYPE_CHECKING:
    from unirg.cohort.withdrawal import Kind, Withdrawn

app = typer.Typer()

Store = Annotated[str, typer.Option(envvar="UNIRG_STORE", help="Where artifacts lie: a folder or s3://…")]
Studies = Annotated[list[str] | None, typer.Option("--study", help="corpus/study_id; several times.")]
Patients = Annotated[list[str] | None, typer.Option("--patient", help="corpus/patient_id; several times.")]
StudyFile = Annotated[
    str, typer.Option("--studies-from", help="Text with an id a line, or CSV with a column study_id.")
]
PatientFile = Annotated[
    str, typer.Option("--patients-from", help="Text with an id a line, or CSV with a column patient_id.")
]
Institution = Annotated[
    str,
    typer.Option(
        "--institution",
        help="The ids are this institution's own numbers, hashed with UNIRG_SITE_KEY as it was staged: of a "
        "study what its row has in the first it fills of study_id, accession, accession_number, "
        "study_instance_uid; of a patient in the first of patient_id, mrn, else DICOM's PatientID. "
        "A shell keeps what is typed: better name files.",
    ),
]
TrackingUri = Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow's tracking URI.")]
ModelName = Annotated[str, typer.Option(help="The registered model's name.")]
STORE = "runs/store"
TRACKING = "sqlite:///runs/mlflow.db"


@app.command()
def withdraw(
    study: Studies = None,
    patient: Patients = None,
    studies_from: StudyFile = "",
    patients_from: PatientFile = "",
    institution: Institution = "",
    reason: Annotated[str, typer.Option(help="A code such as consent, not a text.")] = "withdrawn",
    new_store: Annotated[
        bool, typer.Option("--new-store", help="There need be no store yet: this makes one.")
    ] = False,
    store: Store = STORE,
) -> None:
    """Keep studies and patients out of every later cohort of the store. Nothing takes this back.

    What is withdrawn of iu_xray, mimic_cxr, chexpert_plus or rexgradient is withdrawn of rexrank_* too.
    """
    from unirg.cohort import withdrawal
    from unirg.lifecycle.lineage import held, names

    with telemetry.span("withdraw"):
        studies = _ids("study", study, studies_from, institution)
        patients = _ids("patient", patient, patients_from, institution)
        if not (new_store or names(store)):
            raise UserError(f"there is no store at {store}: check --store, or make it with --new-store")
        entry = withdrawal.withdraw(store, studies, patients, reason)
        asked = withdrawal.Withdrawn.of(studies, patients)
        try:
            there = held(store, asked)
        except UserError as error:  # withdrawn they are
            print(f"warning: which of them the store's cohorts hold is not known: {error}", file=sys.stderr)
            there = asked
    told = f"{len(asked.studies)} studies and {len(asked.patients)} patients are withdrawn"
    print(
        f"{told}; `unirg lineage` lists what saw them, `unirg gc --drop-withdrawn` removes their cohorts",
        file=sys.stderr,
    )
    _tell_unmatched(asked, there, institution)
    print(entry)


@app.command()
def lineage(
    of: Annotated[
        list[str] | None,
        typer.Argument(help="An artifact's URI, `champion`, or `corpus NAME`; nothing: what is withdrawn."),
    ] = None,
    study: Studies = None,
    patient: Patients = None,
    studies_from: StudyFile = "",
    patients_from: PatientFile = "",
    institution: Institution = "",
    store: Store = STORE,
    tracking_uri: TrackingUri = TRACKING,
    name: ModelName = "unirg",
) -> None:
    """What an artifact, the champion or a corpus is made of, and what was made with it.

    Without one: which cohorts, models, predictions and evaluations withdrawn studies reach, or those named
    here.
    """
    if of:
        if study or patient or studies_from or patients_from:
            raise UserError(f"{' '.join(of)}: name either this or studies and patients")
        with telemetry.span("lineage"):
            _trace(of, store, tracking_uri, name)
        return
    from unirg.cohort.withdrawal import Withdrawn
    from unirg.lifecycle.lineage import lineage

    with telemetry.span("lineage"):
        studies = _ids("study", study, studies_from, institution)
        patients = _ids("patient", patient, patients_from, institution)
        asked = Withdrawn.of(studies, patients) or Withdrawn.load(store)
        found = lineage(store, asked)
    if not asked:
        print(f"nothing is withdrawn from {store}", file=sys.stderr)
    elif not found.reached:
        print("no artifact of the store was made with any of them", file=sys.stderr)
    for one in found.reached:
        how = f"learned from {len(one.learned)}" if one.learned else "learned from none"
        print(f"{one.stage:<9} {how}, behind it {len(one.held)}  {one.uri}")
    for unknown in found.unknown:
        print(f"unknown: what lies behind {unknown}, which cannot be opened", file=sys.stderr)


@app.command()
def gc(
    drop_withdrawn: Annotated[
        bool, typer.Option("--drop-withdrawn", help="Also remove cohorts that hold withdrawn studies.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would go, and remove nothing.")
    ] = False,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="Younger shards and work stay: somebody may come back to them.")
    ] = 24.0,
    store: Store = STORE,
) -> None:
    """Free the shards that no cohort of the store lists, and work that nobody is at."""
    from unirg.lifecycle.retention import gc

    with telemetry.span("gc"):
        freed = gc(store, grace_hours * 3600, drop_withdrawn, dry_run, tell=print)
    told = f"{len(freed.cohorts)} cohorts, {freed.shards} shards, {freed.bytes / 1e6:.1f} MB"
    waiting = f"; {freed.waiting} younger shards stay for now" if freed.waiting else ""
    print(f"gc: {told} {'would be ' if dry_run else ''}freed{waiting}", file=sys.stderr)
    if freed.tainted:
        print(
            f"gc: {freed.tainted} shards with withdrawn studies stay, as unfinished work names them or they "
            "came into use again: repeat it when the work is done",
            file=sys.stderr,
        )


def _trace(of: list[str], store: str, tracking_uri: str, name: str) -> None:
    """Print both directions of an artifact's lineage, a line each: behind it, then made with it."""
    from unirg.lifecycle import provenance
    from unirg.lifecycle.registry import Registry

    if of[0] == "corpus" and len(of) == 2:
        found = provenance.descendants(store, corpus=of[1])
    elif len(of) > 1:
        raise UserError(f"{' '.join(of)}: name an artifact's URI, `champion`, or `corpus NAME`")
    else:
        uri = of[0]
        if uri == "champion":
            champion = Registry(tracking_uri, name).champion()
            if champion is None:
                raise UserError(f"model {name} has no champion yet: name an artifact's URI")
            uri = champion.uri
            print(f"champion  version {champion.number}  {uri}")
        behind = provenance.ancestors(store, uri)
        for data in behind.data:
            how = "learned" if data.learned else "not learned"
            for corpus, splits in data.studies.items():
                counts = ", ".join(f"{split} {number}" for split, number in splits.items())
                where = data.uri or f"dropped cohort {data.digest[:16]}"
                print(f"data      {corpus}: {counts} ({how})  {where}")
        for made in behind.artifacts:
            print(f"behind    {made.manifest.stage:<9} {made.uri}")
        for unknown in behind.unknown:
            print(f"unknown: what lies behind {unknown}, which cannot be opened", file=sys.stderr)
        found = provenance.descendants(store, uri)
    for one in found:
        how = ", learned" if one.learned else ""
        print(f"made      {one.made.manifest.stage:<9} {one.made.uri}{how}")


def _tell_unmatched(asked: Withdrawn, there: Withdrawn, institution: str) -> None:
    studies, patients = len(asked.studies - there.studies), len(asked.patients - there.patients)
    if not studies + patients:
        return
    columns = "the columns (--help tells which) and UNIRG_SITE_KEY" if institution else "their spelling"
    print(
        f"warning: no cohort of the store holds {studies} of the {len(asked.studies)} studies and {patients} "
        f"of the {len(asked.patients)} patients: where they were staged, check {columns}",
        file=sys.stderr,
    )


def _ids(kind: Kind, given: list[str] | None, file: str, institution: str) -> list[str]:
    """Ids of one kind, from options and a file."""
    from unirg.cohort.withdrawal import ids_from_file, own_ids

    if institution and not (given or file):
        return []
    found = own_ids(institution, kind, given or []) if institution else list(given or [])
    try:
        return found + ids_from_file(file, kind, institution) if file else found
    except UserError as error:
        option = "--studies-from" if kind == "study" else "--patients-from"
        raise UserError(f"{option}: {error}") from None
