"""TRL's side of the contests of against_trl.py, for trl 1.12.0 and later: each function is a contestant's body.

What costs time and is no training is switched off, as far as TRL's public options go: no logging, saving, progress bar,
evaluation or gradient checkpointing, no bf16 emulation. Data come as token ids, so nothing is tokenised while time is
taken. Batches come in the data's order, so that both sides train on the same ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from kit import read_texts
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from rlhf_lab.text import encode_dialogues

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
