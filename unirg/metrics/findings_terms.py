"""How chest radiograph reports name conditions, places, degrees and changes.

Patterns over lower-case text, by the term that they stand for; `findings_lexicon` reads a report with them.
A term's words are alternatives, the longer before the shorter where two begin alike.
"""

from __future__ import annotations

import re
from typing import Literal

Presence = Literal["positive", "negative", "uncertain"]

NO_FINDING = "No Finding"
LUNG_OPACITY = "Lung Opacity"
CONDITIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    LUNG_OPACITY,
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    NO_FINDING,
)
"""CheXbert's 14, in its order."""

# Not what they look like: these hide a term of a condition or of a side.
_SKIP = (
    r"pericardial effusions?|granulomatous \w+|soft tissue \w+|mass effect|fracture line"
    r"|(?:osseous|bony|bone|lytic|sclerotic|blastic) lesions?"
    r"|(?:right|left) (?:atri\w+|ventric\w+|heart|hemi-?diaphragm|main ?-?stem)"
    r"|upper (?:abdom\w+|quadrant|extremit\w+)|lower (?:neck|extremit\w+)"
    r"|(?:prior|previous|earlier|last|comparison|current|present) (?:\w+ )?(?:study|exam\w*|chest)"
)
_ACUTE = (
    r"(?:acute|active)(?: (?:cardio-?pulmonary|cardiac|pulmonary|cardio-?thoracic|intra-?thoracic|thoracic"
    r"|radiographic|chest|lung|pleural|parenchymal|infectious|and|or))*"
)
_CATHETER = r"(?:(?:central|venous|subclavian|jugular|dialysis|access|tunnell?ed) )*catheters?"

_CONDITION_TERMS: dict[tuple[str, str | None], str] = {
    (NO_FINDING, None): _ACUTE + r" (?:abnormalit\w+|disease|process(?:es)?|findings?|patholog\w+|illness)",
    ("Enlarged Cardiomediastinum", None): r"mediastinal (?:widening|enlargement|prominence)"
    r"|widening of (?:the )?(?:\w+ )?mediastinum",
    ("Cardiomegaly", None): r"cardiomegaly|(?:cardiac|heart)(?: silhouette)? enlargement"
    r"|enlargement of (?:the )?(?:heart|cardiac silhouette)",
    ("Lung Lesion", None): r"nodul(?:es?|ar \w+)|mass(?:es)?|lesions?|tumou?rs?|neoplas\w+|metasta\w+"
    r"|malignan\w+|carcinoma",
    ("Edema", None): r"o?edema|(?:heart|cardiac) failure|chf|cephalization|(?:fluid|volume) overload"
    r"|(?:pulmonary |vascular |venous )+(?:congestion|redistribution|engorgement)|kerley",
    ("Consolidation", None): r"consolidat\w+",
    ("Pneumonia", None): r"(?:broncho)?pneumonia|pneumonitis|infections?|infectious process",
    ("Atelectasis", None): r"\w*atelecta\w+|(?:lobe|lobar|lung|segmental) collapse|volume loss"
    r"|collapsed?(?= (?:of )?(?:the )?(?:left|right|lung|lobe))",
    ("Pneumothorax", None): r"(?:hydro)?pneumothora(?:ces|x\w*)",
    ("Pleural Effusion", None): r"(?:pleural )?effusions?|pleural fluid|h(?:ydro|a?emo)thorax",
    ("Pleural Other", None): r"pleural?(?:[ -]parenchymal)? (?:thickening|scar\w*|plaques?|calcifications?)"
    r"|fibrothorax",
    ("Fracture", None): r"fractur\w+"
    r"|acute (?:osseous|bony|bone|skeletal) (?:abnormalit\w+|injur\w+|findings?)",
    (LUNG_OPACITY, None): r"opacit\w+|opacification\w*|infiltrat\w+|air ?-?space (?:disease|process)"
    r"|haz(?:e|y|iness)",
    ("Support Devices", "pacemaker"): r"pace ?makers?|pacers?|pacing (?:leads?|wires?|device)|a?icd"
    r"|defibrillator",
    ("Support Devices", "airway tube"): r"endotracheal tubes?|et tubes?|ett|tracheostomy",
    ("Support Devices", "enteric tube"): r"(?:nasogastric|orogastric|enteric|feeding|ng|og) tubes?"
    r"|dob+hof+",
    ("Support Devices", "chest tube"): r"(?:chest|pleural|thoracostomy) (?:tubes?|drains?|catheters?)"
    r"|pigtail",
    ("Support Devices", "venous catheter"): r"central (?:venous )?lines?|picc|port-?a-?cath|medi-?ports?"
    rf"|chest port|infusion port|swan[ -]ganz|{_CATHETER}",
    ("Support Devices", "other"): r"(?:prosthetic|mechanical|aortic|mitral) valve|valve replacement"
    r"|hardware|arthroplast\w+|support(?:ing)? (?:devices?|apparatus|lines?)|lines and tubes|tubes and lines",
}
"""(Condition, kind of device) and its words."""

