"""Tiny models and a tokenizer for tests: random weights, built once a process, copied for each test that trains."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlhf_lab.config import ModelConfig
from rlhf_lab.models import new_language_model, new_reward_model, save_model
from rlhf_lab.text import train_tokenizer

torch.set_num_threads(1)  # at this size a second thread only waits for the first

TEXTS = [
    "It is on Tuesday.",
    "I do not know that, please ask the office.",
    "Thank you for asking, it costs five pounds a visit.",
    "Go to the library and ask for Grace.",
]
PROMPTS = ["When is the choir?", "How much is it?", "Hello, where is the yoga class please?", "Who?"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS + PROMPTS, vocab_size=300)


@cache
def _language_model(seed: int) -> PreTrainedModel:
    config = ModelConfig(vocab_size=300, hidden_size=16, layers=2, heads=2, context=128)
    return new_language_model(config, tokenizer(), seed=seed).eval()


def language_model(seed: int = 0) -> PreTrainedModel:
    return copy.deepcopy(_language_model(seed))


@cache
def _reward_model(seed: int, pooling: str) -> PreTrainedModel:
    return new_reward_model(_language_model(0), pooling, seed=seed)


def reward_model(seed: int = 0, pooling: str = "mean") -> PreTrainedModel:
    return copy.deepcopy(_reward_model(seed, pooling))


def hub_model(kind: str) -> PreTrainedModel:
    """An architecture as the hub has it: GPT-2 (learned positions), GPT-NeoX, or Qwen2 (grouped queries)."""
    own = tokenizer()
    ids = {"vocab_size": len(own), "eos_token_id": own.eos_token_id, "bos_token_id": own.eos_token_id}
    ids["pad_token_id"] = own.pad_token_id
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_positions=128, n_embd=16, n_layer=2, n_head=2, **ids)).eval()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape["max_position_embeddings"] = 128
    if kind == "gpt-neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **ids)).eval()
    return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **shape, **ids)).eval()


def saved_hub_model(kind: str, folder: Path) -> Path:
    """Such a model on disk, with larger weights than a fresh one has, so that its replies depend on what it reads."""
    model = hub_model(kind)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    save_model(model, tokenizer(), folder)
    return folder
