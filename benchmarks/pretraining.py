"""Pretraining: tokens a second of `rlhf_lab.language.pretrain`, transformers' Trainer and a plain PyTorch loop.

    python benchmarks/pretraining.py [--rounds 12] [--busy]

All three train the lab's default model (from the same weights) on the same blocks in the same order, 16 × 64 tokens a
step, AdamW (fused), gradients clipped, fp32; the first loss must be the same. The plain loop is what one writes first:
`model(input_ids).logits`, cross-entropy, backward, step. Then once more with products in bfloat16
(`LanguageConfig.bf16`, the Trainer's `bf16=True`), where the Trainer in fp32 takes part for comparison.

The last rows are the share of the processor's peak: floating-point operations a second in pretraining against those
of one large fp32 matrix product, and against products of the model's own shapes, in turns too. Counted are 6·N a token,
N the weights of all linear maps, the tied head among them, and 12·layers·width·block for attention (Chowdhery et al.,
arXiv:2204.02311, appendix B): no softmax, norm, rotation or optimiser, which take time all the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contest import WAITING, Contest, Contestant, Outcome, add_options, run  # noqa: E402

LARGE = 2048  # rows and columns of the large product
RATE = 1e-3
BF16 = "pretraining, products in bf16"
SAME = {BF16: 5e-3}  # relative difference of the first losses; 1e-4 where not given


def ours(pace, kit: str, steps: int, batch: int, block: int, bf16: bool = False) -> None:
    import rlhf_lab  # noqa: F401  (before torch)

    # isort: split
    from rlhf_lab.language import pretrain
    from rlhf_lab.models import load_language_model

    model, tokenizer = load_language_model(Path(kit, "language"))
    points = pretrain(model, stream(kit, tokenizer), replace(language_config(batch, block), bf16=bf16))
    flops = flops_a_token(model, block) * batch * block * steps
    pace.begin()
    while True:
        first, *_ = [next(points) for _ in range(steps)]
        pace({"tokens": steps * batch * block, "GFLOP": flops / 1e9}, loss=first.loss)


def plain(pace, kit: str, steps: int, batch: int, block: int) -> None:
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(Path(kit, "language"))
    tokens = stream(kit, AutoTokenizer.from_pretrained(Path(kit, "language")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    step = 0
    pace.begin()
    while True:
        losses = []
        for _ in range(steps):
            ids, labels = batch_of(tokens, batch, block, step)
            logits = model(input_ids=ids).logits
            loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        pace({"tokens": steps * batch * block}, loss=losses[0])


def trainer(pace, kit: str, steps: int, batch: int, block: int, rounds: int, bf16: bool = False) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(Path(kit, "language"))
    tokens = stream(kit, AutoTokenizer.from_pretrained(Path(kit, "language")))
    rows = []
    for step in range(steps * rounds):
        ids, labels = batch_of(tokens, batch, block, step)
        rows += [{"input_ids": i, "labels": t, "shift_labels": t} for i, t in zip(ids, labels, strict=True)]
    losses = []

    class Pacer(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            pace.begin()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % steps == 0:
                pace({"tokens": steps * batch * block}, loss=losses[0])

    options = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="trainer-contest-"),
        per_device_train_batch_size=batch,
        max_steps=10**6,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=bf16,
        dataloader_pin_memory=False,
    )
    it = Trainer(model, options, train_dataset=rows, callbacks=[Pacer()])
    compute = it.compute_loss

    def watched(*args, **kwargs):
        loss = compute(*args, **kwargs)
        losses.append(loss.item())
        it.compute_loss = compute  # only the very first loss is wanted
        return loss

    it.compute_loss = watched
    it.train()


def products(pace, shapes: list[tuple[int, int, int]], times: int) -> None:
    """Matrix products of (rows, inner, columns), again and again: what this processor can do at most."""
    import rlhf_lab  # noqa: F401  (before torch)

    # isort: split
    import torch

    pairs = [(torch.rand(m, k), torch.rand(k, n), torch.empty(m, n)) for m, k, n in shapes]
    work = sum(2 * m * k * n for m, k, n in shapes) * times / 1e9
    pace.begin()
    while True:
        for _ in range(times):
            for a, b, out in pairs:
                torch.mm(a, b, out=out)
        pace({"GFLOP": work})


def stream(kit: str, tokenizer):
    """The tokens that all of them train on."""
    from kit import DOCUMENTS

    from rlhf_lab.scenario import load_scenario
    from rlhf_lab.text import encode_documents

    return encode_documents(tokenizer, load_scenario().corpus(DOCUMENTS))


def language_config(batch: int, block: int):
    from rlhf_lab.config import LanguageConfig

    return LanguageConfig(steps=10**6, batch_size=batch, block_size=block, learning_rate=RATE, warmup=0, decay=0)


def batch_of(tokens, batch: int, block: int, step: int):
    """The blocks that `pretrain` takes in this step."""
    from rlhf_lab.language import block_batch

    return block_batch(tokens, language_config(batch, block), 0, step)


def flops_a_token(model, block: int) -> float:
    """Floating-point operations of a training step, forward and backward, for each token."""
    config = model.config
    linear = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2)  # the tied embedding is the head
    return 6 * linear + 12 * config.num_hidden_layers * config.hidden_size * block


def model_shapes(tokens: int, model) -> list[tuple[int, int, int]]:
    """The products of one forward pass of the lab's model."""
    width = model.hidden_size
    inner = width * 8 // 3 // 8 * 8
    block = [(tokens, width, width)] * 4 + [(tokens, width, inner)] * 2 + [(tokens, inner, width)]
    return block * model.layers + [(tokens, width, model.vocab_size)]


