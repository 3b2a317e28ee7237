"""A tiny model that has learned the four texts of `tiny`, so that its replies end; trained once a process."""

from __future__ import annotations

import copy
from functools import cache

import torch
from tiny import PROMPTS, TEXTS, language_model, tokenizer
from transformers import PreTrainedModel

from rlhf_lab.config import LanguageConfig
from rlhf_lab.language import train_sft
from rlhf_lab.sampling import Sample
from rlhf_lab.text import encode_dialogues


@cache
def _taught() -> PreTrainedModel:
    model = language_model()
    dialogues = encode_dialogues(tokenizer(), [(p, text) for p in PROMPTS for text in TEXTS])
    config = LanguageConfig(steps=80, batch_size=8, learning_rate=2e-2, weight_decay=0.0)
    for _ in train_sft(model, dialogues, tokenizer().pad_token_id, config):
        pass
    return model


def taught_model() -> PreTrainedModel:
    """Gives each of the four texts to each prompt, about as often."""
    return copy.deepcopy(_taught())


def score_length(samples: list[Sample]) -> torch.Tensor:
    """A simple taste: short replies."""
    return torch.tensor([-s.dialogue.reply_length / 10 for s in samples])
