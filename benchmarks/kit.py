"""What every contestant starts from: the same weights, tokenizer and texts, saved in one folder that each loads.

The models have the lab's default shape and random weights (a step costs the same whatever a model knows). The policy
that writes replies can never say its end or padding token, so that every reply has exactly as many tokens as asked for.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from rlhf_lab.config import ModelConfig
from rlhf_lab.models import new_language_model, new_reward_model, save_model
from rlhf_lab.scenario import load_scenario
from rlhf_lab.text import train_tokenizer

TINY = ModelConfig(vocab_size=400, hidden_size=32, layers=2, heads=2)
DOCUMENTS = 4_000


@dataclass(frozen=True)
class Texts:
    """Questions for the policy, demonstrations (prompt, reply) for SFT, comparisons (prompt, better, worse)."""

    prompts: list[str]
    demonstrations: list[tuple[str, str]]
    comparisons: list[tuple[str, str, str]]


def make_kit(folder: Path, prompts: int = 64, pairs: int = 4_000, model: ModelConfig | None = None) -> Path:
    """Writes `language` (random weights), `reference` (others), `policy` (mute), `reward` and texts into `folder`."""
    scenario, model = load_scenario(), model or ModelConfig()
    documents = scenario.corpus(DOCUMENTS)
    tokenizer = train_tokenizer(documents, model.vocab_size)
    language = new_language_model(model, tokenizer)
    save_model(language, tokenizer, folder / "language")
    save_model(new_language_model(model, tokenizer, seed=1), tokenizer, folder / "reference")
    save_model(new_reward_model(language, pooling="last"), tokenizer, folder / "reward")
    save_model(mute(language, tokenizer), tokenizer, folder / "policy")
    first, second = scenario.demonstrations(pairs), scenario.demonstrations(pairs, seed=1)
    texts = Texts(
        scenario.prompts("train", prompts),
        [(d.prompt, d.reply) for d in first],
        [(a.prompt, a.reply, b.reply) for a, b in zip(first, second, strict=True)],
    )
    (folder / "texts.json").write_text(json.dumps(asdict(texts)))
    return folder


def read_texts(folder: str | Path) -> Texts:
    return Texts(**json.loads((Path(folder) / "texts.json").read_text()))


@torch.no_grad()
def mute(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """The model, so changed that its end and padding tokens have no chance: in place.

    The residual stream's first coordinate stays at 1 whatever the text (nothing writes to it), and in it alone, the
    two tokens' output vectors lie far below all others'.
    """
    for block in model.model.layers:
        block.self_attn.o_proj.weight[0] = 0.0
        block.mlp.down_proj.weight[0] = 0.0
    embedding = model.get_input_embeddings().weight
    embedding[:, 0] = 1.0
    embedding[[tokenizer.eos_token_id, tokenizer.pad_token_id], 0] = -20.0
    return model


def in_turn(items, size: int):
    """Batches of `size` items, over and over."""
    endless = itertools.cycle(items)
    while True:
        yield list(itertools.islice(endless, size))
