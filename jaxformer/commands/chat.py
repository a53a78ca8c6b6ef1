"""`jaxformer chat SOURCE`: talk with a model in the terminal, by its own chat template."""

import contextlib
import json
import secrets
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jaxformer import machine
from jaxformer.conversation import Conversation, context_of
from jaxformer.generation import Greedy, Past, RepetitionPenalty, Sample, remember
from jaxformer.source import from_pretrained
from jaxformer.stream_text import stream

with contextlib.suppress(ImportError):  # not on every system
    import readline  # noqa: F401 lines can be edited, and called back by the arrow keys


@dataclass
class Options:
    """Talk with a model that was trained on conversations."""

    source: Annotated[str, tyro.conf.Positional]
    """A run's folder, a folder in the published layout, or the name of a model on the hub."""
    system: str = ""
    """What the model is told before all else; left out, what its template says by itself."""
    tokens: int = 512
    """Tokens of an answer at most."""
    temperature: float = 0.7
    """Above 1 more surprising, below 1 more likely tokens; 0 always takes the likeliest."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that make up this share of the probability."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that stand already are less likely to come again."""
    context: int | None = None
    """Tokens of the conversation that the model is given; left out, as many as it was made for."""
    seed: int | None = None
    """Equal seeds give equal answers; left out, a new one is drawn."""


CHANGEABLE = ("tokens", "temperature", "top_p", "repetition_penalty")


