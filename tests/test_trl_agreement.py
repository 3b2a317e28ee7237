"""Our PPO, reward loss and SFT loss against TRL 1.12.0's: the same weights and batches give the same numbers to 1e-5.

What is compared is TRL's real trainers (see trl_reference.py). Where ours differs on purpose, the second half shows by
how much. `pytest -s` prints the largest difference of each comparison.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny import PROMPTS, TEXTS, hub_model, language_model, reward_model, tokenizer
from transformers import PreTrainedModel, get_linear_schedule_with_warmup
from trl.trainer.utils import disable_dropout_in_model
from trl_reference import (
    AsTRLEnds,
    AsTRLWhitens,
    Outcome,
    Start,
    decided,
    replies,
    run_ours,
    run_trl,
    trl_reward_trainer,
    trl_sft_trainer,
    weights,
)

from rlhf_lab.config import LanguageConfig, PPOConfig, RewardConfig, SamplingConfig
from rlhf_lab.language import language_loss, learning_rate_at, step_generator, train_language, train_sft
from rlhf_lab.models import Critic, ValueHead, new_reward_model
from rlhf_lab.ppo import PPO, k3, masked_mean
from rlhf_lab.records import Comparison
from rlhf_lab.reward import RankedReplies, encode_comparisons, pairs_of_tiers, reward_loss, train_reward_model
from rlhf_lab.sampling import Sample
from rlhf_lab.text import Dialogue, encode_dialogues, language_batch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TOLERANCE = 1e-5
RAGGED = [9, 4, 7, 1, 9, 2, 6, 5]
CONFIG = PPOConfig(
    steps=1,
    batch_size=8,
    minibatches=2,
    epochs=2,
    learning_rate=3e-3,
    critic_learning_rate=3e-3,
    kl_coefficient=0.1,
    kl_target=None,  # TRL has no adaptive β,
    max_kl_step=None,  # stops no epochs early
    clip_norm=1e9,  # and clips no gradients
    anneal=False,
    sampling=SamplingConfig(temperature=0.7),
)


def seeded(kind: str, seed: int = 1) -> PreTrainedModel:
    """A small model of an architecture, its weights drawn from the seed."""
    if kind == "llama":
        return language_model(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return hub_model(kind)


@pytest.fixture(params=[1, 2], ids=["one-core", "two-cores"])
def cores(request):
    """Computing threads: with two, our trainers divide a batch of enough tokens between them."""
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def agree(what: str, ours, theirs, tolerance: float = TOLERANCE) -> None:
    """Fails unless two tensors, numbers or dicts of tensors are equal to the tolerance, absolutely."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        gap = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    else:
        ours, theirs = (x.detach() if isinstance(x, torch.Tensor) else torch.tensor(x) for x in (ours, theirs))
        gap = float((ours - theirs).abs().max())
    print(f"{what}: {gap:.1e}")
    assert gap <= tolerance, f"{what} differs by {gap}"


def agree_in_everything(ours: Outcome, theirs: Outcome) -> None:
    """Every tensor of each step, the log, the gradients of every update, and the weights at the end."""
    for a, b, stats, log in zip(ours.seen, theirs.seen, ours.log, theirs.log, strict=True):
        real = ~b.padding_mask
        agree("scores", a.scores, b.scores)
        for name in ("logprobs", "ref_logprobs", "advantages"):
            agree(name, getattr(a, name)[real], getattr(b, name)[real])
        for name in ("values", "rewards", "returns"):  # TRL's values reach one state further: see AsTRLEnds
            agree(name, getattr(a, name)[a.mask], getattr(b, name)[~b.padding_mask_p1])
        agree("policy loss", stats.policy_loss, log["loss/policy_avg"])
        agree("value loss", stats.value_loss, log["loss/value_avg"])
        agree("clip fraction", stats.clipfrac, log["policy/clipfrac_avg"])
        agree("learning rate", stats.learning_rate, log["lr"])
    assert len(ours.gradients) == len(theirs.gradients)
    assert max(g.abs().max() for g in ours.gradients[0]["policy"].values()) > 1e-2  # not equal because all is 0
    for a, b in zip(ours.gradients, theirs.gradients, strict=True):
        agree("policy's gradient", a["policy"], b["policy"])
        agree("critic's gradient", a["critic"], b["critic"])
    agree("policy's weights", ours.policy, theirs.policy)
    agree("critic's weights", ours.critic, theirs.critic)


