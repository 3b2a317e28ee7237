"""Sampling: the batched cache gives what one reply at a time gives; chance, seeds, limits, best of n, questions."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import PROMPTS, language_model, saved_hub_model, tokenizer

from rlhf_lab import sampling as sampling_module
from rlhf_lab.config import SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.models import load_language_model, save_model
from rlhf_lab.sampling import best_of_n, best_of_n_kl, draw, greedy, make_questions, sample, sample_tokens
from rlhf_lab.text import encode_prompts

CONFIG = SamplingConfig(temperature=1.0, max_new_tokens=12)
GREEDY = greedy(CONFIG)


def lively(model):
    """Larger weights than a fresh model has, so that what it says depends on what it read."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    return model


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt-neox", "qwen2"])
def model(request, tmp_path_factory):
    """A model of each architecture, from disk, with an end token that now and then is the likeliest."""
    folder = tmp_path_factory.mktemp("model")
    if request.param == "llama":
        save_model(lively(language_model()), tokenizer(), folder)
    else:
        saved_hub_model(request.param, folder)
    loaded, _ = load_language_model(folder)
    return loaded


@torch.no_grad()
def alone(model, prompt_ids: list[int], end_id: int, n: int) -> list[int]:
    """The likeliest tokens of one prompt: no cache, no batch, no padding, transformers' plain forward."""
    ids = list(prompt_ids)
    while len(ids) < len(prompt_ids) + n:
        ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] == end_id:
            break
    return ids[len(prompt_ids) :]


def prompts_and_a_frequent_end(model) -> tuple[list[list[int]], int, list[list[int]]]:
    """Prompts of ragged lengths, a token that ends some replies early and some late, and the expected replies."""
    prompts = encode_prompts(tokenizer(), [*PROMPTS, "a", "When?" * 6, "Go to the library.", "é ü", "No."])
    free = [alone(model, p, end_id=-1, n=12) for p in prompts]
    tokens = {token for reply in free for token in reply[1:]}

    def spread(end: int) -> int:
        return len({reply.index(end) if end in reply else 12 for reply in free})

    end = max(sorted(tokens), key=spread)
    return prompts, end, [alone(model, p, end, n=12) for p in prompts]


def test_a_batch_gives_what_one_by_one_without_a_cache_gives(model):
    prompts, end, expected = prompts_and_a_frequent_end(model)
    assert len({len(reply) for reply in expected}) >= 2  # some ended early, so rows did leave the batch
    assert sample_tokens(model, prompts, end, GREEDY) == expected
    assert [sample_tokens(model, [p], end, GREEDY)[0] for p in prompts] == expected


def test_rows_that_leave_change_nothing_for_the_others(model):
    """Any subset of the prompts, in any order, gets the same replies."""
    prompts, end, expected = prompts_and_a_frequent_end(model)
    for rows in ([0, 1], [5, 0, 7, 2], [8, 7, 6, 5, 4, 3]):
        assert sample_tokens(model, [prompts[i] for i in rows], end, GREEDY) == [expected[i] for i in rows]


def test_replies_come_back_in_the_order_of_the_prompts_whatever_the_batches(model):
    texts = [*PROMPTS, "a", "When?" * 6]
    whole = sample(model, tokenizer(), texts, GREEDY)
    parts = sample(model, tokenizer(), texts, replace(GREEDY, batch_size=2))
    assert [s.prompt for s in whole] == texts and whole == parts


def test_a_sample_knows_its_prompt_and_whether_it_ended():
    model = language_model()
    for s in sample(model, tokenizer(), PROMPTS * 30, CONFIG, torch.Generator().manual_seed(0)):
        (prompt_ids,) = encode_prompts(tokenizer(), [s.prompt])
        reply = list(s.dialogue.ids[s.dialogue.prompt_length :])
        assert list(s.dialogue.ids[: s.dialogue.prompt_length]) == prompt_ids
        assert s.truncated == (tokenizer().eos_token_id not in reply)
        assert tokenizer().eos_token_id not in reply[:-1]
        assert len(reply) == 12 or not s.truncated


def test_one_seed_one_set_of_replies():
    model = lively(language_model())

    def texts(seed: int) -> list[str]:
        return [s.text for s in sample(model, tokenizer(), PROMPTS, CONFIG, torch.Generator().manual_seed(seed))]

    assert texts(1) == texts(1) != texts(2)


