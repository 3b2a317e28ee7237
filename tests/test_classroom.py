"""`rlhf-lab classroom`: students and keys, questions and checks, the student's page, the trainer, the whole command."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from http.cookiejar import CookieJar
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab import class_trainer
from rlhf_lab.assignments import Assignments, Queued, passed
from rlhf_lab.class_questions import REPLIES, Plan, checked, expected_of, guidelines_of, prepare, spread
from rlhf_lab.class_trainer import ClassTrainer, Pairs, cross_validated, fit, order_of_asking, reliability
from rlhf_lab.classroom import (
    LINKS,
    TEACHER,
    Settings,
    hand_out_keys,
    is_loopback,
    links_of,
    read_students,
    warning_of,
    write_links,
)
from rlhf_lab.cli import main
from rlhf_lab.cli_classroom import FORMS as CLI_FORMS
from rlhf_lab.cli_classroom import STRATEGIES as CLI_STRATEGIES
from rlhf_lab.errors import InputError
from rlhf_lab.judge import GoldJudge
from rlhf_lab.records import Candidate, Question, Ranking
from rlhf_lab.reward import PairEvidence
from rlhf_lab.scenario import load_scenario
from rlhf_lab.selection import STRATEGIES
from rlhf_lab.store import FeedbackStore, StoreError
from widgets.labelling import ALL_DONE, FORMS, NOT_READY, OTHERS_ANSWER, LabellingPage

ROOT = Path(__file__).resolve().parents[1]


def question(name: str, *texts: str) -> Question:
    texts = texts or ("one", "two")
    return Question(name, f"prompt of {name}", tuple(Candidate(f"{name}{i}", text) for i, text in enumerate(texts)))


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "class.db") as opened:
        yield opened


# --- students, keys, links ---


def test_students_are_names_a_file_or_a_number(tmp_path):
    assert read_students(" Ada, Ben ,,Ada B. ") == ("Ada", "Ben", "Ada B.")
    assert read_students("3") == ("Student 01", "Student 02", "Student 03")
    names = tmp_path / "names.txt"
    names.write_text("\ufeffÅsa Öberg\n\n  李雷 \n", encoding="utf-8")
    assert read_students(str(names)) == ("Åsa Öberg", "李雷")


@pytest.mark.parametrize("text", ["", " , ", "0", "501", "Ada,Ada", "Ada,(teacher)"])
def test_students_that_cannot_be_a_class_are_refused(text):
    with pytest.raises(InputError, match="--students"):
        read_students(text)


@pytest.mark.parametrize(
    ("plan", "more", "message"),
    [
        ({"overlap": 3}, {}, "--overlap 3"),
        ({"form": "thumbs", "checks": 0.1}, {}, "--checks 0.1"),
        ({"checks": 0.9}, {}, "--checks 0.9"),
        ({"questions": 0}, {}, "--questions 0"),
        ({}, {"port": 70_000}, "--port 70000"),
    ],
)
def test_settings_say_which_option_is_wrong(plan, more, message):
    with pytest.raises(InputError, match=message):
        Settings(Plan("out", "db", **({"overlap": 1} | plan)), ("Ada", "Ben"), **more)


def test_links_stay_the_same_while_links_csv_is_there(store, tmp_path):
    path, queue = tmp_path / LINKS, Assignments(store)
    keys = hand_out_keys(queue, ["Ada", "Ben"], path)
    write_links(path, links_of(keys, "127.0.0.1", 8866))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = hand_out_keys(queue, ["Ada", "Ben", "Cleo"], path)
    assert {name: again[name] for name in keys} == keys and queue.who(again["Cleo"]) == "Cleo"
    path.unlink()
    fresh = hand_out_keys(queue, ["Ada"], path)
    assert fresh["Ada"] != keys["Ada"] and queue.who(fresh["Ada"]) == "Ada"
    with pytest.raises(InputError, match="ask your teacher"):
        queue.who(keys["Ada"])
    with pytest.raises(InputError, match="ask your teacher"):
        queue.who(keys["Ben"])  # no longer on the list
    assert queue.is_teacher(fresh[TEACHER]) and not queue.is_teacher(keys[TEACHER])
    assert not queue.is_teacher(fresh["Ada"]) and queue.people() == ["Ada", "Ben", "Cleo"]


def test_a_links_file_of_something_else_hands_out_new_keys(store, tmp_path):
    path = tmp_path / LINKS
    path.write_bytes(b"\xff\x00 not a table")
    assert set(hand_out_keys(Assignments(store), ["Ada"], path)) == {"Ada", TEACHER}


def test_whoever_can_reach_the_class_is_said_plainly():
    assert warning_of("127.0.0.1") == "" == warning_of("::1") and is_loopback("localhost")
    assert "not encrypted" in warning_of("0.0.0.0") and "everybody on this network" in warning_of("192.0.2.7")


def test_the_commands_options_are_those_that_there_are():
    assert tuple(REPLIES) == CLI_FORMS and STRATEGIES == CLI_STRATEGIES


def test_help_and_input_errors_load_nothing_heavy():
    code = "import sys, rlhf_lab.cli as cli; cli.main(['classroom', '--ask', 'luck']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "invalid choice: 'luck'" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not {"sqlalchemy", "torch", "numpy", "jupyter_server"} & set(done.stdout.split())


def test_bad_input_ends_with_2_and_one_line(tmp_path, capsys):
    out = str(tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["classroom", "--out", out, "--students", "3", "--port", port]) == 2
    assert main(["classroom", "--out", out, "--students", "3", "--guidelines", str(tmp_path / "none")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "is in use" in lines[0] and "--guidelines" in lines[1]
    assert not Path(out).exists()


# --- questions and checks ---


def test_a_check_question_has_a_plain_difference_and_is_passed_by_the_better_reply():
    scenario = load_scenario()
    judge = GoldJudge(scenario)
    for prompt in scenario.prompts("train", 40):
        asked = checked(scenario, replace(question("q"), prompt=prompt), judge.score, 0)
        if asked is not None:
            [(better, worse)] = expected_of(judge.score, asked)
            gap = judge.score(prompt, asked.texts[better]) - judge.score(prompt, asked.texts[worse])
            assert gap >= 2.5 and judge.verdict(prompt, asked.texts[better]).right == 1.0
            assert passed([(better, worse)], Ranking("q", ((better,), (worse,)), "ada"))
            assert not passed([(better, worse)], Ranking("q", ((worse,), (better,)), "ada"))
    assert expected_of(lambda *_: 1.0, question("q")) == []


def test_checks_are_spread_over_the_queue():
    others, checks = [question(f"o{i}") for i in range(18)], [question(f"c{i}") for i in range(2)]
    order = [each.id for each in spread(others, checks)]
    assert len(order) == 20 and sorted(order) == sorted(each.id for each in [*others, *checks])
    assert [i for i, name in enumerate(order) if name[0] == "c"] == [6, 12]
    assert spread([], checks) == checks


def test_guidelines_of_a_scenario_hold_its_facts():
    scenario = load_scenario()
    text = guidelines_of(scenario)
    assert all(fact in text for subject in scenario.subjects for fact in subject.facts.values())
    assert len(text) < 20_000


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """A quick run with the questions of a class, and the plan that made them."""
    folder = tmp_path_factory.mktemp("class")
    plan = Plan(str(folder / "run"), f"sqlite:///{folder / 'class.db'}", "compare", 12, 2, 0.25,
                profile="quick")  # fmt: skip
    assert prepare(plan) == 12
    return plan


def test_the_same_plan_again_adds_nothing_and_a_larger_one_the_rest(quick_run, tmp_path):
    assert prepare(quick_run) == 0
    with FeedbackStore(quick_run.store) as store:
        queue = Assignments(store)
        assert len(queue.checks()) == 3 and queue.state().places == 24
        prompts = [each.prompt for each in store.questions()]
        assert len(set(prompts)) == 12 and all(len(each.candidates) == 2 for each in store.questions())
    assert prepare(replace(quick_run, questions=14)) == 2
    with FeedbackStore(quick_run.store) as store:
        assert len({each.prompt for each in store.questions()}) == 14


# --- the student's page ---


def answer(page: LabellingPage, order=((1,), (2,))) -> None:
    """What the page's JavaScript does for a click."""
    shown = page.questions.shown
    page.questions.answer = {"id": os.urandom(8).hex(), "question": shown["id"], "order": [list(t) for t in order],
                             "status": "ranked", "seconds": 2.0, "attempt": 1}  # fmt: skip
    assert page.questions.error == "" and page.questions.acknowledged["id"] == page.questions.answer["id"]


