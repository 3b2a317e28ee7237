"""Next-token training: what the loss counts, the schedule, batches, interruption, bad input."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import PROMPTS, TEXTS, language_model, tokenizer

from rlhf_lab.config import LanguageConfig
from rlhf_lab.errors import InputError
from rlhf_lab.language import (
    block_batch,
    evaluate_loss,
    language_loss,
    learning_rate_at,
    make_optimizer,
    pretrain,
    step_generator,
    train_sft,
)
from rlhf_lab.text import encode_dialogues, encode_documents, language_batch

CONFIG = LanguageConfig(steps=30, batch_size=4, block_size=16, learning_rate=1e-2)


def dialogues():
    return encode_dialogues(tokenizer(), [(p, t) for p in PROMPTS for t in TEXTS])


def tokens() -> torch.Tensor:
    return encode_documents(tokenizer(), TEXTS * 10)


def test_the_loss_is_transformers_own_loss():
    model, ids = language_model(), tokens()[:40].view(2, 20)
    with torch.no_grad():
        own = language_loss(model, ids[:, :-1], ids[:, 1:])
        theirs = model(input_ids=ids, labels=ids).loss
    assert own.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_sft_counts_each_reply_token_once_and_no_prompt_token():
    """The batch's mean, recomputed one dialogue at a time, without padding."""
    model, some = language_model(), dialogues()[:5]
    total = count = 0
    with torch.no_grad():
        for d in some:
            logits = model(torch.tensor([d.ids])).logits[0]
            reply = torch.tensor(d.ids[d.prompt_length :])
            total += F.cross_entropy(logits[d.prompt_length - 1 : -1], reply, reduction="sum").item()
            count += len(reply)
        loss = language_loss(model, *language_batch(some, tokenizer().pad_token_id))
        padded_with_end = language_loss(model, *language_batch(some, tokenizer().eos_token_id))
    assert loss.item() == pytest.approx(total / count, abs=1e-5) == pytest.approx(padded_with_end.item(), abs=1e-5)


def test_pretraining_learns_and_reports_every_step():
    points = list(pretrain(language_model(), tokens(), CONFIG))
    assert [p.step for p in points] == list(range(1, 31))
    assert [p.tokens for p in points] == [64 * n for n in range(1, 31)]
    assert points[0].loss == pytest.approx(math.log(len(tokenizer())), abs=0.3)  # it knows nothing: ln |V|
    assert points[-1].loss < points[0].loss - 1


@pytest.mark.parametrize("threads", [1, 2])
def test_products_in_bfloat16_train_to_nearly_the_same(monkeypatch, threads):
    """Autocast belongs to a thread: each core that takes part of a batch must be in it."""
    monkeypatch.setattr("rlhf_lab.cores.SMALLEST", 1)
    model, before = language_model(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = [point.loss for point in pretrain(language_model(), tokens(), CONFIG)]
        rounded = [point.loss for point in pretrain(model, tokens(), replace(CONFIG, bf16=True))]
    finally:
        torch.set_num_threads(before)
    assert rounded == pytest.approx(exact, rel=0.03) and rounded != exact
    assert all(abs(a - b) > 1e-7 for a, b in zip(rounded[5:], exact[5:], strict=True))
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("stage", ["pretraining", "sft"])
def test_training_that_was_interrupted_goes_on_to_the_same_weights_and_points(stage):
    def run(model, optimizer, start=0):
        if stage == "sft":
            return train_sft(model, dialogues(), 1, CONFIG, seed=3, optimizer=optimizer, start=start)
        return pretrain(model, tokens(), CONFIG, seed=3, optimizer=optimizer, start=start)

    def numbers(points):
        return [(p.step, p.tokens, p.loss) for p in points]

    whole = language_model()
    expected = numbers(run(whole, make_optimizer(whole, 1e-2, CONFIG.weight_decay)))
    model = language_model()
    optimizer = make_optimizer(model, 1e-2, CONFIG.weight_decay)
    begun = run(model, optimizer)
    points = numbers(next(begun) for _ in range(11))
    points += numbers(run(model, optimizer, start=11))
    assert points == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_block_is_followed_by_its_next_token():
    ids, labels = block_batch(torch.arange(1000), CONFIG, seed=0, step=7)
    assert ids.shape == labels.shape == (4, 16) and (labels == ids + 1).all()
    assert not torch.equal(ids, block_batch(torch.arange(1000), CONFIG, seed=0, step=8)[0])
    assert not torch.equal(ids, block_batch(torch.arange(1000), CONFIG, seed=1, step=7)[0])


def test_the_shortest_text_is_one_block_and_less_is_refused():
    config = LanguageConfig(steps=1, batch_size=2, block_size=16)
    assert len(list(pretrain(language_model(), torch.arange(18), config))) == 1
    with pytest.raises(InputError, match="has 17 tokens; at least 18"):
        pretrain(language_model(), torch.arange(17), config)
    with pytest.raises(InputError, match="no demonstrations"):
        train_sft(language_model(), [], 1, config)


def test_every_demonstration_comes_once_an_epoch(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "rlhf_lab.language.language_batch", lambda batch, pad: seen.append(list(batch)) or language_batch(batch, pad)
    )
    list(train_sft(language_model(), dialogues(), 1, LanguageConfig(steps=8, batch_size=4)))
    first, second = (sum(seen[start : start + 4], []) for start in (0, 4))
    assert sorted(d.ids for d in first) == sorted(d.ids for d in second) == sorted(d.ids for d in dialogues())
    assert first != second  # reshuffled


def test_fewer_demonstrations_than_a_batch():
    points = list(train_sft(language_model(), dialogues()[:3], 1, LanguageConfig(steps=2, batch_size=16)))
    assert [p.tokens for p in points] == [p.step * sum(d.reply_length for d in dialogues()[:3]) for p in points]


def test_the_learning_rate_rises_stays_and_falls_to_a_twentieth():
    config = LanguageConfig(steps=100, learning_rate=1.0, warmup=0.1, decay=0.5)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 == rates[45]
    assert rates[75] == pytest.approx(0.05 + 0.95 * 25 / 50) and rates[99] == pytest.approx(0.05 + 0.95 / 50)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_steps_and_seeds_have_their_own_chance():
    draws = {tuple(torch.randint(10**6, (3,), generator=step_generator(*key)).tolist()) for key in KEYS}
    assert len(draws) == len(KEYS)


KEYS = [(seed, step, salt) for seed in range(3) for step in range(5) for salt in range(3)]


def test_evaluation_weighs_batches_by_their_tokens():
    model, pad = language_model(), tokenizer().pad_token_id
    one, other = dialogues()[0], dialogues()[2]
    together = evaluate_loss(model, [language_batch([one, other], pad)])
    apart = evaluate_loss(model, [language_batch([one], pad), language_batch([other], pad)])
    assert together == pytest.approx(apart, abs=1e-5)
