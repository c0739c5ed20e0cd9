"""How one model is asked for a report, and how its answer is read: recipes, shipped for the comparators.

A recipe puts the chat together piece by piece, each piece a text or the place of an image with the conditions
under which it is there; `unirg.prompts` is the recipe `unirg`, to the byte. Its digest is part of a
prediction's identity.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from string import Formatter
from typing import Any, Literal

from pydantic import Field, field_validator

from unirg import config, prompts
from unirg.config import Config, operational
from unirg.prompts import Sections
from unirg.storage import sha256
from unirg.study import Study

VERSION = 1
"""Of the code below, where it decides what is asked or how an answer is read."""
FOLDER = "comparators"
Show = Literal["current", "lateral", "prior"]
PLACEHOLDERS = ("context", "indication", "comparison", "technique", "prior_report")
CONDITIONS = ("prior", "lateral", *PLACEHOLDERS, "both", "findings", "impression")


def _placeholders(text: str) -> str:
    try:
        named = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError:
        raise ValueError("a brace that is no placeholder is written twice: {{ or }}") from None
    if unknown := set(named) - set(PLACEHOLDERS):
        raise ValueError(f"no placeholder {{{min(unknown)}}}; there are {', '.join(PLACEHOLDERS)}")
    return text


class Piece(Config):
    """A text, or the place of an image."""

    text: str = ""
    """With placeholders in braces: context, indication, comparison, technique, prior_report."""
    image: Show | None = None
    """Which radiograph stands here, instead of a text."""
    when: tuple[str, ...] = ()
    """What must hold for it to be there: `prior` (one is shown), `lateral` (its image is there), a
    placeholder's name (the study has it), `both`, `findings`, `impression` (what is asked for); each may be
    denied, as in `no prior`."""

    _checked = field_validator("text")(_placeholders)

    @field_validator("when")
    @classmethod
    def _known(cls, when: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := {name.removeprefix("no ") for name in when} - set(CONDITIONS):
            raise ValueError(f"no condition {min(unknown)}; there are {', '.join(CONDITIONS)}")
        return when

    def holds(self, true: Mapping[str, bool]) -> bool:
        return all(true[name.removeprefix("no ")] != name.startswith("no ") for name in self.when)


class Pictures(Config):
    """In which form images are sent."""

    format: Literal["png", "jpeg"] = "png"
    """PNG is sent as staged."""
    size: int | None = Field(default=None, ge=64, le=4096)
    """Side in pixels; none = as staged."""
    quality: int = Field(default=95, ge=1, le=100)
    """Of JPEG."""

    @property
    def as_staged(self) -> bool:
        return self.format == "png" and self.size is None

    def made(self, png: bytes) -> bytes:
        """One staged image in this form."""
        if self.as_staged:
            return png
        from PIL import Image as Picture

        with Picture.open(io.BytesIO(png)) as picture:
            picture.load()
            if self.size and picture.size != (self.size, self.size):
                picture = picture.resize((self.size, self.size), Picture.Resampling.BICUBIC)  # type: ignore[assignment]
            buffer = io.BytesIO()
            picture.save(buffer, self.format.upper(), quality=self.quality)
        return buffer.getvalue()


class Sampling(Config):
    """Parameters of a request; what is none is as the run's settings say."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an answer at most."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls that; OpenAI's reasoning models take the second only."""
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    """0 is greedy."""
    fixed: bool = False
    """The server refuses temperature and seed (OpenAI's reasoning models): none is sent."""
    extra: dict[str, str | int | float | bool] = {}
    """Further fields of the protocol, such as `reasoning_effort` or `top_p`."""

    def parameters(self, max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
        """What a request holds beside model and messages; the arguments are the run's settings."""
        asked: dict[str, Any] = {self.max_tokens_field: self.max_tokens or max_tokens}
        warmth = temperature if self.temperature is None else self.temperature
        if not self.fixed:
            asked["temperature"] = warmth
            if warmth > 0:
                asked["seed"] = seed
        return asked | self.extra


class Answer(Config):
    """How an answer becomes a report."""

    gives: Literal["report", "findings", "impression"] = "report"
    """What it holds; of a report the other section is left out where only one is given."""
    form: Literal["verbatim", "plain", "headed"] = "verbatim"
    """`verbatim`: a report in `unirg.prompts`' form, kept as it is. `plain`: the whole answer is the section
    that it gives. `headed`: sections below headings, in any case and order, also as Markdown; what comes
    before the first heading is no report, and an answer without any is all findings."""
    drop: str = ""
    """A regular expression of what is taken out first, such as a model's reasoning."""

    @field_validator("drop")
    @classmethod
    def _compiles(cls, drop: str) -> str:
        try:
            re.compile(drop)
        except re.error as error:
            raise ValueError(f"no regular expression ({error})") from None
        return drop

    def read(self, text: str) -> str:
        """A model's answer as `Findings: ... Impression: ...`; empty where it holds no report."""
        if self.drop:
            text = re.sub(self.drop, " ", text, flags=re.DOTALL)
        if self.form == "verbatim":
            return text
        if self.form == "headed":
            found = _headed(text)
        else:
            found = {"impression" if self.gives == "impression" else "findings": text}
        return prompts.join_sections(
            found.get("findings") if self.gives != "impression" else None,
            found.get("impression") if self.gives != "findings" else None,
        )


_HEADING = re.compile(
    # On a line of its own or at its beginning, with the marks of Markdown; or, with a colon, anywhere.
    r"(?im)(?:^[ \t>#*_\-\d.]*|(?<=[.\s]))\**(?P<name>findings?|impressions?|conclusions?)\**"
    r"(?::\**|[ \t*_]*$)"
)
_MARKS = re.compile(r"(?m)\*\*|__|^[ \t]*(?:[-*•]|#+)[ \t]+|^[ \t]*---+[ \t]*$")


def _headed(text: str) -> dict[str, str]:
    """Text by section; of sections of one name the parts follow each other."""
    headings = list(_HEADING.finditer(text))
    if not headings:
        return {"findings": _MARKS.sub("", text)}
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    found: dict[str, str] = {}
    for heading, end in zip(headings, ends, strict=True):
        name = "findings" if heading["name"].lower().startswith("finding") else "impression"
        body = _MARKS.sub("", text[heading.end() : end]).strip()
        found[name] = f"{found.get(name, '')} {body}".strip()
    return found


class PromptRecipe(Config):
    """One model's way of being asked."""

    name: str = operational("")
    """Of the model, for people."""
    source: str = operational("")
    """Where its prompt is published."""
    system: str = ""
    """Text of the system's message; empty = there is none."""
    user: tuple[Piece, ...] = Field(min_length=1)
    """What the user's message consists of, in order."""
    context: tuple[Piece, ...] = ()
    """What `{context}` consists of: texts, joined by a space."""
    missing: str = ""
    """What stands for a placeholder that the study has nothing for."""
    asks: Literal["reference", "both", "findings", "impression"] = "reference"
    """The sections to write: those that the study's reference has, both where it has none (the paper's rule);
    or always the same ones."""
    with_priors: bool | None = None
    """Whether the previous study is shown; none = as the run's settings say."""
    pictures: Pictures = Pictures()
    """In which form images are sent."""
    sampling: Sampling = Sampling()
    """Parameters of its requests."""
    answer: Answer = Answer()
    """How an answer becomes a report."""

    @property
    def digest(self) -> str:
        """Over all that decides what is asked and how the answer is read."""
        return sha256(config.canonical_json({"version": VERSION, "recipe": config.identity(self)}))

    @property
    def shows(self) -> frozenset[Show]:
        """The kinds of radiographs that it has places for."""
        return frozenset(piece.image for piece in self.user if piece.image)

    @property
    def sees_prior(self) -> bool:
        """Whether the previous study changes what is asked at all."""
        pieces = self.user + self.context
        return any(
            piece.image == "prior" or "{prior_report}" in piece.text or {"prior", "no prior"} & {*piece.when}
            for piece in pieces
        )

    def wanted(self, study: Study) -> Sections:
        """Which sections a study is asked for."""
        return prompts.sections(study) or "both" if self.asks == "reference" else self.asks

    def messages(
        self, study: Study, prior: Study | None = None, lateral: bool = False
    ) -> list[dict[str, Any]]:
        """The chat for one study, with an `{"type": "image"}` place for each of `places(...)`.

        Args:
            prior: the previous study, where it is shown.
            lateral: the study's lateral radiograph is there to be shown.
        """
        true, values = self._facts(study, prior, lateral)
        content: list[dict[str, str]] = []
        for piece in self.user:
            if piece.holds(true):
                text = {"type": "text", "text": piece.text.format_map(values)}
                content.append({"type": "image"} if piece.image else text)
        chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system:
            chat.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        return chat

    def places(self, study: Study, prior: Study | None = None, lateral: bool = False) -> list[Show]:
        """Which radiograph stands in each of the chat's places, in order."""
        true, _ = self._facts(study, prior, lateral)
        return [piece.image for piece in self.user if piece.image and piece.holds(true)]

    def _facts(
        self, study: Study, prior: Study | None, lateral: bool
    ) -> tuple[dict[str, bool], dict[str, str]]:
        texts = {
            "indication": study.indication,
            "comparison": study.comparison,
            "technique": technique(study),
            "prior_report": prompts.report(prior) if prior else "",
        }
        true = {name: bool(text) for name, text in texts.items()}
        wanted = self.wanted(study)
        true |= {"prior": prior is not None, "lateral": lateral, "context": False}
        true |= {sections: sections == wanted for sections in ("both", "findings", "impression")}
        values = {name: " ".join((text or "").split()) or self.missing for name, text in texts.items()}
        parts = [piece.text.format_map(values) for piece in self.context if piece.holds(true)]
        context = " ".join(parts)
        return true | {"context": bool(context)}, values | {"context": context}


def technique(study: Study) -> str:
    """What the views of a study say as a report does, such as `PA and lateral views of the chest.`"""
    named = [image.projection or image.view for image in study.images]
    views = [view for view in ("PA", "AP", "frontal", "lateral") if view in named]
    if not views:
        return ""
    text = f"{' and '.join(views)} view{'s' if len(views) > 1 else ''} of the chest."
    return text[0].upper() + text[1:]


def load(name: str = "unirg") -> PromptRecipe:
    """A shipped recipe by its name, such as `medgemma`, or a YAML file.

    Raises:
        UserError: there is none, or it breaks a rule; the key and the value are named.
    """
    shipped = f"{FOLDER}/{name}"
    return config.load(PromptRecipe, shipped if shipped in config.shipped_recipes() else name)