@pytest.fixture
def open_page(store):
    pages = []

    def make(name: str, form: str = "compare", **options) -> LabellingPage:
        pages.append(LabellingPage(store, name, form, **{"poll": 30.0} | options))
        return pages[-1]

    yield make
    for page in pages:
        page.close()


def test_each_student_sees_their_own_queue_and_a_reload_goes_on(store, open_page):
    queue = Assignments(store)
    queue.enqueue([question(f"q{i}") for i in range(3)])
    ada, ben = open_page("Ada"), open_page("Ben")
    first = ada.questions.shown["id"]
    assert first != ben.questions.shown["id"]
    answer(ada)
    second = ada.questions.shown["id"]
    assert len({first, second, ben.questions.shown["id"]}) == 3
    again = open_page("Ada")  # the page is loaded again
    assert again.questions.shown["id"] == second and again.questions.can_undo
    assert [a.annotator for a in store.answers()] == ["Ada"] and store.answers()[0].context["widget"] == "CompareWidget"


def test_a_page_says_what_it_waits_for(store, open_page):
    queue = Assignments(store)
    ada = open_page("Ada")
    assert ada.questions.wait_text == NOT_READY and ada.questions.shown == {}
    queue.enqueue([question("q")])
    ada._look()
    assert ada.questions.shown["id"] == "q"
    ben = open_page("Ben")
    assert ben.questions.wait_text == OTHERS_ANSWER
    answer(ada)
    for page in (ada, ben):
        page._look()
        assert page.questions.wait_text == ALL_DONE
    assert ada.header.data | {"error": ""} == {"name": "Ada", "answered": 1, "done": 1, "places": 1, "error": ""}


