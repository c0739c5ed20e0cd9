"""Find where sentences may begin and end: the rules of RuSH (Shi et al., AMIA 2016), matched as PyRuSH does.

`rush_rules.tsv` holds them: medspacy 1.3.1's file, unchanged (Apache-2.0, University of Utah). A rule is a
pattern of literals, character classes (a backslash and a letter, see the file's head) and repeats, with
brackets around the part that counts; it says "a sentence begins here", "ends here", or, with an odd score,
that what another rule sees here is neither. The matcher below is our own. It keeps what decides PyRuSH's
results, PyFastNER 1.0.10, surprises included:
- "+" repeats what is before it once, or as often as the text does (51 times at most), nothing in between.
- Of matches that overlap, the widest stays, the first found where two are equally wide; scores are never
  compared, so a rule of denial denies by being wider.
- A class at the very end of the text ("\\e" behind a closing bracket) never matches.
One thing cannot be kept: where a match overlaps several earlier ones, PyFastNER takes the one that a tree
balanced by C's unseeded rand() lists last, which differs with what the process split before. Here it is the
rightmost, its likeliest choice.
"""

from __future__ import annotations

import csv
import string
from bisect import bisect_left, insort
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

RULES = Path(__file__).with_name("rush_rules.tsv")
_MOST_REPEATS = 50

_CLASSES: dict[str, Callable[[str], bool]] = {
    "s": lambda char: char in " \t\xa0",
    "n": lambda char: char in "\n\r",
    "(": lambda char: char == "(",
    ")": lambda char: char == ")",
    "d": str.isdigit,
    "C": str.isupper,
    "c": str.islower,
    "p": lambda char: char in string.punctuation,
    "a": lambda char: not char.isspace(),
    "u": lambda char: char > "~" and char != "\xa0",
    "w": lambda char: char > "~" or char.isspace(),
}


class Match(NamedTuple):
    """The part of the text between a rule's brackets, [begin, end)."""

    begin: int
    end: int
    denies: bool
    """The rule says that no sentence begins, or ends, here."""


class _Symbol(NamedTuple):
    """What a character of a text is to the patterns."""

    classes: frozenset[str]
    literal: str
    """The character itself, where a pattern has it."""
    is_first: bool


class _Move(NamedTuple):
    """What a character leads to from a node, brackets and repeats on the way being passed."""

    does: Literal["match", "step", "repeat"]
    node: _Node
    wild: bool
    opens: bool
    closes: bool
    """Brackets that stand before the character."""


class _Node:
    """A place in the patterns that share a beginning."""

    __slots__ = ("denies", "key", "kind", "moves", "next")

    def __init__(self, key: str = "") -> None:
        self.key = key
        """The pattern's last character."""
        self.next: dict[str, _Node] = {}
        """By the pattern's next character; after a backslash, by the class's letter."""
        self.kind = ""
        """`stbegin` or `stend` where a pattern is complete."""
        self.denies = False
        self.moves: dict[tuple[_Symbol, bool], list[_Move]] = {}
        """What is known of `_moves` of this node."""


@cache
def _patterns() -> tuple[_Node, frozenset[str]]:
    """The root of the patterns and all characters in them."""
    root, characters = _Node(), set()
    with RULES.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file, delimiter="\t"):
            if len(row) < 3 or row[0].startswith(("#", "@")):
                continue
            node = root
            for char in row[0]:
                characters.add(char)
                node = node.next.setdefault(char, _Node(char))
            node.kind, node.denies = row[2].strip(), float(row[1]) % 2 != 0
    return root, frozenset(characters)


@lru_cache(maxsize=4096)
def _symbol(char: str, is_first: bool) -> _Symbol:
    classes = frozenset(letter for letter, holds in _CLASSES.items() if holds(char))
    return _Symbol(classes, char if char in _patterns()[1] else "", is_first)


