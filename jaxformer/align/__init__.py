"""Alignment: to become what people prefer (preferences, rewards), a file each, of the shape of a task."""

from jaxformer.align.dpo import Prefer
from jaxformer.align.online import GRPO, PPO, RLOO
from jaxformer.align.reward import Reward
from jaxformer.align.rewards import FunctionReward, ModelReward, reward

__all__ = ["GRPO", "PPO", "RLOO", "AnyAlignment", "FunctionReward", "ModelReward", "Prefer", "Reward", "reward"]

AnyAlignment = Prefer | Reward | GRPO | RLOO | PPO
"""Every one of them, for an experiment's field."""