def test_undo_gives_the_question_back_and_the_second_answer_counts(store, open_page):
    Assignments(store).enqueue([question("q0"), question("q1")])
    ada = open_page("Ada")
    first = ada.questions.shown["id"]
    answer(ada)
    ada.questions.undo = {"id": "u1"}
    assert ada.questions.shown["id"] == first and len(store) == 0
    answer(ada, ((2,), (1,)))
    assert len(store) == 1 and ada.questions.shown["id"] != first


def test_a_database_that_is_away_is_said_on_the_page_and_forgotten_when_it_is_back(store, open_page, monkeypatch):
    ada = open_page("Ada")
    monkeypatch.setattr(Assignments, "state", lambda self: (_ for _ in ()).throw(StoreError("the server sleeps")))
    ada._look()
    assert "the server sleeps" in ada.header.data["error"]
    monkeypatch.undo()
    ada._look()
    assert ada.header.data["error"] == ""


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_feedback_has_its_page(store, open_page, form):
    replies = {"thumbs": 1, "correct": 1, "rank": 4}.get(form, 2)
    Assignments(store).enqueue([question("q", *(f"reply {i}" for i in range(replies)))])
    store.add_note("guidelines", {"text": "Be fair."})
    page = open_page("Ada", form)
    assert len(page.questions.shown["replies"]) == replies and page.questions.guidelines["text"] == "Be fair."


def test_a_form_that_does_not_exist_is_refused(store):
    with pytest.raises(InputError, match="must be one of rank"):
        LabellingPage(store, "Ada", "dance")


def test_students_see_replies_in_orders_of_their_own(store, open_page):
    Assignments(store).enqueue([question("q")], overlap=30)
    orders = {tuple(open_page(f"s{i}").questions.shown["replies"]) for i in range(12)}
    assert len(orders) == 2


