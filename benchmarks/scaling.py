"""How time and peak memory of a step grow with the model's size, the batch and the length of the replies.

    python benchmarks/scaling.py [--work sampling ppo pretraining] [--rounds 3] [--threads N]

One of the three is varied at a time, the others stay at the lab's default: 3 layers of 128, 64 replies (or blocks), 48
tokens a reply (128 a block). Every row is a process of its own. Seconds are the median over rounds; memory is the
highest resident size of the whole process, Python and torch included. The policy cannot say its end token, so every
reply has exactly that many tokens.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contest import Contest, Contestant, Outcome, heading, play  # noqa: E402

WORK = ("sampling", "ppo", "pretraining")
TITLES = {"sampling": "sampling", "ppo": "PPO step, separate critic", "pretraining": "pretraining step"}


@dataclass(frozen=True)
class Size:
    """What a row is measured at."""

    width: int = 128
    layers: int = 3
    batch: int = 64
    tokens: int = 48  # of a reply; of a block in pretraining

    @property
    def heads(self) -> int:
        return max(2, self.width // 32)


def sizes(work: str, tiny: bool = False) -> list[Size]:
    """The default first, then each of the three alone, smaller and larger."""
    default = Size(tokens=128) if work == "pretraining" else Size()
    if tiny:
        default = replace(default, width=32, layers=1, batch=4, tokens=8)
        return [default, replace(default, batch=8)]
    shapes = [replace(default, width=width, layers=layers) for width, layers in ((64, 2), (256, 4), (384, 6))]
    batches = [replace(default, batch=batch) for batch in (16, 32, 128, 256)]
    lengths = [replace(default, tokens=tokens) for tokens in (16, 32, 96, 128) if tokens != default.tokens]
    return [default, *shapes, *batches, *lengths]


def body(pace, kit: str, work: str, batch: int, tokens: int) -> None:
    """A contestant (see contest.py): one step a round; the process's peak memory so far is a fact of each lap."""
    import rlhf_lab  # noqa: F401  (before torch)

    # isort: split
    from kit import in_turn, read_texts

    from rlhf_lab.models import load_language_model

    model, tokenizer = load_language_model(Path(kit, "policy"))
    prompts = in_turn(read_texts(kit).prompts, batch)
    step = {"sampling": sampling, "ppo": ppo, "pretraining": pretraining}[work](kit, model, tokenizer, batch, tokens)
    parameters = model.num_parameters()
    pace.begin()
    while True:
        step(next(prompts))
        pace({"tokens": batch * tokens}, peak=peak_mib(), parameters=parameters)


def sampling(kit, model, tokenizer, batch, tokens):
    from rlhf_lab.config import SamplingConfig
    from rlhf_lab.language import step_generator
    from rlhf_lab.sampling import sample

    config, generator = SamplingConfig(temperature=0.7, max_new_tokens=tokens), step_generator(0, 0)
    return lambda asked: sample(model, tokenizer, asked, config, generator)


def ppo(kit, model, tokenizer, batch, tokens):
    from rlhf_lab.config import PPOConfig, SamplingConfig
    from rlhf_lab.models import Critic, frozen_copy, load_reward_model
    from rlhf_lab.ppo import PPO
    from rlhf_lab.reward import reward_score

    reward, _ = load_reward_model(Path(kit, "reward"))
    brakes = {"anneal": False, "max_kl_step": None}
    config = PPOConfig(batch_size=batch, learning_rate=1e-5, sampling=SamplingConfig(max_new_tokens=tokens), **brakes)
    return PPO(model, frozen_copy(model), Critic(reward), reward_score(reward), tokenizer, config).step


def pretraining(kit, model, tokenizer, batch, tokens):
    from pretraining import language_config, stream

    from rlhf_lab.language import pretrain

    points = pretrain(model, stream(kit, tokenizer), language_config(batch, tokens))
    return lambda asked: next(points)


def peak_mib() -> float:
    """The highest resident size of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: rusage would count what the parent held when this process was made
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def row(work: str, size: Size, outcome: Outcome) -> str:
    facts = outcome.first["rlhf_lab"].facts
    seconds = size.batch * size.tokens / outcome.rate("rlhf_lab")
    peak = max(lap.facts["peak"] for lap in outcome.quiet["rlhf_lab"])
    shape = f"{size.layers} × {size.width} ({facts['parameters'] / 1e6:.2f}M)"
    cells = (TITLES[work], shape, size.batch, size.tokens, f"{seconds:.2f}", f"{peak:,.0f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of every process; torch's own choice otherwise")
    parser.add_argument("--tiny", action="store_true", help="a toy size, to see that it works")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1 is needed")
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    from kit import make_kit

    from rlhf_lab.config import ModelConfig

    print(heading() + "\n")
    print("| work | model: layers × width | batch | tokens | seconds a step | peak MiB |\n|" + " --- |" * 6, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        kits: dict[tuple[int, int], Path] = {}
        for work in options.work:
            for size in sizes(work, options.tiny):
                kit = kits.get((size.width, size.layers))
                if kit is None:
                    vocabulary = 400 if options.tiny else ModelConfig().vocab_size
                    shape = ModelConfig(vocabulary, size.width, size.layers, size.heads, context=320)
                    pairs = 40 if options.tiny else 400
                    kit = make_kit(Path(folder, f"{size.width}-{size.layers}"), pairs=pairs, model=shape)
                    kits[size.width, size.layers] = kit
                what = {"kit": str(kit), "work": work, "batch": size.batch, "tokens": size.tokens}
                ours = Contestant("rlhf_lab", "scaling:body", what)
                print(row(work, size, play(Contest(TITLES[work], "tokens", (ours,), options.rounds, 0))), flush=True)


if __name__ == "__main__":
    main()
