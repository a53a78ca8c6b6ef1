"""What generated text must be: stop strings, patterns and JSON schemas as token automata. S states, C classes.

Each becomes an automaton over bytes first; then the bytes of every token are run through it from all states at once.
Grammars are no such automata: they are asked on the host.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from jaxformer.generation.automaton import TokenAutomaton, automaton, searching
from jaxformer.generation.hosted import Hosted
from jaxformer.text.schema import Expression, bare
from jaxformer.text.token_bytes import opening_bytes, token_bytes
from jaxformer.text.tokenizer import Tokenizer

QUOTED = (*range(32), ord('"'), ord("\\"))
"""Bytes that a JSON string does not hold as they are."""
END = "\U0010ffff"
"""Put behind a pattern, a character that no text has: outlines-core 0.2.14 loses the ways that lead on from where a
text matches to where it does not yet match again."""


def stop(tokenizer: Tokenizer, strings: str | Sequence[str]) -> TokenAutomaton:
    """Ends a row with the token that completes one of `strings`, within a token or over several.

    Only what is new counts: one that the prompt begins does not end there. The token may write more behind the
    string; `jaxformer.stream` with `stop` cuts the text before it. Nothing is forbidden.

    Raises ValueError where there is no string, or an empty one.
    """
    strings = [strings] if isinstance(strings, str) else list(strings)
    if not strings or not all(strings):
        raise ValueError(f"stop strings are {strings}: give one character or more in each")
    moves, found = searching([string.encode() for string in strings], 256)
    machine = _Bytes(np.append(moves, np.full((1, 256), -1, np.int32), axis=0), found)
    return _over_tokens(machine, token_bytes(tokenizer), final=machine.accept)


def containing(tokenizer: Tokenizer, phrases: str | Sequence[str | Sequence[str]]) -> list[TokenAutomaton]:
    """What a beam search has to write, for the `phrases` of `Beam`: each a string, or several of which any will do.

    However tokens write it: within one, over several, with more text around. A space at its beginning keeps a word
    from being the end of another.

    Raises ValueError where there is no phrase, or an empty one.
    """
    found = [stop(tokenizer, phrase) for phrase in ([phrases] if isinstance(phrases, str) else phrases)]
    if not found:
        raise ValueError("phrases are empty: give one or more that the text must contain")
    return found


def matching(tokenizer: Tokenizer, pattern: str, opens: bool = False) -> TokenAutomaton:
    """Only texts that `pattern` matches from their first character to their last.

    A row ends with an eos, where the text matches, and without one where nothing may follow. `pattern`: a regular
    expression as the Rust crate regex-syntax has it: no look-around, no back-references. `opens`: the text is
    one of its own, as a decoder with an encoder writes it, and the space that a tokenizer drops at its beginning is
    none of it; else it follows a prompt, and that space has to match.

    Raises ImportError without outlines-core (the extra "constrain"), ValueError for what is no such expression, and
    where no text of this vocabulary matches.
    """
    machine, tokens = _machine(pattern), token_bytes(tokenizer)
    try:
        opening = opening_bytes(tokenizer) if opens else tokens
        return _over_tokens(machine, tokens, opening)
    except ValueError as error:
        raise ValueError(f"pattern {pattern[:200]!r}: {error}") from None


def json_schema(
    tokenizer: Tokenizer, schema: Mapping[str, Any] | str, whitespace: str = " ?", opens: bool = False
) -> TokenAutomaton:
    """Only JSON that `schema` (an object, or the text of one) holds of, on one line.

    Not all of it: properties come in the schema's order, and no others. `whitespace` is a regular expression of what
    may stand between the parts. `opens` as in `matching`.

    Raises ImportError without outlines-core (the extra "constrain"), and one ValueError that lists every keyword
    which no table can hold to, such as bounds of numbers or a schema within itself.
    """
    expression = Expression(json.loads(schema) if isinstance(schema, str) else schema, whitespace)
    for at, pattern in expression.patterns:
        if (_machine(pattern).moves[:-1, QUOTED] >= 0).any():
            raise ValueError(
                f"{at}: the pattern {pattern!r} matches quotes, backslashes or control characters, which JSON writes "
                r'otherwise: leave them out of it, as [^"\\\x00-\x1f] does'
            )
    return matching(tokenizer, expression.regex, opens)


def grammar(tokenizer: Tokenizer, rules: str | Mapping[str, Any]) -> Hosted:
    """Only texts of a context-free grammar, which no table holds: `rules` are a grammar of Lark, or a JSON schema.

    It is asked on the host at each step, by llguidance, whose documentation says what it knows of both. Schemas may
    hold themselves, and bounds of numbers are kept. The text follows a prompt, as in `matching`; what has to stand
    next is written in the longest tokens that write it.

    Raises ImportError without llguidance (the extra "constrain"), ValueError for rules that it does not understand.
    """
    try:
        from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
    except ImportError:
        raise ImportError('grammars take llguidance: pip install "jaxformer[constrain]"') from None
    tokens = token_bytes(tokenizer)
    made = LLTokenizer(TokenizerWrapper(_Vocabulary(tokens)))
    if isinstance(rules, str):
        source = LLMatcher.grammar_from_lark(rules)
    else:
        source = LLMatcher.grammar_from_json_schema(dict(rules))
    matcher = LLMatcher(made, source, log_level=0)
    if matcher.is_error():
        raise ValueError(f"these rules are no grammar: {matcher.get_error()}")
    return Hosted(_Matched(matcher, len(tokens)))


class _Vocabulary:
    """A tokenizer as llguidance asks for one; its end is an id behind all of ours."""

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        self.tokens = [*(each or b"" for each in tokens), b""]
        self.special_token_ids = [id for id, each in enumerate(self.tokens) if not each]
        self.eos_token_id, self.bos_token_id = len(tokens), None
        self._ids = {each: id for id, each in enumerate(self.tokens) if each}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        """Ids that write `text`, each as long as can be: `encode` would begin a text, with a space of its own."""
        ids, at = list[int](), 0
        while at < len(text):
            sizes = range(min(self._longest, len(text) - at), 0, -1)
            size = next((size for size in sizes if text[at : at + size] in self._ids), 0)
            ids += [self._ids[text[at : at + size]]] if size else []
            at += max(size, 1)
        return ids


class _Matched:
    """What may follow some tokens, of the `size` that there are; where each row stands is kept from step to step."""

    KEPT = 1024

    def __init__(self, matcher: Any, size: int) -> None:
        self.begin, self.size, self.lock = matcher, size, Lock()
        self.known: dict[tuple[int, ...], Any] = {}

    def __call__(self, tokens: tuple[int, ...]) -> tuple[np.ndarray, bool]:
        with self.lock:
            matcher = self._behind(tokens)
            if matcher is None or matcher.is_stopped():
                return np.zeros(self.size, bool), matcher is not None
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            return bits[: self.size].astype(bool), matcher.is_accepting()

    def _behind(self, tokens: tuple[int, ...]) -> Any:
        """The matcher that has read them; None where it cannot."""
        if not tokens or tokens in self.known:
            return self.known.get(tokens, self.begin)
        read = next((n for n in range(len(tokens) - 1, 0, -1) if tokens[:n] in self.known), 0)
        matcher = self.known[tokens[:read]] if read else self.begin
        if matcher is not None:
            matcher = matcher.deep_copy()
            matcher = matcher if matcher.consume_tokens(list(tokens[read:])) else None
        self.known[tokens] = matcher
        while len(self.known) > self.KEPT:
            del self.known[next(iter(self.known))]
        return matcher


@dataclass(frozen=True)
class _Bytes:
    """A deterministic automaton over bytes that begins in state 0."""

    moves: np.ndarray
    """int32 [S + 1, 256], -1 where there is no way; the last row, which -1 picks, is all -1."""
    accept: np.ndarray
    """bool [S]"""


def _machine(pattern: str) -> _Bytes:
    """Of a regular expression, by outlines-core: its index over a vocabulary of the 256 bytes."""
    try:
        from outlines_core import Index, Vocabulary
    except ImportError:
        raise ImportError(
            'patterns and JSON schemas take outlines-core: pip install "jaxformer[constrain]"'
        ) from None
    vocabulary = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    try:
        Index(bare(pattern), vocabulary)  # by itself, as "a)(b" is none and would be one in brackets
        index = Index(f"(?:{bare(pattern)}){END}", vocabulary)
    except ValueError as error:
        raise ValueError(f"pattern {pattern[:200]!r}: {error}") from None
    ways, ends, begin = index.get_transitions(), index.get_final_states(), index.get_initial_state()
    names = {*ways, *ends, *(after for each in ways.values() for after in each.values())}
    number = {name: i for i, name in enumerate(sorted(names, key=lambda name: (name != begin, name)))}
    moves = np.full((len(number) + 1, 256), -1, np.int32)
    for name, each in ways.items():
        for byte in each.keys() - {256}:
            moves[number[name], byte] = number[each[byte]]
    after = np.arange(len(number))
    for byte in END.encode():
        after = moves[after, byte]
    return _Bytes(moves, np.isin(after, [number[name] for name in ends]))


def _over_tokens(
    machine: _Bytes,
    tokens: Sequence[bytes | None],
    opening: Sequence[bytes | None] | None = None,
    final: np.ndarray | None = None,
) -> TokenAutomaton:
    """The automaton over tokens: of a search, whose states `final` end a row and which forbids nothing; else of what
    a text has to be from its `opening` on.

    Raises ValueError where no text leads to a state that accepts.
    """
    blank = None if final is None else b""  # what tokens without text are to it
    texts = [each or blank for each in (None, *tokens)]  # the first is of ids behind the tokenizer's
    first = texts if opening is None else [each or blank for each in (None, *opening)]
    columns, classes = _columns(machine.moves, texts, first)
    accept = machine.accept if final is None else np.ones_like(final)
    next, kept = _pruned(columns.T, np.append(accept[:1], accept))
    accept = np.append(accept[:1], accept)[kept]
    final = accept & (next < 0).all(axis=1) if final is None else np.append(False, final)[kept]
    if final[0]:
        raise ValueError("it matches the empty text alone")
    columns, merged = _numbered(next.T)
    return automaton(columns.T, merged[classes[1:]], accept, final)


def _columns(
    moves: np.ndarray, texts: Iterable[bytes | None], first: Iterable[bytes | None]
) -> tuple[np.ndarray, np.ndarray]:
    """(where texts lead, a column int32 [S + 1] for each class of them; the class of each text).

    State 0 is the beginning, where `first` is read in place of each text, and state s of `moves` is s + 1 here.
    Texts that lead from everywhere to the same places are one from there on: few columns are ever computed.
    """
    states = len(moves) - 1
    columns = [np.full(states, -1, np.int32), np.arange(states, dtype=np.int32)]
    known = {column.tobytes(): i for i, column in enumerate(columns)}
    ways: dict[tuple[int, int], int] = {}

    def read(text: bytes | None) -> int:
        at = 0 if text is None else 1
        for byte in text or b"":
            if at == 0:
                break
            if (at, byte) not in ways:
                column = moves[columns[at], byte]
                ways[at, byte] = known.setdefault(column.tobytes(), len(columns))
                if ways[at, byte] == len(columns):
                    columns.append(column)
            at = ways[at, byte]
        return at

    pairs = [(read(text), read(opening)) for text, opening in zip(texts, first, strict=True)]
    number: dict[tuple[int, int], int] = {}
    classes = np.array([number.setdefault(pair, len(number)) for pair in pairs])
    table = np.stack([np.append(columns[begins][:1], columns[goes]) for goes, begins in number])
    return np.where(table < 0, -1, table + 1), classes


def _pruned(next: np.ndarray, accept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the table [S, C] of the states on a way from 0 to one that accepts, those states): no way leads astray.

    Raises ValueError where there is no such way.
    """
    after = [np.unique(row[row >= 0]).tolist() for row in next]
    before: list[list[int]] = [[] for _ in after]
    for state, states in enumerate(after):
        for each in states:
            before[each].append(state)
    kept = sorted(_reached([0], after) & _reached(np.nonzero(accept)[0].tolist(), before))
    if 0 not in kept:
        raise ValueError("no text that this vocabulary can write matches")
    number = np.full(len(next) + 1, -1, np.int32)
    number[kept] = np.arange(len(kept))
    return number[next[kept]], np.array(kept)


def _reached(begin: Sequence[int], ways: Sequence[Sequence[int]]) -> set[int]:
    found, waiting = {*begin}, [*begin]
    while waiting:
        new = {*ways[waiting.pop()]} - found
        found |= new
        waiting += new
    return found


def _numbered(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct ones of `columns` [C, S], in the order in which they come; which each is)."""
    number: dict[bytes, int] = {}
    which = np.array([number.setdefault(column.tobytes(), len(number)) for column in np.ascontiguousarray(columns)])
    return columns[np.unique(which, return_index=True)[1]], which