# --- the trainer ---


def pairs_of(n_questions: int, noise: float, seed: int = 0) -> Pairs:
    """Pairs of a linear taste in eight dimensions; three people answer each question."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(8, generator=generator, dtype=torch.double)
    x = torch.randn(n_questions, 8, generator=generator, dtype=torch.double).repeat_interleave(3, 0)
    felt = x @ head + noise * torch.randn(len(x), generator=generator, dtype=torch.double)
    x = torch.where(felt[:, None] > 0, x, -x)
    names = tuple(f"q{i}" for i in range(n_questions) for _ in range(3))
    ones = torch.ones(len(x), dtype=torch.double)
    return Pairs(PairEvidence(x, ones, 0 * ones, ones), names)


def test_the_class_model_is_measured_on_questions_it_has_not_seen():
    learnable, chance = cross_validated(pairs_of(80, 0.1)), cross_validated(pairs_of(80, 1000.0))
    assert learnable.low > 0.75 and chance.low < 0.5 < chance.high + 0.05
    assert cross_validated(pairs_of(9, 0.1)) is None


def test_weights_count_as_repetitions():
    pairs = pairs_of(20, 0.5).evidence
    double = pairs._replace(counts=2 * pairs.counts)
    twice = PairEvidence(*(torch.cat([column, column]) for column in pairs))
    assert torch.allclose(fit(double)[1], fit(twice)[1], atol=1e-6)
    assert fit(double)[1].norm() > fit(pairs)[1].norm()


def answers_of(people: dict[str, float], n: int, seed: int = 0) -> list[Ranking]:
    """Everybody's choice on n pairs; the first reply is better, and each person names it with their own probability."""
    rng = random.Random(seed)
    return [
        Ranking(f"q{i}", ((("a",), ("b",)) if rng.random() < right else (("b",), ("a",))), name)
        for i in range(n)
        for name, right in people.items()
    ]


def test_a_person_whom_the_others_contradict_counts_for_less():
    people = {"Ada": 0.95, "Ben": 0.95, "Cleo": 0.9, "Dan": 0.5}
    say = reliability(answers_of(people, 60))
    assert say["Dan"] < 0.3 and min(say["Ada"], say["Ben"], say["Cleo"]) > 0.9
    assert sum(say.values()) / 4 == pytest.approx(1)
    early = reliability(answers_of(people, 6))  # six pairs are a reason for doubt, not for a verdict
    assert early["Dan"] > say["Dan"]


def test_who_cannot_be_told_apart_counts_alike():
    assert reliability([]) == {} == reliability(answers_of({"Ada": 0.9, "Ben": 0.5}, 60))
    assert reliability(answers_of({"Ada": 0.9, "Ben": 0.9, "Cleo": 0.5}, 4)) == {}


def queue_of(taken: dict[int, int], n: int = 8, checks=(2, 5)) -> list[Queued]:
    return [Queued(f"q{i}", i, 2, taken.get(i, 0), 0.0, i in checks) for i in range(n)]


def asked_in(priorities: dict[str, float]) -> list[int]:
    return [int(name[1:]) for name in sorted(priorities, key=lambda name: -priorities[name])]


def test_questions_change_places_with_one_another_and_checks_keep_theirs():
    fresh = {f"q{i}": float(i) for i in (0, 1, 3, 4, 6, 7)}
    assert asked_in(order_of_asking(queue_of({}), fresh)) == [7, 6, 2, 4, 3, 5, 1, 0]
    del fresh["q7"], fresh["q6"], fresh["q0"]  # 7 and 6 are full, 0 was begun by one person: it comes first
    again = order_of_asking(queue_of({7: 2, 6: 2, 0: 1}), fresh)
    assert asked_in(again) == [2, 0, 4, 5, 3, 1]  # two have been asked, so the first check is due
    assert asked_in(order_of_asking(queue_of({}), dict.fromkeys(fresh | {"q0": 0, "q6": 0, "q7": 0}, 0.0))) == [
        *range(8)
    ]


