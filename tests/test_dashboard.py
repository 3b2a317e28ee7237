"""The teacher's dashboard: what it counts, whom it points at, what it hides, and what it costs."""

from __future__ import annotations

import random

import pytest

from rlhf_lab.assignments import Assignments
from rlhf_lab.class_report import ClassLog, verdict
from rlhf_lab.records import Candidate, Correction, Question, Ranking, Rating, Vote
from rlhf_lab.store import FeedbackStore, StoreError
from widgets.dashboard import Dashboard

LONG = "a reply of some length that takes a person more than a moment to read to its end, number"


def question(i: int) -> Question:
    return Question(f"q{i:02}", f"prompt {i}", (Candidate("a", f"{LONG} {i}"), Candidate("b", f"{LONG} {i} again")))


def ranking(asked: Question, who: str, best: str, displayed=("a", "b"), seconds=9.0, **more) -> Ranking:
    other = "b" if best == "a" else "a"
    return Ranking(asked.id, ((best,), (other,)), who, displayed, seconds, **more)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "class.db") as opened:
        yield opened


@pytest.fixture
def class_(store) -> Assignments:
    """Twenty-four questions, four of them checks, answered by three who agree and by Cleo, who clicks the first."""
    queue, rng = Assignments(store), random.Random(3)
    asked = [question(i) for i in range(24)]
    expected = {each.id: [("a", "b")] for each in asked[::6]}
    for name in ("Ada", "Ben", "Cleo", "Dan"):
        queue.enrol(name)
    queue.enqueue(asked, overlap=4, expected=expected)
    for name in ("Ada", "Ben", "Cleo", "Dan"):
        while found := queue.next_question(name):
            shown = tuple(rng.sample(("a", "b"), 2))
            right = "a" if found.id in expected or int(found.id[1:]) % 2 else "b"
            best = shown[0] if name == "Cleo" else right
            store.append(ranking(found, name, best, shown, 0.3 if name == "Cleo" else 9.0))
    return queue


@pytest.fixture
def dashboard(store, class_):
    made = Dashboard(store, interval=60)
    yield made
    made.close()


def row(dashboard: Dashboard, name: str) -> dict:
    [found] = [each for each in dashboard.parts["students"].data["rows"] if each["name"] == name]
    return found


def test_it_counts_the_class_and_each_student(dashboard):
    overview = dashboard.parts["overview"].data
    assert (overview["students"], overview["answers"]) == (4, 96)
    assert overview["queue"] == {"questions": 24, "places": 96, "answered": 96, "open": 0}
    ada = row(dashboard, "Ada")
    assert (ada["assigned"], ada["answered"], ada["seconds"], tuple(ada["checks"])) == (24, 24, 9.0, (4, 4))
    assert ada["pace"] > 0 and ada["last_seen"]


def test_it_points_at_who_clicks_without_reading_and_at_nobody_else(dashboard):
    cleo = row(dashboard, "Cleo")
    assert tuple(cleo["first"]) == (24, 24) and cleo["agreement"] < row(dashboard, "Ada")["agreement"]
    assert any("first" in reason for reason in cleo["concerns"])
    assert [row(dashboard, name)["concerns"] for name in ("Ada", "Ben", "Dan")] == [[], [], []]


def test_agreement_is_shown_with_intervals_and_a_meaning(dashboard):
    cards = {card["title"]: card for card in dashboard.parts["overview"].data["agreement"]}
    assert set(cards) == {"Raw agreement", "Cohen’s kappa", "Fleiss’ kappa", "Krippendorff’s alpha"}
    assert 0.3 < float(cards["Krippendorff’s alpha"]["value"]) < 0.9
    assert all(" to " in card["interval"] and card["meaning"] for card in cards.values())


def test_what_is_worth_discussing_is_what_people_differ_on(dashboard):
    items = dashboard.parts["items"].data["items"]
    assert items and all(item["agreement"] < 1 for item in items)
    said = {name for opinion in items[0]["opinions"] for name in opinion["people"]}
    assert said == {"Ada", "Ben", "Cleo", "Dan"} and len(items[0]["replies"]) == 2