def contests(kit: Path, options: argparse.Namespace) -> list[Contest]:
    from contest import TRIAL_ROUNDS
    from kit import TINY

    from rlhf_lab.config import ModelConfig

    size = {"steps": 2, "batch": 4, "block": 16} if options.tiny else {"steps": 5, "batch": 16, "block": 64}
    work, model = {"kit": str(kit)} | size, TINY if options.tiny else ModelConfig()
    rounds = options.rounds * (1 + options.busy) + options.warmups + TRIAL_ROUNDS + 2  # the loader fetches one ahead
    lab = Contestant("rlhf_lab", "pretraining:ours", work)
    loops = (
        lab,
        Contestant("plain loop", "pretraining:plain", work, settings=WAITING),
        Contestant("Trainer", "pretraining:trainer", work | {"rounds": rounds}, settings=WAITING),
    )
    halves = (
        replace(lab, arguments=work | {"bf16": True}),
        Contestant("Trainer, bf16", "pretraining:trainer", work | {"rounds": rounds, "bf16": True}, settings=WAITING),
        loops[2],
    )
    large = [(256 if options.tiny else LARGE,) * 3]
    own = model_shapes(size["batch"] * size["block"], model)
    peaks = (
        lab,
        Contestant(f"product {large[0][0]}³", "pretraining:products", {"shapes": large, "times": 2}, settings=WAITING),
        Contestant("products, own shapes", "pretraining:products", {"shapes": own, "times": 20}, settings=WAITING),
    )
    return [
        Contest("pretraining", "tokens", loops, options.rounds, options.warmups),
        Contest(BF16, "tokens", halves, options.rounds, options.warmups),
        Contest("share of the peak", "GFLOP", peaks, options.rounds, options.warmups),
    ]


def check(outcome: Outcome) -> None:
    """Ends the program unless all trained on the same tokens and began from the same loss."""
    first = {name: lap.facts["loss"] for name, lap in outcome.first.items() if "loss" in lap.facts}
    if max(first.values()) - min(first.values()) > SAME.get(outcome.contest.title, 1e-4) * max(first.values()):
        raise SystemExit(f"{outcome.contest.title}: not the same first loss: {first}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    from kit import TINY, make_kit

    with tempfile.TemporaryDirectory() as folder:
        kit = make_kit(Path(folder), pairs=8, model=TINY if options.tiny else None)
        run(contests(kit, options), options, check)


if __name__ == "__main__":
    main()