def test_what_is_drawn_has_the_probabilities_of_the_softmax():
    """Chi-square over 8 tokens, 20,000 draws: 24.3 is the 99.9% point at 7 degrees of freedom. The seed is fixed."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 0.2, 1.5])
    for temperature in (1.0, 0.5, 2.0):
        config = SamplingConfig(temperature=temperature)
        drawn = draw(logits.expand(20_000, 8), config, torch.Generator().manual_seed(0))
        expected = (logits / temperature).softmax(0) * 20_000
        chi_square = ((drawn.bincount(minlength=8) - expected) ** 2 / expected).sum().item()
        assert chi_square < 24.3


def test_top_k_draws_only_the_k_likeliest_in_their_proportion():
    logits = torch.tensor([0.0, math.log(3), -5.0, -6.0]).expand(8_000, 4)
    drawn = draw(logits, SamplingConfig(temperature=1.0, top_k=2), torch.Generator().manual_seed(0)).bincount(
        minlength=4
    )
    assert drawn[2:].sum() == 0
    assert drawn[1].item() / 8_000 == pytest.approx(0.75, abs=0.02)
    assert set(draw(logits, SamplingConfig(temperature=1.0, top_k=1)).tolist()) == {1}
    assert len(draw(logits, SamplingConfig(temperature=1.0, top_k=99))) == 8_000  # more than there are: all of them


def test_temperature_zero_is_the_likeliest_token():
    assert draw(torch.tensor([[0.1, 0.3, 0.2]]), SamplingConfig(temperature=0)).tolist() == [1]


def test_a_prompt_that_leaves_no_room_is_named():
    with pytest.raises(InputError, match=r"'xxx.*has \d+ tokens; at most 116 leave room"):
        sample(language_model(), tokenizer(), ["When?", "x" * 500], CONFIG)
    assert sample(language_model(), tokenizer(), [], CONFIG) == []


def test_the_bound_of_best_of_n_is_the_kl_where_no_two_replies_score_alike():
    for n in (1, 2, 8):
        grid = [(i + 0.5) / 20_000 for i in range(20_000)]  # the rank of a reply, uniform; of the best of n: n·u^(n−1)
        exact = sum(n * u ** (n - 1) * math.log(n * u ** (n - 1)) for u in grid) / len(grid)
        assert best_of_n_kl(n) == pytest.approx(exact, abs=1e-3)
    with pytest.raises(InputError, match="at least 1"):
        best_of_n_kl(0)


def test_best_of_n_is_the_best_of_n():
    seen = []

    def score(samples):
        seen.extend(samples)
        return torch.tensor([float(s.dialogue.reply_length) + len(s.text) / 100 for s in samples])

    best = best_of_n(lively(language_model()), tokenizer(), PROMPTS, 5, score, CONFIG, torch.Generator().manual_seed(0))
    assert [s.prompt for s in best] == PROMPTS and len(seen) == 20
    for prompt, chosen in zip(PROMPTS, best, strict=True):
        own = [s for s in seen if s.prompt == prompt]
        assert len(own) == 5 and score([chosen]).item() == max(score([s]).item() for s in own)


def test_a_question_has_different_replies_and_says_who_wrote_them():
    names = iter(f"id{n}" for n in range(100))
    questions = make_questions(
        lively(language_model()),
        tokenizer(),
        PROMPTS,
        k=3,
        config=CONFIG,
        generator=torch.Generator().manual_seed(0),
        name="sft",
        ids=lambda: next(names),
    )
    assert [q.prompt for q in questions] == PROMPTS
    for q in questions:
        texts = [c.text for c in q.candidates]
        assert len(texts) == 3 == len(set(texts)) and all(texts)
        assert {c.model for c in q.candidates} == {"sft"}
    assert len({c.id for q in questions for c in q.candidates}) == 12


def test_a_prompt_that_always_gets_the_same_reply_gets_no_question(monkeypatch):
    calls = []

    def recorded(*args):
        calls.append(len(args[2]))
        return sample(*args)

    monkeypatch.setattr(sampling_module, "sample", recorded)
    assert make_questions(lively(language_model()), tokenizer(), PROMPTS, k=3, config=GREEDY) == []
    assert calls[0] == 12 and len(calls) == 3  # three rounds, then it gives up
