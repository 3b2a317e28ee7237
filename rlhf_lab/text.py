"""Text to tokens and back: tokenizer training, the chat template, packing, padding, masks.

Everywhere in the lab sequences are padded on the right and masked by *length*, never by token identity: a causal
model's real tokens cannot see padding that comes after them, so no attention mask is needed, and an end token that
happens to equal the padding token is never lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import InputError

END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|> ' + message['content'] + '<|end|>' }}"
    "{% else %}{{ '<|user|> ' + message['content'] }}{% endif %}"
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
    messages = messages_of(neutralised(tokenizer, prompt))
    if reply is not None:
        messages.append({"role": "assistant", "content": neutralised(tokenizer, reply)})
    if tokenizer.chat_template is None:  # a base model without a template
        said = [f"{message['role'].title()}: {message['content']}" for message in messages]
        return "\n".join([*said, "Assistant:"] if reply is None else said)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply is None)


_TURN = re.compile(r"\n\n(Human|Assistant|System):")
_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}


def messages_of(prompt: str) -> list[dict[str, str]]:
    """A prompt as a chat template's messages: one of the user's, or the turns of a transcript (`rlhf_lab.formats`).

    Text is a transcript when it begins with "\\n\\nHuman:" and its turns alternate up to one of the human's, as chat
    templates want it; anything else is what one user said.
    """
    before, *pieces = _TURN.split(prompt)
    speakers = [_ROLES[name] for name in pieces[::2]]
    spoken = speakers[speakers[:1] == ["system"] :]
    alternating = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(spoken))
    if before or not spoken or not alternating or spoken[-1] != "user":
        return [{"role": "user", "content": prompt}]
    contents = [text.removeprefix(" ") for text in pieces[1::2]]
    return [{"role": role, "content": text} for role, text in zip(speakers, contents, strict=True)]


def transcript(turns: Sequence[tuple[str, str]]) -> str:
    """Turns of ("user" or "assistant", text) as one prompt: a single one's text, else a transcript with markers.

    A marker that somebody typed inside a turn loses its blank line, so that it cannot pass for another turn.
    """
    if len(turns) == 1:
        return turns[0][1]
    names = {role: name for name, role in _ROLES.items()}
    return "".join(f"\n\n{names[role]}: {_TURN.sub(lambda m: m[0][1:], text)}" for role, text in turns)


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
