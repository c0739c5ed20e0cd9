"""Split a report into sentences as RaTEScore does: medspacy puts PyRuSH's sentences on spaCy's tokens."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from itertools import pairwise

from unirg.metrics.sentence_rules import Match, matches
from unirg.metrics.sentence_tokens import starts

VERSION = 1
"""Goes up with any change of what `split` gives."""

_SHORTEST_GAP = 5
_CLOSING = '.!?)]"'


def split(text: str) -> list[str]:
    """The sentences of a text, stripped; those of fewer than three characters are left out."""
    edges = [*sorted(_starts(text)), len(text)]
    sentences = [text[start:stop].strip() for start, stop in pairwise(edges)]
    return [sentence for sentence in sentences if len(sentence) >= 3]


def spans(text: str) -> list[tuple[int, int]]:
    """What PyRuSH takes for sentences, as [begin, end) of the text; between two there may be a gap."""
    begins, ends = matches(text)
    found = _paired(text, begins, ends)
    if not found:
        gap = _gap(text, 0, len(text))
        return [gap] if gap and gap[1] - gap[0] > _SHORTEST_GAP else []
    begin, end = found[0]
    if gap := _gap(text, 0, begin):
        # Upstream fails where there is no end at all.
        if not ends or begin <= ends[0].begin:
            found[0] = (gap[0], end)
        else:
            found.insert(0, gap)
    begin, end = found[-1]
    if gap := _gap(text, end, len(text)):
        if gap[1] - gap[0] > _SHORTEST_GAP:
            found.append(gap)
        else:
            found[-1] = (begin, gap[1])
    return found


def _paired(text: str, begins: list[Match], ends: list[Match]) -> list[tuple[int, int]]:
    """Each beginning with the last end before the next beginning."""
    found: list[tuple[int, int]] = []
    begin = end = first = 0
    is_open = False
    for number, match in enumerate(begins):
        if match.begin < end:
            continue
        if not is_open:
            begin, is_open = match.begin, True
        _fill(found, text, begin)
        following = begins[number + 1].begin if number + 1 < len(begins) else None
        for place in range(first, len(ends)):
            later = ends[place + 1] if place + 1 < len(ends) else None
            if following is not None and later is not None and following <= ends[place].begin:
                break
            first = place
            end = ends[place].begin + 1
            while end and text[end - 1].isspace():
                end -= 1
            if end < begin:
                continue
            if is_open:
                found.append((begin, end))
                is_open = False
                if following is not None and (later is None or following <= later.end):
                    break
            else:
                found[-1] = (begin, end)
    return found


def _fill(found: list[tuple[int, int]], text: str, begin: int) -> None:
    """Give the text between the last sentence and `begin` to that sentence, or make it one."""
    gap = _gap(text, found[-1][1] if found else 0, begin)
    if gap and gap[1] - gap[0] > _SHORTEST_GAP:
        found.append(gap)
    elif gap and found:
        found[-1] = (found[-1][0], gap[1])


def _gap(text: str, begin: int, end: int) -> tuple[int, int] | None:
    """[begin, end) from its first character that is no space to its last that can end a sentence."""
    while begin < end and text[begin].isspace():
        begin += 1
    while end > begin + 1 and not (text[end - 1].isalnum() or text[end - 1] in _CLOSING):
        end -= 1
    return (begin, end) if end > begin + 1 else None


def _starts(text: str) -> set[int]:
    """Where sentences start: at tokens alone, so a sentence that begins inside one starts with the next."""
    sentences = spans(text)
    tokens = _tokens(text, {edge for span in sentences for edge in span})
    found = {0}
    number = at = 0
    while at < len(tokens):
        place, is_space = tokens[at]
        following = sentences[number + 1][0] if number + 1 < len(sentences) else -1
        if number < len(sentences) and sentences[number][1] <= place < following:
            # A gap is one sentence, from its first token that is space, if it has one.
            gap = at
            while at < len(tokens) and tokens[at][0] < following:
                at += 1
            found.add(next((start for start, space in tokens[gap:at] if space), place))
            continue
        while number < len(sentences) and place >= sentences[number][1]:
            number += 1
        at += 1
        if number == len(sentences):
            if is_space:
                found.add(place)
            continue
        begin, end = sentences[number]
        if place < begin:
            continue
        if place == begin:
            found.add(place)
        if at < len(tokens) and tokens[at][0] >= end:
            found.add(tokens[at][0])
    return found


def _tokens(text: str, edges: set[int]) -> list[tuple[int, bool]]:
    """Where tokens begin, and whether they are space; only words with an edge inside are cut into theirs."""
    inside = sorted(edges)
    found: list[tuple[int, bool]] = []
    for run in re.finditer(r"\s+|\S+", text):
        begin, end = run.span()
        if text[begin].isspace():
            if begin and text[begin] == " ":  # a single space belongs to the word before it
                begin += 1
            if begin < end:
                found.append((begin, True))
        elif bisect_right(inside, begin) < bisect_left(inside, end):
            found += [(begin + start, False) for start in starts(run[0])]
        else:
            found.append((begin, False))
    return found
