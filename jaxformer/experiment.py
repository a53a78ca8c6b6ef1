"""An experiment as one value: everything that decides what a run computes, and how it is run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxformer import codec, optimizer
from jaxformer.align import AnyAlignment
from jaxformer.align.online import Online
from jaxformer.config import ModelConfig
from jaxformer.config import problems as model_problems
from jaxformer.lora import LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.sharding import MeshConfig
from jaxformer.tasks import AnyTask, CausalLM
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig

AnyObjective = AnyTask | AnyAlignment
"""All that a model can be trained to do."""
CHANGEABLE = (
    *("steps", "evaluate_every", "evaluate_batches", "evaluation_stride", "save_every", "keep", "keep_every"),
    "average",
    *("patience", "not_finite", "mesh/**", "prompts", "prompts/**", "prompt_tokens", "predictions", "compressors"),
    *("remat", "unroll", "name", "folder", "deterministic", "profile"),
)
"""Path patterns of what may differ when a run is continued: none decides which numbers a step computes."""


@dataclass(frozen=True)
class Experiment:
    """A run, from its text to its model. Each field is an option of `jaxformer train`."""

    name: str
    """Name of the run's folder."""
    steps: int
    """Optimizer steps in all."""
    model: ModelConfig | None = None
    """The architecture, to begin from scratch; None where `start` brings one."""
    start: str | None = None
    """A model to begin from, with its tokenizer: whatever from_pretrained reads."""
    freeze: tuple[str, ...] = ()
    """Path patterns of parameters that stay as they are."""
    adapter: LoraConfig | None = None
    """Train low-rank terms beside chosen kernels, and new heads; all else stays as it is."""
    bits: Literal[8, 4] | None = None
    """Hold the kernels that stay beside an adapter in so many bits; None: as they are stored."""
    data: DataConfig = DataConfig()
    """Which documents to learn from."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How to train the tokenizer, on the training documents."""
    task: AnyObjective = CausalLM()
    """What is learned."""
    rows: int = 16
    """Rows of a batch, over all devices."""
    length: int = 512
    """Tokens of a row."""
    accumulate: int = 1
    """Microbatches that a batch is split into, one after the other."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How parameters move."""
    mesh: MeshConfig = MeshConfig()
    """How devices are used."""
    seed: int = 0
    """Decides the first parameters, the order of data and dropout."""
    evaluate_every: int = 250
    """Steps between evaluations on held-out documents."""
    evaluate_batches: int = 8
    """Batches, spread evenly, of an evaluation during the run; the last one sees all."""
    evaluation_stride: int | None = None
    """In the last evaluation each row scores this many new tokens, the rest is context; None: all."""
    patience: int | None = None
    """Evaluations without a better loss after which the run stops, its best model taken; None: never."""
    save_every: int = 250
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the best one."""
    keep_every: int | None = None
    """Keep each checkpoint whose step this divides, too."""
    average: int = 1
    """Newest checkpoints whose mean is the run's model (Vaswani et al., 2017, section 6.1)."""
    not_finite: Literal["stop", "skip", "roll_back"] = "stop"
    """What to do when a loss is not finite: end; drop that step's update; or go on from the newest checkpoint without
    that step's batch."""
    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of activations."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes anew instead of keeping it."""
    unroll: int = 1
    """Layers that are compiled as one piece: faster steps, longer compilation."""
    kernel: str = "auto"
    """Attention kernel; `jaxformer doctor` lists them."""
    deterministic: bool = False
    """Ask a GPU's compiler for operations that give equal bits in each run; slower."""
    profile: int = 0
    """Steps to trace for xprof once the run is warm; the signal SIGUSR1 asks for them at any time."""
    prompts: tuple[str, ...] = ()
    """Texts to complete when the run is done."""
    prompt_tokens: int = 64
    """Tokens of each completion."""
    predictions: int = 512
    """Held-out documents that the last evaluation predicts, for tasks that are judged so."""
    compressors: bool = False
    """Say how many bits per byte zlib and lzma need for the held-out documents."""
    folder: str = "runs"
    """Where folders of runs are."""

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.folder).expanduser() / self.name

    def identity(self, documents: str | None = None) -> dict[str, Any]:
        """What experiment.json holds; `documents` is the fingerprint of documents that came from memory."""
        values: dict[str, Any] = codec.to_json(self)
        return values if documents is None else values | {"data": {"type": "Memory", "fingerprint": documents}}

    def validate(self) -> "Experiment":
        """Return self, or raise one ValueError that lists every problem and what to change."""
        found = problems(self)
        if found:
            raise ValueError(f"experiment {self.name!r} cannot run:\n" + "\n".join(f"  - {line}" for line in found))
        return self

    def check_model(self, model: ModelConfig) -> None:
        """Raises one ValueError that lists every reason why the task cannot train this model."""
        found = model_task_problems(self, model)
        if found:
            listed = "\n".join(f"  - {line}" for line in found)
            raise ValueError(f"experiment {self.name!r} cannot train {self.start or 'this model'}:\n{listed}")


