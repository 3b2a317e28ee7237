"""The switches: each breaks what it says, by hand or against the right trainer; both arms start alike."""

import math
from dataclasses import replace

import pytest
import torch
from taught import taught_model
from tiny import PROMPTS, reward_model, tokenizer

from rlhf_lab.ablations import SWITCHES, ArmStep, Setup, compare, run_arm, switch_named, symptoms, trainer_of
from rlhf_lab.config import PPOConfig, SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.models import head_of, hidden_states
from rlhf_lab.plots import ABLATION_METRICS, ablation_curves
from rlhf_lab.ppo import PPO, train_ppo, value_loss
from rlhf_lab.records import Rollout, StepStats
from rlhf_lab.replies import reply_batch
from rlhf_lab.reward import reward_score
from rlhf_lab.sampling import Sample, sample
from rlhf_lab.text import Dialogue, encode_dialogues, pad_right

CONFIG = PPOConfig(
    steps=3, batch_size=4, minibatches=2, epochs=2, learning_rate=3e-3, sampling=SamplingConfig(max_new_tokens=40)
)
POLICY, REWARD = taught_model(), reward_model()
MASK = torch.tensor([[True, True, True], [True, False, False]])
TWO = {"logprobs": torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 0.0, 0.0]])}
TWO["ref_logprobs"] = torch.tensor([[-1.5, -1.0, -0.5], [-3.0, 0.0, 0.0]])
SCORES = torch.tensor([2.0, -1.0])


def setup(**changes) -> Setup:
    return Setup(POLICY, REWARD, tokenizer(), PROMPTS, replace(CONFIG, **changes))


def broken(name: str, **changes) -> PPO:
    return trainer_of(setup(**changes), SWITCHES[name])


def right(name: str, **changes) -> PPO:
    made = setup(**changes)
    return trainer_of(replace(made, config=SWITCHES[name].right_config(made.config)))


def written(reply: str, prompt: str = "Who?", truncated: bool = False) -> Sample:
    [dialogue] = encode_dialogues(tokenizer(), [(prompt, reply)])
    if truncated:
        dialogue = Dialogue(dialogue.ids[:-1], dialogue.prompt_length)
    return Sample(prompt, reply, dialogue, truncated)


SHORT, LONG = written("It is on Tuesday."), written("Thank you for asking, it costs five pounds a visit.")


def numbers(step) -> dict:
    return vars(step) | {"seconds": 0.0}


# --- what holds for every switch ---


@pytest.mark.parametrize("name", SWITCHES)
def test_both_arms_start_alike_and_part(name):
    switch, config = SWITCHES[name], replace(CONFIG, learning_rate=1e-2)
    made = Setup(POLICY, REWARD, tokenizer(), PROMPTS, config)
    steps = list(compare(made, switch))
    assert [step.arm for step in steps] == ["right", "broken"] * config.steps
    first, other = steps[0].stats.samples, steps[1].stats.samples
    assert [s.prompt for s in first] == [s.prompt for s in other]
    if switch.broken_config(config).sampling == switch.right_config(config).sampling:
        assert [s.reply for s in first] == [s.reply for s in other]  # the same checkpoint, the same chance
        assert steps[0].true_reward == pytest.approx(steps[1].true_reward, abs=2.0 if name == "no_end_penalty" else 0)
    later = [(numbers(a.stats), numbers(b.stats)) for a, b in zip(steps[2::2], steps[3::2], strict=True)]
    assert any(a != b for a, b in later)


@pytest.mark.parametrize("name", ["kl_sign", "reward_mean_removed", "no_end_penalty"])
def test_the_right_arm_is_plain_ppo_number_for_number(name):
    plain = [numbers(stats) for stats in train_ppo(right(name), PROMPTS)]
    assert [numbers(step.stats) for step in run_arm(setup(), SWITCHES[name], "right")] == plain
    assert type(right(name)) is PPO