_ANATOMY_TERMS = {
    "heart and mediastinum": r"cardio-?mediastin\w+",
    "heart": r"heart|cardiac(?= (?:silhouette|size|contour|shadow|and mediastinal))",
    "mediastinum": r"mediastin\w+",
    "vessels": r"(?:pulmonary )?vascul(?:ature|arity)",
    "lungs": r"lungs?(?! volume| base| zone| apex| apices| nodule| mass| lesion| disease| cancer)",
    "pleura": r"pleural (?:spaces?|surfaces?)|(?:costophrenic|cp)",
    "bones": r"(?:osseous|bony|skeletal) (?:structures?|thorax)|bones|osseous",
    "chest": r"chest(?! wall| tube| port| pain)|exam(?:ination)?|study(?! of)",
}
"""Anatomy states nothing by itself; `STATED_BY` and `STATES` say what its state says of which conditions."""

STATED_BY: dict[str, tuple[str, ...]] = {
    "heart and mediastinum": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "heart": ("Cardiomegaly",),
    "mediastinum": ("Enlarged Cardiomediastinum",),
    "vessels": ("Edema",),
    "lungs": (LUNG_OPACITY,),
    "pleura": ("Pleural Effusion",),
    "bones": ("Fracture",),
    "chest": (NO_FINDING,),
}
_SIZE: dict[str, Presence] = {"normal": "negative", "enlarged": "positive", "borderline": "uncertain"}
STATES: dict[str, dict[str, Presence]] = {
    "heart and mediastinum": _SIZE,
    "heart": _SIZE,
    "mediastinum": _SIZE,
    "vessels": {"normal": "negative", "enlarged": "uncertain"},
    "lungs": {"normal": "negative", "clear": "negative"},
    "pleura": {"normal": "negative", "clear": "negative", "blunted": "uncertain"},
    "bones": {"normal": "negative"},
    "chest": {"normal": "positive", "negative": "positive"},
}

_DEGREE = r"\w+ly |interval |appreciable |significant |substantial |definite |new |other |yet "
_MORE = "(?:prominent|extensive|conspicuous|pronounced|severe)"
# "Increased markings" is how something looks, "increased effusion" how it changed.
_LOOKS = r"(?! (?:ap\b|densit|marking|interstitial|opaci|attenuation|lucen|vascul))"
_VIEWED = "seen|identified|present|visualized|visible|evident|demonstrated|appreciated|noted|detected"