# --- PPO: the same ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling": SamplingConfig(temperature=1.0), "gamma": 0.97, "lam": 0.8},
        {"kl_coefficient": 0.0, "clip_range": 0.05, "value_clip_range": 0.02, "minibatches": 1, "epochs": 3},
    ],
    ids=["defaults", "discounted", "tightly-clipped"],
)
def test_a_ppo_step_is_trls_on_replies_of_one_length(changes, monkeypatch, tmp_path):
    """Only the whitening's n − 1 has to be put in (`AsTRLWhitens`)."""
    start = Start(replace(CONFIG, **changes), [replies([9] * 8)])
    ours, theirs = run_ours(start, monkeypatch, AsTRLWhitens), run_trl(start, monkeypatch, tmp_path)
    agree_in_everything(ours, theirs)
    assert ours.log[0].clipfrac > 0  # some ratios were clipped, so that part was compared too


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt-neox", "qwen2"])
def test_a_ppo_step_is_trls_on_ragged_replies(kind, monkeypatch, tmp_path):
    """With TRL's end of a reply put in (`AsTRLEnds`); prompts and replies are ragged, and padding differs in side."""
    start = Start(replace(CONFIG, learning_rate=1e-3), [replies(RAGGED)])
    if kind != "llama":
        start.policy, start.reference = decided(seeded(kind, 1)), decided(seeded(kind, 2))
        start.critic, start.reward = (new_reward_model(seeded(kind, 3), "last", seed) for seed in (1, 2))
    agree_in_everything(run_ours(start, monkeypatch, AsTRLEnds), run_trl(start, monkeypatch, tmp_path))


def test_a_step_that_is_divided_among_cores_is_trls(cores, monkeypatch, tmp_path):
    start = Start(replace(CONFIG, minibatches=1, learning_rate=1e-3), [replies([56] * 8)])
    agree_in_everything(run_ours(start, monkeypatch, AsTRLWhitens), run_trl(start, monkeypatch, tmp_path))


def test_the_entropy_is_trls(monkeypatch, tmp_path):
    """TRL logs its mean over the updates; with one update it is that of the policy that wrote the replies, as ours."""
    start = Start(replace(CONFIG, epochs=1, minibatches=1), [replies([9] * 8)])
    ours, theirs = run_ours(start, monkeypatch), run_trl(start, monkeypatch, tmp_path)
    agree("entropy", ours.log[0].entropy, theirs.log[0]["policy/entropy_avg"])


def test_three_steps_with_annealing_are_trls(monkeypatch, tmp_path):
    """Weights, optimizer state and learning rate carry over; three minibatches, each step other replies."""
    lengths, prompts = ([3, 8, 5, 8, 1, 6], [8] * 6, [2, 8, 4, 8, 5, 3]), [4, 9, 6, 3, 7, 5]
    drawn = [replies(row, seed=i, prompts=prompts) for i, row in enumerate(lengths)]
    samples = [[answered(own, other) for own, other in zip(drawn[0], batch, strict=True)] for batch in drawn]
    config = replace(CONFIG, steps=3, batch_size=6, minibatches=3, epochs=1, anneal=True, learning_rate=1e-3)
    start = Start(config, samples, seed=5)
    ours = run_ours(start, monkeypatch, AsTRLEnds)
    agree_in_everything(ours, run_trl(start, monkeypatch, tmp_path))
    assert [stats.learning_rate for stats in ours.log] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


def answered(sample: Sample, other: Sample) -> Sample:
    """The one's prompt with the other's reply."""
    prompt = sample.dialogue.ids[: sample.dialogue.prompt_length]
    return replace(sample, dialogue=Dialogue((*prompt, *other.dialogue.ids[len(prompt) :]), len(prompt)))