def test_the_checkpoint_is_left_as_it_was():
    before = [p.clone() for model in (POLICY, REWARD) for p in model.parameters()]
    list(compare(setup(), SWITCHES["kl_sign"]))
    assert all(torch.equal(a, b) for a, b in zip(before, (*POLICY.parameters(), *REWARD.parameters()), strict=True))


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    made, switch = setup(), SWITCHES["dropout"]
    runs = [[numbers(s.stats) for s in run_arm(replace(made, seed=seed), switch, "broken")] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_every_switch_says_what_it_is_and_has_curves_that_tell():
    assert len({switch.title for switch in SWITCHES.values()}) == len(SWITCHES)
    for switch in SWITCHES.values():
        words = (switch.purpose, switch.failure, switch.right, switch.wrong, switch.source, switch.measured)
        assert all(words), switch.name
        assert switch.right != switch.wrong and set(switch.watch) <= ABLATION_METRICS.keys() and len(switch.watch) <= 3


# --- KL ---


def test_kl_sign_pays_for_drift_and_logs_it_the_wrong_way_round():
    # β = 0.15: +0.15·0.5, −0.15·1, 0 + score 2;  +0.15·2 + score −1
    rewards = broken("kl_sign").rewards(**TWO, scores=SCORES, mask=MASK)
    assert torch.allclose(rewards, torch.tensor([[0.075, -0.15, 2.0], [-0.7, 0.0, 0.0]]))
    assert torch.allclose(right("kl_sign").rewards(**TWO, scores=SCORES, mask=MASK)[0, :2], -rewards[0, :2])
    for arm in ("right", "broken"):
        ran = list(run_arm(setup(), SWITCHES["kl_sign"], arm))
        signed = [s.logged_kl for s in ran][1:]
        assert all(abs(value) > 0 for value in signed)
    unsigned = [s.logged_kl for s in run_arm(setup(), replace(SWITCHES["kl_sign"], logged_sign=1), "broken")][1:]
    assert signed == [-value for value in unsigned]


def test_the_logged_kl_is_the_mean_over_replies_of_the_sum_over_tokens():
    step = list(run_arm(setup(steps=2), SWITCHES["kl_sign"], "right"))[-1]
    trainer = trainer_of(setup(steps=2))
    seen = []
    compute = trainer.experience
    trainer.experience = lambda samples, scores: seen.append(compute(samples, scores)) or seen[-1]
    list(train_ppo(trainer, PROMPTS))
    experience = seen[-1][0]
    rows = [
        sum((experience.logprobs[i, j] - experience.ref_logprobs[i, j]).item() for j in range(int(row.sum())))
        for i, row in enumerate(experience.mask)
    ]
    assert step.logged_kl == pytest.approx(sum(rows) / len(rows), abs=1e-5)


def test_no_kl_charges_nothing_and_no_controller_brings_it_back():
    trainer = broken("no_kl")
    rewards = trainer.rewards(**TWO, scores=SCORES, mask=MASK)
    assert rewards.tolist() == [[0.0, 0.0, 2.0], [-1.0, 0.0, 0.0]]
    assert [stats.beta for stats in train_ppo(trainer, PROMPTS)] == [0.0] * 3


def test_fixed_kl_leaves_beta_where_it_was():
    assert [stats.beta for stats in train_ppo(broken("fixed_kl"), PROMPTS)] == [1.0] * 3
    assert len({stats.beta for stats in train_ppo(right("fixed_kl"), PROMPTS)}) == 3


def test_top_k_draws_from_two_tokens_and_reports_the_log_probabilities_of_all():
    trainer = broken("top_k")
    replies = sample(trainer.policy, tokenizer(), PROMPTS, trainer.config.sampling, torch.Generator().manual_seed(0))
    batch = reply_batch([s.dialogue for s in replies], tokenizer().pad_token_id)
    with torch.no_grad():
        logits = trainer.policy(batch.ids).logits
        logprobs, _, _ = trainer.read(batch)
    for row, dialogue in enumerate(s.dialogue for s in replies):
        for column, token in enumerate(dialogue.ids[dialogue.prompt_length :]):
            at = logits[row, dialogue.prompt_length - 1 + column]
            assert token in at.topk(2).indices
            assert logprobs[row, column].item() == pytest.approx((at / 0.7).log_softmax(0)[token].item(), abs=1e-4)


def test_no_temperature_reads_at_one_and_samples_at_seven_tenths():
    batch = reply_batch([SHORT.dialogue], tokenizer().pad_token_id)
    start, tokens = SHORT.dialogue.prompt_length, SHORT.dialogue.ids[SHORT.dialogue.prompt_length :]
    for trainer, temperature in ((broken("no_temperature"), 1.0), (right("no_temperature"), 0.7)):
        with torch.no_grad():
            logprobs, _, _ = trainer.read(batch)
            rows = (trainer.policy(batch.ids).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
        assert logprobs[0].tolist() == pytest.approx([rows[i, t].item() for i, t in enumerate(tokens)], abs=1e-4)
        assert trainer.config.sampling.temperature == 0.7


# --- reward ---


def test_score_in_padding_pays_in_the_last_column_whatever_stands_there():
    rewards = broken("score_in_padding").rewards(**TWO, scores=SCORES, mask=MASK)
    assert torch.allclose(rewards, torch.tensor([[-0.075, 0.15, 2.0], [-0.3, 0.0, -1.0]]))  # −1 falls on padding
    advantages, _ = broken("score_in_padding").advantages(rewards, torch.zeros(2, 3), MASK)
    unscored, _ = broken("score_in_padding").advantages(rewards * MASK, torch.zeros(2, 3), MASK)
    assert torch.equal(advantages, unscored)


def test_score_at_last_column_reads_the_short_reply_on_padding():
    wrong = SWITCHES["score_at_last_column"].score(REWARD)([SHORT, LONG])
    proper = reward_score(REWARD)([SHORT, LONG])
    ids, lengths = pad_right([SHORT.dialogue.ids, LONG.dialogue.ids], tokenizer().pad_token_id)
    assert lengths[0] < lengths[1] == ids.shape[1]
    with torch.no_grad():
        at_the_end = head_of(REWARD)(hidden_states(REWARD, ids))[:, -1, 0]
    assert torch.allclose(wrong, at_the_end, atol=1e-5)
    assert wrong[1].item() == pytest.approx(proper[1].item(), abs=1e-5) and abs(wrong[0] - proper[0]) > 1e-4


def test_scores_misaligned_gives_the_shortest_dialogues_score_to_the_first():
    samples = [LONG, SHORT, written("Ask Grace, please.")]
    proper = reward_score(REWARD)(samples)
    by_length = sorted(range(3), key=lambda i: len(samples[i].dialogue.ids))
    assert by_length[0] != 0
    assert SWITCHES["scores_misaligned"].score(REWARD)(samples).tolist() == [proper[i].item() for i in by_length]


def test_reward_shifted_is_ten_higher_for_everyone():
    proper = reward_score(REWARD)([SHORT, LONG])
    assert torch.allclose(SWITCHES["reward_shifted"].score(REWARD)([SHORT, LONG]), proper + 10)


def test_reward_mean_removed_pays_tokens_for_being_there():
    # rewards (0, 0, 3, 1) with log π = log π_ref: mean 1, σ² = (1 + 1 + 4 + 0) / 4 = 1.5
    same = torch.zeros(2, 3)
    one_reply = {"logprobs": same, "ref_logprobs": same, "scores": torch.tensor([3.0, 1.0]), "mask": MASK}
    root = math.sqrt(1.5)
    rewards = broken("reward_mean_removed").rewards(**one_reply)
    assert rewards[MASK].tolist() == pytest.approx([-1 / root, -1 / root, 2 / root, 0.0])
    assert right("reward_mean_removed").rewards(**one_reply)[MASK].tolist() == pytest.approx([0, 0, 3 / root, 1 / root])


# --- credit ---

REWARDS = torch.tensor([[-0.05, 0.1, 2.0]])
VALUES = torch.tensor([[0.5, 0.8, 1.5]])
ONE = torch.ones(1, 3, dtype=torch.bool)
GAE = [1.46125, 1.275, 0.5]  # worked in notebook 05
MEAN = sum(GAE) / 3
SIGMA = math.sqrt(sum((a - MEAN) ** 2 for a in GAE) / 3)


def credit(trainer: PPO) -> tuple[list[float], list[float]]:
    advantages, returns = trainer.advantages(REWARDS, VALUES, ONE)
    return advantages[0].tolist(), returns[0].tolist()


def test_the_right_one_whitens_behind_the_returns():
    advantages, returns = credit(right("whiten_before_returns"))
    assert advantages == pytest.approx([(a - MEAN) / SIGMA for a in GAE], abs=1e-5)
    assert returns == pytest.approx([a + v for a, v in zip(GAE, VALUES[0].tolist(), strict=True)], abs=1e-5)


def test_whiten_before_returns_adds_whitened_advantages_to_the_values():
    advantages, returns = credit(broken("whiten_before_returns"))
    assert advantages == pytest.approx([(a - MEAN) / SIGMA for a in GAE], abs=1e-5)
    assert returns == pytest.approx([a + v for a, v in zip(advantages, VALUES[0].tolist(), strict=True)], abs=1e-5)


def test_advantages_not_whitened_are_gae_itself():
    assert credit(broken("advantages_not_whitened"))[0] == pytest.approx(GAE, abs=1e-5)


def test_advantage_mean_kept_divides_only():
    assert credit(broken("advantage_mean_kept"))[0] == pytest.approx([a / SIGMA for a in GAE], abs=1e-5)


def test_critic_from_scratch_has_the_sft_models_trunk_and_a_random_head():
    made = setup()
    wrong, proper = broken("critic_from_scratch").critic.model, right("critic_from_scratch").critic.model
    trunk = POLICY.base_model.state_dict()
    assert all(torch.equal(weight, trunk[name]) for name, weight in wrong.base_model.state_dict().items())
    assert wrong.config.num_hidden_layers == POLICY.config.num_hidden_layers
    assert torch.equal(head_of(proper).weight, head_of(REWARD).weight)
    other = trainer_of(replace(made, seed=1), SWITCHES["critic_from_scratch"]).critic.model
    assert not torch.equal(head_of(wrong).weight, head_of(other).weight)  # drawn from the comparison's seed


def test_no_value_clip_is_half_the_squared_error():
    clip = broken("no_value_clip").config.value_clip_range
    new, old, returns = torch.tensor([[1.0]]), torch.tensor([[0.5]]), torch.tensor([[2.0]])
    assert value_loss(new, old, returns, ONE[:, :1], clip).item() == pytest.approx(0.5)
    assert value_loss(new, old, returns, ONE[:, :1], 0.2).item() == pytest.approx(0.845)


# --- step size ---


def test_no_ratio_clip_clips_nothing_and_goes_through_all_epochs():
    options = {"learning_rate": 3e-2, "epochs": 4, "max_kl_step": 1e-3}
    wrong, proper = broken("no_ratio_clip", **options).step(PROMPTS), right("no_ratio_clip", **options).step(PROMPTS)
    assert (wrong.clipfrac, wrong.epochs) == (0.0, 4)
    assert proper.clipfrac > 0 and proper.epochs < 4


def minibatch_of(trainer: PPO):
    return trainer.experience([SHORT, LONG], torch.tensor([1.0, -1.0]))[0]


def test_dropout_moves_the_ratio_before_any_step_was_taken():
    for name in ("right", "broken"):
        trainer = broken("dropout") if name == "broken" else right("dropout")
        seen = minibatch_of(trainer)
        _, told = trainer.loss(seen)
        drift = told["approx_kl"].item()
        assert drift > 1e-4 if name == "broken" else drift < 1e-9
        with torch.no_grad():  # replies are read without dropout
            assert torch.allclose(trainer.read(seen)[0], seen.logprobs, atol=1e-6)


def test_dropout_zeroes_a_tenth_anew_each_time_and_keeps_the_expected_state():
    trainer = broken("dropout")
    first, second = trainer.kept(torch.ones(400, 50)), trainer.kept(torch.ones(400, 50))
    assert set(first.unique().tolist()) == {0.0, 1.0} and first.mean().item() == pytest.approx(0.9, abs=0.01)
    assert (first != second).float().mean().item() == pytest.approx(2 * 0.9 * 0.1, abs=0.01)


def test_dropout_reaches_the_states_that_the_fast_path_gives():
    trainer = broken("dropout")
    seen = minibatch_of(trainer)
    trainer.kept = torch.zeros_like  # everything dropped: each next token is equally likely
    logprobs, _, _ = trainer.read(seen)
    uniform = -math.log(POLICY.config.vocab_size)
    assert logprobs[seen.mask].tolist() == pytest.approx([uniform] * seen.size, abs=1e-4)


def test_dropout_is_the_same_on_one_core_and_two(monkeypatch):
    monkeypatch.setattr("rlhf_lab.cores.SMALLEST", 1)
    threads, ran = torch.get_num_threads(), []
    try:
        for cores in (1, 2):
            torch.set_num_threads(cores)
            ran.append([s.stats.clipfrac for s in run_arm(setup(), SWITCHES["dropout"], "broken")])
    finally:
        torch.set_num_threads(threads)
    assert ran[0] == pytest.approx(ran[1], abs=0.02)  # the draws are the same; rounding may move a token over 1 ± ε
    assert broken("dropout").parts(seen := minibatch_of(broken("dropout"))) == [seen]


def test_tiny_learning_rate_moves_nothing():
    wrong, proper = (list(run_arm(setup(), SWITCHES["tiny_learning_rate"], arm))[-1] for arm in ("broken", "right"))
    assert wrong.stats.kl < 1e-6 < 1e-3 < proper.stats.kl


def test_no_anneal_keeps_the_learning_rate():
    assert [s.learning_rate for s in train_ppo(broken("no_anneal"), PROMPTS)] == pytest.approx([3e-3] * 3)
    assert [s.learning_rate for s in train_ppo(right("no_anneal"), PROMPTS)] == pytest.approx([3e-3, 2e-3, 1e-3])


def test_adam_eps_is_pytorchs_default():
    assert {group["eps"] for group in broken("adam_eps").optimizer.param_groups} == {1e-8}
    assert {group["eps"] for group in right("adam_eps").optimizer.param_groups} == {1e-5}


def test_no_brakes_takes_every_brake_off():
    trainer = broken("no_brakes")
    config = trainer.config
    assert (config.kl_coefficient, config.kl_target, config.max_kl_step, config.anneal) == (0.0, None, None, False)
    assert config.clip_range == math.inf and {g["lr"] for g in trainer.optimizer.param_groups} == {3e-3, 1e-3}


# --- ends and masks ---


def test_pad_is_eos_loses_the_end_token_and_nothing_else():
    cut = written("Go to the", truncated=True)
    seen, _ = broken("pad_is_eos").experience([SHORT, cut], torch.zeros(2))
    whole, _ = right("pad_is_eos").experience([SHORT, cut], torch.zeros(2))
    assert (whole.mask.sum(1) - seen.mask.sum(1)).tolist() == [1, 0]
    end = tokenizer().eos_token_id
    assert end in whole.tokens[whole.mask] and end not in seen.tokens[seen.mask]
    length = int(seen.mask[0].sum())
    assert torch.allclose(seen.logprobs[0, :length], whole.logprobs[0, :length], atol=1e-5)


def test_no_end_penalty_leaves_half_a_sentence_its_score():
    samples = [SHORT, written("Go to the", truncated=True)]
    raw = reward_score(REWARD)(samples)
    assert torch.allclose(broken("no_end_penalty").judged(samples), raw)
    assert right("no_end_penalty").judged(samples).tolist() == pytest.approx([raw[0].item(), -2.0])
    for trainer in (broken("no_end_penalty"), right("no_end_penalty")):
        assert trainer.config.sampling.max_new_tokens == 12


# --- a comparison ---


def test_a_right_arm_that_was_run_before_is_taken_as_it_is():
    switch = SWITCHES["fixed_kl"]
    before = list(run_arm(setup(), switch, "right"))
    steps = list(compare(setup(), switch, before))
    assert steps[::2] == before and {step.arm for step in steps[1::2]} == {"broken"}


def test_a_right_arm_of_another_length_is_refused():
    before = list(run_arm(setup(steps=2), SWITCHES["fixed_kl"], "right"))
    with pytest.raises(InputError, match="2 steps.*3"):
        list(compare(setup(), SWITCHES["fixed_kl"], before))


def test_an_unknown_switch_is_named_with_those_there_are():
    with pytest.raises(InputError, match="'dropuot'.*kl_sign.*dropout"):
        switch_named("dropuot")


# --- symptoms ---


def arm_steps(arm: str, count: int = 6, **fields) -> list[ArmStep]:
    own = {"true_reward": 1.0, "logged_kl": 2.0, "distinct": 1.0} | {
        key: fields.pop(key) for key in ("true_reward", "logged_kl", "distinct") if key in fields
    }
    base = {"reward": 1.0, "kl": 2.0, "objective": 0.7, "beta": 0.15, "entropy": 0.4, "clipfrac": 0.03}
    base |= {"approx_kl": 0.01, "explained_variance": 0.5, "policy_loss": 0.0, "value_loss": 0.1, "reply_length": 15.0}
    base |= {"truncated": 0.0, "learning_rate": 3e-4, "epochs": 3, "seconds": 1.0}
    stats = [StepStats(step=i + 1, **base | fields, samples=()) for i in range(count)]
    pick = lambda value, i: value[i] if isinstance(value, list) else value  # noqa: E731
    return [ArmStep(arm, s, **{key: pick(value, i) for key, value in own.items()}) for i, s in enumerate(stats)]


RISING = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("Negative KL", {"logged_kl": -2.0}),
        ("KL runs away", {"kl": 9.0}),
        ("Flat reward", {"true_reward": [0.0, 0.1, 0.0, 0.1, 0.0, 0.1]}),
        ("Less reward", {"true_reward": [0.0, 0.1, 0.2, 0.3, 0.4, 0.6]}),
        ("Collapse", {"distinct": 0.1}),
        ("Replies do not end", {"truncated": 0.5}),
        ("Replies grow", {"reply_length": 25.0}),
        ("Replies shrink", {"reply_length": 8.0}),
        ("The critic is lost", {"explained_variance": -0.2}),
        ("Nothing moves", {"approx_kl": 1e-5}),
        ("Steps too large", {"approx_kl": 0.1}),
        ("More is clipped", {"clipfrac": 0.08}),
        ("Two KLs", {"logged_kl": 3.5}),
    ],
)
def test_each_symptom_is_seen_alone(name, wrong):
    steps = arm_steps("right", true_reward=RISING) + arm_steps("broken", **{"true_reward": RISING} | wrong)
    assert [symptom.name for symptom in symptoms(steps)] == [name]


