"""The microscope: its numbers are the Experience's own, by hand where it computes, and looking changes nothing."""

import json
import math

import pytest
import torch
from tiny import PROMPTS, language_model, reward_model, tokenizer

from rlhf_lab.config import PPOConfig, SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.microscope import QUANTITIES, TokenView, Watch, look, reply_views, token_columns, token_texts, watching
from rlhf_lab.models import Critic, frozen_copy
from rlhf_lab.ppo import PPO, Experience
from rlhf_lab.replies import reply_batch
from rlhf_lab.reward import reward_score
from rlhf_lab.text import Dialogue

CONFIG = PPOConfig(
    steps=4, batch_size=4, minibatches=2, epochs=2, learning_rate=3e-3, sampling=SamplingConfig(max_new_tokens=8)
)


def trainer(**options) -> PPO:
    policy, rm = language_model(), reward_model()
    return PPO(policy, frozen_copy(policy), Critic(rm), reward_score(rm), tokenizer(), CONFIG, **options)


def plain(stats) -> dict:
    return vars(stats) | {"seconds": 0.0}


def test_looking_changes_no_number():
    watched, unwatched = trainer(), trainer()
    for _ in range(2):
        assert plain(look(watched, PROMPTS)[0]) == plain(unwatched.step(PROMPTS))
    assert "update" not in vars(watched) and "judged" not in vars(watched)


def test_every_number_of_every_token_is_the_experiences():
    ppo = trainer()
    ppo.step(PROMPTS)  # policy and reference differ now
    with watching(ppo) as watch:
        stats = ppo.step(PROMPTS)
    seen, views = watch.experience, reply_views(watch, ppo)
    assert [view.prompt for view in views] == PROMPTS and len(views) == len(stats.samples)
    fields = {"logprob": "logprobs", "ref_logprob": "ref_logprobs", "value": "values", "reward": "rewards"}
    fields |= {"return_": "returns", "advantage": "advantages"}
    for row, (view, rollout) in enumerate(zip(views, stats.samples, strict=True)):
        length = int(seen.mask[row].sum())
        assert len(view.tokens) == length
        for name, column in fields.items():
            assert [getattr(t, name) for t in view.tokens] == getattr(seen, column)[row, :length].tolist()
        assert (view.text, view.score, view.truncated) == (rollout.reply, rollout.score, rollout.truncated)
        assert view.kl == pytest.approx(sum(t.kl for t in view.tokens), abs=1e-5)
        assert all(t.kl == pytest.approx(t.logprob - t.ref_logprob, abs=1e-6) for t in view.tokens)


def test_after_the_update_the_models_are_read_again():
    ppo = trainer()
    with watching(ppo) as watch:
        ppo.step(PROMPTS)
    with torch.no_grad():
        logprobs, values, _ = ppo.read(watch.experience)
    views = reply_views(watch, ppo)
    for row, view in enumerate(views):
        for column, token in enumerate(view.tokens):
            assert token.logprob_after == logprobs[row, column].item()
            assert token.value_after == values[row, column].item()
            assert token.ratio == pytest.approx(math.exp(token.logprob_after - token.logprob), rel=1e-4)
    assert any(token.ratio != 1 for view in views for token in view.tokens)


def experience(advantages: list[float], ratio: list[float]) -> tuple[Experience, torch.Tensor]:
    """One reply of three tokens behind a prompt of two."""
    replies = reply_batch([Dialogue((5, 6, 7, 8, 9), 2)], pad_id=1)
    old = torch.tensor([[-1.0, -2.0, -0.5]])
    numbers = {"logprobs": old, "ref_logprobs": torch.tensor([[-1.5, -1.0, -0.5]])}
    numbers |= {name: torch.zeros(1, 3) for name in ("values", "rewards", "returns")}
    seen = Experience(**vars(replies), **numbers, advantages=torch.tensor([advantages]))
    return seen, old + torch.tensor([ratio]).log()


def test_ratio_kl_and_clip_by_hand():
    # ε = 0.2. A = 2, ρ = 1.5: clipped (no more is paid past 1.2). A = 2, ρ = 0.5: not (repair has no limit).
    # A = −1, ρ = 0.7: clipped (no more is paid below 0.8).
    seen, after = experience([2.0, 2.0, -1.0], [1.5, 0.5, 0.7])
    columns = token_columns(seen, after, torch.zeros(1, 3), clip_range=0.2)
    assert columns["clipped"].tolist() == [[True, False, True]]
    assert columns["ratio"][0].tolist() == pytest.approx([1.5, 0.5, 0.7])
    assert columns["kl"][0].tolist() == pytest.approx([0.5, -1.0, 0.0])
    kl_after = [0.5 + math.log(1.5), -1.0 + math.log(0.5), math.log(0.7)]
    assert columns["kl_after"][0].tolist() == pytest.approx(kl_after)


def test_without_a_clip_nothing_is_clipped():
    seen, after = experience([2.0, 2.0, -1.0], [1.5, 0.5, 0.7])
    assert not token_columns(seen, after, torch.zeros(1, 3), clip_range=math.inf)["clipped"].any()


def test_the_end_token_is_marked_and_every_token_has_text():
    _, step = look(trainer(), PROMPTS)
    for reply in step.replies:
        ends = [token.end for token in reply.tokens]
        assert not any(ends[:-1]) and ends[-1] == (not reply.truncated)
        assert all(token.text for token in reply.tokens)


def test_the_tokens_together_are_the_text():
    text = "Go to the library, please."
    own = tokenizer()
    assert "".join(token_texts(own, own(text, add_special_tokens=False)["input_ids"])) == text


def test_a_piece_of_a_character_has_a_name():
    own = tokenizer()
    ids = own("é", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2  # é is two bytes in UTF-8, and this vocabulary has no token for both
    assert all(text and "\ufffd" not in text for text in token_texts(own, ids))


def test_a_step_is_plain_data_in_five_digits():
    _, step = look(trainer(), PROMPTS)
    data = json.loads(json.dumps(step.to_dict(), allow_nan=False))
    assert data["replies"][0]["tokens"][0].keys() == TokenView.__dataclass_fields__.keys()
    assert data["replies"][0]["score"] == pytest.approx(step.replies[0].score, rel=1e-4)
    assert (data["step"], data["clip_range"], data["beta"]) == (1, 0.2, 0.15)


def test_every_quantity_is_a_field_of_a_token():
    for quantity in QUANTITIES:
        assert {quantity.key, quantity.after or quantity.key} <= TokenView.__dataclass_fields__.keys()


def test_before_the_first_step_there_is_nothing_to_see():
    with pytest.raises(InputError, match="no step yet"):
        reply_views(Watch(), trainer())


def test_a_method_that_somebody_else_replaced_is_put_back():
    ppo = trainer()
    ppo.judged = mine = lambda samples: torch.zeros(len(samples))
    _, step = look(ppo, PROMPTS)
    assert {reply.score for reply in step.replies} == {0.0} and ppo.judged is mine


def test_a_step_that_fails_leaves_the_trainer_as_it_was():
    ppo = trainer()
    ppo.score = lambda samples: None
    with pytest.raises(InputError, match="score function"):
        look(ppo, PROMPTS)
    assert "update" not in vars(ppo) and "judged" not in vars(ppo)