def _moves(node: _Node, symbol: _Symbol, wild: bool) -> list[_Move]:
    """Where a character leads from a node, in PyFastNER's order.

    Args:
        wild: the node's key is a class's letter.
    """
    if (known := node.moves.get((symbol, wild))) is not None:
        return known
    found: list[_Move] = []
    following = node.next
    if classes := following.get("\\"):
        for letter, after in classes.next.items():
            if letter in symbol.classes:
                found.append(_Move("step", after, True, False, False))
            elif letter == "b" and symbol.is_first:
                found += _moves(after, symbol, True)
    # A backslash of the text leads among the classes' letters, where brackets are no brackets.
    if node.key != "\\":
        if opened := following.get("("):
            found += [move._replace(opens=True) for move in _moves(opened, symbol, False)]
        if closed := following.get(")"):
            found += [move._replace(closes=True) for move in _moves(closed, symbol, False)]
    if node.kind:
        found.append(_Move("match", node, False, False, False))
    if symbol.literal not in ("", "(", ")") and (literal := following.get(symbol.literal)):
        found.append(_Move("step", literal, False, False, False))
    if repeated := following.get("+"):
        once = _moves(repeated, symbol, False)
        found += once
        if not wild or node.key not in "()":
            again = node.key in symbol.classes if wild else node.key == symbol.literal
            found += [_Move("repeat", node, wild, False, False)] if again else once
    node.moves[symbol, wild] = found
    return found


class _Matches:
    """What was found of one kind, no two places overlapping when they were first found."""

    def __init__(self) -> None:
        self.found: list[Match] = []
        self._intervals: list[tuple[int, int, int]] = []  # (begin, -end, place in `found`), sorted
        self._widest = 0

    def add(self, match: Match) -> None:
        place = self._overlapped(match.begin, match.end)
        end = match.end
        if place is None:
            # PyFastNER's very first interval is one shorter than its match.
            end -= not self.found
            place = len(self.found)
            self.found.append(match)
        elif match.end - match.begin > self.found[place].end - self.found[place].begin:
            self.found[place] = match  # the old interval stays, and leads here
        else:
            return
        insort(self._intervals, (match.begin, -end, place))
        self._widest = max(self._widest, end - match.begin)

    def _overlapped(self, begin: int, end: int) -> int | None:
        """Place of the rightmost match that [begin, end) overlaps."""
        for at in range(bisect_left(self._intervals, (end + 1,)) - 1, -1, -1):
            start, negative, place = self._intervals[at]
            if start < begin - self._widest:
                break
            stop = -negative
            if (stop > begin and start < end) or begin == end == start or start == stop == begin:
                return place
        return None


def matches(text: str) -> tuple[list[Match], list[Match]]:
    """Where sentences begin and where they end, in the order in which the rules found them."""
    search = _Search(text)
    root = _patterns()[0]
    for position in range(len(text)):
        search.follow(root, False, position, 0, position)
    begins, ends = (
        [match for match in search.kinds[kind].found if not match.denies] for kind in ("stbegin", "stend")
    )
    return begins, ends


class _Search:
    def __init__(self, text: str) -> None:
        self.symbols = [_symbol(char, not at) for at, char in enumerate(text)]
        self.kinds = {"stbegin": _Matches(), "stend": _Matches()}

    def follow(self, node: _Node, wild: bool, begin: int, end: int, at: int) -> None:
        """Follow every pattern from `node` on, over the text from `at` on.

        Args:
            begin: where the part between the brackets begins.
            end: where it ends; 0 as long as no bracket has closed it.
        """
        if at == len(self.symbols):
            self._finish(node, begin, end)
            return
        for does, target, target_wild, opens, closes in _moves(node, self.symbols[at], wild):
            first, last = at if opens else begin, at if closes else end
            if does == "step":
                self.follow(target, target_wild, first, last, at + 1)
            elif does == "match":
                self._add(target, first, last or at)
            else:
                self.follow(target.next["+"], False, first, last, self._repeated(target.key, target_wild, at))

    def _repeated(self, key: str, wild: bool, at: int) -> int:
        """Where the run of what was before a "+" ends."""
        last = min(len(self.symbols), at + _MOST_REPEATS)
        while at < last and (key in self.symbols[at].classes if wild else key == self.symbols[at].literal):
            at += 1
        return at

    def _finish(self, node: _Node, begin: int, end: int) -> None:
        """The text is over: what is complete here?"""
        at, following = len(self.symbols), node.next
        if node.kind:
            self._add(node, begin, end or at)
        elif "\\" in following and "e" in following["\\"].next:
            self._add(following["\\"].next["e"], begin, end or at)
        elif ")" in following:
            if following[")"].kind:
                self._add(following[")"], begin, at)
        elif "+" in following:
            self._finish(following["+"], begin, end)

    def _add(self, node: _Node, begin: int, end: int) -> None:
        self.kinds[node.kind].add(Match(min(begin, end), max(begin, end), node.denies))
