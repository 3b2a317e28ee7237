"""Models: the small language model, the reward model and the critic, all of them plain transformers classes.

What is saved here loads anywhere with `AutoModelForCausalLM` / `AutoModelForSequenceClassification` and
`AutoTokenizer`, and any Hugging Face model of those kinds loads here with `load_language_model` / `load_reward_model`.
Weights are safetensors only, and no remote code runs.

Mean pooling in last-token form
    A reward model that averages over all tokens learns faster from few labels than one that reads the last token, but
    transformers' class reads the last token. So the lab gives the reward model one more transformer block whose
    attention starts out even (small query and key weights: every position gets nearly the same weight) and whose value
    and output projections start as the identity. The last token then holds itself plus the mean over the whole
    sequence: mean pooling, inside the stock architecture, and the attention may still learn to look harder at some
    tokens.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from . import fast
from .config import ModelConfig, Pooling
from .errors import InputError

disable_progress_bar()  # transformers draws one for every file; the lab has one a stage


def new_language_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> LlamaForCausalLM:
    """A decoder-only language model with random weights: the Llama architecture (RoPE, RMSNorm, SwiGLU), tied
    embeddings.

    Rotary positions matter here: at this size they learn in half the tokens what learned absolute positions need to
    copy a subject from the question into the answer.
    """
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 8 // 3 // 8 * 8,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that will not be trained: the reference of PPO."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def fingerprint(model: PreTrainedModel) -> str:
    """Twelve hexadecimal digits that tell these weights from others (SHA-256 of names and values)."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


# --- the reward model -------------------------------------------------------------------------------------------------