def test_a_critic_on_the_policys_trunk_is_trls_with_the_backbone_shared(monkeypatch, tmp_path):
    """`ValueHead` and `value_coefficient`: TRL's trainer is given a value model whose backbone is the policy's own."""
    start = Start(replace(CONFIG, value_coefficient=0.1), [replies([9] * 8)])
    head = ValueHead(start.policy)
    torch.nn.init.normal_(head.head.weight, generator=torch.Generator().manual_seed(0))
    ours = run_ours(start, monkeypatch, AsTRLWhitens, critic=lambda _: copy.deepcopy(head))
    theirs = run_trl(start, monkeypatch, tmp_path, shared=head.head, vf_coef=0.1)
    for outcome in (ours,):  # ours names the head's parameters "head.weight" and "head.bias"
        outcome.critic = {n.removeprefix("head."): p for n, p in outcome.critic.items()}
        outcome.gradients = [
            g | {"critic": {n.removeprefix("head."): p for n, p in g["critic"].items()}} for g in outcome.gradients
        ]
    agree_in_everything(ours, theirs)


def test_replies_that_trl_sampled_have_our_numbers(monkeypatch, tmp_path):
    """Here TRL writes the replies itself; its log-probabilities are those of its sampling pass, with a cache."""
    start = Start(CONFIG, [replies([12] * 8)])
    theirs = run_trl(start, monkeypatch, tmp_path, own_sampling=True)
    start.samples = [[_as_sampled(row, theirs.seen[0].context_length) for row in theirs.seen[0].query_responses]]
    agree_in_everything(run_ours(start, monkeypatch, AsTRLEnds), theirs)


def _as_sampled(row: torch.Tensor, context_length: int) -> Sample:
    pad, end = tokenizer().pad_token_id, tokenizer().eos_token_id
    prompt = [t for t in row[:context_length].tolist() if t != pad]
    reply = row[context_length:].tolist()
    reply = reply[: reply.index(end) + 1] if end in reply else reply
    return Sample("prompt", "reply", Dialogue((*prompt, *reply), len(prompt)), False)


# --- PPO: where ours differs on purpose, and by how much --------------------------------------------------------------


def test_whitening_divides_by_n_where_trl_divides_by_n_minus_1(monkeypatch, tmp_path):
    """After whitening n advantages, TRL's are √((n − 1)/n) times ours: 0.7% smaller for 72 tokens."""
    start = Start(CONFIG, [replies([9] * 8)])
    ours, theirs = (
        run_ours(start, monkeypatch).seen[0].advantages,
        run_trl(start, monkeypatch, tmp_path).seen[0].advantages,
    )
    agree("advantages, after the factor", ours * math.sqrt(71 / 72), theirs)
    assert ours.square().mean().item() == pytest.approx(1, abs=1e-5) and theirs.square().mean().item() == pytest.approx(
        71 / 72, abs=1e-5
    )


def test_whitened_rewards_are_a_multiple_of_the_rewards_where_trl_keeps_the_old_mean(monkeypatch, tmp_path):
    """Ours: r/σ, so 0 stays 0. TRL and lm-human-preferences: (r − m)/σ + m, which pays every token (1 − 1/σ)·m."""
    config = replace(CONFIG, whiten_rewards=True, minibatches=1, kl_coefficient=0.3)
    start = Start(config, [replies([9] * 8)])
    plain = run_ours(replace(start, config=replace(config, whiten_rewards=False)), monkeypatch).seen[0].rewards
    ours, theirs = run_ours(start, monkeypatch).seen[0].rewards, run_trl(start, monkeypatch, tmp_path).seen[0].rewards
    mean, sigma, unbiased = plain.mean(), plain.std(unbiased=False), plain.std()
    agree("ours", ours, plain / sigma)
    agree("TRL's", theirs, (plain - mean) / unbiased + mean)
    paid = (theirs - plain / unbiased).flatten()
    agree("TRL's pay to every token", paid, torch.full_like(paid, float(mean * (1 - 1 / unbiased))))
    assert abs(paid[0]) > 0.01


