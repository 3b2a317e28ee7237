"""Sampling: tokens a second of `rlhf_lab.sampling.sample` and of transformers' `generate`, in turns.

    python benchmarks/sampling.py [--batches 1 16 64 256] [--rounds 12] [--busy]

Same weights, same help-desk prompts of unequal length, temperature 0.7, no cut of the distribution, from text to text.
The model cannot say its end token, so every reply has the same number of tokens on both sides. `generate` gets its
dynamic and its static cache and both ways for threads to wait to choose from.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contest import WAITING, Contest, Contestant, Setting, add_options, run  # noqa: E402

TOKENS = 48  # of a reply
CALLS = {1: 8, 16: 2}  # in a round, so that it lasts long enough to be timed


def ours(pace, kit: str, batch: int, calls: int, tokens: int) -> None:
    import rlhf_lab  # noqa: F401  (before torch)

    # isort: split
    from kit import in_turn, read_texts

    from rlhf_lab.config import SamplingConfig
    from rlhf_lab.language import step_generator
    from rlhf_lab.models import load_language_model
    from rlhf_lab.sampling import sample

    model, tokenizer = load_language_model(Path(kit, "policy"))
    prompts = in_turn(read_texts(kit).prompts, batch)
    config, generator = SamplingConfig(temperature=0.7, max_new_tokens=tokens), step_generator(0, 0)
    pace.begin()
    while True:
        written = [s for asked in islice(prompts, calls) for s in sample(model, tokenizer, asked, config, generator)]
        pace({"tokens": sum(s.dialogue.reply_length for s in written), "replies": len(written)})


def generate(pace, kit: str, batch: int, calls: int, tokens: int, cache: str | None) -> None:
    import torch
    from kit import in_turn, read_texts
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf_lab.text import ASSISTANT, USER

    tokenizer = AutoTokenizer.from_pretrained(Path(kit, "policy"), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(Path(kit, "policy")).eval()
    prompts = in_turn([f"{USER} {prompt}{ASSISTANT}" for prompt in read_texts(kit).prompts], batch)
    how = dict(max_new_tokens=tokens, do_sample=True, temperature=0.7, top_k=0, top_p=1.0, cache_implementation=cache)
    torch.manual_seed(0)
    pace.begin()
    while True:
        made = replies = 0
        for asked in islice(prompts, calls):
            encoded = tokenizer(asked, padding=True, add_special_tokens=False, return_tensors="pt")
            ids = model.generate(encoded["input_ids"], attention_mask=encoded["attention_mask"], **how)
            written = ids[:, encoded["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(written, skip_special_tokens=True)
            made, replies = made + written.numel(), replies + len(texts)
        pace({"tokens": made, "replies": replies})


def contest(kit: Path, batch: int, options: argparse.Namespace) -> Contest:
    tokens, calls = (6, 1) if options.tiny else (TOKENS, CALLS.get(batch, 1))
    work = {"kit": str(kit), "batch": batch, "calls": calls, "tokens": tokens}
    settings = tuple(
        Setting(f"{how.name}, {cache or 'dynamic'} cache", how.environment, {"cache": cache})
        for how in WAITING
        for cache in (None, "static")
    )
    rivals = (
        Contestant("rlhf_lab", "sampling:ours", work),
        Contestant("generate", "sampling:generate", work, settings=settings),
    )
    return Contest(f"sampling, batch {batch}", "tokens", rivals, options.rounds, options.warmups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    add_options(parser)
    options = parser.parse_args()
    from kit import TINY, make_kit

    with tempfile.TemporaryDirectory() as folder:
        kit = make_kit(Path(folder), prompts=max(options.batches), pairs=8, model=TINY if options.tiny else None)
        run([contest(kit, batch, options) for batch in options.batches], options, same_work)


def same_work(outcome) -> None:
    names = [c.name for c in outcome.contest.contestants]
    for laps in zip(*(outcome.quiet[name] for name in names), strict=True):
        if any(lap.work != laps[0].work for lap in laps):
            raise SystemExit(f"{outcome.contest.title}: not the same work: {[lap.work for lap in laps]}")


if __name__ == "__main__":
    main()