def problems(experiment: Experiment) -> list[str]:
    """Every reason why the experiment cannot run, each with the option to change."""
    e = experiment
    if (e.model is None) == (e.start is None):
        found = ["model and start: give either an architecture or a model to begin from"]
    else:
        found = [] if e.model is None else [f"model.{line}" for line in model_problems(e.model)]
    if e.adapter is not None and e.freeze:
        found.append("freeze is set: with an adapter all parameters but new heads are frozen; leave it out")
    if e.bits is not None and e.adapter is None:
        found.append(f"bits is {e.bits}: only what stays beside an adapter can be held so; give adapter, or None")
    found += [f"optimizer.{line}" for line in optimizer.problems(e.optimizer, e.steps)]
    positive = (
        "steps",
        "rows",
        "length",
        "accumulate",
        "evaluate_every",
        "evaluate_batches",
        "save_every",
        "keep",
        "average",
    )
    found += [f"{name} is {getattr(e, name)}: it must be above zero" for name in positive if getattr(e, name) < 1]
    if e.profile < 0:
        found.append(f"profile is {e.profile}: it must be a number of steps, or 0")
    for name in ("patience", "keep_every", "evaluation_stride"):
        value = getattr(e, name)
        if value is not None and value < 1:
            found.append(f"{name} is {value}: make it above zero, or None")
    if e.accumulate > 0 and e.rows % e.accumulate:
        found.append(f"rows is {e.rows}: it must be a multiple of accumulate, {e.accumulate}")
    if isinstance(e.task, Online) and e.rows * e.task.group % max(1, e.task.minibatches * e.accumulate):
        found.append(
            f"task.minibatches is {e.task.minibatches}: rows {e.rows} times group {e.task.group} answers cannot be"
            f" split evenly into so many, in {e.accumulate} microbatches each"
        )
    if e.average > 1 and (e.patience is not None or e.optimizer.ema is not None or e.average > e.keep):
        found.append(
            f"average is {e.average}: it needs keep, {e.keep}, to be as much, and goes with neither patience nor "
            "optimizer.ema, which choose or average in their own way"
        )
    if e.patience is not None and e.save_every > 0 and e.evaluate_every % e.save_every:
        found.append(
            f"evaluate_every is {e.evaluate_every}: with patience, which takes the best model that was evaluated, it"
            f" must be a multiple of save_every, {e.save_every}"
        )
    if e.evaluation_stride is not None and e.evaluation_stride > e.length:
        found.append(f"evaluation_stride is {e.evaluation_stride}: it can be at most length, {e.length}")
    if e.evaluation_stride is not None and not isinstance(e.task, CausalLM):
        found.append("evaluation_stride is set: it is for language modelling from left to right alone")
    if e.model is not None:
        found += model_task_problems(e, e.model)
        if e.tokenizer.vocab_size > e.model.vocab:
            found.append(
                f"tokenizer.vocab_size is {e.tokenizer.vocab_size}: model.vocab, {e.model.vocab}, must hold it"
            )
    if not e.name or os.sep in e.name or e.name.startswith("."):
        found.append(f"name is {e.name!r}: it must be able to name a folder")
    return found


def model_task_problems(experiment: Experiment, model: ModelConfig) -> list[str]:
    """Every reason why the experiment's task cannot train this model on its rows."""
    e = experiment
    found = e.task.problems(model, e.length)
    if e.prompts and (model.decoder is None or model.head is None):
        found.append("prompts: this model completes no text: it has no decoder with a head over the vocabulary")
    return found
