"""TRL's side of the contests of against_trl.py, for trl 1.12.0 and later: each function is a contestant's body.

What costs time and is no training is switched off, as far as TRL's public options go: no logging, saving, progress bar,
evaluation or gradient checkpointing, no bf16 emulation. Data come as token ids, so nothing is tokenised while time is
taken. Batches come in the data's order, so that both sides train on the same ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from kit import read_texts
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from rlhf_lab.text import ASSISTANT, USER, encode_dialogues

FOREVER = 10**6  # steps
QUIET = dict(
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
    dataloader_pin_memory=False,
    lr_scheduler_type="constant",
)


class Pacer(TrainerCallback):
    """Ends a round after every `steps` optimiser steps; `done()` says what was done and how it went."""

    def __init__(self, pace, steps: int, done: Callable[[int], tuple[dict, dict]]) -> None:
        self.pace, self.steps, self.done = pace, steps, done

    def on_train_begin(self, args, state, control, **kwargs):
        self.pace.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            work, facts = self.done(state.global_step)
            self.pace(work, **facts)


def arguments(config_class, batch: int, **own):
    """A trainer's options for a contest."""
    sequential = dict(train_sampling_strategy="sequential", max_steps=FOREVER, logging_strategy="no")
    folder = tempfile.mkdtemp(prefix="trl-contest-")
    return config_class(output_dir=folder, per_device_train_batch_size=batch, **QUIET | sequential | own)


def run(trainer, pace, steps: int, unit: str, count: Callable[[dict], int]) -> None:
    """Trains for ever; a round is `steps` steps, whose work is what `count` finds in the batches they were given."""
    counts, collate = [], trainer.data_collator  # the loader fetches a batch ahead, so counts go by step

    def counted(examples):
        batch = collate(examples)
        counts.append(count(batch))
        return batch

    losses, compute = [], trainer.compute_loss

    def watched(*args, **kwargs):
        result = compute(*args, **kwargs)
        losses.append((result[0] if isinstance(result, tuple) else result).item())
        trainer.compute_loss = compute  # only the very first loss is wanted
        return result

    trainer.data_collator, trainer.compute_loss = counted, watched
    trainer.add_callback(Pacer(pace, steps, lambda at: ({unit: sum(counts[at - steps : at])}, {"loss": losses[0]})))
    trainer.train()


def sft(pace, kit: str, batch: int, steps: int, items: int, loss_type: str) -> None:
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(Path(kit, "language"))
    dialogues = encode_dialogues(tokenizer, read_texts(kit).demonstrations[:items])
    rows = {
        "input_ids": [list(d.ids) for d in dialogues],
        "completion_mask": [[0] * d.prompt_length + [1] * d.reply_length for d in dialogues],
    }
    config = arguments(SFTConfig, batch, learning_rate=1e-4, completion_only_loss=True, loss_type=loss_type)
    model = AutoModelForCausalLM.from_pretrained(Path(kit, "language"))
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer)
    run(trainer, pace, steps, "tokens", lambda batch: int((batch["labels"][:, 1:] != -100).sum()))


