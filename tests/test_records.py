"""Records: what they refuse, pairs of a ranking, and the way to plain data and back."""

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.errors import InputError
from rlhf_lab.records import Candidate, Comparison, Interval, Question, Ranking, comparisons_of, new_id, utc_now

QUESTION = Question("q", "When?", tuple(Candidate(c, f"text {c}", "sft") for c in "abcd"))


def ranking(order, **options) -> Ranking:
    return Ranking(options.pop("question_id", "q"), order, "me", **options)


@st.composite
def rankings(draw) -> Ranking:
    """Any complete ranking of the four replies, ties included."""
    ids = draw(st.permutations("abcd"))
    cuts = sorted(draw(st.sets(st.integers(1, 3))))
    order = [tuple(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, 4], strict=True)]
    return ranking(tuple(order), displayed=tuple(draw(st.permutations("abcd"))), seconds=draw(st.floats(0, 1e4)))


@given(rankings())
def test_a_ranking_survives_json(original):
    assert Ranking.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    assert original.check(QUESTION) is original


@given(st.text(), st.lists(st.text(), min_size=2, max_size=5))
def test_a_question_survives_json_whatever_its_texts(prompt, texts):
    original = Question(new_id(), prompt, tuple(Candidate(new_id(), text, "m") for text in texts))
    assert Question.from_dict(json.loads(json.dumps(original.to_dict()))) == original


@given(rankings())
def test_a_ranking_of_four_gives_six_pairs_that_agree_with_it(given_ranking):
    pairs = comparisons_of(QUESTION, given_ranking)
    place = {f"text {c}": i for i, tier in enumerate(given_ranking.order) for c in tier}
    assert len(pairs) == 6 == len({frozenset((p.chosen, p.rejected)) for p in pairs})
    for pair in pairs:
        assert pair.tie == (place[pair.chosen] == place[pair.rejected])
        assert pair.tie or place[pair.chosen] < place[pair.rejected]
        assert (pair.prompt, pair.question_id, pair.annotator) == ("When?", "q", "me")


def test_pairs_by_hand():
    pairs = comparisons_of(Question("q", "P", QUESTION.candidates[:3]), ranking((("b",), ("a", "c"))))
    assert [(p.chosen[-1], p.rejected[-1], p.tie) for p in pairs] == [
        ("b", "a", False),
        ("b", "c", False),
        ("a", "c", True),
    ]


@pytest.mark.parametrize("status", ["skipped", "undecided"])
def test_no_decision_gives_no_pairs(status):
    assert comparisons_of(QUESTION, ranking((), status=status)) == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Question("q", "P", ()), "at least one"),
        (lambda: ranking((("a",),)).check(Question("q", "P", (Candidate("a", "x"),))), "at least two"),
        (lambda: Question("q", "P", (Candidate("a", "x"), Candidate("a", "y"))), "two replies with one id"),
        (lambda: ranking((("a",), ("a",))), "each reply once"),
        (lambda: ranking((("a",), ())), "no empty tier"),
        (lambda: ranking(()), "its order is empty"),
        (lambda: ranking((("a",),), status="skipped"), "leave it empty"),
        (lambda: ranking((("a",),), status="maybe"), "must be one of ranked, undecided, skipped"),
        (lambda: Question.from_dict({"id": "q"}), "not a question"),
        (lambda: Question.from_dict({"id": "q", "prompt": "P", "candidates": [{"id": "a", "txt": "x"}]}), "txt"),
        (lambda: Question.from_dict([]), "not a question"),
        (lambda: Ranking.from_dict({"order": []}), "not a ranking.*question_id"),
        (lambda: Ranking.from_dict(ranking((("a",),)).to_dict() | {"mood": "good"}), "not a ranking.*mood"),
    ],
)
def test_what_is_no_record_is_refused(make, reason):
    with pytest.raises(InputError, match=reason):
        make()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (ranking((("a",), ("b", "c"))), r"orders \['a', 'b', 'c'\]"),
        (ranking((("a",), ("b", "c", "d", "e"))), "'e'"),
        (ranking((("a", "b", "c", "d"),), question_id="other"), "'other', not 'q'"),
        (ranking((("a", "b", "c", "d"),), displayed=("a", "b")), "was displayed as"),
        (ranking((("a", "b", "c", "d"),), displayed=("a", "b", "c", "d", "a")), "was displayed as"),
    ],
)
def test_a_ranking_that_does_not_fit_its_question_is_refused(wrong, reason):
    with pytest.raises(InputError, match=reason):
        wrong.check(QUESTION)
    with pytest.raises(InputError, match=reason):
        comparisons_of(QUESTION, wrong)


def test_every_strict_order_of_three_gives_its_three_pairs():
    three = Question("q", "P", QUESTION.candidates[:3])
    for order in permutations("abc"):
        pairs = comparisons_of(three, ranking(tuple((c,) for c in order)))
        assert [(p.chosen[-1], p.rejected[-1]) for p in pairs] == [
            (order[0], order[1]),
            (order[0], order[2]),
            (order[1], order[2]),
        ]


def test_records_do_not_change_and_lists_become_tuples():
    made = ranking([["a", "b"], ["c"]], displayed=["a", "b", "c"])
    assert made.order == (("a", "b"), ("c",)) and made.displayed == ("a", "b", "c")
    assert {made: 1}[made] == 1  # hashable
    with pytest.raises(AttributeError):
        made.order = ()
    with pytest.raises(AttributeError):
        Comparison("P", "a", "b").tie = True


def test_ids_are_unique_and_times_sort_as_text():
    assert len({new_id() for _ in range(1000)}) == 1000
    one, two = utc_now(), utc_now()
    assert one <= two and one.endswith("+00:00") and len(one) == 32


def test_an_interval_reads_as_people_write_it():
    assert str(Interval(0.7512, 0.7, 0.8, 120)) == "0.751 [0.700, 0.800] (n = 120)"
