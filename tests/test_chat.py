"""The chat in Python: one worker writes, requests are done once, and a label shows only after it was stored."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_loop import FakeLoop

from rlhf_lab.errors import InputError
from rlhf_lab.records import Candidate, Correction, Question, Ranking, Vote
from rlhf_lab.store import FeedbackStore
from widgets.chat import ChatWidget


class Chat:
    """A chat widget and the person at it."""

    def __init__(self, loop, **options) -> None:
        undo = {"on_undo": lambda answer: loop.withdraw(answer.id)}
        self.loop, self.requests = loop, 0
        self.widget = ChatWidget(loop.reply, loop.submit, "ada", loop.checkpoints, **undo | options)

    def ask(self, action: str, **fields) -> str:
        self.requests += 1
        message = {"id": f"r{self.requests}", "action": action, **fields}
        self.widget._handle_custom_msg(message, [])
        return message["id"]

    def say(self, text: str) -> dict:
        self.ask("send", text=text)
        return self.settled()

    def settled(self) -> dict:
        """The last turn, once nothing is being written."""
        deadline = time.monotonic() + 20
        while any(turn.get("wanted") for turn in self.widget.turns):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.002)
        return self.last

    @property
    def last(self) -> dict:
        return self.widget.turns[-1]

    @property
    def text(self) -> str:
        return self.last["versions"][self.last["chosen"]]["text"]

    def several(self) -> dict:
        self.ask("again", turn=self.last["id"], k=4)
        return self.settled()


@pytest.fixture
def chat():
    made = Chat(FakeLoop())
    yield made
    made.widget.close()


def test_a_message_is_answered_by_the_chosen_checkpoint_on_a_thread_of_the_widget_s_own(chat):
    threads = []
    chat.loop.reply, reply = lambda *a: threads.append(threading.current_thread()) or reply(*a), chat.loop.reply
    chat.widget._reply = chat.loop.reply
    turn = chat.say("Hello?")
    assert [t["role"] for t in chat.widget.turns] == ["user", "assistant"]
    assert turn["versions"][0]["text"].startswith("policy says") and turn["versions"][0]["checkpoint"] == "policy"
    chat.widget.checkpoint = "sft"
    assert chat.say("And you?")["versions"][0]["checkpoint"] == "sft"
    assert chat.loop.calls == ["reply 1 policy", "reply 1 sft"]
    assert len(set(threads)) == 1 and threads[0] is not threading.current_thread()


def test_the_model_is_given_the_whole_conversation_with_corrected_texts(chat):
    seen = []
    chat.widget._reply = lambda turns, k, checkpoint: seen.append(turns) or chat.loop.reply(turns, k, checkpoint)
    first = chat.say("One?")
    chat.ask("correct", turn=first["id"], version=0, text="Better.")
    chat.say("Two?")
    assert seen[-1] == [("user", "One?"), ("assistant", "Better."), ("user", "Two?")]


def test_a_thumb_is_stored_before_it_shows_and_the_same_thumb_again_takes_it_back(chat):
    turn = chat.say("Hello?")
    chat.loop.failing["submit"] = InputError("the disk is full")
    chat.ask("vote", turn=turn["id"], version=0, up=True)
    assert chat.last["versions"][0]["up"] is None and "the disk is full" in chat.widget.error
    chat.loop.failing.clear()
    name = chat.ask("vote", turn=turn["id"], version=0, up=True)
    [vote] = chat.loop.answers
    assert isinstance(vote, Vote) and (vote.id, vote.up, vote.annotator) == (name, True, "ada")
    assert vote.context["widget"] == "ChatWidget" and chat.last["versions"][0]["up"] is True
    assert chat.widget.error == ""
    chat.ask("vote", turn=turn["id"], version=0, up=True)
    assert chat.loop.answers == [] and chat.last["versions"][0]["up"] is None


def test_the_other_thumb_replaces_the_first(chat):
    turn = chat.say("Hello?")
    chat.ask("vote", turn=turn["id"], version=0, up=True)
    chat.ask("vote", turn=turn["id"], version=0, up=False)
    assert [vote.up for vote in chat.loop.answers] == [True, False]  # which the store reads as: the later one counts
    assert [vote.up for vote in chat.widget.answers] == [False] and chat.last["versions"][0]["up"] is False


def test_a_request_that_comes_twice_is_done_once(chat):
    turn = chat.say("Hello?")
    message = {"id": "same", "action": "vote", "turn": turn["id"], "version": 0, "up": True}
    for _ in range(2):
        chat.widget._handle_custom_msg(message, [])
    assert len(chat.loop.answers) == 1 and chat.widget.handled.count("same") == 1


def test_four_replies_are_ranked_and_the_best_goes_on_in_the_conversation(chat):
    chat.say("Hello?")
    turn = chat.several()
    assert len(turn["choices"]) == 4 and chat.loop.answers == []
    best = turn["choices"][2]
    chat.ask("rank", turn=turn["id"], order=[[3], [1, 4], [2]])
    [ranking] = chat.loop.answers
    assert isinstance(ranking, Ranking) and [len(tier) for tier in ranking.order] == [1, 2, 1]
    texts = chat.loop.known[ranking.question_id].texts
    assert texts[ranking.order[0][0]] == best == chat.text
    assert [texts[name] for name in ranking.displayed] == turn["choices"]
    assert [v["place"] for v in chat.last["versions"]] == [0, 1, 2, 2, 3] and chat.last["choices"] == []


def test_an_incomplete_order_is_refused_and_the_replies_stay_to_be_ranked(chat):
    chat.say("Hello?")
    turn = chat.several()
    for order in ([[1], [2]], [[1], [9]], "nonsense", [[1], [1], [2], [3], [4]]):
        chat.ask("rank", turn=turn["id"], order=order)
        assert chat.widget.error and len(chat.last["choices"]) == 4
    assert chat.loop.answers == []


def test_a_correction_is_stored_and_stands_in_the_conversation(chat):
    turn = chat.say("Hello?")
    original = chat.text
    for text, said in (("  ", "empty"), (original, "leaves the reply as it was")):
        chat.ask("correct", turn=turn["id"], version=0, text=text)
        assert said in chat.widget.error
    chat.ask("correct", turn=turn["id"], version=0, text="A better one. ")
    [correction] = chat.loop.answers
    assert isinstance(correction, Correction) and correction.text == "A better one."
    assert chat.text == "A better one." and chat.last["versions"][0]["original"] == original


def test_undo_takes_back_the_last_label_whatever_it_was(chat):
    turn = chat.say("Hello?")
    original = chat.text
    chat.ask("vote", turn=turn["id"], version=0, up=False)
    chat.ask("correct", turn=turn["id"], version=0, text="Better.")
    chat.several()
    chat.ask("rank", turn=turn["id"], order=[[1], [2], [3], [4]])
    kinds = []
    for _ in range(3):
        chat.ask("undo")
        kinds.append([answer.kind for answer in chat.loop.answers])
        if len(kinds) == 1:
            assert len(chat.last["choices"]) == 4  # they are to be ranked again
            chat.ask("keep", turn=turn["id"])
    assert kinds == [["vote", "correction"], ["vote"], []]
    assert chat.text == original and chat.last["versions"][0]["up"] is None and not chat.widget.can_undo
    chat.ask("undo")
    assert "no label of yours" in chat.widget.error


def test_labels_taken_back_elsewhere_are_shown_no_more(chat):
    turn = chat.say("Hello?")
    name = chat.ask("vote", turn=turn["id"], version=0, up=True)
    chat.widget.forget([name])
    assert chat.last["versions"][0]["up"] is None and not chat.widget.can_undo


def test_another_reply_stands_beside_the_first_and_either_can_be_chosen(chat):
    turn = chat.say("Hello?")
    first = chat.text
    chat.ask("again", turn=turn["id"], k=1)
    chat.settled()
    assert len(chat.last["versions"]) == 2 and chat.text != first
    chat.ask("choose", turn=turn["id"], version=0)
    assert chat.text == first


def test_a_failed_reply_says_why_and_can_be_tried_again(chat):
    chat.loop.failing["reply 1 policy"] = RuntimeError("no memory left")
    turn = chat.say("Hello?")
    assert turn["error"] == "RuntimeError: no memory left" and turn["versions"] == []
    chat.loop.failing.clear()
    chat.ask("again", turn=turn["id"], k=1)
    assert chat.settled()["error"] == "" and chat.text


def test_a_reply_that_was_stopped_is_thrown_away_and_the_chat_goes_on(chat):
    chat.loop.replying.clear()
    chat.ask("send", text="Slow?")
    assert chat.last["wanted"] == 1
    chat.ask("send", text="Too early")
    assert "still being written" in chat.widget.error
    chat.ask("stop", turn=chat.last["id"])
    assert chat.last["wanted"] == 0 and "Stopped" in chat.last["error"]
    chat.ask("send", text="Quick?")
    chat.loop.replying.set()
    chat.settled()
    assert [t.get("text") for t in chat.widget.turns if t["role"] == "user"] == ["Slow?", "Quick?"]
    assert "Quick?" in chat.text and len(chat.last["versions"]) == 1


def test_clearing_while_a_reply_is_written_leaves_an_empty_chat(chat):
    chat.loop.replying.clear()
    chat.ask("send", text="Slow?")
    chat.ask("clear")
    chat.loop.replying.set()
    chat.say("Fresh")
    assert len(chat.widget.turns) == 2 and "Fresh" in chat.text


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("send", {"text": "  "}), ("send", {"text": 5}), ("send", {"text": "x" * 4001}),
        ("vote", {"turn": "nowhere", "version": 0, "up": True}), ("vote", {"version": 7, "up": True}),
        ("vote", {"version": 0, "up": "yes"}), ("again", {"k": 1000}), ("choose", {"version": -1}),
        ("rank", {"order": [[1]]}), ("__init__", {}), (None, {}),
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_words_and_changes_nothing(chat, action, fields):
    turn = chat.say("Hello?")
    before = list(chat.widget.turns)
    chat.ask(action, **{"turn": turn["id"]} | fields)
    assert chat.widget.error and "Error" not in chat.widget.error
    assert chat.widget.turns == before and chat.loop.answers == []


def test_a_conversation_can_go_on_in_another_widget(chat):
    chat.say("Hello?")
    other = ChatWidget(chat.loop.reply, chat.loop.submit, "ada", conversation=chat.widget.conversation)
    assert other.turns == chat.widget.turns


def test_with_a_store_questions_and_labels_are_kept_there(tmp_path):
    def reply(turns, k, checkpoint):
        return Question("q", turns[-1][1], (Candidate("a", "Yes.", checkpoint),))

    with FeedbackStore(tmp_path / "feedback.db") as store:
        chat = Chat(FakeLoop())
        chat.widget = ChatWidget(reply, store, "ada", ["sft"])
        turn = chat.say("Open on Sunday?")
        chat.ask("vote", turn=turn["id"], version=0, up=True)
        [vote] = store.answers("ada")
        assert vote.up and store.question("q").prompt == "Open on Sunday?"
        chat.ask("undo")
        assert store.answers("ada") == [] and len(store.events()) == 2
        chat.widget.close()


def test_half_characters_are_replaced_for_no_message_can_carry_them(chat):
    chat.say("a\ud800b")
    assert chat.widget.turns[0]["text"] == "a?b"


def test_a_chat_imports_no_torch():
    code = "import sys, widgets.chat, widgets.studio; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