def test_a_reply_ends_at_its_last_token_where_trl_reads_one_state_more(monkeypatch, tmp_path):
    """TRL pays the score one column behind the end token and trains a value there. With λ = 1 both say the same of the
    real tokens; with λ = 0.95 that further value shifts the advantages before it."""
    for lam, same in ((1.0, True), (0.95, False)):
        start = Start(replace(CONFIG, lam=lam), [replies(RAGGED)])
        ours, theirs = run_ours(start, monkeypatch, AsTRLWhitens), run_trl(start, monkeypatch, tmp_path)
        mine, other = ours.seen[0], theirs.seen[0]
        early = torch.tensor(RAGGED) < 9
        last = torch.tensor(RAGGED)[early] - 1
        rows = early.nonzero().squeeze(1)
        assert torch.equal(mine.mask, ~other.padding_mask) and (mine.mask.sum(), (~other.padding_mask_p1).sum()) == (
            43,
            49,
        )
        agree("the score, one column on", mine.scores[rows], other.rewards[rows, last + 1])
        gap = (mine.advantages - other.advantages)[mine.mask].abs().max().item()
        print(f"advantages of λ = {lam} differ by {gap:.1e}")
        assert gap < TOLERANCE if same else 0.02 < gap < 1
        if same:
            for a, b in zip(ours.gradients, theirs.gradients, strict=True):
                agree("policy's gradient", a["policy"], b["policy"])
            agree("policy's weights after the step", ours.policy, theirs.policy)


def test_a_truncated_reply_earns_a_fixed_score_where_trl_takes_something_off(monkeypatch, tmp_path):
    samples = [*replies([9] * 4), *replies([9] * 4, ended=False, seed=1)]
    start = Start(replace(CONFIG, truncated_score=-2.0), [samples])
    ours = run_ours(start, monkeypatch).seen[0].scores
    theirs = run_trl(start, monkeypatch, tmp_path, missing_eos_penalty=2.0).seen[0].scores
    agree("scores of ended replies", ours[:4], theirs[:4])
    assert ours[4:].tolist() == [-2.0] * 4  # whatever the reward model thinks of them
    unpunished = run_trl(start, monkeypatch, tmp_path).seen[0].scores
    agree("TRL's scores of the others", theirs[4:], unpunished[4:] - 2.0)
    assert theirs[4:].std() > 0.1


def test_the_kl_on_the_curve_is_k3_where_trls_is_k1_and_may_be_negative(monkeypatch, tmp_path):
    """The penalty is k1 in both. Replies that the policy itself finds unlikely (here: random tokens) give TRL's curve,
    a mean of log π − log π_ref, a KL below 0."""
    start = Start(CONFIG, [replies([9] * 8)], policy=decided(decided(language_model(1))), reference=language_model(2))
    ours, theirs = run_ours(start, monkeypatch, AsTRLWhitens), run_trl(start, monkeypatch, tmp_path)
    mine = ours.seen[0]
    agree("k1", (mine.logprobs - mine.ref_logprobs).sum(1).mean(), theirs.log[0]["objective/kl"])
    agree("k3", k3(mine.logprobs, mine.ref_logprobs).sum(1).mean(), ours.log[0].kl)
    print(f"TRL's curve {theirs.log[0]['objective/kl']:.2f} nats, ours {ours.log[0].kl:.2f}")
    assert theirs.log[0]["objective/kl"] < -0.5 and ours.log[0].kl > 0.5


def test_approximate_kl_is_k3_over_real_tokens_where_trls_is_half_the_square_over_all_columns(monkeypatch, tmp_path):
    start = Start(replace(CONFIG, minibatches=1, lam=1.0), [replies(RAGGED)])
    theirs = run_trl(start, monkeypatch, tmp_path)
    ours = run_ours(start, monkeypatch, AsTRLWhitens)
    before, after = _logprobs_before_and_after_one_update(start, monkeypatch)
    mask = ours.seen[0].mask
    k2 = 0.5 * (after - before).square()
    agree(
        "TRL's: mean of two epochs, padding counted", k2.sum() / mask.numel() / 2, theirs.log[0]["policy/approxkl_avg"]
    )
    agree("ours: after the last epoch", masked_mean(k3(before, after), mask), ours.log[0].approx_kl)
    assert ours.log[0].approx_kl / theirs.log[0]["policy/approxkl_avg"] == pytest.approx(2 * 72 / 43, rel=0.25)