def test_no_symptom_where_nothing_differs_or_only_one_arm_has_run():
    assert symptoms(arm_steps("right") + arm_steps("broken")) == []
    assert symptoms(arm_steps("right")) == symptoms([]) == []


def test_a_symptom_says_its_numbers_with_a_real_minus():
    [found] = symptoms(arm_steps("right") + arm_steps("broken", logged_kl=-2.25))
    assert "−2.2 nats a reply" in found.words and "-" not in found.words


def test_two_numbers_of_one_kl_are_no_symptom_where_the_right_one_has_them_too():
    steps = arm_steps("right", logged_kl=3.5) + arm_steps("broken", logged_kl=3.5)
    assert symptoms(steps) == []


def test_a_metric_is_found_by_its_name_in_the_step_or_its_stats():
    step = arm_steps("right", kl=3.0, logged_kl=-1.0)[0]
    assert (step.metric("kl"), step.metric("logged_kl")) == (3.0, -1.0)


def test_a_static_picture_has_both_arms_in_every_panel():
    figure = ablation_curves(list(compare(setup(), SWITCHES["kl_sign"])), ["logged_kl", "true_reward"], "KL sign")
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "KL as logged (k1)",
        "Reward, rightly measured",
    ]
    assert all(len(line.get_xdata()) == 3 for axis in figure.axes for line in axis.lines[:2])


def test_a_static_picture_of_a_metric_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="no metric 'rewards'"):
        ablation_curves(arm_steps("right"), ["rewards"])


def test_a_step_keeps_its_replies():
    step = next(iter(run_arm(setup(), SWITCHES["kl_sign"], "broken")))
    assert (
        all(isinstance(s, Rollout) for s in step.stats.samples)
        and step.distinct == len({s.reply for s in step.stats.samples}) / 4
    )
