"""Talking with a checkpoint in a script: what the model is given, what is kept, and what is refused."""

import pytest
from tiny import hub_model, language_model, tokenizer

from rlhf_lab.chat import ChatPartner, conversation_prompt
from rlhf_lab.config import SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.models import fingerprint
from rlhf_lab.records import Vote
from rlhf_lab.store import FeedbackStore

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=8)
TALK = [("user", "Who?"), ("assistant", "Ada."), ("user", " When is the choir? ")]


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "chat.db") as opened:
        yield opened


def test_a_reply_is_a_question_in_the_store_that_can_be_judged(store):
    models = {"small": (language_model(), tokenizer()), "hub": (hub_model("qwen2"), tokenizer())}
    partner = ChatPartner(models, store, SAMPLING)
    question = partner.reply(TALK, k=3)
    assert question.prompt == "When is the choir?" and 1 <= len(question.candidates) <= 3
    assert len(set(question.texts.values())) == len(question.candidates)
    written = question.candidates[0]
    assert written.model == "small" and written.sampling["checkpoint"] == fingerprint(models["small"][0])
    store.append(Vote(question.id, written.id, False, "me"))
    assert partner.reply(TALK, checkpoint="hub").candidates[0].model == "hub"
    assert len(store.questions()) == 2 and partner.checkpoints == ("small", "hub")


@pytest.mark.parametrize(
    ("memory", "prompt"),
    [
        (0, "When is the choir?"),
        (1, "When is the choir?"),  # the turn before is the assistant's: a conversation begins with the user
        (2, "\n\nHuman: Who?\n\nAssistant: Ada.\n\nHuman: When is the choir?"),
        (None, "\n\nHuman: Who?\n\nAssistant: Ada.\n\nHuman: When is the choir?"),
    ],
)
def test_memory_is_how_many_earlier_turns_the_model_is_given(memory, prompt):
    assert conversation_prompt(TALK, memory) == prompt


def test_bad_requests_are_named(store):
    partner = ChatPartner({"small": (language_model(), tokenizer())}, store, SAMPLING)
    with pytest.raises(InputError, match="there are small"):
        partner.reply(TALK, checkpoint="big")
    with pytest.raises(InputError, match="at least one reply"):
        partner.reply(TALK, k=0)
    with pytest.raises(InputError, match="must be the user's"):
        partner.reply(TALK[:2])
    with pytest.raises(InputError, match="nobody to talk with"):
        ChatPartner({}, store)
    assert store.questions() == []
