"""One interface, every method: the same labels drive any of them, and what they cost is counted by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from taught import score_length, taught_model
from tiny import PROMPTS, TEXTS, language_model, reward_model, tokenizer

from rlhf_lab.config import (
    BestOfNConfig,
    DirectConfig,
    GRPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    RaftConfig,
    RewardConfig,
    RLOOConfig,
    SamplingConfig,
)
from rlhf_lab.direct import JudgedReply
from rlhf_lab.errors import InputError
from rlhf_lab.group import GroupTrainer
from rlhf_lab.methods import (
    METHODS,
    Feedback,
    Start,
    online_trainer,
    options,
    options_like,
    passes,
    reward_passes,
    train,
    within,
    write,
)
from rlhf_lab.models import Critic, ValueHead
from rlhf_lab.ppo import PPO
from rlhf_lab.records import Candidate, DirectPoint, Question, Ranking, StepStats, Vote

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=40)
QUESTIONS = [
    Question(f"q{i}", prompt, tuple(Candidate(f"{i}{j}", text) for j, text in enumerate(TEXTS)))
    for i, prompt in enumerate(PROMPTS)
]
ANSWERS = [  # short replies first, always
    Ranking(q.id, tuple((c.id,) for c in sorted(q.candidates, key=lambda c: len(c.text))), "me") for q in QUESTIONS
]


def start(**changes) -> Start:
    made = Start(taught_model().requires_grad_(False), tokenizer(), PROMPTS, reward_model(), score_length)
    return replace(made, **changes)


def feedback() -> Feedback:
    return Feedback.of(tokenizer(), QUESTIONS, ANSWERS)


def small(name: str):
    """Options for a test: a few short steps that still learn."""
    config = options(name)
    if isinstance(config, BestOfNConfig):
        return replace(config, n=6, sampling=SAMPLING)
    if isinstance(config, DirectConfig):
        return replace(config, steps=12, questions_per_batch=2, votes_per_batch=8, learning_rate=1e-3)
    common = {"steps": 8, "batch_size": 16, "sampling": SAMPLING, "truncated_score": -5.0, "learning_rate": 2e-3}
    return replace(config, **common)


def tokens(samples) -> float:
    return sum(s.dialogue.reply_length for s in samples) / len(samples)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_follows_the_same_taste(name):
    """Short replies: said in rankings to those that learn from labels, and by the score to those that learn from it."""
    begun, config = start(), small(name)
    policy, weights = begun.policy(), copy.deepcopy(begun.reference.state_dict())
    points = list(train(name, policy, begun, feedback(), config))
    kind = {"labels": DirectPoint, "score": StepStats}.get(METHODS[name].learns_from)
    assert [type(p) for p in points] == [kind] * getattr(config, "steps", 0)
    prompts = PROMPTS * 8

    def seeded():
        return torch.Generator().manual_seed(0)

    before = write("dpo", begun.reference, begun, prompts, generator=seeded())
    after = write(name, policy, begun, prompts, config, seeded())
    assert tokens(after) < tokens(before) - 2
    assert all(torch.equal(t, weights[n]) for n, t in begun.reference.state_dict().items())


def test_what_a_person_said_is_sorted_by_form():
    said = Feedback.of(tokenizer(), QUESTIONS, [*ANSWERS, Vote("q0", "00", True, "me")])
    assert (len(said.rankings), len(said.votes)) == (4, 1)


def test_kto_takes_votes_where_there_are_any_and_rankings_otherwise():
    config = replace(small("kto"), steps=1)
    votes = [JudgedReply(d, i % 2 == 0) for i, d in enumerate(feedback().rankings[0].dialogues)]
    for said, seen in ((replace(feedback(), votes=votes), 4), (feedback(), 8)):
        begun = start()
        (point,) = train("kto", begun.policy(), begun, said, config)
        assert point.labels == seen


def test_ppos_critic_begins_as_the_reward_model_or_as_a_head_on_the_policy():
    for given, kind in ((reward_model(), Critic), (None, ValueHead)):
        begun = start(reward_model=given)
        trainer = online_trainer("ppo", begun.policy(), begun, small("ppo"))
        assert isinstance(trainer, PPO) and isinstance(trainer.critic, kind)
    assert isinstance(online_trainer("rloo", begun.policy(), begun, small("rloo")), GroupTrainer)


def test_the_reward_model_scores_where_no_function_is_given():
    begun = start(score=None)
    prompts = write("dpo", begun.reference, begun, PROMPTS, generator=torch.Generator().manual_seed(0))
    assert begun.judge()(prompts).shape == (4,)
    with pytest.raises(InputError, match="give Start a reward_model or a score function"):
        replace(begun, reward_model=None).judge()


def test_bad_input_is_one_clear_sentence():
    begun, policy = start(), language_model()
    with pytest.raises(InputError, match="method 'trpo' does not exist; use one of best-of-n, raft, dpo"):
        train("trpo", policy, begun)
    with pytest.raises(InputError, match="method 'grpo' takes a GRPOConfig, and was given a RLOOConfig"):
        train("grpo", policy, begun, config=RLOOConfig())
    with pytest.raises(InputError, match="no labels to learn from"):
        train("dpo", policy, begun)
    with pytest.raises(
        InputError, match="method 'dpo' writes no replies as it learns; those that do: raft, online-dpo"
    ):
        online_trainer("dpo", policy, begun)
    with pytest.raises(InputError, match="no prompts to draw from"):
        next(train("rloo", policy, replace(begun, prompts=()), config=small("rloo")))


def test_options_like_takes_what_methods_share_and_leaves_the_rest():
    ppo = PPOConfig(steps=7, batch_size=16, learning_rate=9e-4, anneal=False, sampling=SAMPLING)
    other = options_like("rloo", ppo, group_size=2)
    assert (other.steps, other.batch_size, other.anneal, other.sampling) == (7, 16, False, SAMPLING)
    assert (other.learning_rate, other.group_size) == (RLOOConfig().learning_rate, 2)
    assert options_like("ppo", ppo) == ppo


def test_costs_by_hand():
    said = feedback()  # 4 questions of 4 replies
    # PPO: write, score, π, π_ref, V, and in each of 3 epochs policy and critic with gradient: 5 + 3·6 = 23 a reply
    assert passes(PPOConfig(steps=2, batch_size=10, epochs=3, minibatches=1)) == 2 * 10 * 23
    # RLOO and GRPO: write, score, π, π_ref, and one epoch: 4 + 3 = 7; RAFT and online DPO read 1 and 2 of 4 again
    for config, a_reply in ((RLOOConfig, 7), (GRPOConfig, 7), (RaftConfig, 4.75), (OnlineDPOConfig, 5.5)):
        assert passes(config(steps=1, batch_size=8)) == 8 * a_reply
    # DPO: 2 questions of 4 replies, 3 each; π_ref reads each of the 16 replies once, done after two steps
    dpo = DirectConfig(steps=1, questions_per_batch=2)
    assert passes(dpo, said) == 8 * 3 + 8
    assert passes(replace(dpo, steps=10), said) == 10 * 24 + 16
    # KTO: 3, and a read behind another prompt; π_ref reads both once
    kto = DirectConfig(loss="kto", steps=10, votes_per_batch=4)
    assert passes(kto, said) == 10 * 4 * 4 + 32
    assert passes(BestOfNConfig()) == 0
    # a reward model: 16 replies in each of 2 epochs, with gradient
    assert reward_passes(RewardConfig(epochs=2), said) == 2 * 16 * 3


@pytest.mark.parametrize("name", [name for name in METHODS if name != "best-of-n"])
@pytest.mark.parametrize("budget", [500, 20_000])
def test_within_spends_the_budget_and_no_more(name, budget):
    config = within(
        replace(options(name), questions_per_batch=2) if name in ("dpo", "ipo") else options(name), budget, feedback()
    )
    if config.steps > 1:
        assert passes(config, feedback()) <= budget < passes(replace(config, steps=config.steps + 1), feedback())
