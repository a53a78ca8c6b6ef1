"""What is published beside a vocabulary: special and added tokens, flags, the chat template; and all as bytes."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from jaxformer.text.files import parse_json, write_file, write_json

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # the order in which missing ones get their ids
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
CHAT = "chat_template.jinja"
FILES = (
    *("tokenizer.json", CONFIG, MAP, ADDED, CHAT, "chat_template.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tekken.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("source.spm", "target.spm", "target_vocab.json"),
)
MORE_CHAT = "additional_chat_templates/*.jinja"


@dataclass(frozen=True)
class Published:
    """The tokenizer's files of a folder, byte for byte: what was read goes back out as it was."""

    name: str = ""
    """The folder, for messages."""
    files: Mapping[str, bytes] = field(default_factory=dict)

    def json(self, name: str) -> dict[str, Any]:
        """The object in a file, {} where there is no such file."""
        if name not in self.files:
            return {}
        return parse_json(f"{self.name}/{name}", self.files[name])

    def require(self, *names: str) -> None:
        """Raises FileNotFoundError unless all files of these names are there."""
        if not all(name in self.files for name in names):
            there = ", ".join(self.files) or "nothing"
            raise FileNotFoundError(f"{self.name}: no tokenizer: looked for {' and '.join(names)}, found: {there}")

    def text(self, name: str) -> str:
        """A file's text, its lines ended by newlines alone."""
        try:
            return self.files[name].decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name}/{name}: expected UTF-8: {error}") from None

    @cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return self.json(CONFIG)

    @cached_property
    def named(self) -> dict[str, Any]:
        """Entries about tokens: special_tokens_map.json goes before tokenizer_config.json, unless that holds all."""
        return self.config if "added_tokens_decoder" in self.config else self.config | self.json(MAP)

    @cached_property
    def special(self) -> dict[str, str]:
        """{role: token}."""
        tokens = {role: _content(self.named.get(f"{role}_token")) for role in ROLES}
        return {role: token for role, token in tokens.items() if token is not None}

    @cached_property
    def added(self) -> list[tuple[int | None, AddedToken]]:
        """(id, token) of the tokens that are recognised in a text besides the vocabulary's own.

        Those with ids first, ordered; None asks for the id that the vocabulary has, else for the next free one.
        """
        try:
            return self._added()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: its added tokens cannot be read: {error!r}") from None

    def _added(self) -> list[tuple[int | None, AddedToken]]:
        extra = self.named.get("additional_special_tokens") or self.named.get("extra_special_tokens") or []
        extra = list(extra.values() if isinstance(extra, Mapping) else extra)
        named = [self.named.get(f"{role}_token") for role in ROLES] + extra
        special = {token.content: token for token in (_token(each, True) for each in named if each)}
        written = self.config.get("added_tokens_decoder")
        if written is None:
            by_id = {i: AddedToken(token, special=token in special) for token, i in self.json(ADDED).items()}
        else:
            by_id = {int(i): _token(token) for i, token in written.items()}
        known = {token.content for token in by_id.values()}
        rest = [(None, token) for content, token in special.items() if content not in known]
        return [*sorted(by_id.items(), key=lambda item: item[0]), *rest]

    def roles(self, defaults: Mapping[str, str]) -> dict[str, str]:
        """{role: token}: what the folder says, null included, before `defaults`."""
        return {role: token for role, token in defaults.items() if f"{role}_token" not in self.named} | self.special

    def recognised(
        self, roles: Mapping[str, str], lstrip: Collection[str] = ()
    ) -> list[tuple[int | None, AddedToken]]:
        """As `added`, the tokens of `roles` among them.

        Those of the roles in `lstrip` take in the spaces before, unless the folder says on which sides they do.
        """
        named = {}
        for role in (role for role in ROLES if role in roles):
            written = self.named.get(f"{role}_token")
            plain = AddedToken(roles[role], lstrip=role in lstrip, special=True)
            named[roles[role]] = _token(written, True) if isinstance(written, Mapping) else plain
        with_ids = [(i, token) for i, token in self.added if i is not None]
        settled = {token.content for _, token in with_ids}
        free = [token for content, token in named.items() if content not in settled]
        free += [token for i, token in self.added if i is None and token.content not in named]
        return [*with_ids, *((None, token) for token in free)]

    @property
    def split_special(self) -> bool:
        """Whether the names of special tokens are ordinary text within a text."""
        return bool(self.config.get("split_special_tokens", False))

    @property
    def chat_template(self) -> str | None:
        """chat_template.jinja, or what tokenizer_config.json holds; of several the one called "default"."""
        if CHAT in self.files:
            return self.text(CHAT)
        written = self.config.get("chat_template")
        if isinstance(written, list):
            named = [each for each in written if isinstance(each, Mapping) and each.get("name") == "default"]
            written = named[0].get("template") if named else None
        if not isinstance(written, str | None):
            raise ValueError(f"{self.name}/{CONFIG}: chat_template: expected text, found {type(written).__name__}")
        return written

    def write(self, folder: str | Path) -> None:
        """Writes every file into `folder`."""
        for name, data in self.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, data)


def read_published(folder: str | Path) -> Published:
    """The tokenizer's files in `folder`, as far as they are there."""
    folder = Path(folder)
    paths = [path for path in (folder / name for name in FILES) if path.is_file()]
    paths += sorted(folder.glob(MORE_CHAT))
    return Published(str(folder), {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})


def write_special(
    folder: Path, tokens: Mapping[str, str], config: Mapping[str, Any], chat_template: str | None = None
) -> None:
    """Writes `tokens` and the chat template; `config` holds further entries of tokenizer_config.json."""
    named = {f"{role}_token": token for role, token in tokens.items()}
    write_json(folder / MAP, named)
    write_json(folder / CONFIG, {**config, **named})
    if chat_template is not None:
        write_file(folder / CHAT, chat_template.encode())


def named_after_roles(names: Iterable[str]) -> dict[str, str]:
    """{role: name} of the tokens that are named after a role, as <mask> or [CLS]."""
    return {role: name for name in names if (role := name[1:-1].strip("|").lower()) in ROLES}


def _content(token: Any) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _token(written: Any, special: bool = False) -> AddedToken:
    """A token as it is written: its text alone, or an object that also says on which sides it takes in spaces."""
    if not isinstance(written, Mapping):
        return AddedToken(written, special=special)
    keys = ("lstrip", "rstrip", "single_word", "normalized", "special")
    flags = {key: written[key] for key in keys if key in written}
    return AddedToken(written["content"], **flags | ({"special": True} if special else {}))
