"""The live loop, driven as a script would: labels are kept, learned at once and move the policy; trouble is said."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch
from tiny import PROMPTS, language_model, reward_model, tokenizer

from rlhf_lab.config import LiveConfig, PPOConfig, SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.live import LiveLoop
from rlhf_lab.records import (
    Candidate,
    Correction,
    LoopError,
    Question,
    QuestionsReady,
    Ranking,
    Rating,
    RewardUpdate,
    RolledBack,
    StateChanged,
    StepStats,
    Taught,
    Vote,
    WinRate,
)
from rlhf_lab.snapshots import Snapshots
from rlhf_lab.store import FeedbackStore

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=8)
CONFIG = LiveConfig(
    candidates=3,
    win_rate_every=2,
    win_rate_prompts=1,
    ppo=PPOConfig(batch_size=4, minibatches=2, epochs=2, anneal=False, sampling=SAMPLING),
)


def make_loop(where, annotator="me", config=CONFIG, **options) -> LiveLoop:
    width = language_model().config.hidden_size
    prior = (torch.zeros(width), torch.eye(width))
    return LiveLoop(
        language_model(), reward_model(), tokenizer(), PROMPTS, where, prior, annotator, config, SAMPLING, **options
    )


@pytest.fixture
def loop(tmp_path):
    made = make_loop(tmp_path / "live.db")
    yield made
    made.stop()
    assert made.join()


def ask(loop: LiveLoop, seconds: float = 30):
    """The next question, waiting for the worker to write it."""
    end = time.monotonic() + seconds
    while (question := loop.next_question()) is None:
        assert time.monotonic() < end, "no question came"
        time.sleep(0.01)
    return question


def answer(question, annotator="me", status="ranked", order=None) -> Ranking:
    tiers = order or tuple((c.id,) for c in sorted(question.candidates, key=lambda c: len(c.text)))
    return Ranking(question.id, tiers if status == "ranked" else (), annotator, status=status)


def events(loop, kind):
    return [event for event in loop.history if isinstance(event, kind)]


def test_a_ranking_is_stored_learned_and_its_effect_shown(loop):
    question = ask(loop)
    ranking = answer(question)
    loop.submit(ranking)
    assert [r.id for r in loop.store.rankings("me")] == [ranking.id]  # before anything is learned
    assert loop.wait_idle()
    (update,) = events(loop, RewardUpdate)
    assert (update.labels, update.ranking_id) == (1, ranking.id)
    effect = update.effects[0]
    places = {c.id: i for i, c in enumerate(question.candidates)}
    best, worst = places[ranking.order[0][0]], places[ranking.order[-1][0]]
    gap = [scores[best] - scores[worst] for scores in (effect.before, effect.after)]
    assert gap[1] > gap[0]


def test_agreement_is_measured_before_the_ranking_is_learned(loop):
    question = ask(loop)
    loop.submit(answer(question))
    loop.wait_idle()
    first = events(loop, RewardUpdate)[0]
    pairs = [(a, b) for a in range(3) for b in range(a + 1, 3)]
    order = [next(i for i, c in enumerate(question.candidates) if c.id == tier[0]) for tier in first.effects[0].order]
    before = first.effects[0].before
    expected = sum(before[order[a]] > before[order[b]] for a, b in pairs) / 3
    assert first.agreement == pytest.approx(expected)
    assert first.running_agreement == pytest.approx(expected)


def test_repeated_rankings_bring_the_model_to_the_persons_order(loop):
    for _ in range(6):
        loop.submit(answer(ask(loop)))
        assert loop.wait_idle()
    assert [len(update.effects) for update in events(loop, RewardUpdate)] == [1, 2, 3, 4, 4, 4]
    update = events(loop, RewardUpdate)[-1]
    assert update.labels == 6 and len(update.effects) == 1 + CONFIG.effects
    right = 0
    for effect in update.effects:
        places = {c.id: i for i, c in enumerate(effect.question.candidates)}
        right += effect.after[places[effect.order[0][0]]] > effect.after[places[effect.order[-1][0]]]
    assert right >= 3  # of four; a random model's features need not tell every pair apart


def test_steps_move_the_policy_and_leave_the_reference(loop):
    reference = [p.clone() for p in loop.reference.parameters()]
    before = [p.clone() for p in loop.policy.parameters()]
    loop.step(2)
    assert loop.wait_idle()
    assert [s.step for s in events(loop, StepStats)] == [1, 2]
    assert len(events(loop, WinRate)) == 1
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.policy.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(reference, loop.reference.parameters(), strict=True))


def test_start_runs_until_pause_and_labels_are_learned_meanwhile(loop):
    loop.start()
    for _ in range(3):
        loop.submit(answer(ask(loop)))
    end = time.monotonic() + 30
    while len(events(loop, StepStats)) < 3 or len(events(loop, RewardUpdate)) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    loop.pause()
    assert loop.wait_idle()
    done = len(events(loop, StepStats))
    loop.submit(answer(ask(loop)))
    assert loop.wait_idle()
    assert len(events(loop, RewardUpdate)) == 4  # still learned
    assert len(events(loop, StepStats)) <= done + 1  # no further step but the one that was under way


def test_new_questions_come_from_the_moved_policy(loop):
    ask(loop)
    loop.step(2)
    assert loop.wait_idle()
    seen = set()
    for _ in range(CONFIG.buffer + 2):
        seen |= {candidate.model for candidate in ask(loop).candidates}
        assert loop.wait_idle()
    assert "policy-step2" in seen and "sft" in seen
    assert events(loop, QuestionsReady)[-1].step == 2


def test_undo_takes_the_label_back_from_store_and_model(loop):
    prior = loop.taste.weight.clone()
    question = ask(loop)
    loop.submit(answer(question))
    loop.wait_idle()
    assert not torch.allclose(loop.taste.weight, prior)
    assert loop.undo() == question
    assert loop.wait_idle()
    assert loop.labels == 0 and torch.allclose(loop.taste.weight, prior)
    assert len(loop.store.events()) == 2  # nothing is deleted
    assert loop.undo() is None


def test_a_second_answer_replaces_the_first_in_the_model_too(loop):
    question = ask(loop)
    first = answer(question)
    loop.submit(first)
    loop.wait_idle()
    again = loop.ask_again()
    assert again == question
    loop.submit(answer(question, order=tuple(reversed(first.order))))
    assert loop.wait_idle()
    assert loop.labels == 1 and loop.taste.labels == 1
    assert loop.undo() == question  # the first answer is back
    assert loop.wait_idle()
    assert loop.labels == 1 and loop.taste.labels == 1
    scores = loop.reward.scores(loop.reward.features(question))
    places = {c.id: i for i, c in enumerate(question.candidates)}
    assert scores[places[first.order[0][0]]] > scores[places[first.order[-1][0]]]


def test_skipped_and_undecided_are_stored_and_teach_nothing(loop):
    for status in ("skipped", "undecided"):
        loop.submit(answer(ask(loop), status=status))
    assert loop.wait_idle()
    assert len(loop.store.rankings("me")) == 2 and loop.labels == 0 and not events(loop, RewardUpdate)


def test_a_new_loop_on_the_store_knows_what_was_ranked(tmp_path):
    first = make_loop(tmp_path / "live.db")
    for _ in range(2):
        first.submit(answer(ask(first)))
    assert first.wait_idle()
    learned = first.taste.weight.clone()
    second = make_loop(tmp_path / "live.db")  # stops the first
    try:
        assert first.state == "stopped" and not first._thread.is_alive()
        assert second.labels == 2 and torch.allclose(second.taste.weight, learned)
        with pytest.raises(InputError, match="has ended"):
            first.start()
    finally:
        second.stop()


def test_a_label_that_cannot_be_stored_teaches_nothing(loop, monkeypatch):
    question = ask(loop)

    def full(ranking):
        raise InputError("database: the disk is full")

    monkeypatch.setattr(loop.store, "append", full)
    with pytest.raises(InputError, match="disk is full"):
        loop.submit(answer(question))
    assert loop.wait_idle() and not events(loop, RewardUpdate)


def test_only_this_annotators_rankings_are_taken(loop):
    with pytest.raises(InputError, match="'you'"):
        loop.submit(answer(ask(loop), annotator="you"))


def test_trouble_in_the_worker_is_said_and_the_loop_goes_on_after_start(loop, monkeypatch):
    ask(loop)
    step = loop.ppo.step
    monkeypatch.setattr(loop.ppo, "step", lambda prompts: 1 / 0)
    loop.step()
    assert loop.wait_idle()
    assert loop.state == "error" and "ZeroDivisionError" in events(loop, LoopError)[0].message
    assert events(loop, StateChanged)[-1].state == "error"
    monkeypatch.setattr(loop.ppo, "step", step)
    loop.submit(answer(ask(loop)))
    loop.start()
    end = time.monotonic() + 30
    while not events(loop, StepStats):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert events(loop, RewardUpdate)


def test_a_broken_listener_does_not_end_the_worker(loop, capsys):
    loop.subscribe(lambda event: 1 / 0)
    loop.step()
    assert loop.wait_idle() and len(events(loop, StepStats)) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_unsubscribe_ends_the_calls(loop):
    heard = []
    unsubscribe = loop.subscribe(heard.append)
    loop.step()
    loop.wait_idle()
    count = len(heard)
    unsubscribe()
    loop.step()
    loop.wait_idle()
    assert count > 0 and len(heard) == count


def test_scores_are_in_units_of_the_sft_models_replies(loop):
    anchor = loop.reward.scaled(loop.reward.anchor)
    for _ in range(2):
        loop.submit(answer(ask(loop)))
    loop.wait_idle()
    for scores in (anchor, loop.reward.scaled(loop.reward.anchor)):
        assert scores.mean().abs() < 1e-4 and (scores.std() - 1).abs() < 1e-2 or scores.std() < 1e-3


@pytest.mark.parametrize(
    "bad",
    [
        {"candidates": 1},
        {"sft_candidates": 9},
        {"population": 1},
        {"buffer": 0},
        {"question_temperature": 0},
        {"ask": "luck"},
    ],
)
def test_a_wrong_option_is_named(bad):
    with pytest.raises(InputError, match=f"LiveConfig.{next(iter(bad))}"):
        replace(CONFIG, **bad)


def test_store_may_be_given_open(tmp_path):
    with FeedbackStore(tmp_path / "mine.db") as store:
        loop = make_loop(store)
        loop.submit(answer(ask(loop)))
        loop.stop()
        assert loop.join() and len(store) == 1


# --- every form of feedback ---


def scores_of(loop, question) -> dict[str, float]:
    return dict(zip(question.texts, loop.reward.scores(loop.reward.features(question)), strict=True))


@pytest.mark.parametrize("up", [True, False])
def test_a_vote_moves_its_reply_against_the_average_reply(loop, up):
    question = ask(loop)
    target = question.candidates[0].id
    before = scores_of(loop, question)[target]
    loop.submit(Vote(question.id, target, up, "me"))
    assert loop.wait_idle()
    (update,) = events(loop, RewardUpdate)
    assert update.kind == "vote" and update.labels == 1 and len(update.effects[0].after) == 1
    assert (scores_of(loop, question)[target] > before) == up


def test_a_rating_orders_replies_by_their_mean_mark(loop):
    question = ask(loop)
    marks = {c.id: {"correct": 5 - i, "polite": 4 - i} for i, c in enumerate(question.candidates)}
    before = scores_of(loop, question)
    loop.submit(Rating(question.id, marks, "me"))
    loop.wait_idle()
    after, first, last = scores_of(loop, question), *(question.candidates[i].id for i in (0, -1))
    assert after[first] - after[last] > before[first] - before[last]
    assert events(loop, RewardUpdate)[0].effects[0].order[0] == (first,)


def test_a_better_grade_pulls_two_replies_further_apart(tmp_path):
    gaps = []
    for grade in ("slightly better", "significantly better"):
        loop = make_loop(tmp_path / f"{grade}.db")
        asked = ask(loop)
        pair = loop.ask(Question("pair", asked.prompt, asked.candidates[:2]))
        better, worse = pair.texts
        loop.submit(Ranking("pair", ((better,), (worse,)), "me", grade=grade))
        loop.wait_idle()
        scores = loop.taste.score(loop.reward.features(pair))
        gaps.append(float(scores[0] - scores[1]))
        loop.stop()
        loop.join()
    assert gaps[1] > gaps[0]


def test_a_correction_teaches_the_reward_model_and_the_policy(loop):
    question = ask(loop)
    correction = Correction(question.id, question.candidates[0].id, "Go to the library and ask for Grace.", "me")
    weights = [p.clone() for p in loop.policy.parameters()]
    loop.submit(correction)
    assert loop.wait_idle()
    (update,), (taught,) = events(loop, RewardUpdate), events(loop, Taught)
    assert update.kind == "correction" and [c.text for c in update.effects[0].question.candidates][0] == correction.text
    effect = update.effects[0]
    assert effect.after[0] - effect.after[1] > effect.before[0] - effect.before[1]
    assert taught.demonstrations == 1 and taught.after < taught.before
    assert any(not torch.equal(old, new) for old, new in zip(weights, loop.policy.parameters(), strict=True))
    assert [d.reply for d in loop.store.demonstrations("me")] == [correction.text]


def test_a_correction_that_changes_nothing_is_refused_and_not_stored(loop):
    question = ask(loop)
    same = question.candidates[0]
    with pytest.raises(InputError, match="leaves the reply as it was"):
        loop.submit(Correction(question.id, same.id, same.text, "me"))
    assert loop.labels == 0 and len(loop.store) == 0


# --- going back ---


def weights_of(loop) -> list[torch.Tensor]:
    return [p.detach().clone() for p in (*loop.policy.parameters(), *loop.ppo.critic.parameters())]


def equal(ours, theirs) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_rollback_brings_back_policy_critic_and_reward_model_of_just_before_a_label(loop):
    loop.submit(answer(ask(loop)))
    loop.step(2)
    loop.wait_idle()
    then, taste = weights_of(loop), loop.taste.weight.clone()
    second = answer(ask(loop))
    loop.submit(second)
    loop.step(2)
    loop.wait_idle()
    loop.submit(answer(ask(loop)))
    loop.wait_idle()
    assert not equal(weights_of(loop), then) and loop.labels == 3
    assert loop.rollback(second.id) == 2
    loop.wait_idle()
    assert equal(weights_of(loop), then) and torch.allclose(loop.taste.weight, taste)
    (event,) = events(loop, RolledBack)
    assert (event.step, event.to_step, event.withdrawn, event.labels) == (4, 2, 2, 1) == (4, 2, 2, loop.labels)
    assert len(loop.store.events()) == 5 and len(loop.store) == 1  # nothing was deleted
    loop.step()
    loop.wait_idle()
    assert events(loop, StepStats)[-1].step == 5  # the curve goes on


def test_rollback_during_a_running_loop_and_to_an_earlier_loops_label(tmp_path):
    first = make_loop(tmp_path / "live.db")
    old = answer(ask(first))
    first.submit(old)
    first.wait_idle()
    loop = make_loop(tmp_path / "live.db")
    began = weights_of(loop)
    loop.start()
    while not events(loop, StepStats):
        time.sleep(0.01)
    loop.submit(answer(ask(loop)))
    loop.pause()
    assert loop.rollback(old.id) == 2
    loop.wait_idle()
    assert equal(weights_of(loop), began) and loop.labels == 0 and events(loop, RolledBack)[0].to_step == 0
    assert not events(loop, LoopError)
    loop.stop()
    assert loop.join()


def test_an_old_label_can_be_withdrawn_or_changed(loop):
    first, second = answer(ask(loop)), answer(ask(loop))
    loop.submit(first)
    loop.wait_idle()
    alone = loop.taste.weight.clone()
    loop.submit(second)
    loop.wait_idle()
    assert loop.withdraw(second.id).id == second.question_id
    loop.wait_idle()
    assert loop.labels == 1 and torch.allclose(loop.taste.weight, alone)
    changed = answer(loop.store.question(first.question_id), order=tuple(reversed(first.order)))
    loop.submit(changed)
    loop.wait_idle()
    assert loop.labels == 1 and not torch.allclose(loop.taste.weight, alone)
    loop.withdraw(changed.id)
    loop.wait_idle()
    assert loop.labels == 1 and torch.allclose(loop.taste.weight, alone)  # the first answer counts again
    with pytest.raises(InputError, match="no answer 'nonsense'"):
        loop.rollback("nonsense")


def test_older_snapshots_are_thinned_and_rollback_says_where_it_went(tmp_path):
    loop = make_loop(tmp_path / "live.db", config=replace(CONFIG, snapshots=4))
    given = []
    for _ in range(8):
        loop.step()
        loop.wait_idle()
        given.append(answer(ask(loop)))
        loop.submit(given[-1])
        loop.wait_idle()
    loop.rollback(given[4].id)
    loop.wait_idle()
    (event,) = events(loop, RolledBack)
    assert event.withdrawn == 4 and 0 <= event.to_step <= 5
    loop.stop()
    assert loop.join()


# --- chatting ---


def test_replies_to_a_conversation_are_kept_and_can_be_judged(loop):
    question = loop.reply([("user", "Who?"), ("assistant", "Ada."), ("user", "  When is the choir? ")], k=2)
    assert question.prompt == "When is the choir?" and 1 <= len(question.candidates) <= 2
    assert loop.store.question(question.id) == question and question.candidates[0].model == "policy-step0"
    assert question.candidates[0].sampling["temperature"] == 1.0 and question.candidates[0].sampling["checkpoint"]
    loop.submit(Vote(question.id, question.candidates[0].id, True, "me"))
    assert loop.wait_idle() and loop.labels == 1
    assert loop.reply([("user", "Who?")], checkpoint="sft").candidates[0].model == "sft"


def test_a_reply_comes_while_ppo_runs_and_none_after_the_end(loop):
    loop.start()
    assert loop.reply([("user", "Who?")]).candidates
    loop.stop()
    loop.join()
    with pytest.raises(InputError, match="ended"):
        loop.reply([("user", "Who?")])


@pytest.mark.parametrize(
    ("turns", "reason"),
    [([], "must be the user's"), ([("assistant", "Hi")], "must be the user's"), ([("user", " ")], "with some text"),
     ([("system", "x"), ("user", "y")], "a turn is")],
)  # fmt: skip
def test_a_conversation_ends_with_the_user(loop, turns, reason):
    with pytest.raises(InputError, match=reason):
        loop.reply(turns)
    with pytest.raises(InputError, match="there are policy, sft"):
        loop.reply([("user", "Who?")], checkpoint="gpt")


# --- which question next ---


def test_the_question_that_tells_most_is_asked(tmp_path, monkeypatch):
    """Of the questions written at a time the one of the highest value is kept, and only that one is stored."""
    seen = []

    def last_one(strategy, taste, pool, generator, *_):
        seen.append((strategy, len(pool)))
        return [len(pool) - 1]

    monkeypatch.setattr("rlhf_lab.live.next_questions", last_one)
    loop = make_loop(tmp_path / "live.db", config=replace(CONFIG, ask="coverage", ask_among=3))
    ask(loop)
    loop.wait_idle()
    assert set(seen) == {("coverage", 3)}
    assert len(loop.store.questions()) == len(seen)
    loop.stop()
    assert loop.join()


def test_all_answers_are_told_with_whether_they_stand(loop):
    first, second = answer(ask(loop)), answer(ask(loop), status="skipped")
    for given in (first, second):
        loop.submit(given)
    loop.withdraw(first.id)
    told = loop.given()
    assert [(q.id, a.id, stands) for q, a, stands in told] == [
        (first.question_id, first.id, False),
        (second.question_id, second.id, True),
    ]


@pytest.mark.parametrize("status", ["skipped", "undecided"])
def test_who_cannot_decide_any_more_has_taken_the_earlier_decision_back(loop, status):
    prior = loop.taste.weight.clone()
    question = ask(loop)
    loop.submit(answer(question))
    assert loop.wait_idle()
    learned = loop.taste.weight.clone()
    loop.submit(answer(question, status=status))
    assert loop.wait_idle() and loop.labels == 0
    assert torch.allclose(loop.taste.weight, prior) and loop.taste.labels == 0
    loop.undo()  # the earlier decision is in force again, here as in the store
    assert loop.wait_idle() and loop.labels == 1
    assert torch.allclose(loop.taste.weight, learned, atol=1e-6)


def test_agreement_with_a_changed_answer_is_that_of_a_model_that_does_not_know_it(loop):
    question = ask(loop)
    for _ in range(2):
        loop.submit(answer(question))
        assert loop.wait_idle()
    first, again = events(loop, RewardUpdate)
    assert again.agreement == first.agreement and again.running_agreement == first.agreement


def test_a_rating_of_one_reply_compares_nothing_and_harms_nothing(tmp_path):
    question = Question("one", PROMPTS[0], (Candidate("a", "a reply"),))
    rating = Rating("one", {"a": {"helpful": 4}}, "me")
    first = make_loop(tmp_path / "live.db")
    first.ask(question)
    first.submit(rating)
    assert first.wait_idle() and not events(first, LoopError)
    second = make_loop(tmp_path / "live.db")
    assert second.labels == 1
    second.stop()


def test_a_correction_that_is_taken_back_at_once_is_not_taught(loop, monkeypatch):
    question = ask(loop)
    corrected = Correction(question.id, question.candidates[0].id, "a quite different text", "me")
    step, before = loop.ppo.step, []

    def while_it_runs(prompts):
        loop.submit(corrected)
        loop.withdraw(corrected.id)
        before.append(True)
        return step(prompts)

    monkeypatch.setattr(loop.ppo, "step", while_it_runs)
    loop.step()
    assert loop.wait_idle() and before
    assert len(events(loop, RewardUpdate)) == 2 and not events(loop, Taught)


def test_a_label_after_one_in_the_same_ppo_step_goes_back_to_its_own_moment(loop, monkeypatch):
    first, second = answer(ask(loop)), answer(ask(loop))
    step, now = loop.ppo.step, []

    def while_it_runs(prompts):
        loop.submit(first)
        return step(prompts)

    monkeypatch.setattr(loop.ppo, "step", while_it_runs)
    loop.step()
    assert loop.wait_idle()
    now += [weight.clone() for weight in weights_of(loop)]
    loop.submit(second)
    assert loop.wait_idle()
    monkeypatch.setattr(loop.ppo, "step", step)
    loop.step()
    assert loop.wait_idle() and not equal(weights_of(loop), now)
    loop.rollback(second.id)
    assert loop.wait_idle() and equal(weights_of(loop), now)


def test_a_full_disk_costs_a_snapshot_and_not_the_label(loop, monkeypatch):
    question = ask(loop)
    loop.step()
    assert loop.wait_idle()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_lab.snapshots.save_file", full)
    loop.submit(answer(question))
    assert loop.wait_idle()
    assert loop.taste.labels == 1
    assert "free some space" in events(loop, LoopError)[-1].message


def test_what_came_behind_a_failure_is_done_all_the_same(loop, monkeypatch):
    first, second = ask(loop), ask(loop)
    learn, held = loop.reward.learn, threading.Event()

    def failing_once(question, given):
        monkeypatch.setattr(loop.reward, "learn", learn)
        held.wait(30)
        raise ZeroDivisionError

    monkeypatch.setattr(loop.reward, "learn", failing_once)
    loop.submit(answer(first))
    loop.submit(answer(second))
    held.set()
    assert loop.wait_idle()
    assert loop.taste.labels == 1 and len(events(loop, LoopError)) == 1


def test_snapshots_of_large_models_are_few_and_those_of_a_way_given_up_go(monkeypatch):
    module = torch.nn.Linear(10, 10, bias=False)
    monkeypatch.setattr("rlhf_lab.snapshots.ROOM", 5 * 400)
    kept = Snapshots({"m": module}, limit=200)
    taken = []
    for step in range(8):
        torch.nn.init.constant_(module.weight, step)
        taken.append(kept.take(step, 0.1))
    assert sum(each.file.exists() for each in taken) <= 5 and taken[0].file.exists()
    assert kept.restore(taken[6]) is taken[6] and not taken[7].file.exists()
    assert kept.restore(taken[7]) is taken[6] and module.weight[0, 0] == 6  # what was given up does not come back
    kept.close()
