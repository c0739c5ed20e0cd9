"""How each phantom institution dictates: a template per finding and per negative, and its habits.

The markup is `markup`'s. Slots: {severity} {side} {zone} {change}. All institutions name a
condition by CheXbert's terms and a change by the same five words (new, increased, decreased,
unchanged, resolved); they differ in syntax, order, sections and boilerplate, which is what a model
has to carry over to an institution that it never saw.
"""

from __future__ import annotations

from dataclasses import dataclass

from unirg.cohort.corpora.phantom.findings import CATHETER, PACEMAKER, TUBE

REASONS = (
    "chest pain",
    "shortness of breath",
    "cough",
    "fever",
    "weakness",
    "dizziness",
    "fatigue",
    "abdominal pain",
    "nausea",
    "weight loss",
    "palpitations",
    "back pain",
)
"""Why a study was asked for. Drawn without regard to the findings."""


@dataclass(frozen=True)
class Wording:
    """One institution's way of writing a report.

    `present` holds the findings-section sentence by condition, or by kind for devices and lesions,
    or by `condition bilateral`; `absent` the negated noun phrase by condition; `denials` the groups
    of conditions that one negative sentence covers, by topic. `habits` are the shares of studies
    with both sections, findings alone and impression alone.
    """

    indication: str
    no_prior: str
    prior: str
    opening: str
    closing: str
    topics: tuple[str, ...]
    present: dict[str, str]
    change: dict[str, str]
    resolved: str
    removed: str
    clear_lungs: str
    normal_heart: str
    denials: dict[str, tuple[tuple[str, ...], ...]]
    denial: str
    normal_impression: str
    numbered: bool
    habits: tuple[float, float, float]


ABSENT = {
    "Consolidation": "[consolidation](N:o)",
    "Edema": "[pulmonary](A:p) [edema](N:o @p)",
    "Atelectasis": "[atelectasis](N:o)",
    "Lung Lesion": "[nodule](N:o)",
    "Pleural Effusion": "[pleural](A:p) [effusion](N:o @p)",
    "Pneumothorax": "[pneumothorax](N:o)",
    "Fracture": "[rib](A:r) [fracture](N:o @r)",
}
"""A condition that is not there, as it stands in a list after "no"."""

GONE = {
    "Cardiomegaly": "[cardiomegaly](N:o)",
    "Edema": "[pulmonary](A:p) [edema](N:o @p)",
    "Consolidation": "[{side}](A >z) [{zone}](A >z) [zone](A:z) [consolidation](N:o @z)",
    "Atelectasis": "[{side}](A >b) [basilar](A:b) [atelectasis](N:o @b)",
    "Pneumothorax": "[{side}](A:s) [pneumothorax](N:o @s)",
    "Pleural Effusion": "[{side}](A >p) [pleural](A:p) [effusion](N:o @p)",
    "Lung Lesion": "[{side}](A >z) [{zone}](A >z) [zone](A:z) [nodule](N:o @z)",
    PACEMAKER: "[pacemaker](N:o)",
    CATHETER: "[central venous catheter](N:o)",
    TUBE: "[endotracheal tube](N:o)",
}
"""What was there in the study before and is not any more. A broken rib stays broken."""

BRIEF = {
    "Cardiomegaly": "[{severity}](O >o) [cardiomegaly](O:o){change}.",
    "Edema": "[{severity}](O >o) [pulmonary](A:p) [edema](O:o @p){change}.",
    "Consolidation": "[{severity}](O >o) [{side}](A >z) [{zone}](A >z) [zone](A:z) "
    "[consolidation](O:o @z){change}.",
    "Atelectasis": "[{severity}](O >o) [{side}](A >b) [basilar](A:b) [atelectasis](O:o @b){change}.",
    "Pneumothorax": "[{severity}](O >o) [{side}](A:s) [pneumothorax](O:o @s){change}.",
    "Pleural Effusion": "[{severity}](O >o) [{side}](A >p) [pleural](A:p) [effusion](O:o @p){change}.",
    "Pleural Effusion bilateral": "[{severity}](O >o) [bilateral](A >p) [pleural](A:p) "
    "[effusions](O:o @p){change}.",
    "nodule": "[{side}](A >z) [{zone}](A >z) [zone](A:z) [nodule](O:o @z){change}.",
    "mass": "[{side}](A >z) [{zone}](A >z) [zone](A:z) [mass](O:o @z){change}.",
    "Fracture": "[displaced](O >o) [{side}](A >r) [rib](A:r) [fracture](O:o @r){change}.",
    PACEMAKER: "[{side}](A:s) [pacemaker](O:o @s) in place{change}.",
    CATHETER: "[{side}](A:s) [central venous catheter](O:o @s) in place{change}.",
    TUBE: "[endotracheal tube](O:o) in place{change}.",
}
"""A finding as an impression names it, at every institution."""