# The most specific first: at each word the first alternative that fits wins.
_OTHER_TERMS = {
    "borderline": r"borderline|(?:upper (?:limits? of )?|top[ -]|high[ -])normal|upper limits",
    "same": rf"no (?:{_DEGREE})*changes?|(?:not|without) (?:{_DEGREE})*(?:changed?|resol\w+)",
    "decreased": r"partial(?:ly)? (?:clear\w+|resol\w+)|resolving|decreas\w+(?! (?:lung )?volume| ap)"
    rf"|improv\w+|smaller|diminish\w+|regress\w+|less {_MORE}",
    "resolved": r"resolved|resolution|no longer \w+|removed|cleared",
    "increased": rf"increas\w+{_LOOKS}|worse\w*|progress(?:ed|ing|ion|ive)|larger|enlarging|more {_MORE}",
    "new": r"new(?:ly)?|interval (?:development|appearance)|developed|developing",
    "doubted": r"(?:can ?not|not|difficult to) (?:be )?(?:\w+ly )?excluded?"
    r"|(?:is|are) (?:possible|suspected)",
    "refuted": rf"not (?:\w+ly )?(?:{_VIEWED})|(?:is|are) absent|ruled out",
    "normal": r"normal|unremarkable|intact|(?:not|non) ?-?enlarged",
    "negation": r"clear of|free of|negative for|(?:absence|lack) of|no|not|without|neither|nor|rather than",
    "clear": r"clear|well[ -](?:aerated|expanded)|sharp",
    "negative": r"negative",
    "enlarged": r"enlarged|widened|prominent|wide|engorged|congested",
    "blunted": r"blunted|blunting",
    "versus": r"versus|vs",
    "doubt": r"possibl[ey]|probabl[ey]|likely|may|might|could|suspect\w*|suspicious|suspicion|question\w*"
    r"|concern\w*|worrisome|suggest\w*|perhaps|presum\w+|favor\w*|consider\w*|differential|correlat\w+",
    "link": r"reflect\w*|represent\w*|(?:consistent|compatible) with|indicat\w+|(?:due|secondary|related) to",
    "unchanged": r"unchanged|stable|stably|persist\w*|similar|again \w+|remains?|remaining",
    "stop": r"there (?:is|are|has|have)",
    "with": r"with",
    "and": r"and|or|as well as",
}
CHANGES = {"same": "unchanged"} | {c: c for c in ("new", "increased", "decreased", "unchanged", "resolved")}

_ATTRIBUTE_TERMS: dict[tuple[tuple[str, str], ...], str] = {
    (("side", "bilateral"), ("zone", "upper")): "bi-?apical",
    (("side", "bilateral"), ("zone", "lower")): "bi-?bas(?:ilar|al)",
    (("side", "right"), ("zone", "upper")): "rul",
    (("side", "right"), ("zone", "mid")): "rml",
    (("side", "right"), ("zone", "lower")): "rll",
    (("side", "left"), ("zone", "upper")): "lul",
    (("side", "left"), ("zone", "lower")): "lll",
    (("side", "left"),): "left",
    (("side", "right"),): "right",
    (("side", "bilateral"),): "bilateral(?:ly)?|both",
    (("zone", "upper"),): "upper|apex|apices|apical",
    (("zone", "mid"),): r"mid(?:dle)?|lingul\w+",
    (("zone", "lower"),): "lower|bases?|basal|basilar|retrocardiac",
    (("severity", "mild"),): "mild(?:ly)?|minimal(?:ly)?|small|trace|tiny|slight(?:ly)?|minor|subtle",
    (("severity", "moderate"),): "moderate(?:ly)?",
    (("severity", "severe"),): "severe(?:ly)?|large|massive|marked(?:ly)?|extensive",
}

# A group's name in a regular expression is an identifier: conditions and attributes are numbered.
CONDITION_OF = {f"condition{number}": key for number, key in enumerate(_CONDITION_TERMS)}
ATTRIBUTES_OF = {f"attribute{number}": key for number, key in enumerate(_ATTRIBUTE_TERMS)}
ANATOMY_OF = {f"anatomy{number}": key for number, key in enumerate(_ANATOMY_TERMS)}
_ALL = {
    "skip": _SKIP,
    **dict(zip(CONDITION_OF, _CONDITION_TERMS.values(), strict=True)),
    **_OTHER_TERMS,
    **dict(zip(ANATOMY_OF, _ANATOMY_TERMS.values(), strict=True)),
    **dict(zip(ATTRIBUTES_OF, _ATTRIBUTE_TERMS.values(), strict=True)),
}
TERM = re.compile(
    r"\b(?:" + "|".join(rf"(?P<{name}>(?:{words})\b)" for name, words in _ALL.items()) + r")|(?P<comma>[,/])"
)
"""One term of a clause; its group's name says which."""

CLAUSE_END = re.compile(
    r"[;\n]|\.(?!\d)|\b(?:but|however|although|though|while|whereas|(?:except|aside|apart)(?: for| from)?"
    r"|other than)\b"
)
"""Where no negation, doubt or attribute passes."""