def _logprobs_before_and_after_one_update(start: Start, monkeypatch) -> tuple[torch.Tensor, torch.Tensor]:
    once = replace(start, config=replace(start.config, epochs=1))
    outcome = run_ours(once, monkeypatch, AsTRLWhitens)
    later = copy.deepcopy(once.policy)
    later.load_state_dict(outcome.policy, strict=False)
    seen = run_ours(replace(once, policy=later), monkeypatch, AsTRLWhitens).seen[0]
    return outcome.seen[0].logprobs, seen.logprobs


def test_a_critic_of_its_own_has_no_coefficient_where_trls_has_a_tenth(monkeypatch, tmp_path):
    """The policy does not see it. The critic's gradient is ten times TRL's, which Adam divides out again, all but the
    part that its epsilon plays."""
    start = Start(replace(CONFIG, epochs=1, minibatches=1), [replies([9] * 8)])
    ours, theirs = run_ours(start, monkeypatch, AsTRLWhitens), run_trl(start, monkeypatch, tmp_path, vf_coef=0.1)
    agree("policy's gradient", ours.gradients[0]["policy"], theirs.gradients[0]["policy"])
    agree(
        "a tenth of the critic's",
        {n: g / 10 for n, g in ours.gradients[0]["critic"].items()},
        theirs.gradients[0]["critic"],
    )
    moved, other = (
        torch.cat([(now[n] - before).flatten() for n, before in weights(start.critic).items()])
        for now in (ours.critic, theirs.critic)
    )
    assert torch.cosine_similarity(moved, other, dim=0) > 0.95 and moved.norm() / other.norm() < 1.2


def test_gradients_are_clipped_where_trls_are_not(monkeypatch, tmp_path):
    start = Start(replace(CONFIG, epochs=1, minibatches=1, clip_norm=0.1), [replies([9] * 8)])
    ours, theirs = run_ours(start, monkeypatch, AsTRLWhitens), run_trl(start, monkeypatch, tmp_path)
    for model in ("policy", "critic"):
        mine, other = ours.gradients[0][model], theirs.gradients[0][model]
        norm, full = (torch.stack([g.norm() for g in gradient.values()]).norm() for gradient in (mine, other))
        assert norm.item() == pytest.approx(0.1, rel=1e-3) and full > 0.2
        agree(f"{model}'s direction", {n: g * (full / norm) for n, g in mine.items()}, other, tolerance=1e-4)


def test_the_learning_rate_never_falls_below_a_twentieth_where_trls_ends_at_0():
    config = replace(CONFIG, steps=40, anneal=True)
    ppo = PPO(language_model(), language_model(1), Critic(reward_model()), len, tokenizer(), config)
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    schedule = get_linear_schedule_with_warmup(other, 0, 40)  # what TRL's trainer makes of lr_scheduler_type="linear"
    for step in range(40):
        ppo.steps_done = step
        ours, theirs = ppo.set_learning_rate(), schedule.get_last_lr()[0]
        assert ours == pytest.approx(max(theirs, config.learning_rate / 20))
        other.step()
        schedule.step()
    assert ours == config.learning_rate / 20 and theirs == pytest.approx(config.learning_rate / 40)


def test_masks_go_by_length_where_trl_loses_an_end_token_that_is_also_padding(monkeypatch, tmp_path):
    """pad = eos, as many tokenizers have it. TRL's mask ends before the end token, so no loss teaches it; ours does."""
    start = Start(CONFIG, [replies(RAGGED)])
    own = copy.deepcopy(tokenizer())
    own.pad_token = own.eos_token
    for model in (start.policy, start.reference, start.reward, start.critic):
        model.config.pad_token_id = own.eos_token_id
    theirs = run_trl(start, monkeypatch, tmp_path, own=own).seen[0]
    ours = run_ours(start, monkeypatch).seen[0]
    assert ours.mask.sum(1).tolist() == RAGGED
    assert (~theirs.padding_mask).sum(1).tolist() == [n - 1 for n in RAGGED]


