"""The live loop with other methods than PPO: they move the policy, go back, and online DPO learns labels directly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from taught import taught_model
from test_live import CONFIG, SAMPLING, answer, ask, equal, events, make_loop
from tiny import PROMPTS, TEXTS, reward_model, tokenizer

from rlhf_lab.config import GRPOConfig, LiveConfig, OnlineDPOConfig, RLOOConfig, SamplingConfig
from rlhf_lab.direct import summed_logprobs
from rlhf_lab.errors import InputError
from rlhf_lab.live import LiveLoop
from rlhf_lab.records import Candidate, LoopError, Question, Ranking, RolledBack, StateChanged, StepStats
from rlhf_lab.text import encode_dialogues

METHODS = ["rloo", "grpo", "online-dpo"]


def weights(loop) -> list[torch.Tensor]:
    return [p.detach().clone() for p in loop.policy.parameters()]


@pytest.fixture(params=METHODS)
def loop(request, tmp_path):
    """Its policy gives each of four texts about as often, so that no group of eight replies is all alike."""
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=40)
    own = {"rloo": RLOOConfig, "grpo": GRPOConfig, "online-dpo": OnlineDPOConfig}[request.param]
    config = replace(CONFIG, method=request.param, group=own(batch_size=8, group_size=8, anneal=False))
    width = taught_model().config.hidden_size
    prior = torch.zeros(width), torch.eye(width)
    made = LiveLoop(
        taught_model(), reward_model(), tokenizer(), PROMPTS, tmp_path / "live.db", prior, "me", config, sampling
    )
    yield made
    made.stop()
    assert made.join()


def test_a_step_moves_the_policy_and_leaves_the_reference(loop):
    before, reference = weights(loop), [p.clone() for p in loop.reference.parameters()]
    loop.submit(answer(ask(loop)))
    loop.step(3)
    assert loop.wait_idle() and not events(loop, LoopError)
    assert [s.step for s in events(loop, StepStats)] == [1, 2, 3]
    assert not equal(weights(loop), before) and equal(loop.reference.parameters(), reference)
    stats = events(loop, StepStats)[0]
    assert len(stats.samples) == loop.config.group.batch_size and stats.truncated < 1
    assert stats.explained_variance == stats.value_loss == 0


def test_rollback_goes_back_to_just_before_a_label(loop):
    loop.submit(answer(ask(loop)))
    loop.step(2)
    assert loop.wait_idle()
    then, taste = weights(loop), loop.taste.weight.clone()
    second = answer(ask(loop))
    loop.submit(second)
    loop.step(2)
    assert loop.wait_idle() and not equal(weights(loop), then)
    assert loop.rollback(second.id) == 1
    assert loop.wait_idle() and equal(weights(loop), then) and torch.allclose(loop.taste.weight, taste)
    assert events(loop, RolledBack)[0].to_step == 2
    loop.step()
    assert loop.wait_idle() and events(loop, StepStats)[-1].step == 5


def test_the_message_names_the_method(loop):
    loop.start()
    loop.pause()
    title = {"rloo": "RLOO", "grpo": "GRPO", "online-dpo": "Online DPO"}[loop.config.method]
    assert all(event.message.startswith(title) for event in events(loop, StateChanged))


def test_the_methods_options_are_those_it_shares_with_ppo_or_given_whole(tmp_path):
    for method, steered in (("rloo", True), ("grpo", True), ("online-dpo", False)):
        made = make_loop(tmp_path / f"{method}.db", config=replace(CONFIG, method=method))
        options = made.ppo.config
        assert (options.batch_size, options.anneal, options.sampling) == (4, False, SAMPLING)
        assert options.kl_target == (CONFIG.ppo.kl_target if steered else None)
    own = GRPOConfig(batch_size=8, group_size=2, scale=False)
    made = make_loop(tmp_path / "own.db", config=replace(CONFIG, method="grpo", group=own))
    assert made.ppo.config == replace(own, sampling=SAMPLING)
    made.stop()
    assert made.join()


def test_a_wrong_option_is_named(tmp_path):
    with pytest.raises(InputError, match="LiveConfig.method is 'dpo'; it must be one of ppo, rloo, grpo, online-dpo"):
        LiveConfig(method="dpo")
    with pytest.raises(InputError, match="LiveConfig.group"):
        LiveConfig(group=RLOOConfig())
    with pytest.raises(InputError, match="takes a GRPOConfig, and was given a RLOOConfig"):
        make_loop(tmp_path / "live.db", config=replace(CONFIG, method="grpo", group=RLOOConfig(batch_size=8)))


# --- online DPO and the person's own rankings -------------------------------------------------------------------------


@pytest.fixture
def direct(tmp_path):
    """A loop whose reward head knows nothing and learns nothing (a prior without any spread), so its pairs are ties."""
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=40)
    own = OnlineDPOConfig(batch_size=8, learning_rate=2e-3, anneal=False, truncated_score=0.0)
    width = taught_model().config.hidden_size
    made = LiveLoop(
        taught_model(), reward_model(), tokenizer(), PROMPTS, tmp_path / "live.db",
        (torch.zeros(width), 1e-12 * torch.eye(width)), "me",
        LiveConfig(candidates=3, method="online-dpo", group=own), sampling,
    )  # fmt: skip
    made.ppo.score = lambda samples: torch.zeros(len(samples))
    yield made
    made.stop()
    assert made.join()


def ranked(loop) -> Ranking:
    """The person puts the last of the four texts first, and says so of a question of their own."""
    asked = Question("own", PROMPTS[0], tuple(Candidate(f"c{i}", text) for i, text in enumerate(TEXTS)))
    loop.ask(asked)
    return Ranking("own", (("c3",), ("c0", "c1", "c2")), "me")


def preference(loop) -> float:
    """How much likelier the favourite has become than the others, in nats."""
    dialogues = encode_dialogues(tokenizer(), [(PROMPTS[0], text) for text in TEXTS])
    h = (summed_logprobs(loop.policy, dialogues) - summed_logprobs(loop.reference, dialogues)).detach()
    return (h[3] - h[:3].mean()).item()


def test_online_dpo_learns_the_persons_rankings_themselves(direct):
    direct.step(2)
    assert direct.wait_idle() and preference(direct) == pytest.approx(0, abs=1e-4)  # no label: nothing moves
    direct.submit(ranked(direct))
    direct.step(6)
    assert direct.wait_idle() and not events(direct, LoopError)
    assert preference(direct) > 1


def test_a_withdrawn_ranking_teaches_online_dpo_no_more(direct):
    ranking = ranked(direct)
    direct.submit(ranking)
    direct.wait_idle()
    direct.withdraw(ranking.id)
    direct.step(3)
    assert direct.wait_idle() and preference(direct) == pytest.approx(0, abs=1e-4)


def test_a_label_in_the_middle_of_a_step_counts_only_after_its_snapshot(direct, monkeypatch):
    """Going back to just before it must find weights that it has not touched."""
    ranking, step = ranked(direct), direct.ppo.step

    def while_it_runs(prompts):
        direct.submit(ranking)
        return step(prompts)

    monkeypatch.setattr(direct.ppo, "step", while_it_runs)
    direct.step()
    assert direct.wait_idle()
    monkeypatch.setattr(direct.ppo, "step", step)
    direct.step(2)
    assert direct.wait_idle() and preference(direct) > 0.1
    direct.rollback(ranking.id)
    assert direct.wait_idle() and preference(direct) == pytest.approx(0, abs=1e-4)