@pytest.fixture(scope="module")
def reward(quick_run):
    from rlhf_lab.runs import Run

    run = Run(quick_run.out, profile="quick", progress=None)
    return run.reward()


def test_the_trainer_reports_what_is_new_and_forgets_what_is_withdrawn(store, reward):
    queue, model = Assignments(store), reward[0].eval()
    rng = random.Random(0)
    words = ["yes", "no", "on Monday", "you are welcome", "go away", "in the attic"]
    queue.enqueue([question(f"q{i}", *rng.sample(words, 2)) for i in range(12)], overlap=2)
    trainer = ClassTrainer(store, model, reward[1])
    assert trainer.step() is None
    for name in ("Ada", "Ben"):
        while asked := queue.next_question(name):
            order = sorted(asked.texts, key=lambda c: words.index(asked.texts[c]))
            store.append(Ranking(asked.id, tuple((c,) for c in order), name))
    report = trainer.step()
    assert (report["answers"], report["pairs"], report["people"]) == (24, 24, 2)
    assert 0 <= report["accuracy"]["low"] <= report["accuracy"]["value"] <= 1 and report["gold"] is None
    assert (report["weighting"], report["ask"]) == ("everybody alike", "random")
    store.add_note("class_model", report)
    assert trainer.step() is None  # its own note is no news
    head = trainer.head.clone()
    taken = store.answers("Ada")[0]
    store.withdraw(taken.id, "Ada")
    assert trainer.step()["answers"] == 23
    fresh = ClassTrainer(store, model, reward[1])
    fresh.step()
    assert not torch.allclose(trainer.head, head) and torch.allclose(trainer.head, fresh.head, atol=1e-8)


def test_a_given_weighting_is_used_and_named(store, reward):
    queue, model = Assignments(store), reward[0].eval()
    queue.enqueue([question("q0", "yes", "no")], overlap=2)
    for name, order in (("Ada", ("q00", "q01")), ("Ben", ("q01", "q00"))):
        store.append(Ranking("q0", tuple((c,) for c in order), name))
    heads = []
    for say in ({"Ben": 0.0}, {"Ada": 0.0}, {}):
        trainer = ClassTrainer(store, model, reward[1], weight_of=lambda answers, say=say: say)
        assert trainer.step()["weighting"] == "as given"
        heads.append(trainer.head)
    assert torch.allclose(heads[0], -heads[1]) and heads[0].norm() > 0
    assert torch.allclose(heads[2], torch.zeros_like(heads[2]), atol=1e-9)  # one each way


def least_alike(reward, one: str, other: str) -> tuple[str, str]:
    """The two replies whose features, to this small model, differ in the direction furthest from that of these two."""
    from rlhf_lab.reward import features_of
    from rlhf_lab.text import encode_dialogues

    words = ["yes", "no", "you are welcome", "in the attic", "it costs three pounds each time", "Bo", "???"]
    features = features_of(reward[0], encode_dialogues(reward[1], [("When?", text) for text in (one, other, *words)]))
    known, rest = features[0] - features[1], features[2:]
    pairs = list(itertools.combinations(range(len(words)), 2))
    alike = [torch.cosine_similarity(known, rest[a] - rest[b], dim=0).abs().item() for a, b in pairs]
    return tuple(words[i] for i in pairs[alike.index(min(alike))])