# --- the reward model -------------------------------------------------------------------------------------------------


def comparisons(n: int = 8) -> list[Comparison]:
    pairs = [(p, c, r) for p in PROMPTS for c in TEXTS for r in TEXTS if c != r]
    return [Comparison(*pairs[(7 * i) % len(pairs)]) for i in range(n)]


@pytest.mark.parametrize(
    ("kind", "pooling"), [("llama", "mean"), ("llama", "last"), ("gpt2", "last"), ("qwen2", "last")]
)
@pytest.mark.parametrize("margin", [0.0, 2 / 3])
def test_the_reward_loss_and_its_gradient_are_trls(kind, pooling, margin, tmp_path):
    """TRL's trainer tokenises the texts, collates the batch and computes the loss; ours gets the texts too."""
    model = new_reward_model(decided(seeded(kind)), pooling)
    pairs = comparisons()
    trainer, other = trl_reward_trainer(model, pairs, tmp_path, margin=margin)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(other, dict(batch))
    theirs.backward()

    data = [replace(item, margin=margin) for item in encode_comparisons(tokenizer(), pairs)]
    assert [list(item.dialogues[0].ids) for item in data] == trainer.train_dataset["chosen_ids"]
    assert [list(item.dialogues[1].ids) for item in data] == trainer.train_dataset["rejected_ids"]
    model.requires_grad_(True)
    ours, accuracy = reward_loss(model, data)
    ours.backward()
    agree("reward loss", ours, theirs)
    agree("accuracy", accuracy, trainer._metrics["train"]["accuracy"][0])
    agree("reward gradient", gradients(model), gradients(other))


def test_reward_training_is_trls_step_by_step(cores, tmp_path):
    """Six updates on 96 pairs in our order, with our optimizer and schedule; all weights at the end are equal."""
    config = RewardConfig(epochs=1, questions_per_batch=16, learning_rate=3e-3, clip_norm=0.5)
    model, pairs = reward_model(1), comparisons(96)
    order = torch.randperm(96, generator=step_generator(0, 0, salt=2)).tolist()

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / (6 / 20)) * (1 - step / 6)

    trainer, other = trl_reward_trainer(
        model, [pairs[i] for i in order], tmp_path, size=16, rate=rate, config=config, max_grad_norm=config.clip_norm
    )
    trainer.train()
    points = list(train_reward_model(model, encode_comparisons(tokenizer(), pairs), config))
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(points) == len(theirs) == 6
    agree("losses", torch.tensor([p.loss for p in points]), torch.tensor(theirs))
    agree("weights after training", weights(model), weights(other))


def test_a_ranking_of_k_replies_is_the_mean_of_trls_pairs(tmp_path):
    """All C(4, 2) pairs of one question. Of several questions ours counts each once, TRL each pair once."""
    model = reward_model(1)

    def ranking(prompt: str, k: int) -> tuple[RankedReplies, list[Comparison]]:
        pairs = [Comparison(prompt, TEXTS[a], TEXTS[b]) for a in range(k) for b in range(a + 1, k)]
        dialogues = tuple(encode_dialogues(tokenizer(), [(prompt, text) for text in TEXTS[:k]]))
        return RankedReplies(dialogues, pairs_of_tiers([[i] for i in range(k)])), pairs

    (four, six_pairs), (two, one_pair) = ranking(PROMPTS[0], 4), ranking(PROMPTS[1], 2)
    losses = []
    for pairs in (six_pairs, one_pair, six_pairs + one_pair):
        trainer, other = trl_reward_trainer(model, pairs, tmp_path, size=len(pairs))
        losses.append(trainer.compute_loss(other, dict(next(iter(trainer.get_train_dataloader())))).item())
    of_six, of_one, of_all = losses
    agree("one question of four replies", reward_loss(model, [four])[0], of_six)
    agree("two questions, each counted once", reward_loss(model, [four, two])[0], (of_six + of_one) / 2)
    assert of_all == pytest.approx((6 * of_six + of_one) / 7, abs=1e-5) and abs(of_six - of_one) > 0.01


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- SFT --------------------------------------------------------------------------------------------------------------


