"""A GPU: the lab's sampling and PPO on models of 135M and 0.5B shape, bfloat16 and float32 in turns.

    python benchmarks/gpu.py [--shapes 135M 0.5B] [--batch 64] [--tokens 128] [--rounds 5] [--tiny]

The models have the shapes of SmolLM2-135M and Qwen2.5-0.5B and random weights (a step costs the same whatever a model
knows); nothing is downloaded. Sampling is compared with transformers' `generate`, on the same prompts, temperature and
number of tokens. A PPO step is: write, score, read with policy, critic and reference, four epochs of four minibatches;
once with a critic of its own and once with a value head on the policy's trunk. Without a GPU it runs on the CPU, which
at these sizes takes long: there `--tiny` shows that it works.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import rlhf_lab  # noqa: E402, F401  (before torch: it sets how threads wait)

# isort: split
import torch  # noqa: E402
from contest import machine  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from rlhf_lab.config import PPOConfig, SamplingConfig  # noqa: E402
from rlhf_lab.models import Critic, ValueHead, frozen_copy, new_reward_model  # noqa: E402
from rlhf_lab.ppo import PPO  # noqa: E402
from rlhf_lab.reward import reward_score  # noqa: E402
from rlhf_lab.sampling import sample_tokens  # noqa: E402
from rlhf_lab.scenario import load_scenario  # noqa: E402
from rlhf_lab.text import encode_prompts, train_tokenizer  # noqa: E402

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def shapes(tokenizer) -> dict[str, Callable[[], PreTrainedModel]]:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}

    def llama(**shape) -> Callable[[], PreTrainedModel]:
        return lambda: LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **shape, **ids))

    def qwen(**shape) -> Callable[[], PreTrainedModel]:
        return lambda: Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **shape, **ids))

    return {
        "tiny": llama(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=4096,
        ),
        "135M": llama(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=49152,
        ),
        "0.5B": qwen(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=151936,
        ),
    }  # fmt: skip


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until `work` is done, the GPU's part included."""
    waited(device)
    began = time.perf_counter()
    work()
    waited(device)
    return time.perf_counter() - began


def waited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Side:
    """One model in one precision: its sampler, `generate`, and PPO, each a function without arguments."""

    def __init__(self, model: PreTrainedModel, tokenizer, questions: list[str], options: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.options = model.eval(), tokenizer, options
        self.device = next(model.parameters()).device
        self.questions = questions
        self.prompts = encode_prompts(tokenizer, questions)
        self.config = SamplingConfig(temperature=0.7, max_new_tokens=options.tokens)

    def sample(self) -> None:
        end = -1  # nothing ends a reply, so that all have the same number of tokens
        sample_tokens(self.model, self.prompts, end, self.config, torch.Generator().manual_seed(0))

    def generate(self) -> None:
        width = max(map(len, self.prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in self.prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in self.prompts], device=self.device)
        how = dict(do_sample=True, temperature=0.7, top_k=0, top_p=1.0, max_new_tokens=self.options.tokens)
        end = {"eos_token_id": None, "pad_token_id": self.tokenizer.pad_token_id}
        with torch.no_grad():
            self.model.generate(ids, attention_mask=mask, min_new_tokens=self.options.tokens, **how, **end)

    def ppo(self, shared: bool) -> Callable[[], object]:
        torch.manual_seed(0)
        policy = frozen_copy(self.model)
        reward = new_reward_model(self.model, pooling="last")
        config = PPOConfig(
            batch_size=self.options.batch,
            minibatches=min(4, self.options.batch),
            epochs=4,
            learning_rate=1e-6,
            critic_learning_rate=1e-6,
            anneal=False,
            max_kl_step=None,
            sampling=self.config,
        )
        critic = ValueHead(policy) if shared else Critic(frozen_copy(reward))
        trainer = PPO(policy, self.model, critic, reward_score(reward), self.tokenizer, config)
        return lambda: trainer.step(self.questions)


def measure(name: str, make: Callable[[], PreTrainedModel], tokenizer, options: argparse.Namespace) -> Iterator[str]:
    """Rows of the table for one shape, each as soon as it is measured: the precisions and rivals in turns, medians."""
    device = torch.device(options.device)
    questions = load_scenario().prompts("train", options.batch)
    torch.manual_seed(0)
    start = make()
    size = sum(p.numel() for p in start.parameters())
    sides = {t: Side(frozen_copy(start).to(device, dtype), tokenizer, questions, options) for t, dtype in TYPES.items()}
    tokens = options.batch * options.tokens

    works = {f"{t}, {who}": getattr(side, who) for t, side in sides.items() for who in ("sample", "generate")}
    for work, seconds in in_turns(works, device, options.rounds).items():
        precision, who = work.split(", ")
        ours = "sampling" if who == "sample" else "`generate`"
        yield f"| {name} ({size / 1e6:.0f}M) | {ours} | {precision} | {tokens / seconds:,.0f} tokens/s | |"
    for shared in (False, True):
        for precision, side in sides.items():
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            step = side.ppo(shared)
            seconds = in_turns({"ppo": step}, device, max(2, options.rounds // 2))["ppo"]
            peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else ""
            what = "PPO, value head" if shared else "PPO, separate critic"
            rate = options.batch / seconds
            yield f"| {name} ({size / 1e6:.0f}M) | {what} | {precision} | {rate:,.1f} episodes/s | {peak} |"
            del step


def in_turns(works: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each piece of work, all in turns, after one round that does not count."""
    laps = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = timed(work, device)
            if number:
                laps[name].append(seconds)
    return {name: statistics.median(own) for name, own in laps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["135M", "0.5B"], default=["135M", "0.5B"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a toy size, to see that it works")
    options = parser.parse_args()
    if options.tiny:
        options.shapes, options.batch, options.tokens, options.rounds = ["tiny"], 4, 6, 1
    scenario = load_scenario()
    tokenizer = train_tokenizer(scenario.corpus(500), 1024)
    what = torch.cuda.get_device_name() if options.device.startswith("cuda") else machine()["processor"]
    print(f"{machine()['date']}, {what}, torch {torch.__version__}; batch {options.batch}, {options.tokens} tokens\n")
    print("| shape | work | precision | rate | peak memory |\n| --- | --- | --- | --- | --- |", flush=True)
    for name in options.shapes:
        for row in measure(name, shapes(tokenizer)[name], tokenizer, options):
            print(row, flush=True)


if __name__ == "__main__":
    main()
