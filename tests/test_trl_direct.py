"""DPO, IPO, cDPO, robust DPO and KTO against TRL 1.12.0's trainers: losses, gradients and metrics to 1e-5."""

from dataclasses import replace

import pytest
from trl_beyond import TOLERANCE, dialogues, gradients, models, prompt_ids, reply_ids, same, trl_pairs, trl_votes

from rlhf_lab.config import DirectConfig
from rlhf_lab.direct import JudgedReply, Reference, mismatched, read_pairs, read_votes
from rlhf_lab.reward import RankedReplies

PROMPTS = [0, 1, 2, 3]
CHOSEN, REJECTED = dialogues([9, 4, 7, 2], PROMPTS, seed=1), dialogues([5, 6, 1, 8], PROMPTS, seed=2)
REJECTED = [type(r)((*prompt_ids(c), *reply_ids(r)), c.prompt_length) for c, r in zip(CHOSEN, REJECTED, strict=True)]
PAIRS = list(zip(CHOSEN, REJECTED, strict=True))
ITEMS = [RankedReplies(pair, ((0, 1, False),)) for pair in PAIRS]
UP = [True, False, True, True]


def ours_on_pairs(config, items=ITEMS):
    policy, reference = models()
    read = read_pairs(policy, Reference(reference), items, config)
    read.loss.backward()
    return read, gradients(policy)


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DirectConfig(), {"loss_type": "sigmoid"}),
        (DirectConfig(loss="ipo"), {"loss_type": "ipo"}),
        (DirectConfig(loss="robust", label_smoothing=0.1), {"loss_type": "robust", "label_smoothing": 0.1}),
    ],
    ids=["dpo", "ipo", "robust"],
)
def test_losses_of_pairs_and_their_gradients_equal_trls(ours, theirs, beta, tmp_path):
    loss, grads, log = trl_pairs(*models(), PAIRS, tmp_path, beta=beta, **theirs)
    read, own = ours_on_pairs(replace(ours, beta=beta))
    assert read.loss.item() == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE)
    assert same(own, grads)
    assert beta * read.chosen.mean().item() == pytest.approx(log["rewards/chosen"], abs=TOLERANCE)
    assert beta * read.rejected.mean().item() == pytest.approx(log["rewards/rejected"], abs=TOLERANCE)
    assert read.right.float().mean().item() == pytest.approx(log["rewards/accuracies"])


def test_cdpo_equals_trls_aot_on_one_pair(tmp_path):
    """TRL 1.12.0's label smoothing is no longer cDPO's ("sigmoid" ignores it), but its AOT on one pair is cDPO."""
    for i, (pair, item) in enumerate(zip(PAIRS, ITEMS, strict=True)):
        loss, grads, _ = trl_pairs(*models(), [pair], tmp_path / str(i), loss_type="aot", label_smoothing=0.2, beta=0.1)
        read, own = ours_on_pairs(DirectConfig(beta=0.1, label_smoothing=0.2), [item])
        assert read.loss.item() == pytest.approx(loss, rel=TOLERANCE) and same(own, grads)


def test_ipo_of_sums_is_the_papers_and_differs_from_trls(tmp_path):
    """Azar et al.'s h are sums over tokens; TRL takes means, and so do we unless told otherwise."""
    loss, *_ = trl_pairs(*models(), PAIRS, tmp_path, beta=0.1, loss_type="ipo")
    summed, _ = ours_on_pairs(DirectConfig(loss="ipo", ipo_mean=False))
    gaps = summed.chosen - summed.rejected
    assert summed.loss.item() == pytest.approx(((gaps - 5.0) ** 2).mean().item(), rel=TOLERANCE)
    assert abs(summed.loss.item() - loss) > 1


def test_ranked_replies_are_each_read_once_and_give_the_loss_of_their_pairs(tmp_path):
    """A ranking of three is three pairs: TRL reads six sequences, we read three, and the loss is the same."""
    first, second, third = (
        type(d)((*prompt_ids(CHOSEN[0]), *reply_ids(d)), CHOSEN[0].prompt_length) for d in CHOSEN[:3]
    )
    item = RankedReplies((first, second, third), ((0, 1, False), (0, 2, False), (1, 2, False)))
    loss, grads, _ = trl_pairs(*models(), [(first, second), (first, third), (second, third)], tmp_path, beta=0.1)
    read, own = ours_on_pairs(DirectConfig(), [item])
    assert read.loss.item() == pytest.approx(loss, rel=TOLERANCE) and same(own, grads)


# --- KTO --------------------------------------------------------------------------------------------------------------


def ours_on_votes(config):
    policy, reference = models()
    votes = [JudgedReply(d, up) for d, up in zip(CHOSEN, UP, strict=True)]
    batch = list(zip(votes, mismatched(votes), strict=True))
    read = read_votes(policy, Reference(reference), batch, config)
    read.loss.backward()
    return read, gradients(policy), [(v.dialogue, v.up, m) for v, m in batch]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.7)])
@pytest.mark.parametrize(("baseline", "kind"), [("mismatched", "kto"), ("zero", "apo_zero_unpaired")])
def test_ktos_loss_and_gradients_equal_trls(baseline, kind, weights, tmp_path):
    config = DirectConfig(
        loss="kto", beta=0.2, kto_baseline=baseline, desirable_weight=weights[0], undesirable_weight=weights[1]
    )
    read, own, votes = ours_on_votes(config)
    loss, grads, log = trl_votes(
        *models(), votes, tmp_path, beta=0.2, loss_type=kind, desirable_weight=weights[0], undesirable_weight=weights[1]
    )
    assert read.loss.item() == pytest.approx(loss, rel=TOLERANCE) and same(own, grads)
    assert (log["kl"] > 0) == (baseline == "mismatched")


def test_trl_rotates_replies_within_its_batch_and_we_over_all_votes():
    """On purpose: so the reference reads each mismatched reply once, whatever batch it falls into. The mean over the
    data is the same; TRL's pairs (x, y of the one before), ours (x of the next with another prompt, y)."""
    votes = [JudgedReply(d, up) for d, up in zip(CHOSEN, UP, strict=True)]
    theirs = [(*prompt_ids(x), *reply_ids(y)) for x, y in zip(CHOSEN, [CHOSEN[-1], *CHOSEN[:-1]], strict=True)]
    assert sorted(d.ids for d in mismatched(votes)) == sorted(theirs)
