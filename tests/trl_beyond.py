"""TRL 1.12.0's DPO, KTO, RLOO and GRPO trainers on given weights and replies: what ours are held against.

Nothing of TRL is copied. Its trainers are made as anyone would make them; the replies of RLOO and GRPO are put in where
TRL would sample them. Everything behind that (rewards, advantages, losses) is TRL's.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from tiny import TEXTS, language_model, tokenizer
from transformers import PreTrainedModel
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from rlhf_lab.sampling import Sample
from rlhf_lab.text import Dialogue

TOLERANCE = 1e-5
PLAIN = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True}


def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A policy and a reference that differ, with larger weights than fresh ones, so that log-ratios are not near 0."""
    made = []
    for seed in (1, 2):
        model = language_model(seed=seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(3)
        made.append(model.eval())
    made[1].requires_grad_(False)
    return made[0], made[1]


def dialogues(lengths: Sequence[int], prompts: Sequence[int], seed: int = 0) -> list[Dialogue]:
    """Random tokens: replies of these lengths, the last token of each the end, behind prompts that repeat by number."""
    generator, own = torch.Generator().manual_seed(seed), tokenizer()
    first = max(own.all_special_ids) + 1

    def tokens(n: int) -> list[int]:
        return torch.randint(first, len(own), (n,), generator=generator).tolist()

    texts = {number: tokens(3 + (5 * number) % 7) for number in sorted(set(prompts))}
    made = [(texts[p], [*tokens(n - 1), own.eos_token_id]) for n, p in zip(lengths, prompts, strict=True)]
    return [Dialogue((*prompt, *reply), len(prompt)) for prompt, reply in made]


def samples(lengths: Sequence[int], prompts: Sequence[int], seed: int = 0) -> list[Sample]:
    own = tokenizer()
    made = dialogues(lengths, prompts, seed)
    return [Sample(f"prompt {p}", own.decode(reply_ids(d)), d, False) for p, d in zip(prompts, made, strict=True)]


def prompt_ids(dialogue: Dialogue) -> list[int]:
    return list(dialogue.ids[: dialogue.prompt_length])


def reply_ids(dialogue: Dialogue) -> list[int]:
    return list(dialogue.ids[dialogue.prompt_length :])


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Equal to 1e-5 of the largest entry of each tensor, and not all zero."""
    assert ours.keys() == theirs.keys() and ours
    assert any(t.abs().max() > 1e-4 for t in theirs.values())
    return all(
        torch.allclose(ours[n], theirs[n], rtol=TOLERANCE, atol=TOLERANCE * max(1.0, theirs[n].abs().max().item()))
        for n in ours
    )


# --- DPO and KTO ------------------------------------------------------------------------------------------------------


def trl_pairs(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    pairs: Sequence[tuple[Dialogue, Dialogue]],
    folder: Path,
    **args,
) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """DPOTrainer's loss on one batch of (chosen, rejected), its gradients, and what it logs."""
    data = Dataset.from_dict({"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS[::-1]})
    trainer = DPOTrainer(
        copy.deepcopy(policy),
        reference,
        DPOConfig(str(folder), **PLAIN, **args),
        train_dataset=data,
        processing_class=tokenizer(),
    )
    batch = trainer.data_collator(
        [{"prompt_ids": prompt_ids(c), "chosen_ids": reply_ids(c), "rejected_ids": reply_ids(r)} for c, r in pairs]
    )
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), gradients(trainer.model), {k: v[-1] for k, v in trainer._metrics["eval"].items()}


def trl_votes(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    votes: Sequence[tuple[Dialogue, bool, Dialogue]],
    folder: Path,
    **args,
) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """KTOTrainer's loss on one batch of (reply, thumb, reply behind another prompt), its gradients and its log."""
    data = Dataset.from_dict({"prompt": TEXTS, "completion": TEXTS, "label": [True, False, True, False]})
    trainer = KTOTrainer(
        copy.deepcopy(policy),
        reference,
        KTOConfig(str(folder), per_device_train_batch_size=4, **PLAIN, **args),
        train_dataset=data,
        processing_class=tokenizer(),
    )
    collate = trainer.data_collator
    batch = collate([{"prompt_ids": prompt_ids(d), "completion_ids": reply_ids(d), "label": up} for d, up, _ in votes])
    if trainer.calculate_KL:
        others = collate(
            [{"prompt_ids": prompt_ids(m), "completion_ids": reply_ids(m), "label": True} for *_, m in votes]
        )
        batch |= {f"KL_{key}": others[key] for key in ("input_ids", "attention_mask", "completion_mask")}
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), gradients(trainer.model), {k: v[-1] for k, v in trainer._metrics["eval"].items()}


# --- RLOO and GRPO ----------------------------------------------------------------------------------------------------


def trl_groups(
    kind: str,
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    written: Sequence[Sample],
    scores: Sequence[float],
    group_size: int,
    folder: Path,
    later: PreTrainedModel | None = None,
    **args,
) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """Advantages, loss and gradients of TRL's trainer for replies `written` by `policy`.

    `later` is the policy as it is when the loss is taken, some updates on; without it, the one that wrote.
    """
    trainer_class, config_class = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}[kind]
    writer = copy.deepcopy(policy)
    reference.save_pretrained(folder / "reference")
    writer.config._name_or_path = str(folder / "reference")  # TRL loads the reference from where the policy came
    trainer = trainer_class(
        writer,
        reward_funcs=lambda completions, **kwargs: list(scores),
        args=config_class(
            str(folder),
            per_device_train_batch_size=len(written),
            num_generations=group_size,
            num_iterations=2,  # so that the log-probabilities of the policy that wrote are kept
            max_completion_length=12,
            **PLAIN,
            **args,
        ),
        train_dataset=Dataset.from_dict({"prompt": [s.prompt for s in written]}),
        processing_class=tokenizer(),
    )
    trainer._tokenize_prompts = lambda prompts: ([prompt_ids(s.dialogue) for s in written], None, {})
    replies = [reply_ids(s.dialogue) for s in written]
    trainer._generate_single_turn = lambda *_: replies if kind == "rloo" else (replies, None)
    trainer.model.train()  # TRL's word for "these are training replies"; the tiny model has no dropout
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions([{"prompt": s.prompt} for s in written])
    if later is not None:
        trainer.model.load_state_dict(later.state_dict())
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return batch["advantages"], loss.item(), gradients(trainer.model)