def reward(pace, kit: str, batch: int, steps: int, items: int) -> None:
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(Path(kit, "reward"))
    triples = read_texts(kit).comparisons[:items]
    chosen = encode_dialogues(tokenizer, [(prompt, better) for prompt, better, _ in triples])
    rejected = encode_dialogues(tokenizer, [(prompt, worse) for prompt, _, worse in triples])
    rows = {"chosen_ids": [list(d.ids) for d in chosen], "rejected_ids": [list(d.ids) for d in rejected]}
    model = AutoModelForSequenceClassification.from_pretrained(Path(kit, "reward"), num_labels=1)
    config = arguments(RewardConfig, batch, learning_rate=1e-4)
    trainer = RewardTrainer(model, config, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer)
    run(trainer, pace, steps, "pairs", lambda batch: len(batch["input_ids"]) // 2)


def dpo(pace, kit: str, batch: int, steps: int, items: int) -> None:
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(Path(kit, "language"))
    triples = read_texts(kit).comparisons[:items]
    rows = {
        "prompt": [asked(prompt) for prompt, *_ in triples],
        "chosen": [f" {better}{tokenizer.eos_token}" for _, better, _ in triples],
        "rejected": [f" {worse}{tokenizer.eos_token}" for *_, worse in triples],
    }
    policy, reference = (AutoModelForCausalLM.from_pretrained(Path(kit, name)) for name in ("language", "reference"))
    config = arguments(DPOConfig, batch, learning_rate=1e-4, beta=0.1)
    data = Dataset.from_dict(rows)
    trainer = DPOTrainer(policy, reference, config, train_dataset=data, processing_class=tokenizer)
    run(trainer, pace, steps, "pairs", lambda batch: len(batch["input_ids"]) // 2)


def asked(prompt: str) -> str:
    """A prompt in the lab's chat template, ready for a reply."""
    return f"{USER} {prompt}{ASSISTANT}"


def group(pace, kit: str, method: str, episodes: int, reply: int) -> None:
    import trl

    tokenizer = AutoTokenizer.from_pretrained(Path(kit, "policy"))
    policy = AutoModelForCausalLM.from_pretrained(Path(kit, "policy"))
    config = arguments(
        {"rloo": trl.RLOOConfig, "grpo": trl.GRPOConfig}[method],
        episodes,
        num_generations=4,
        max_completion_length=reply,
        temperature=0.7,
        beta=0.05,
        learning_rate=1e-5,
        shuffle_dataset=False,
    )
    score = reward_function(kit, tokenizer)
    data = Dataset.from_dict({"prompt": [asked(prompt) for prompt in read_texts(kit).prompts]})
    trainer_class = {"rloo": trl.RLOOTrainer, "grpo": trl.GRPOTrainer}[method]
    trainer = trainer_class(policy, score, config, train_dataset=data, processing_class=tokenizer)

    def done(step: int) -> tuple[dict, dict]:
        seen = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}  # what it would log
        work = {"episodes": episodes, "tokens": round(seen["completions/mean_length"] * episodes), "epochs": 1}
        return work, {"score": seen["reward"], "kl": seen["kl"], "entropy": seen["entropy"]}

    trainer.add_callback(Pacer(pace, 1, done))
    trainer.train()


def reward_function(kit: str, tokenizer) -> Callable[..., list[float]]:
    """The reward model as a function of token ids: spared the way through text that TRL takes with a model."""
    model = AutoModelForSequenceClassification.from_pretrained(Path(kit, "reward"), num_labels=1).eval()

    @torch.no_grad()
    def score(prompts, completions, completion_ids, **kwargs) -> list[float]:
        before = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        rows = [torch.tensor(a + b) for a, b in zip(before, completion_ids, strict=True)]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1).tolist()

    return score


def ppo(pace, kit: str, episodes: int, reply: int) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(Path(kit, "policy"), padding_side="left")
    prompts = encode_dialogues(tokenizer, [(prompt, "") for prompt in read_texts(kit).prompts])
    rows = {"input_ids": [list(d.ids[: d.prompt_length]) for d in prompts]}
    policy, reference = (AutoModelForCausalLM.from_pretrained(Path(kit, "policy")) for _ in range(2))
    score, value = (
        AutoModelForSequenceClassification.from_pretrained(Path(kit, "reward"), num_labels=1) for _ in range(2)
    )
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-contest-"),
        per_device_train_batch_size=episodes,
        local_rollout_forward_batch_size=episodes,
        num_mini_batches=4,
        num_ppo_epochs=4,
        total_episodes=FOREVER * episodes,
        response_length=reply,
        num_sample_generations=0,
        learning_rate=1e-5,
        kl_coef=0.05,
        vf_coef=1.0,
        **QUIET,
    )
    trainer = PPOTrainer(
        config, tokenizer, policy, reference, score, train_dataset=Dataset.from_dict(rows), value_model=value
    )

    def done(step: int) -> tuple[dict, dict]:
        log = trainer.state.log_history[-1]
        facts = {"score": log["objective/scores"], "kl": log["objective/kl"], "value_loss": log["loss/value_avg"]}
        work = {"episodes": episodes, "tokens": episodes * reply - log["val/num_eos_tokens"], "epochs": 4}
        return work, facts | {"entropy": log["policy/entropy_avg"]}

    trainer.add_callback(Pacer(pace, 1, done))
    trainer.train()
