"""Talking with a checkpoint: a conversation in, a question with k replies out, kept so that each reply can be judged.

    partner = ChatPartner({"sft": (model, tokenizer)}, store="feedback.db")
    question = partner.reply([("user", "When is the choir?")], k=4)

The lab's own models have learned single questions and answers, so by default they are given the last question only
(`memory=0`); a chat model from a hub can be given the whole conversation (`memory=None`). The question's prompt is
exactly what the model was given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import SamplingConfig
from .errors import InputError
from .records import Candidate, Question, new_id
from .sampling import made_with_of, sample
from .store import FeedbackStore
from .text import transcript

Turn = tuple[str, str]  # ("user" or "assistant", text)
ROUNDS = 3  # draws until k replies differ; then fewer have to do


class ChatPartner:
    """Checkpoints to talk with; every reply is kept in `store` as part of a question.

    `models` is {checkpoint: (model, tokenizer)}; `memory` is how many earlier turns a model is given (None: all).
    """

    def __init__(
        self,
        models: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        store: FeedbackStore | str | os.PathLike[str],
        sampling: SamplingConfig | None = None,
        memory: int | None = 0,
        seed: int = 0,
    ) -> None:
        if not models:
            raise InputError("nobody to talk with: give at least one checkpoint, {name: (model, tokenizer)}")
        self.store = store if isinstance(store, FeedbackStore) else FeedbackStore(store)
        self.checkpoints = tuple(models)
        self._models, self._memory = dict(models), memory
        self._sampling = sampling or SamplingConfig(temperature=1.0)
        self._generator = torch.Generator().manual_seed(seed)

    def reply(self, turns: Sequence[Turn], k: int = 1, checkpoint: str | None = None) -> Question:
        """What `checkpoint` (default: the first) answers: a question with up to k different replies, in the store."""
        name = checkpoint or self.checkpoints[0]
        if name not in self._models:
            raise InputError(f"checkpoint {name!r}: there are {', '.join(self.checkpoints)}")
        model, tokenizer = self._models[name]
        prompt = conversation_prompt(turns, self._memory)
        question = write_replies(model, tokenizer, prompt, k, self._sampling, self._generator, name)
        self.store.add_question(question)
        return question


def conversation_prompt(turns: Sequence[Turn], memory: int | None = 0) -> str:
    """The prompt for the turn that follows: the last one, which is the user's, and up to `memory` turns before it."""
    for role, text in turns:
        if role not in ("user", "assistant") or not isinstance(text, str):
            raise InputError(f"turn ({role!r}, …): a turn is ('user' or 'assistant', text)")
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        raise InputError("the last turn must be the user's, with some text: that is what is answered")
    kept = list(turns) if memory is None else list(turns[max(0, len(turns) - 1 - memory) :])
    while kept[0][0] == "assistant":  # a conversation begins with the user
        kept.pop(0)
    return transcript([(role, text.strip()) for role, text in kept])


def write_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    k: int,
    sampling: SamplingConfig,
    generator: torch.Generator | None = None,
    name: str = "",
) -> Question:
    """A question of up to k different replies of one model; fewer when it keeps saying the same."""
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one reply")
    texts: dict[str, None] = {}
    for _ in range(ROUNDS):
        for drawn in sample(model, tokenizer, [prompt] * (k - len(texts)), sampling, generator):
            texts.setdefault(drawn.text or "…")
        if len(texts) == k:
            break
    made_with = made_with_of(model, sampling)
    return Question(new_id(), prompt, tuple(Candidate(new_id(), text, name, made_with) for text in texts))
