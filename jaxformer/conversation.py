"""A chat between two answers: what was said, and what of it the model is still given."""

from dataclasses import dataclass, field

from jaxformer.config import LearnedConfig
from jaxformer.nn.model import Model
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.turns import encode, writer

Message = dict[str, str]


@dataclass
class Conversation:
    """Messages in the order in which they were said, each with "role" (system, user, assistant) and "content"."""

    tokenizer: Tokenizer
    context: int | None
    """Tokens that the model can take, the answer's included; None: any number."""
    system: str = ""
    """What stands before all; empty: what the template says by itself."""
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str) -> None:
        """Say something, which is to be answered."""
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """What was answered."""
        self.messages.append({"role": "assistant", "content": text})

    def take_back(self) -> str | None:
        """Forget the last question and what was answered: the question, None where there was none."""
        while self.messages:
            last = self.messages.pop()
            if last["role"] == "user":
                return last["content"]
        return None

    def prompt(self, room: int) -> tuple[list[int], int]:
        """(ids by the tokenizer's own template, how many of the oldest messages were left out).

        Left out, a question with its answer at a time, is what does not fit the context beside `room` tokens of an
        answer. Raises ValueError where the last question does not fit by itself, and without a template.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError("this tokenizer has no chat template: nothing says how messages are written")
        write = writer(self.tokenizer, self.tokenizer.chat_template)
        starts = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        for start in starts:
            ids = encode(self.tokenizer, write(self._first() + self.messages[start:], True))
            if self.context is None or len(ids) + room <= self.context:
                return ids, start
        raise ValueError(
            f"this question is {len(ids)} tokens long with all that stands around it: beside {room} of an answer "
            f"{self.context} fit. Make it, the system prompt or the answer shorter"
        )

    def _first(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []


def context_of(model: Model) -> int | None:
    """Tokens that a model was made for; None where it does not say."""
    decoder = model.config.decoder
    if decoder is not None and isinstance(decoder.input.positions, LearnedConfig):
        return decoder.input.positions.length
    told = model.card.config.get("max_position_embeddings")
    return told if isinstance(told, int) else None