@pytest.mark.parametrize("ask", ["disagreement", "information", "coverage"])
def test_the_trainer_asks_first_what_it_is_least_sure_of_and_leaves_checks_in_place(store, reward, ask):
    """Questions like the one that was answered often are of little use; those that ask something else come first."""
    queue, model = Assignments(store), reward[0].eval()
    known, open_ = ("on Monday", "go away"), least_alike(reward, "on Monday", "go away")
    names = ["k0", "k1", "c0", "k2", "k3", "o0", "c1", "o1"]
    questions = [question(name, *(open_ if name[0] == "o" else known)) for name in names]
    questions = [replace(each, prompt="When?") for each in questions]
    seen = [replace(question(f"s{i}", *known), prompt="When?") for i in range(20)]
    store.add_questions(seen)
    store.append_all([Ranking(each.id, ((f"{each.id}0",), (f"{each.id}1",)), "Ada") for each in seen])
    queue.enqueue(questions, expected={name: [(f"{name}0", f"{name}1")] for name in ("c0", "c1")})
    assert ClassTrainer(store, model, reward[1], ask=ask).step()["ask"] == ask
    order = [queue.next_question(f"person {i}").id for i in range(len(names))]
    assert set(order[:2]) == {"o0", "o1"} and order[2] == "c0" and order[6] == "c1"
    ClassTrainer(store, model, reward[1], ask="random").step()
    assert len(queue.queued()) == 8 and all(each.taken == 1 for each in queue.queued())


def test_a_way_to_ask_that_does_not_exist_is_refused(store, reward):
    with pytest.raises(InputError, match="must be one of random, disagreement, information, coverage"):
        ClassTrainer(store, reward[0], reward[1], ask="luck")


def test_the_trainer_waits_for_a_database_that_is_away(monkeypatch):
    """Two failures, then a report: said once, and once that it is over."""
    said, noted, tries, stop = [], [], iter(range(10)), threading.Event()

    class Trainer:
        class log:
            class store:
                @staticmethod
                def add_note(kind, body):
                    noted.append((kind, body))
                    stop.set()

        def step(self):
            if next(tries) < 2:
                raise StoreError("cannot be reached")
            return {"answers": 1}

    monkeypatch.setattr(class_trainer, "LOOK", 0.01)
    monkeypatch.setattr(class_trainer, "_run", lambda plan: None)
    monkeypatch.setattr(class_trainer, "FeedbackStore", lambda where: None)
    monkeypatch.setattr(class_trainer, "make_trainer", lambda run, store, ask: Trainer())
    class_trainer.work(Plan("out", "db"), stop, said.append)
    assert noted == [("class_model", {"answers": 1})] and len(said) == 2 and "cannot be reached" in said[0]


# --- the whole command ---