BRIEF_CHANGE = {
    "new": ", [new](O >o)",
    "increased": ", [increased](O >o)",
    "decreased": ", [decreased](O >o)",
    "unchanged": ", [unchanged](O >o)",
}

NORTH = Wording(
    indication="{reason}.",
    no_prior="None.",
    prior="Prior chest radiograph.",
    opening="A single frontal view of the [chest](A) was obtained.",
    closing="",
    topics=("devices", "lungs", "pleura", "heart", "bones"),
    present={
        "Cardiomegaly": "The [heart](A:h) is [{severity}ly](O >o) [enlarged](O:o @h){change}.",
        "Edema": "There is [{severity}](O >o) [pulmonary](A:p) [edema](O:o @p){change}.",
        "Consolidation": "There is a [{severity}](O >o) [consolidation](O:o @z) in the [{side}](A >z) "
        "[{zone}](A >z) [zone](A:z){change}.",
        "Atelectasis": "There is [{severity}](O >o) [{side}](A >b) [basilar](A:b) "
        "[atelectasis](O:o @b){change}.",
        "Pneumothorax": "There is a [{severity}](O >o) [{side}](A:s) [pneumothorax](O:o @s){change}.",
        "Pleural Effusion": "There is a [{severity}](O >o) [{side}](A >p) [pleural](A:p) "
        "[effusion](O:o @p){change}.",
        "Pleural Effusion bilateral": "There are [{severity}](O >o) [bilateral](A >p) [pleural](A:p) "
        "[effusions](O:o @p){change}.",
        "nodule": "There is a [small](O >o) [nodule](O:o @z) in the [{side}](A >z) [{zone}](A >z) "
        "[zone](A:z){change}.",
        "mass": "There is a [large](O >o) [mass](O:o @z) in the [{side}](A >z) [{zone}](A >z) "
        "[zone](A:z){change}.",
        "Fracture": "There is a [displaced](O >o) [{side}](A >r) [rib](A:r) [fracture](O:o @r){change}.",
        PACEMAKER: "There is a [{side}](A >c) [chest wall](A:c) [pacemaker](O:o @c){change}.",
        CATHETER: "There is a [{side}](A >o) [central venous catheter](O:o @v) ending in the "
        "[superior vena cava](A:v){change}.",
        TUBE: "There is an [endotracheal tube](O:o @c) ending above the [carina](A:c){change}.",
    },
    change={
        "new": ", [new](O >o) since the prior study",
        "increased": ", [increased](O >o) since the prior study",
        "decreased": ", [decreased](O >o) since the prior study",
        "unchanged": ", [unchanged](O >o) since the prior study",
    },
    resolved="The previously seen {gone} has [resolved](O >o).",
    removed="The previously seen {gone} has been [removed](O >o).",
    clear_lungs="The [lungs](A:l) are [clear](O @l).",
    normal_heart="The [heart](A:h) is [normal](O @h) in [size](A >h).",
    denials={
        "lungs": (("Consolidation", "Edema"),),
        "pleura": (("Pleural Effusion", "Pneumothorax"),),
        "bones": (("Fracture",),),
    },
    denial="There is no {items}.",
    normal_impression="No [acute](O >o) [cardiopulmonary](A:c) [abnormality](N:o @c){change}.",
    numbered=False,
    habits=(0.94, 0.06, 0.0),
)

