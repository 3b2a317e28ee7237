"""Validation loss against time: the lab's model and training loop, and nanoGPT's, side by side on Shakespeare.

    python benchmarks/shakespeare.py TEXT_FILE [--steps 2000] [--nanogpt-rates 1e-3 4e-3] [--threads 2]

The text is karpathy/char-rnn's tinyshakespeare: 1.1 MB of plays in the public domain, data/tinyshakespeare/input.txt of
that repository; the lab does not ship it. The last tenth is for validation, tokens are characters. The line to beat is
what nanoGPT's README publishes for a laptop's processor: 4 layers × 128, 4 heads, blocks of 64, batches of 12,
2,000 steps, no dropout, a validation loss of about 1.88 nats a character.

Equal compute: both have 4 layers × 128 (0.78M and 0.79M parameters besides embeddings and norms) and train on the same
batches in the same order. The lab's side is `new_language_model` and `pretrain` with the lab's defaults. nanoGPT's is
written out below in plain PyTorch, with its published options, and besides with other learning rates if asked for, to
tell what of the difference is no more than that. Contestants take turns of 50 steps. Validation, on the whole held-out
text, is not timed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contest import OURS, TRIAL_ROUNDS, WAITING, Contestant, Lap, Runner, chosen, footnote, heading, order_of  # noqa: E402

LAYERS, WIDTH, HEADS, BLOCK, BATCH = 4, 128, 4, 64, 12
TURN = 50  # steps
PUBLISHED = 1.88  # nats a character, after 2,000 steps


@dataclass(frozen=True)
class Characters:
    """A text as token ids, a character each: what the two sides train on, and what they are examined on."""

    train: object  # (N,)
    held_out: list  # batches of (inputs, labels)
    vocabulary: int
    eos_token_id: None = None
    pad_token_id: None = None

    def __len__(self) -> int:
        return self.vocabulary


def read(text_file: str) -> Characters:
    import torch

    text = Path(text_file).read_text(encoding="utf-8")
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([number[character] for character in text])
    train, held_out = tokens.split([len(tokens) * 9 // 10, len(tokens) - len(tokens) * 9 // 10])
    places = torch.arange((len(held_out) - 1) // BLOCK * BLOCK)
    pairs = zip(
        held_out[places].view(-1, BLOCK).split(128), held_out[places + 1].view(-1, BLOCK).split(128), strict=True
    )
    return Characters(train, list(pairs), len(number))


def ours(pace, text_file: str, steps: int, every: int) -> None:
    import rlhf_lab  # noqa: F401  (before torch)

    # isort: split
    from rlhf_lab.config import LanguageConfig, ModelConfig
    from rlhf_lab.language import evaluate_loss, pretrain
    from rlhf_lab.models import new_language_model

    data = read(text_file)
    model = new_language_model(ModelConfig(hidden_size=WIDTH, layers=LAYERS, heads=HEADS, context=BLOCK), data)
    points = pretrain(model, data.train, LanguageConfig(steps=steps, batch_size=BATCH, block_size=BLOCK))
    take_turns(pace, model, lambda step: next(points), lambda: evaluate_loss(model, data.held_out), steps, every)


def nanogpt(pace, text_file: str, steps: int, every: int, rate: float) -> None:
    """As in nanoGPT's `train.py` with `config/train_shakespeare_char.py`; AdamW is fused, which theirs is on a GPU."""
    import torch
    import torch.nn.functional as F

    from rlhf_lab.config import LanguageConfig
    from rlhf_lab.language import block_batch

    data = read(text_file)
    torch.manual_seed(0)
    model = gpt2(data.vocabulary)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)
    same_blocks = LanguageConfig(steps=steps, batch_size=BATCH, block_size=BLOCK)

    def loss_of(ids, labels):
        return F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())

    def train(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, rate)
        loss = loss_of(*block_batch(data.train, same_blocks, 0, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # it is shown at every step

    @torch.no_grad()
    def validate() -> float:
        losses = [(loss_of(*batch).item(), len(batch[0])) for batch in data.held_out]
        return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)

    take_turns(pace, model, train, validate, steps, every)


def cosine(step: int, steps: int, rate: float) -> float:
    """nanoGPT's schedule: 100 steps (here a twentieth) up, then a half cosine down to a tenth."""
    warmup = steps // 20
    if step < warmup:
        return rate * (step + 1) / (warmup + 1)
    return rate * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def gpt2(vocabulary: int):
    """nanoGPT's model: learned positions, LayerNorm without bias before each part, GELU, tied embeddings."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, bias=False)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
            self.qkv, self.mixed = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
            self.up, self.down = linear(WIDTH, 4 * WIDTH), linear(4 * WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, T, d)
            b, t, _ = x.shape
            q, k, v = (part.view(b, t, HEADS, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.mixed(seen.transpose(1, 2).reshape(b, t, WIDTH))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(BLOCK, WIDTH)
            self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH, bias=False)
            for name, parameter in self.named_parameters():
                if parameter.dim() >= 2:
                    writes = name.endswith(("mixed.weight", "down.weight"))  # into the residual stream
                    nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if writes else 0.02)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:  # (B, T) → (B, T, V)
            x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
            return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

    return GPT2()


def take_turns(pace, model, train, validate, steps: int, every: int) -> None:
    """Turns of TURN steps; the loss on the held-out text after every `every` steps and at the end."""
    embeddings = {id(module.weight) for module in model.modules() if type(module).__name__ == "Embedding"}
    parameters = sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in embeddings)
    pace.begin(parameters=parameters)
    for start in range(0, steps, TURN):
        done = min(steps, start + TURN)
        for step in range(start, done):
            train(step)
        pace.stop()
        facts = {"loss": validate()} if done % every == 0 or done == steps else {}
        pace({"steps": done - start, "tokens": (done - start) * BATCH * BLOCK}, **facts)


# --- the report -------------------------------------------------------------------------------------------------------


def race(contestants: list[Contestant], steps: int) -> dict[str, tuple[dict, list[Lap]]]:
    """Facts and laps of each contestant: a new process each, with the setting that was the fastest in a trial."""
    settings = []
    for contestant in contestants:
        trial = chosen(contestant)
        trial.end()
        settings.append(trial.setting)
    runners = [Runner(*pair).begin() for pair in zip(contestants, settings, strict=True)]
    laps: dict[str, list[Lap]] = {contestant.name: [] for contestant in contestants}
    try:
        for number in range(-(-steps // TURN)):
            for runner in order_of(runners, number):
                laps[runner.contestant.name].append(runner.lap())
    finally:
        for runner in runners:
            runner.end()
    return {r.contestant.name: (r.facts | {"setting": r.setting.name}, laps[r.contestant.name]) for r in runners}


def curve(laps: list[Lap]) -> list[tuple[int, float, float]]:
    """(steps, seconds of training until then, loss) wherever the loss was taken."""
    points, steps, seconds = [], 0, 0.0
    for lap in laps:
        steps, seconds = steps + int(lap.work["steps"]), seconds + lap.seconds
        if "loss" in lap.facts:
            points.append((steps, seconds, lap.facts["loss"]))
    return points


def reached(points: list[tuple[int, float, float]], goal: float) -> str:
    """When the loss was first at the goal or below, between two points on a straight line."""
    for (steps0, seconds0, loss0), (steps1, seconds1, loss1) in zip(points, points[1:], strict=False):
        if loss1 <= goal:
            share = max(0.0, (loss0 - goal) / (loss0 - loss1))
            return f"{seconds0 + share * (seconds1 - seconds0):.0f} s ({steps0 + share * (steps1 - steps0):.0f})"
    return "not"


def report(curves: dict[str, list[tuple[int, float, float]]]) -> str:
    """The losses against the seconds, then when each was where nanoGPT's own options end."""
    names = list(curves)
    lines = [
        "| steps | " + " | ".join(f"{name}: s | loss" for name in names) + " |",
        "|" + " --- |" * (1 + 2 * len(names)),
    ]
    for row in zip(*curves.values(), strict=True):
        lines.append(f"| {row[0][0]} | " + " | ".join(f"{seconds:.1f} | {loss:.3f}" for _, seconds, loss in row) + " |")
    ends = {f"{PUBLISHED} (published)": PUBLISHED} | {
        f"{curves[n][-1][2]:.3f} ({n})": curves[n][-1][2] for n in names[1:]
    }
    lines += ["", "| seconds (steps) until a loss of | " + " | ".join(names) + " |", "|" + " --- |" * (1 + len(names))]
    for title, goal in ends.items():
        lines.append(f"| {title} | " + " | ".join(reached(curves[name], goal) for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", metavar="TEXT_FILE", help="tinyshakespeare's input.txt")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=250, help="steps between two looks at the held-out text")
    parser.add_argument("--nanogpt-rates", type=float, nargs="+", default=[1e-3], help="1e-3 is its own")
    parser.add_argument("--threads", type=int, help="of every contestant; torch's own choice otherwise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the curves there")
    options = parser.parse_args()
    if options.steps < (TRIAL_ROUNDS + 1) * TURN:
        parser.error(f"--steps {options.steps}: at least {(TRIAL_ROUNDS + 1) * TURN}, a turn more than the trials take")
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    work = {"text_file": str(Path(options.text).resolve()), "steps": options.steps, "every": options.every}
    contestants = [Contestant("rlhf_lab", "shakespeare:ours", work, settings=(OURS,))]
    for rate in options.nanogpt_rates:
        contestants.append(
            Contestant(f"nanoGPT {rate:g}", "shakespeare:nanogpt", work | {"rate": rate}, settings=WAITING)
        )
    before = os.getloadavg()[0]
    found = race(contestants, options.steps)
    curves = {name: curve(laps) for name, (_, laps) in found.items()}
    print(f"{heading()}; load {before:.1f} → {os.getloadavg()[0]:.1f}\n\n{report(curves)}\n")
    print("\n".join(footnote(name, facts) for name, (facts, _) in found.items()))
    if options.json:
        options.json.write_text(json.dumps(curves) + "\n")


if __name__ == "__main__":
    main()
