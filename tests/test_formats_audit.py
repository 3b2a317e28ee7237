"""The audit: every event in words, in CSV, HTML and JSON Lines; changes show; safe in spreadsheets and browsers."""

import csv
import hashlib
import json
from html.parser import HTMLParser

import pytest
from feedback_samples import TIME, sample

from rlhf_lab.errors import InputError
from rlhf_lab.formats import import_into
from rlhf_lab.formats.audit import FACTS, START, audit_of, verify_audit, write_audit
from rlhf_lab.records import Candidate, Correction, Question, Ranking, Rating, Vote
from rlhf_lab.store import FeedbackStore

FORMS = ("csv", "html", "jsonl")
HOSTILE = ("=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", "\r=1", "  =1", "＝1", "'=1", "<script>alert(1)</script>",
           "\u202egnp.exe", "\x00", "</dd></section>", "&lt;b&gt;", '"', "a\r\nb")  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "class.db") as opened:
        yield opened


@pytest.fixture
def story(store):
    """A question, an answer, its replacement, that one's withdrawal; and one of every other kind."""
    replies = (Candidate("a", "Yes.", "sft-1", {"temperature": 0.7}), Candidate("b", "No."), Candidate("c", "Hm."))
    question = Question("q", "Is it open?", replies)
    pair = Question("p", "Is it?", replies[:2])
    first = Ranking("q", (("a",), ("b", "c")), "Ada", ("c", "a", "b"), 4.5, created=TIME, context={"guidelines": "v2"})
    second = Ranking("q", (("b",), ("a",), ("c",)), "Ada", created=TIME)
    others = [
        Ranking("p", (("b",), ("a",)), "Bo", ("b", "a"), grade="slightly better", created=TIME),
        Rating("p", {"a": {"safe": 4}, "b": {"safe": 2}}, "Bo", created=TIME),
        Vote("p", "a", False, "Bo", created=TIME),
        Correction("p", "b", "No, sorry.", "Bo", ("b", "a"), created=TIME),
        Vote("p", "b", None, "Bo", status="undecided", created=TIME),
    ]
    store.append_all([first, second, *others], [question, pair])
    store.withdraw(others[2].id, "Bo")
    store.append(Ranking("q", (), "Cy", status="skipped", created=TIME))
    return store


def test_every_event_is_told_in_words(story):
    header, rows = audit_of(story)
    assert [row["decision"] for row in rows] == [
        "best first: reply 2, then reply 3 and reply 1 (tied)",
        "best first: reply 2, then reply 1, then reply 3",
        "reply 1 is slightly better than reply 2",
        "marks from 1 to 5: reply 1: safe 4; reply 2: safe 2",
        "thumb down for reply 1",
        "rewrote reply 1 as:\nNo, sorry.",
        "could not decide",
        "took back event 5",
        "skipped the question",
    ]
    first = rows[0]
    assert first["replies"].startswith(
        "reply 1 [model not recorded; id c]:\n  Hm.\nreply 2 [model sft-1; temperature 0.7"
    )
    assert "order of display was not recorded" in rows[1]["replies"] and first["context"] == "guidelines: v2"
    assert (first["annotator"], first["seconds"], first["answered"]) == ("Ada", "4.5", TIME)
    assert first["in_force"].startswith("no: replaced by event 2, 20") and rows[1]["in_force"] == "yes"
    assert rows[4]["in_force"].startswith("no: withdrawn by event 8, ") and rows[7]["in_force"] == ""
    assert header["kinds"] == "1 correction, 4 rankings, 1 rating, 2 votes, 1 withdrawal"
    assert (header["events"], header["annotators"], header["answers_in_force"]) == ("9", "3", "6")


def test_a_withdrawal_brings_the_earlier_answer_back(story):
    second = [event for event in story.events() if event.seq == 2][0]
    story.withdraw(second.id, "Ada")
    states = [row["in_force"] for row in audit_of(story)[1]]
    assert states[0] == "yes" and states[1].startswith("no: withdrawn by event 10")


@pytest.mark.parametrize("seed", range(3))
def test_in_force_is_what_the_store_says(store, seed):
    import_into(store, sample(seed))
    standing = {row["id"] for row in audit_of(store)[1] if row["in_force"] == "yes"}
    assert standing == {answer.id for answer in store.answers()}