HARBOR = Wording(
    indication="History of {reason}.",
    no_prior="None available.",
    prior="Chest radiograph from a prior date.",
    opening="Frontal radiograph of the [chest](A).",
    closing="[Osseous](A >s) [structures](A:s) are otherwise [intact](O @s).",
    topics=("heart", "lungs", "pleura", "bones", "devices"),
    present={
        "Cardiomegaly": "[{severity}](O >o) [cardiomegaly](O:o){change}.",
        "Edema": "[{severity}](O >o) [pulmonary](A:p) [edema](O:o @p){change}.",
        "Consolidation": "[{severity}](O >o) [{side}](A >z) [{zone}](A >z) [zone](A:z) "
        "[consolidation](O:o @z){change}.",
        "Atelectasis": "[{severity}](O >o) [atelectasis](O:o @b) at the [{side}](A >b) [base](A:b){change}.",
        "Pneumothorax": "[{severity}](O >o) [{side}](A:s) [pneumothorax](O:o @s){change}.",
        "Pleural Effusion": "[{severity}](O >o) [{side}](A >p) [pleural](A:p) [effusion](O:o @p){change}.",
        "Pleural Effusion bilateral": "[{severity}](O >o) [bilateral](A >p) [pleural](A:p) "
        "[effusions](O:o @p){change}.",
        "nodule": "[small](O >o) [{side}](A >z) [{zone}](A >z) [zone](A:z) [nodule](O:o @z){change}, "
        "possibly a [granuloma](U).",
        "mass": "[large](O >o) [{side}](A >z) [{zone}](A >z) [zone](A:z) [mass](O:o @z){change}.",
        "Fracture": "[displaced](O >o) [fracture](O:o @r) of a [{side}](A >r) [rib](A:r){change}.",
        PACEMAKER: "[{side}](A:s) sided [pacemaker](O:o @s) in place{change}.",
        CATHETER: "[{side}](A:s) [central venous catheter](O:o @s) in place{change}.",
        TUBE: "[endotracheal tube](O:o) in place{change}.",
    },
    change={
        "new": ", [new](O >o) from prior",
        "increased": ", [increased](O >o) from prior",
        "decreased": ", [decreased](O >o) from prior",
        "unchanged": ", [unchanged](O >o) from prior",
    },
    resolved="{gone} has [resolved](O >o) since prior.",
    removed="{gone} has been [removed](O >o).",
    clear_lungs="[Lungs](A:l) are [clear](O @l).",
    normal_heart="[Heart](A:h) [size](A >h) is [normal](O @h).",
    denials={
        "lungs": (("Consolidation", "Edema", "Lung Lesion"),),
        "pleura": (("Pleural Effusion", "Pneumothorax"),),
        "bones": (("Fracture",),),
    },
    denial="No {items}.",
    normal_impression="No [acute](O >o) [findings](N:o) in the [chest](A){change}.",
    numbered=True,
    habits=(0.82, 0.0, 0.18),
)

