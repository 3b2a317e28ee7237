"""Text to tokens and back: tokenizer training, the chat template, packing, padding, masks.

Everywhere in the lab sequences are padded on the right and masked by *length*, never by token identity: a causal
model's real tokens cannot see padding that comes after them, so no attention mask is needed, and an end token that
happens to equal the padding token is never lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import InputError

END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|> ' + message['content'] }}"
    "{% else %}{{ '<|assistant|> ' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al., arXiv:1508.07909; bytes as in GPT-2) learned from `texts`.

    Any text can be encoded and comes back unchanged. It has an end, a padding (≠ end), a user and an assistant token,
    and a chat template that uses them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> torch.Tensor:
    """All documents as one stream of token ids (N,), an end token before each; a spelt-out one stays text."""
    if not texts:
        raise InputError("no text to train on: give at least one document")
    encoded = tokenizer([neutralised(tokenizer, text) for text in texts], add_special_tokens=False)["input_ids"]
    return torch.tensor([token for ids in encoded for token in (tokenizer.eos_token_id, *ids)])


@dataclass(frozen=True)
class Dialogue:
    """A prompt and a reply as tokens. `ids` holds both; the reply starts at `prompt_length`, its end token included."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def reply_length(self) -> int:
        return len(self.ids) - self.prompt_length


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_tokens: int | None = None
) -> list[list[int]]:
    """Token ids of each prompt in the chat template, ready for a reply. Too long ones lose their beginning."""
    texts = [_rendered(tokenizer, prompt, None) for prompt in prompts]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [ids if max_tokens is None else ids[-max_tokens:] for ids in encoded]


def encode_dialogues(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], max_tokens: int | None = None
) -> list[Dialogue]:
    """Each (prompt, reply) in the chat template. Where both exceed `max_tokens`, the prompt loses its beginning first,
    down to a quarter of the room, then the reply its end."""
    if not pairs:
        return []
    prompt_texts = [_rendered(tokenizer, prompt, None) for prompt, _ in pairs]
    reply_texts = [_reply_text(tokenizer, *pair, start) for pair, start in zip(pairs, prompt_texts, strict=True)]
    prompts = tokenizer(prompt_texts, add_special_tokens=False)["input_ids"]
    replies = tokenizer(reply_texts, add_special_tokens=False)["input_ids"]
    return [_fitted(p, r, max_tokens) for p, r in zip(prompts, replies, strict=True)]


def _fitted(prompt: list[int], reply: list[int], max_tokens: int | None) -> Dialogue:
    if max_tokens is not None and len(prompt) + len(reply) > max_tokens:
        prompt = prompt[-max(max_tokens - len(reply), max_tokens // 4) :]
        reply = reply[: max_tokens - len(prompt)]
    return Dialogue((*prompt, *reply), len(prompt))


def _reply_text(tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str, start: str) -> str:
    """What the template puts behind the generation prompt, up to one end token.

    A template may write more behind it (ChatML: a line break), or none at all. A reply that was sampled stops at the
    end token, so one that is written here does too: the reward model reads every reply's score at the same place.
    """
    whole = _rendered(tokenizer, prompt, reply)
    follows = whole.startswith(start)  # true of every template that the generation prompt is a prefix of
    text = whole[len(start) :] if follows else neutralised(tokenizer, reply)
    return text.partition(tokenizer.eos_token)[0] + tokenizer.eos_token


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str | None) -> str:
    prompt = neutralised(tokenizer, prompt)
    if tokenizer.chat_template is None:  # a base model without a template
        return f"User: {prompt}\nAssistant:" + ("" if reply is None else f" {neutralised(tokenizer, reply)}")
    messages = [{"role": "user", "content": prompt}]
    if reply is None:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": neutralised(tokenizer, reply)})
    return tokenizer.apply_chat_template(messages, tokenize=False)


def neutralised(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a space inside every special token it spells out, so that nobody types an end token."""
    added = tokenizer.added_tokens_decoder.values()  # not all are named: Llama 3 has <|start_header_id|>
    for token in dict.fromkeys([*tokenizer.all_special_tokens, *(t.content for t in added if t.special)]):
        text = text.replace(token, f"{token[0]} {token[1:]}") if len(token) > 1 else text
    return text


def decode_reply(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a reply's tokens, special tokens and outer spaces left out."""
    return tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences as one tensor (B, T), padded on the right, and their lengths (B,)."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.full((len(sequences), int(lengths.max())), pad_id)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence)
    return ids, lengths


def reply_mask(prompt_lengths: torch.Tensor, lengths: torch.Tensor, width: int) -> torch.Tensor:
    """True where a token belongs to a reply: (B, T) from prompt lengths (B,) and whole lengths (B,)."""
    position = torch.arange(width, device=lengths.device)
    return (position >= prompt_lengths[:, None]) & (position < lengths[:, None])


def language_batch(dialogues: Sequence[Dialogue], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (B, T) and labels (B, T) for next-token training on the replies only; −100 where there is no loss."""
    ids, lengths = pad_right([d.ids for d in dialogues], pad_id)
    prompt_lengths = torch.tensor([d.prompt_length for d in dialogues])
    labels = ids.masked_fill(~reply_mask(prompt_lengths, lengths, ids.shape[1]), -100)
    return ids[:, :-1], labels[:, 1:]