def new_reward_model(language_model: PreTrainedModel, pooling: Pooling = "mean", seed: int = 0) -> PreTrainedModel:
    """A sequence classifier with one label, started from a language model (usually the SFT model).

    It is where the language model is, in its precision; the head is drawn from N(0, 1/√(d + 1)) (lm-human-preferences),
    the same numbers everywhere. `pooling="mean"` adds the block described at the
    top of this module and needs the Llama architecture; "last" works for every architecture transformers has.
    """
    config = copy.deepcopy(language_model.config)
    config.num_labels = 1
    if pooling == "mean":
        if not isinstance(config, LlamaConfig):
            raise InputError(
                f"pooling 'mean' needs a Llama model, and this is {config.model_type!r}; use pooling='last'"
            )
        config.num_hidden_layers += 1
    end = config.eos_token_id
    if config.pad_token_id is None or config.pad_token_id in (end if isinstance(end, list) else [end]):
        raise InputError(  # transformers' class takes the last token that is not padding for the last real one
            f"the model's padding token is {config.pad_token_id}; a reward model needs one that differs from the end "
            "token: tokenizer.add_special_tokens({'pad_token': '<|pad|>'}), "
            "model.resize_token_embeddings(len(tokenizer)), model.config.pad_token_id = tokenizer.pad_token_id"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        model.base_model.load_state_dict(language_model.base_model.state_dict(), strict=False)
        nn.init.normal_(head_of(model).weight, std=(config.hidden_size + 1) ** -0.5)
        if pooling == "mean":
            _start_as_mean_pooling(model)
    return model.to(language_model.device, language_model.dtype).eval()


@torch.no_grad()
def _start_as_mean_pooling(model: LlamaForSequenceClassification) -> None:
    block = model.model.layers[-1]
    attention = block.self_attn
    for projection in (attention.v_proj, attention.o_proj):
        projection.weight.copy_(torch.eye(*projection.weight.shape))
    for projection in (attention.q_proj, attention.k_proj):
        nn.init.normal_(projection.weight, std=0.02)
    block.mlp.down_proj.weight.zero_()


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The linear head of a sequence classifier, whatever its architecture calls it."""
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return head
    raise InputError(
        f"{type(model).__name__} has no linear head named 'score' or 'classifier'; use a decoder-only model"
    )


def hidden_states(model: PreTrainedModel, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Final hidden states (B, T, d) of right-padded ids (B, T). Causal, so padding behind needs no mask."""
    return model.base_model(input_ids=ids, use_cache=False, **kwargs).last_hidden_state


def states_at(
    model: PreTrainedModel, ids: torch.Tensor, places: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Final hidden states (M, d) of right-padded ids (B, T) at some places (M,), numbered through the batch (B·T).

    `hidden_states(model, ids).flatten(0, 1)[places]`, and for the lab's own shape on a processor the same numbers in
    less time (`rlhf_lab.fast`), the more so when `lengths` (B,) tells where padding begins.
    """
    if fast.supported(model):
        return fast.states(model, ids, lengths, places)
    return hidden_states(model, ids).flatten(0, 1)[places]


def last_hidden(model: PreTrainedModel, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The hidden state at each sequence's last real token: (B, d)."""
    rows = torch.arange(len(ids), device=ids.device)
    return states_at(model, ids, rows * ids.shape[1] + lengths - 1, lengths)


def sequence_scores(model: PreTrainedModel, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Scores (B,), in float32, of right-padded sequences: the numbers that transformers' own class gives."""
    return head_of(model)(last_hidden(model, ids, lengths)).squeeze(-1).float()


# --- the critic -------------------------------------------------------------------------------------------------------


class Critic(nn.Module):
    """A value for every position: a reward model whose head is read at each token instead of at the last.

    Started from the reward model, V(prefix) begins as the score the prefix would earn (detail 12 of the PPO details).
    """

    def __init__(self, reward_model: PreTrainedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(reward_model).requires_grad_(True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Values (B, T) of right-padded ids (B, T)."""
        return head_of(self.model)(hidden_states(self.model, ids)).squeeze(-1).float()

    def at(self, ids: torch.Tensor, places: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Values (M,) at some places (M,), numbered through the batch (B·T); see `states_at`."""
        return head_of(self.model)(states_at(self.model, ids, places, lengths)).squeeze(-1).float()


class ValueHead(nn.Module):
    """A critic on the policy's own trunk: one linear map from the policy's hidden state to a value.

    It begins at 0 (detail 11 of the PPO details), so the first returns are the rewards themselves.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        parameter = next(policy.parameters())
        self.head = nn.Linear(policy.config.hidden_size, 1, device=parameter.device, dtype=parameter.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Values (N,), in float32, of the policy's hidden states (N, d)."""
        return self.head(states).squeeze(-1).float()


# --- saving and loading -----------------------------------------------------------------------------------------------


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Model and tokenizer in one folder, in safetensors, as `from_pretrained` reads them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_language_model(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from a folder or a Hugging Face name, in evaluation mode.

    Raises InputError when it cannot be loaded: the message says why.
    """
    model, tokenizer = _loaded(AutoModelForCausalLM, name), load_tokenizer(name)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def load_reward_model(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one label and its tokenizer. Raises InputError when it cannot be loaded."""
    model, tokenizer = _loaded(AutoModelForSequenceClassification, name), load_tokenizer(name)
    if model.config.num_labels != 1:
        raise InputError(f"model {name}: has {model.config.num_labels} labels; a reward model has one")
    return model, tokenizer


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hugging Face name; given a padding token of its own when it lacks one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise _load_error("tokenizer", name, error) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # masks go by length, so this is safe
    return tokenizer


def _loaded(auto_class: Any, name: str | Path) -> PreTrainedModel:
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
        model, report = auto_class.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:
        raise _load_error("model", name, error) from None
    lost = sorted(report["missing_keys"]) + [key for key, *_ in report["mismatched_keys"]]
    if lost:
        raise InputError(f"model {name}: weights are missing or of another shape: {', '.join(lost[:3])}; save it again")
    return model.eval()


def _load_error(what: str, name: str | Path, error: Exception) -> InputError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(
        f"{what} {name}: cannot be loaded: {first}; give a folder saved by save_pretrained, in safetensors"
    )
