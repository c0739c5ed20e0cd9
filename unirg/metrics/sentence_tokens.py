# ruff: noqa: RUF001  (the characters that look alike are what these rules are about)
"""Where spaCy's English tokenizer cuts a word: the part of it that decides where a sentence can start.

An own implementation of its rules (spaCy 3.8, MIT, `lang/punctuation.py` and `lang/en`): off both ends of a
word come, one by one, punctuation, quotes, symbols, and units behind a number; what is left is cut at hyphens
and the like between letters. Words that it knows, such as "Dr.", stay whole. Left out are its contractions,
most smileys, URLs, and symbols newer than Unicode 11: they matter only where a sentence ends inside of one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from string import ascii_lowercase

_MARKS = r"…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_CURRENCY = r"US\$|C\$|A\$|[$£€¥฿﷼₠-₿]"
_UNITS = (
    "km|km²|km³|m|m²|m³|dm|dm²|dm³|cm|cm²|cm³|mm|mm²|mm³|ha|µm|nm|yd|in|ft|kg|g|mg|µg|t|lb|oz|m/s|km/h|kmh|"
    "mph|hPa|Pa|mbar|mb|MB|kb|KB|gb|GB|tb|TB|T|G|M|K|%"
)
_KNOWN = (
    "Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. "
    "Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. "
    "Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. "
    "e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. "
    "Prof. Rep. Rev. Sen. St. vs. v.s. and/or w/o C++ \u00e4. \u00f6. \u00fc."
)
_WHOLE = frozenset(_KNOWN.split()) | {f"{letter}." for letter in ascii_lowercase}


@lru_cache(maxsize=4096)
def starts(word: str) -> tuple[int, ...]:
    """Where the tokens of a word, which holds no space, begin; the first is 0."""
    prefix, suffix, infix = _expressions()
    begin, end = 0, len(word)
    found = {0}
    while begin < end and word[begin:end] not in _WHOLE:
        front, back = prefix.match(word, begin, end), None
        after = front.end() if front else begin
        if word[after:end] not in _WHOLE:
            # A slice: what stands behind the affix's place must not be seen.
            back = suffix.search(word[after:end])
        if not front and not back:
            break
        if back and word[begin : after + back.start()] in _WHOLE:
            front = None
        if front:
            found.add(begin := after)
        if back:
            found.add(end := after + back.start())
    if word[begin:end] not in _WHOLE:
        for cut in infix.finditer(word[begin:end]):
            if cut.start():
                found |= {begin + cut.start(), begin + cut.end()}
    smileys = {match.start() + 1 for match in re.finditer(r"\):", word)}  # the one that reports have
    return tuple(sorted(found - smileys - {len(word)}))


@cache
def _expressions() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """What comes off a word's front, what off its end, and what cuts its inside."""
    # Scripts without case count as either.
    upper = _characters(lambda char: char.isalpha() and not char.islower())
    lower = _characters(lambda char: char.isalpha() and not char.isupper())
    letter = r"[^\W\d_]"
    behind = rf"(?:(?<={letter})|(?<=[0-9]))"
    icons = _characters(lambda char: unicodedata.category(char) == "So")
    marks, quotes = re.escape(_MARKS), re.escape(_QUOTES)
    affix = rf"\.\.+|[{marks}{quotes}{icons}—–]"
    prefix = rf"[§%=]|\+(?![0-9])|{affix}|{_CURRENCY}"
    suffix = (
        rf"(?:{affix}|['’][sS]|(?<=[0-9])(?:\+|{_CURRENCY}|{_UNITS})|(?<=°[FfCcKk])\."
        rf"|(?<=[0-9{lower}%²+|{marks}{quotes}-])\.|(?<=[{upper}][{upper}])\.)$"
    )
    infix = (
        rf"\.\.+|[…{icons}]|(?<=[0-9])[+*^-](?=[0-9-])|(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])"
        rf"|(?<={letter}),(?={letter})|{behind}(?:--|---|——|[-–—~:<>=/])(?={letter})"
    )
    return re.compile(prefix), re.compile(suffix), re.compile(infix)


def _characters(belongs: Callable[[str], bool]) -> str:
    """The characters of Unicode's first two planes that belong, as ranges for a regular expression."""
    codes = [code for code in range(0x20000) if belongs(chr(code))]
    firsts = [code for code, before in zip(codes, [-2, *codes], strict=False) if code != before + 1]
    lasts = [code for code, after in zip(codes, [*codes[1:], -2], strict=True) if code != after - 1]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(firsts, lasts, strict=True))