VALLEY = Wording(
    indication="Patient with {reason}.",
    no_prior="No prior studies.",
    prior="Previous chest film.",
    opening="",
    closing="The images were reviewed by the attending radiologist.",
    topics=("heart", "pleura", "lungs", "devices", "bones"),
    present={
        "Cardiomegaly": "The [cardiac silhouette](A:h) is [{severity}ly](O >o) [enlarged](O:o @h){change}.",
        "Edema": "[{severity}](O >o) [pulmonary](A:p) [edema](O:o @p) is present{change}.",
        "Consolidation": "A [{severity}](O >o) area of [consolidation](O:o @l) is present in the "
        "[{side}](A >l) [{zone}](A >l) [lung](A:l){change}.",
        "Atelectasis": "[{severity}](O >o) [linear](O >q) [opacity](O:q @l ~o) in the [{side}](A >l) "
        "[lower](A >l) [lung](A:l) reflects [atelectasis](O:o){change}.",
        "Pneumothorax": "A [{severity}](O >o) [pneumothorax](O:o @s) is present on the "
        "[{side}](A:s){change}.",
        "Pleural Effusion": "A [{severity}](O >o) [pleural](A:p) [effusion](O:o @p) is present on the "
        "[{side}](A >p){change}.",
        "Pleural Effusion bilateral": "[{severity}](O >o) [pleural](A:p) [effusions](O:o @p) are present "
        "[bilaterally](A >p){change}.",
        "nodule": "A [small](O >o) [nodule](O:o @l) is present in the [{side}](A >l) [{zone}](A >l) "
        "[lung](A:l){change}.",
        "mass": "A [large](O >o) [mass](O:o @l) is present in the [{side}](A >l) [{zone}](A >l) "
        "[lung](A:l){change}.",
        "Fracture": "A [displaced](O >o) [rib](A:r) [fracture](O:o @r) is present on the "
        "[{side}](A >r){change}.",
        PACEMAKER: "A [pacemaker](O:o @s) is present on the [{side}](A:s){change}.",
        CATHETER: "A [central venous catheter](O:o @s) is present on the [{side}](A:s){change}.",
        TUBE: "An [endotracheal tube](O:o) is present{change}.",
    },
    change={
        "new": ", [new](O >o) compared with the prior film",
        "increased": ", [increased](O >o) compared with the prior film",
        "decreased": ", [decreased](O >o) compared with the prior film",
        "unchanged": ", [unchanged](O >o) compared with the prior film",
    },
    resolved="The prior {gone} is [resolved](O >o).",
    removed="The prior {gone} was [removed](O >o).",
    clear_lungs="Both [lungs](A:l) are [clear](O @l).",
    normal_heart="The [cardiac silhouette](A:h) is [normal](O @h) in [size](A >h).",
    denials={
        "pleura": (("Pneumothorax",), ("Pleural Effusion",)),
        "lungs": (("Consolidation",), ("Edema",)),
        "bones": (("Fracture",),),
    },
    denial="No {items} is seen.",
    normal_impression="[Normal](O:o @c) [chest](A:c) radiograph{change}.",
    numbered=False,
    habits=(0.86, 0.14, 0.0),
)

SUMMIT = Wording(
    indication="Clinical question is {reason}.",
    no_prior="No previous radiographs.",
    prior="Previous frontal radiograph.",
    opening="One frontal projection of the [chest](A) is submitted for review.",
    closing="",
    topics=("lungs", "heart", "pleura", "devices", "bones"),
    present={
        "Cardiomegaly": "There is [{severity}](O >o) [cardiomegaly](O:o){change}.",
        "Edema": "[Perihilar](A:h) [haze](O:q @h ~o) is consistent with [{severity}](O >o) "
        "[pulmonary](A:p) [edema](O:o @p){change}.",
        "Consolidation": "The [{side}](A >z) [{zone}](A >z) [lung zone](A:z) shows a [{severity}](O >o) "
        "[consolidation](O:o @z){change}.",
        "Atelectasis": "The [{side}](A >b) [lung base](A:b) shows [{severity}](O >o) "
        "[atelectasis](O:o @b){change}.",
        "Pneumothorax": "The [{side}](A >t) [hemithorax](A:t) shows a [{severity}](O >o) "
        "[pneumothorax](O:o @t){change}.",
        "Pleural Effusion": "The [{side}](A >t) [hemithorax](A:t) shows a [{severity}](O >o) "
        "[pleural](A:p) [effusion](O:o @p @t){change}.",
        "Pleural Effusion bilateral": "Both sides show [{severity}](O >o) [bilateral](A >p) [pleural](A:p) "
        "[effusions](O:o @p){change}.",
        "nodule": "The [{side}](A >z) [{zone}](A >z) [lung zone](A:z) shows a [small](O >o) "
        "[nodule](O:o @z){change}.",
        "mass": "The [{side}](A >z) [{zone}](A >z) [lung zone](A:z) shows a [large](O >o) "
        "[mass](O:o @z){change}.",
        "Fracture": "The [{side}](A >t) [hemithorax](A:t) shows a [displaced](O >o) [rib](A:r) "
        "[fracture](O:o @r @t){change}.",
        PACEMAKER: "A [pacemaker](O:o @c) projects over the [{side}](A >c) [chest](A:c){change}.",
        CATHETER: "A [central venous catheter](O:o @s) enters from the [{side}](A:s){change}.",
        TUBE: "The tip of an [endotracheal tube](O:o @t) projects over the [trachea](A:t){change}.",
    },
    change={
        "new": ", [new](O >o) in comparison",
        "increased": ", [increased](O >o) in comparison",
        "decreased": ", [decreased](O >o) in comparison",
        "unchanged": ", [unchanged](O >o) in comparison",
    },
    resolved="The earlier {gone} has [resolved](O >o).",
    removed="The earlier {gone} has been [removed](O >o).",
    clear_lungs="The [lungs](A:l) are well [aerated](O @l).",
    normal_heart="[Heart](A:h) [size](A >h) is within [normal](O @h) limits.",
    denials={
        "lungs": (("Consolidation", "Edema", "Atelectasis"),),
        "pleura": (("Pneumothorax", "Pleural Effusion"),),
        "bones": (("Fracture",),),
    },
    denial="There is no evidence of {items}.",
    normal_impression="No [acute](O >o) [thoracic](A:c) [abnormality](N:o @c){change}.",
    numbered=True,
    habits=(0.9, 0.05, 0.05),
)