def test_names_do_not_reach_the_page_when_they_are_hidden(dashboard):
    dashboard.anonymous = True
    page = str([part.data for part in dashboard.parts.values()])
    assert not any(name in page for name in ("Ada", "Ben", "Cleo", "Dan")) and "Person 3" in page
    dashboard.anonymous = False
    assert row(dashboard, "Cleo")["concerns"]


def test_new_answers_withdrawals_and_class_models_appear(store, dashboard):
    given = store.answers("Ada")[0]
    store.withdraw(given.id, "Ada")
    interval = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 40}
    store.add_note("class_model", {"answers": 95, "accuracy": interval, "gold": None})
    dashboard.refresh()
    assert dashboard.parts["overview"].data["answers"] == 95 and row(dashboard, "Ada")["answered"] == 23
    assert dashboard.report.models[-1]["accuracy"]["value"] == 0.7


def test_nothing_is_sent_when_nothing_is_new(store, dashboard):
    before = {name: part.data for name, part in dashboard.parts.items()}
    sent = []
    for part in dashboard.parts.values():
        part.observe(sent.append, "data")
    dashboard.refresh()
    assert sent == [] and {name: part.data for name, part in dashboard.parts.items()} == before


def test_a_pause_holds_and_an_error_is_said_and_goes_away(store, dashboard, monkeypatch):
    dashboard.pause()
    assert dashboard.parts["overview"].data["paused"]
    dashboard.resume()

    def away(*_):
        raise StoreError("the database sleeps")

    monkeypatch.setattr(store, "events", away)
    dashboard.refresh()
    assert dashboard.parts["overview"].data["error"] == "the database sleeps"
    assert dashboard.parts["overview"].data["answers"] == 96  # what was known stays
    monkeypatch.setattr(store, "events", lambda *_: 1 / 0)  # not foreseen: the page must not just stand still
    dashboard.refresh()
    assert "ZeroDivisionError" in dashboard.parts["overview"].data["error"]
    monkeypatch.undo()
    dashboard.refresh()
    assert dashboard.parts["overview"].data["error"] == ""


def test_the_log_keeps_what_the_store_has_in_force(store):
    """Answers replaced, withdrawn and given back, looked at in between: always what the store says."""
    rng, log = random.Random(7), ClassLog(store)
    asked = [question(i) for i in range(4)]
    store.add_questions(asked)
    for _ in range(120):
        who = rng.choice(("Ada", "Ben"))
        mine = store.answers(who)
        if mine and rng.random() < 0.3:
            store.withdraw(rng.choice(mine).id, who)
        else:
            store.append(ranking(rng.choice(asked), who, rng.choice("ab")))
        if rng.random() < 0.5:
            log.refresh()
    log.refresh()
    assert log.answers() == store.answers() and not log.refresh()


def test_an_empty_class_has_a_dashboard_too(store):
    empty = Dashboard(store, interval=60)
    assert empty.parts["students"].data == {"rows": []} and empty.parts["items"].data == {"items": []}
    assert empty.parts["overview"].data["message"] == "Nobody has answered yet."
    assert len(empty.figure().axes) == 2
    empty.close()


def test_the_figure_shows_students_and_the_model(store, dashboard):
    interval = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 40}
    store.add_note("class_model", {"answers": 96, "accuracy": interval, "gold": interval})
    dashboard.refresh()
    left, right = dashboard.figure().axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["Dan", "Cleo", "Ben", "Ada"]
    assert right.lines[0].get_ydata().tolist() == [0.7]


def test_verdicts_in_words():
    number = {"a": 1, "b": 2}
    assert verdict(Ranking("q", (("b",), ("a",)), "x", grade="better"), number) == "2 > 1, better"
    assert verdict(Ranking("q", (("b", "a"),), "x"), number) == "1 = 2"
    assert verdict(Ranking("q", (), "x", status="skipped"), number) == "skipped"
    assert verdict(Rating("q", {"a": {"safe": 5}, "b": {"safe": 2}}, "x"), number) == "1 > 2"
    assert verdict(Vote("q", "b", True, "x"), number) == "2 👍"
    assert verdict(Correction("q", "a", "better words", "x"), number) == "1 corrected"