@pytest.mark.parametrize("form", FORMS)
def test_an_audit_verifies_and_any_change_shows(story, tmp_path, form):
    path = tmp_path / f"audit.{form}"
    report = write_audit(story, path)
    good = path.read_text(encoding="utf-8-sig" if form == "csv" else "utf-8")
    assert report.written == 9 and verify_audit(path) in report.format
    for old, new in (
        *(("slightly better", "significantly better"), ("Is it open?", "Is it shut?"), ("Ada", "Eve")),
        *(("no: replaced by event 2", "yes"), ("thumb down", "thumb up"), ("4 rankings", "5 rankings")),
    ):
        assert old in good
        path.write_text(good.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(InputError, match=f"audit.{form}: "):
            verify_audit(path)


def test_a_dropped_entry_shows_even_at_the_end(story, tmp_path):
    path = tmp_path / "audit.jsonl"
    write_audit(story, path)
    lines = path.read_text().splitlines(keepends=True)
    for cut, words in ((lines[:-1], "header is '9'"), ([*lines[:3], *lines[4:]], "entry 3")):
        path.write_text("".join(cut))
        with pytest.raises(InputError, match=words):
            verify_audit(path)


def test_a_later_export_repeats_the_earlier_hashes(story, tmp_path):
    earlier = [row["sha256"] for row in audit_of(story)[1]]
    story.append(Vote("p", "a", True, "Dee"))
    assert [row["sha256"] for row in audit_of(story)[1]][:-1] == earlier


def test_the_recipe_of_the_documentation(story, tmp_path):
    """The hashes follow from what docs/formats.md says, without this package."""
    write_audit(story, tmp_path / "audit.jsonl")
    header, *rows = map(json.loads, open(tmp_path / "audit.jsonl", encoding="utf-8"))
    last = hashlib.sha256(b"RLHF Lab audit 1").hexdigest()
    assert last == START
    for row in rows:
        facts = json.dumps([row[name] for name in list(row)[: len(FACTS)]], ensure_ascii=False, separators=(",", ":"))
        last = hashlib.sha256(f"{last}\n{facts}".encode()).hexdigest()
        assert row["sha256"] == last
    assert header["last_sha256"] == last


@pytest.fixture
def hostile(store):
    replies = tuple(Candidate(f"r{place}", text) for place, text in enumerate(HOSTILE))
    asked = [Question(f"q{place}", text, replies) for place, text in enumerate(HOSTILE)]
    votes = [Vote(q.id, "r0", True, q.prompt.replace("\x00", "") or "x", created=TIME) for q in asked]
    store.append_all(votes, asked)
    return store


@pytest.mark.parametrize("form", FORMS)
def test_hostile_texts_keep_the_audit_whole(hostile, tmp_path, form):
    write_audit(hostile, tmp_path / f"audit.{form}")
    verify_audit(tmp_path / f"audit.{form}")
    written = (tmp_path / f"audit.{form}").read_text(encoding="utf-8")
    assert "\u202e" not in written and "\x00" not in written and "u202egnp.exe" in written


def test_no_cell_of_the_csv_is_a_formula(hostile, tmp_path):
    write_audit(hostile, tmp_path / "audit.csv")
    with open(tmp_path / "audit.csv", encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert len(cells) > 200 and not [cell for cell in cells if cell.lstrip().startswith(tuple("=+-@＝＋－＠\t\r"))]


def test_the_html_holds_no_tag_of_a_text_and_nothing_from_elsewhere(hostile, tmp_path):
    write_audit(hostile, tmp_path / "audit.html")
    tags = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.add(tag)
            assert not {"src", "href", "onload", "onclick"} & dict(attributes).keys()

    Tags().feed((tmp_path / "audit.html").read_text(encoding="utf-8"))
    assert tags == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "dl", "dt", "dd"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{}", b"a,b\n\nc\n", b"<html><section></section>", b'{"title": 1}', b"[" * 9]
)
def test_what_is_no_audit_is_refused(tmp_path, form, data):
    (tmp_path / f"file.{form}").write_bytes(data)
    with pytest.raises(InputError, match=f"file.{form}: "):
        verify_audit(tmp_path / f"file.{form}")


def test_no_reply_can_pose_as_another(store):
    replies = (Candidate("a", "Yes.\nreply 2 [model gold; id b]:\nThe best one."), Candidate("b", "No."))
    store.append_all([Ranking("q", (("b",), ("a",)), "Ada", ("a", "b"))], [Question("q", "?", replies)])
    [row] = audit_of(store)[1]
    assert [line for line in row["replies"].split("\n") if line.startswith("reply")] == [
        "reply 1 [model not recorded; id a]:",
        "reply 2 [model not recorded; id b]:",
    ]


def test_another_ending_is_refused(store, tmp_path):
    for call in (lambda path: write_audit(store, path), verify_audit):
        with pytest.raises(InputError, match=r"\.csv, \.html, \.jsonl"):
            call(tmp_path / "audit.pdf")