class Running:
    """A class that the real command holds, with its output so far."""

    def __init__(self, folder: Path, *more: str) -> None:
        command = [sys.executable, "-m", "rlhf_lab.cli", "classroom", "--out", str(folder), "--students", "Ada,Ben"]
        command += ["--profile", "quick", "--questions", "12", "--port", "0", *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=folder.parent
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if "Ctrl-C ends" in line:
                break
        with open(folder / LINKS, newline="") as file:
            self.links = dict(csv.reader(file))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(40)

    def get(self, url: str, jar: CookieJar | None = None) -> tuple[int, str]:
        opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(jar if jar is not None else CookieJar())
        )
        try:
            with opener.open(url, timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def running(quick_run):
    """The class of `quick_run`, opened by the real command."""
    folder = Path(quick_run.out)
    for name in ("class.db",):
        (folder / name).write_bytes(Path(quick_run.store.removeprefix("sqlite:///")).read_bytes())
    class_ = Running(folder, "--no-trainer")
    yield class_
    if class_.process.poll() is None:
        class_.stop()


def kernels(pid: int) -> list[int]:
    """Process ids of the kernels of the command `pid`: grandchildren of its server, forked from one process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    depth = {pid: 0}
    for _ in range(4):
        depth |= {child: depth[parent] + 1 for child, parent in parents.items() if parent in depth}
    return [child for child, level in depth.items() if level == 3]


def test_without_the_right_key_a_page_shows_nothing_and_starts_nothing(running):
    link = running.links["Ada"]
    base = link.partition("/label")[0]
    for url, status in ((f"{base}/label", 403), (f"{base}/label?key=wrong", 403), (f"{base}/teacher", 403)):
        code, page = running.get(url)
        assert code == status and ("Ask your teacher" in page) and "Ada" not in page and "kernel" not in page
    key = link.partition("key=")[2]
    assert running.get(f"{base}/teacher?key={key}")[0] == 403  # a student is no teacher
    assert running.get(base)[0] == 200 and running.get(f"{base}/voila/files/label.ipynb")[0] == 404
    if sys.platform == "linux":
        assert kernels(running.process.pid) == []


def test_a_page_runs_no_code_for_its_visitor_and_its_kernel_is_small(running, tmp_path):
    jar = CookieJar()
    code, page = running.get(running.links["Ada"], jar)
    assert code == 200 and "application/vnd.jupyter.widget-view+json" in page and "key=" not in page
    [kernel] = re.findall(r'"kernelId": "([0-9a-f-]+)"', page)
    base = running.links["Ada"].partition("/label")[0]
    assert running.get(f"{base}/api/kernels/{kernel}")[0] != 200  # without a cookie
    kept = [cookie for cookie in jar if cookie.name.startswith("rlhf-lab-")]
    assert all(cookie.has_nonstandard_attr("HttpOnly") for cookie in kept)
    # after the redirect of a link in a mail or a course page a browser must send it still: "Strict" forbids that
    assert [cookie.get_nonstandard_attr("SameSite") for cookie in kept] == ["Lax"]
    asyncio.run(try_to_execute(f"{base.replace('http', 'ws')}/api/kernels/{kernel}/channels", jar, tmp_path / "proof"))
    assert not (tmp_path / "proof").exists()
    if sys.platform == "linux":
        [pid] = kernels(running.process.pid)
        rss = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert int(rss[1]) / 1024 < 120
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in loaded and "pandas" not in loaded and "numpy" not in loaded


async def try_to_execute(url: str, jar: CookieJar, proof: Path) -> None:
    import websockets

    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)
    code = {"code": f"open({str(proof)!r}, 'w').close()", "silent": False}

    def message(kind: str, content: dict) -> str:
        header = {"msg_id": os.urandom(8).hex(), "msg_type": kind, "username": "x", "session": "s", "version": "5.3"}
        return json.dumps(
            {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        )

    async with websockets.connect(f"{url}?session_id=s", additional_headers={"Cookie": cookies}) as socket_:
        for _ in range(60):  # what comes before the server's own connection to the kernel stands is dropped: ask again
            await socket_.send(message("execute_request", code))
            await socket_.send(message("kernel_info_request", {}))
            try:
                while "kernel_info_reply" not in (reply := str(await asyncio.wait_for(socket_.recv(), 1.0))):
                    assert "execute_reply" not in reply
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("the kernel does not answer at all")
        await socket_.send(message("execute_request", code))  # now that messages surely arrive
        await socket_.send(message("kernel_info_request", {}))
        while "kernel_info_reply" not in (reply := str(await asyncio.wait_for(socket_.recv(), 30))):
            assert "execute_reply" not in reply


def test_ctrl_c_ends_everything_and_the_same_command_goes_on(running, quick_run):
    folder = Path(quick_run.out)
    with FeedbackStore(folder / "class.db") as store:
        asked = Assignments(store).next_question("Ben")
        store.append(Ranking(asked.id, tuple((c.id,) for c in asked.candidates), "Ben"))
        labels = len(store)
    before = kernels(running.process.pid)
    assert running.stop() == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    again = Running(folder, "--no-trainer")
    try:
        keys = {name: link.partition("key=")[2] for name, link in running.links.items()}
        assert {name: link.partition("key=")[2] for name, link in again.links.items()} == keys
        assert "12 questions" in "".join(again.said) or "14 questions" in "".join(again.said)
        with FeedbackStore(folder / "class.db") as store:
            assert len(store) == labels
    finally:
        assert again.stop() == 130


@pytest.mark.parametrize("host", ["[::1]", "[::1]:8866", "class.school.org", 'a;b=c "é'])
def test_a_cookie_has_a_name_that_can_be_sent_whatever_the_address(host):
    pytest.importorskip("voila")
    from rlhf_lab.classroom_server import STUDENT, ClassIdentity

    name = ClassIdentity.cookie_of(None, STUDENT, SimpleNamespace(request=SimpleNamespace(host=host)))
    SimpleCookie()[name] = "key"  # raises CookieError for a name that no header can hold