DEMONSTRATIONS = [(prompt, text) for prompt in PROMPTS for text in TEXTS]
SFT = LanguageConfig(steps=4, batch_size=16, learning_rate=3e-3, weight_decay=0.05, warmup=0.5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("loss_type", ["nll", "chunked_nll"])  # the second, which saves memory, is TRL's default
def test_the_sft_loss_and_its_gradient_are_trls(kind, loss_type, tmp_path):
    """TRL applies our chat template, tokenises, masks the prompt and collates; ours does the same from the texts."""
    model = decided(seeded(kind))
    trainer, other = trl_sft_trainer(model, DEMONSTRATIONS, tmp_path, size=16, loss_type=loss_type)
    disable_dropout_in_model(other)  # GPT-2 has some
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(other, dict(batch))
    theirs.backward()

    dialogues = encode_dialogues(tokenizer(), DEMONSTRATIONS)
    assert [list(d.ids) for d in dialogues] == trainer.train_dataset["input_ids"]
    ids, labels = language_batch(dialogues, tokenizer().pad_token_id)
    assert torch.equal(labels, batch["labels"][:, 1:])
    ours = language_loss(model, ids, labels)
    ours.backward()
    agree("SFT loss", ours, theirs)
    agree("SFT gradient", gradients(model), gradients(other))


def test_sft_is_trls_step_by_step(cores, tmp_path):
    """Four updates on sixteen demonstrations each. TRL takes each batch in two halves; both weigh tokens equally."""
    model = decided(language_model(1))
    trainer, other = trl_sft_trainer(
        model,
        DEMONSTRATIONS * 4,
        tmp_path,
        size=8,
        rate=lambda step: learning_rate_at(step, SFT) / SFT.learning_rate,
        config=SFT,
        gradient_accumulation_steps=2,
        max_grad_norm=SFT.clip_norm,
    )
    trainer.train()
    dialogues = encode_dialogues(tokenizer(), DEMONSTRATIONS * 4)

    def batch_at(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return language_batch(dialogues[16 * step : 16 * step + 16], tokenizer().pad_token_id)

    points = list(train_language(model, batch_at, SFT))
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    agree("losses", torch.tensor([p.loss for p in points]), torch.tensor(theirs))
    agree("weights after training", weights(model), weights(other))


def test_sft_weighs_every_token_equally_and_not_every_demonstration(tmp_path):
    """A mean over the batch's reply tokens, as TRL's; a mean of each demonstration's mean would be another number."""
    model = decided(language_model(1))
    short, long = (encode_dialogues(tokenizer(), [pair]) for pair in (DEMONSTRATIONS[0], DEMONSTRATIONS[1]))
    pad = tokenizer().pad_token_id
    each = [language_loss(model, *language_batch(d, pad)).item() for d in (short, long)]
    sizes = [d[0].reply_length for d in (short, long)]
    trainer, other = trl_sft_trainer(model, DEMONSTRATIONS[:2], tmp_path, size=2)
    theirs = trainer.compute_loss(other, dict(next(iter(trainer.get_train_dataloader())))).item()
    agree("mean over tokens", (each[0] * sizes[0] + each[1] * sizes[1]) / sum(sizes), theirs)
    agree("ours", language_loss(model, *language_batch(short + long, pad)), theirs)
    assert abs(sum(each) / 2 - theirs) > 1e-3


def test_sft_trains_without_dropout_where_trl_leaves_it_on(tmp_path):
    model = decided(seeded("gpt2"))
    trainer, other = trl_sft_trainer(model, DEMONSTRATIONS, tmp_path, size=16)
    batch = next(iter(trainer.get_train_dataloader()))
    first, second = (trainer.compute_loss(other, dict(batch)).item() for _ in range(2))
    assert first != second  # the same weights and batch
    dialogues = encode_dialogues(tokenizer(), DEMONSTRATIONS)
    points = [next(train_sft(copy.deepcopy(model), dialogues, tokenizer().pad_token_id, SFT)) for _ in range(2)]
    assert points[0].loss == points[1].loss
