"""Where special tokens stand around a text, or around a pair of texts."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import processors

from jaxformer.text.special import ROLES

FIELD = re.compile(r"\{(\w+)\}")
Part = tuple[str | tuple[int, ...], int]
"""("A", "B" or ids of special tokens, token type)."""


@dataclass(frozen=True)
class Template:
    """Model inputs from ids: as they are, unless told otherwise; of a pair the second text has token type 1."""

    single: tuple[Part, ...] = (("A", 0),)
    pair: tuple[Part, ...] = (("A", 0), ("B", 1))

    def __call__(self, ids: Sequence[int], pair_ids: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """(ids, token types) with the special tokens in their places, both of one length."""
        texts = {"A": list(ids), "B": list(pair_ids or ())}
        out: list[int] = []
        types: list[int] = []
        for part, kind in self.single if pair_ids is None else self.pair:
            new = texts[part] if isinstance(part, str) else part
            out += new
            types += [kind] * len(new)
        return out, types


def parse(single: str, pair: str, id_of: Callable[[str], int | None]) -> Template:
    """A template written as "[CLS] $A [SEP]" and "[CLS] $A [SEP] $B:1 [SEP]:1"; ":1" is a token type.

    Raises a ValueError for a token without an id.
    """

    def parts(written: str) -> tuple[Part, ...]:
        return tuple(_part(word, id_of) for word in written.split())

    return Template(parts(single), parts(pair))


def of_family(
    family: Mapping[str, Any], roles: Mapping[str, str], config: Mapping[str, Any], id_of: Callable[[str], int | None]
) -> Template:
    """The template of a family's TOKENIZER (see published.py) for a folder with this tokenizer_config.json.

    Roles without a token fall away.
    """
    language = config.get("src_lang") or family.get("src_lang", "")
    tokens = {**dict.fromkeys(ROLES, ""), **roles, "src_lang": language}

    def filled(side: str) -> str:
        words = (word for word in side.split() if not (role := FIELD.match(word)) or tokens[role[1]])
        return " ".join(words).format_map(tokens)

    single, pair = map(filled, family.get("template", ("$A", "$A $B:1")))
    bos, eos = (id_of(roles[role]) if role in roles else None for role in ("bos", "eos"))
    return flagged(parse(single, pair, id_of), config, bos, eos)


def flagged(template: Template, config: Mapping[str, Any], bos: int | None, eos: int | None) -> Template:
    """The template that add_bos_token and add_eos_token of a tokenizer_config.json ask for, where either is there."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return template
    first = () if bos is None else (bos,)
    last = () if eos is None else (eos,)
    if not config.get("add_bos_token", template.single[0][0] == first):
        first = ()
    if not config.get("add_eos_token", template.single[-1][0] == last):
        last = ()

    def around(text: str, kind: int) -> tuple[Part, ...]:
        parts: tuple[Part, ...] = ((first, kind), (text, kind), (last, kind))
        return tuple(part for part in parts if part[0])

    return Template(around("A", 0), (*around("A", 0), *around("B", 1)))


def of_post_processor(state: Mapping[str, Any] | None) -> Template:
    """The template that the post_processor of a tokenizer.json describes.

    Raises a ValueError for a kind that is not known.
    """
    if state is None:
        return Template()
    kind = state["type"]
    if kind == "ByteLevel":  # about offsets alone
        return Template()
    if kind == "Sequence":
        found = [template for each in state["processors"] if (template := of_post_processor(each)) != Template()]
        if len(found) > 1:
            raise ValueError("a post_processor of several templates is not supported")
        return found[0] if found else Template()
    if kind in (processors.BertProcessing.__name__, processors.RobertaProcessing.__name__):
        cls, sep = (state["cls"][1],), (state["sep"][1],)
        single: tuple[Part, ...] = ((cls, 0), ("A", 0), (sep, 0))
        if kind == processors.BertProcessing.__name__:
            return Template(single, (*single, ("B", 1), (sep, 1)))
        return Template(single, (*single, (sep, 0), ("B", 0), (sep, 0)))
    if kind == "TemplateProcessing":
        tokens = {name: tuple(token["ids"]) for name, token in state["special_tokens"].items()}
        return Template(*(_parts(state[key], tokens) for key in ("single", "pair")))
    raise ValueError(f"a post_processor of type {kind!r} is not supported")


def _parts(pieces: Sequence[Mapping[str, Any]], tokens: Mapping[str, tuple[int, ...]]) -> tuple[Part, ...]:
    found: list[Part] = []
    for piece in pieces:
        ((kind, value),) = piece.items()
        found.append((tokens[value["id"]] if kind == "SpecialToken" else value["id"], value["type_id"]))
    return tuple(found)


def _part(word: str, id_of: Callable[[str], int | None]) -> Part:
    name, colon, kind = word.rpartition(":")
    if not (colon and kind.isdecimal()):
        name, kind = word, "0"
    if name in ("$A", "$B"):
        return name[1:], int(kind)
    id = id_of(name)
    if id is None:
        raise ValueError(f"the template's token {name!r} is not in the vocabulary")
    return (id,), int(kind)