ISLAND = Wording(
    indication="Reason for exam is {reason}.",
    no_prior="Not available.",
    prior="Earlier chest radiograph.",
    opening="",
    closing="Clinical correlation is recommended.",
    topics=("pleura", "lungs", "heart", "bones", "devices"),
    present={
        "Cardiomegaly": "[Heart](A:h) is [{severity}ly](O >o) [enlarged](O:o @h){change}.",
        "Edema": "[Pulmonary](A:p) [edema](O:o @p), [{severity}](O >o){change}.",
        "Consolidation": "[Consolidation](O:o @z) in the [{side}](A >z) [{zone}](A >z) [zone](A:z), "
        "[{severity}](O >o){change}.",
        "Atelectasis": "[Atelectasis](O:o @b) at the [{side}](A >b) [base](A:b), "
        "[{severity}](O >o){change}, possibly with [scarring](U).",
        "Pneumothorax": "[Pneumothorax](O:o @s) on the [{side}](A:s), [{severity}](O >o){change}.",
        "Pleural Effusion": "[Pleural](A:p) [effusion](O:o @p) on the [{side}](A >p), "
        "[{severity}](O >o){change}.",
        "Pleural Effusion bilateral": "[Bilateral](A >p) [pleural](A:p) [effusions](O:o @p), "
        "[{severity}](O >o){change}.",
        "nodule": "[Nodule](O:o @z) in the [{side}](A >z) [{zone}](A >z) [zone](A:z), [small](O >o){change}.",
        "mass": "[Mass](O:o @z) in the [{side}](A >z) [{zone}](A >z) [zone](A:z), [large](O >o){change}.",
        "Fracture": "[Rib](A:r) [fracture](O:o @r) on the [{side}](A >r), [displaced](O >o){change}.",
        PACEMAKER: "[Pacemaker](O:o @s) on the [{side}](A:s){change}.",
        CATHETER: "[Central venous catheter](O:o @s) on the [{side}](A:s){change}.",
        TUBE: "[Endotracheal tube](O:o) in the [trachea](A){change}.",
    },
    change={
        "new": ", [new](O >o)",
        "increased": ", [increased](O >o)",
        "decreased": ", [decreased](O >o)",
        "unchanged": ", [unchanged](O >o)",
    },
    resolved="{gone} [resolved](O >o).",
    removed="{gone} [removed](O >o).",
    clear_lungs="[Clear](O @l) [lungs](A:l) on both sides.",
    normal_heart="[Heart](A:h) of [normal](O @h) [size](A >h).",
    denials={
        "pleura": (("Pleural Effusion", "Pneumothorax"),),
        "lungs": (("Consolidation", "Edema", "Atelectasis", "Lung Lesion"),),
        "bones": (("Fracture",),),
    },
    denial="Negative for {items}.",
    normal_impression="[Chest](A:c) without [acute](O >o) [disease](N:o @c){change}.",
    numbered=False,
    habits=(0.86, 0.0, 0.14),
)

WORDINGS = {"north": NORTH, "harbor": HARBOR, "valley": VALLEY, "summit": SUMMIT, "island": ISLAND}
TRAINED = ("north", "harbor", "valley")
ZERO_SHOT = ("summit", "island")
"""Institutions that no policy is trained on: the paper's zero-shot evaluation."""