class Chat:
    """A conversation with a loaded model; `say` is given each line."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.model, self.params, tokenizer = from_pretrained(options.source)
        if tokenizer is None or tokenizer.chat_template is None:
            lacks = "tokenizer" if tokenizer is None else "chat template"
            raise ValueError(
                f"{options.source} has no {lacks}: it was not made to talk. jaxformer generate continues texts"
            )
        context = context_of(self.model) if options.context is None else options.context
        self.talk = Conversation(tokenizer, context, options.system)
        self.key = jax.random.key(secrets.randbits(31) if options.seed is None else options.seed)
        self.forgotten = 0
        self.past: Past | None = None
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "help": ("this list", self.help),
            "clear": ("begin anew", self.clear),
            "undo": ("take the last question and its answer back", self.undo),
            "retry": ("answer the last question once more", self.retry),
            "system": (
                "TEXT: tell the model this before all else, and begin anew; without TEXT, show it",
                self.system,
            ),
            "set": (f"NAME VALUE: change {', '.join(CHANGEABLE)}; without a name, show them", self.set),
            "save": ("FILE: write the conversation as JSON", self.save),
            "load": ("FILE: go on with a conversation that was saved", self.load),
            "exit": ("leave, as Ctrl-D does", self.exit),
        }

    def say(self, line: str) -> None:
        """Answer a line, or do what it commands."""
        name, _, rest = line[1:].partition(" ")
        if not line.startswith("/"):
            self.talk.ask(line)
            self.reply()
        elif name in self.commands:
            self.commands[name][1](rest.strip())
        else:
            note(f"there is no /{name}: /help lists what there is")

    def reply(self) -> None:
        """Write the answer as it comes; Ctrl-C ends it, and what there is of it stays."""
        try:
            ids, left_out = self.talk.prompt(self.options.tokens)
        except ValueError as error:
            self.talk.take_back()
            note(str(error))
            return
        if left_out > self.forgotten:
            note(
                f"the first {left_out} messages no longer fit {self.talk.context} tokens: the model is not given them"
            )
        self.forgotten = left_out
        said = list[str]()
        try:
            with contextlib.closing(self.pieces(ids)) as pieces:
                for piece in pieces:
                    said.append(piece)
                    print(piece, end="", flush=True)
            print()
        except KeyboardInterrupt:
            print()
            if not said:
                self.talk.take_back()
                note("interrupted: nothing was answered, and the question is taken back")
                return
            note("interrupted: what stands above is kept as the answer")
        self.talk.answer("".join(said))

    def pieces(self, ids: list[int]) -> Generator[str, None, None]:
        """The answer to a prompt as it is produced; of the prompt only what is new since the last one is read."""
        self.key, key = jax.random.split(self.key)
        if self.model.config.encoder is None:  # of what an encoder reads, every part sees every other
            self.past = remember(self.model, self.params, ids, self.past)
        given = self.model, self.params, self.talk.tokenizer, ids, self.options.tokens, self.strategy()
        yield from stream(*given, key=key, past=self.past)

    def strategy(self) -> Greedy | Sample:
        """How tokens are picked now."""
        o = self.options
        processors = () if o.repetition_penalty == 1 else (RepetitionPenalty(o.repetition_penalty),)
        return Sample(o.temperature, top_p=o.top_p, processors=processors) if o.temperature else Greedy(processors)

    def help(self, rest: str) -> None:
        """See `commands`."""
        for name, (what, _) in self.commands.items():
            print(f"  /{name:8}{what}")

    def clear(self, rest: str) -> None:
        """See `commands`."""
        self.talk.messages.clear()
        self.forgotten = 0
        note("nothing has been said")

    def undo(self, rest: str) -> None:
        """See `commands`."""
        question = self.talk.take_back()
        note("nothing has been said" if question is None else f"taken back: {question}")

    def retry(self, rest: str) -> None:
        """See `commands`."""
        question = self.talk.take_back()
        if question is None:
            note("nothing has been said")
        else:
            self.say(question)

    def system(self, rest: str) -> None:
        """See `commands`."""
        if rest:
            self.talk.system = rest
            self.clear("")
        else:
            note(self.talk.system or "there is none but what the template says by itself")

    def set(self, rest: str) -> None:
        """See `commands`."""
        name, _, value = rest.partition(" ")
        if not rest:
            note(", ".join(f"{name} {getattr(self.options, name)}" for name in CHANGEABLE))
            return
        if name not in CHANGEABLE:
            note(f"{name} cannot be changed: expected one of {', '.join(CHANGEABLE)}")
            return
        old = getattr(self.options, name)
        if not value:
            note(f"{name} is {old}")
            return
        try:
            setattr(self.options, name, type(old)(value))
            self.strategy().checked()
            for processor in self.strategy().processors:
                processor.checked()
            if self.options.tokens < 1:
                raise ValueError(f"tokens is {self.options.tokens}: give at least 1")
        except ValueError as error:
            setattr(self.options, name, old)
            note(f"{name} stays {old}: {error}")

    def save(self, rest: str) -> None:
        """See `commands`."""
        with told():
            held = {"system": self.talk.system, "messages": self.talk.messages}
            Path(rest).write_text(json.dumps(held, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            note(f"{len(self.talk.messages)} messages written to {rest}")

    def load(self, rest: str) -> None:
        """See `commands`."""
        with told():
            held = json.loads(Path(rest).read_text(encoding="utf-8"))
            system, messages = held["system"], held["messages"]
            right = isinstance(system, str) and all(
                set(message) == {"role", "content"} and all(isinstance(value, str) for value in message.values())
                for message in messages
            )
            if not right:
                raise ValueError("it is no conversation that /save wrote")
            self.talk.system, self.talk.messages = system, messages
            self.forgotten = 0
            note(f"{len(messages)} messages read from {rest}")

    def exit(self, rest: str) -> None:
        """See `commands`."""
        raise EOFError


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What goes wrong with a file is told, and the conversation goes on."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        note(f"that did not work: {error}")


def note(text: str) -> None:
    """Something that neither side of the conversation says."""
    print(f"({text})")


def main(arguments: list[str]) -> int:
    """Exit code 0 once the conversation is left."""
    options = tyro.cli(Options, prog="jaxformer chat", args=arguments)
    machine.use_compilation_cache()
    chat = Chat(options)
    note(f"talking with {chat.options.source}: /help lists what else can be done, Ctrl-C ends an answer")
    while True:
        try:
            line = input("\n> " if sys.stdin.isatty() else "").strip()
            if line:
                chat.say(line)
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            note("Ctrl-D or /exit leaves")
