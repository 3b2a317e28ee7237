"""Feedback through every format and back: exact where the format allows it, elsewhere what survives and the report."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from feedback_samples import sample

from rlhf_lab.errors import InputError
from rlhf_lab.formats import (
    FORMATS,
    WRITTEN,
    Feedback,
    detect_format,
    feedback_of,
    from_dataset,
    import_into,
    read_feedback,
    read_pairs,
    to_dataset,
    write_feedback,
)
from rlhf_lab.records import Candidate, Correction, Question, Ranking, Rating, Vote, comparisons_of
from rlhf_lab.store import FeedbackStore

HARMLESS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh_harmless" / "pairs.jsonl"
PAIRS = ("trl", "trl-chat", "trl-implicit", "hh", "summarize")


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as opened:
        yield opened


def stated(feedback: Feedback, kinds=(Ranking, Rating, Correction)) -> Counter:
    """Every strict pair of texts with prompt, person and grade: what a trainer of a reward model learns from."""
    asked = feedback.question_of
    return Counter(
        (pair.prompt, pair.chosen, pair.rejected, pair.annotator, pair.grade)
        for answer in feedback.answers
        if isinstance(answer, kinds)
        for pair in comparisons_of(asked[answer.question_id], answer)
        if not pair.tie
    )


def standing(feedback: Feedback) -> Feedback:
    """What is in force, as a store would say."""
    with FeedbackStore("sqlite://") as store:
        import_into(store, feedback)
        return feedback_of(store)


# --- loss-free ---


@pytest.mark.parametrize("form", [name for name in FORMATS if FORMATS[name].lossless])
@pytest.mark.parametrize("seed", range(5))
def test_our_own_forms_lose_nothing(tmp_path, form, seed):
    feedback = sample(seed)
    report = write_feedback(tmp_path / "file", feedback, form)
    assert detect_format(tmp_path / "file") == form
    assert read_feedback(tmp_path / "file") == feedback
    assert report.dropped == () and report.written == len(feedback.questions) + len(feedback.answers) + 2


def test_a_store_goes_through_jsonl_into_another_store(tmp_path, store):
    import_into(store, sample())
    write_feedback(tmp_path / "all.jsonl", feedback_of(store, everything=True), "jsonl")
    with FeedbackStore(tmp_path / "copy.db") as copy:
        import_into(copy, read_feedback(tmp_path / "all.jsonl"))
        assert copy.answers() == store.answers() and copy.questions() == store.questions()
        assert [(e.id, e.kind, e.payload) for e in copy.events() if e.withdraws is None] == [
            (e.id, e.kind, e.payload) for e in store.events() if e.withdraws is None
        ]
        assert {e.withdraws for e in copy.events()} == {e.withdraws for e in store.events()}


def test_one_persons_feedback_holds_the_questions_that_they_answered(store):
    import_into(store, sample())
    mine = feedback_of(store, "Cy")
    assert {answer.annotator for answer in mine.answers} == {"Cy"} and len(mine.questions) == 2 < len(store.questions())


def test_files_put_one_after_another_are_read_as_one(tmp_path):
    one, other = sample(1), sample(2)
    for name, feedback in (("a", one), ("b", other), ("c", one)):
        write_feedback(tmp_path / name, feedback, "jsonl")
    (tmp_path / "all").write_bytes(b"".join((tmp_path / name).read_bytes() for name in "abc"))
    both = read_feedback(tmp_path / "all")
    assert set(both.answers) == {*one.answers, *other.answers} and len(both.questions) == 24


def test_a_file_that_was_cut_between_lines_is_refused(tmp_path):
    write_feedback(tmp_path / "whole", sample(), "jsonl")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(InputError, match=r"line \d+: the file ends after 1 withdrawals; field 'withdrawals'"):
        read_feedback(tmp_path / "cut")


@pytest.mark.parametrize("sampling", [{"a": (1, 2)}, {"a": float("nan")}, {1: 2}, {"a": "\ud83d"}])
def test_what_json_does_not_keep_is_refused_not_changed(tmp_path, sampling):
    question = Question("q", "p", (Candidate("a", "x", "m", sampling),))
    for form in ("jsonl", "parquet"):
        with pytest.raises(InputError, match="cannot be written without loss"):
            write_feedback(tmp_path / "file", Feedback((question,), ()), form)
    assert not (tmp_path / "file").exists()


# --- with loss, and saying so ---


@pytest.mark.parametrize("form", PAIRS)
@pytest.mark.parametrize("seed", range(4))
def test_forms_of_pairs_keep_every_strict_pair(tmp_path, form, seed):
    feedback = sample(seed)
    report = write_feedback(tmp_path / "pairs.jsonl", feedback, form)
    back = read_feedback(tmp_path / "pairs.jsonl", form)
    unfaithful = sum(int(words.split()[0]) for words in report.dropped if "markers inside" in words)
    before, after = stated(standing(feedback)), stated(back)
    assert report.written == sum(after.values()) == sum(before.values()) - unfaithful
    assert not after - before
    assert unfaithful == 0 or form in ("hh", "trl-implicit")
    said = "\n".join(report.dropped)
    for words in (
        "3 withdrawn or replaced answers left out",
        "12 votes",
        "orders of display",
        "times that answers took",
    ):
        assert words in said
    assert ("names of models" in said) == (form != "summarize") and "sampling settings of replies (12)" in said


def test_ties_are_counted(tmp_path):
    question = Question("q", "p", tuple(Candidate(key, key) for key in "abc"))
    ranking = Ranking("q", (("a",), ("b", "c")), "Ada")
    report = write_feedback(tmp_path / "pairs", Feedback((question,), (ranking,)), "trl")
    assert report.written == 2 and "1 tie left out: the form has no place for them" in report.dropped
    assert "1 ranking of more than two replies written as pairs" in report.dropped
    assert str(report).startswith(f"2 pairs written to {tmp_path / 'pairs'} as trl\n  ")


def test_votes_and_corrections_for_trl(tmp_path):
    feedback = standing(sample())
    for form, kind in (("trl-unpaired", Vote), ("trl-sft", Correction)):
        mine = [answer for answer in feedback.answers if isinstance(answer, kind) and answer.given]
        report = write_feedback(tmp_path / form, feedback, form)
        back = read_feedback(tmp_path / form)
        assert report.written == len(mine) == len(back.answers)
        for ours, theirs in zip(mine, back.answers, strict=True):
            one, other = feedback.question_of[ours.question_id], back.question_of[theirs.question_id]
            assert one.prompt == other.prompt and one.texts[ours.candidate] == other.texts[theirs.candidate]
            assert (theirs.annotator, getattr(theirs, "up", None)) == (ours.annotator, getattr(ours, "up", None))
            assert getattr(theirs, "text", None) == getattr(ours, "text", None)
        assert any(words.endswith("rankings left out: the form has no place for them") for words in report.dropped)


def test_ultrafeedback_keeps_marks_and_models(tmp_path):
    feedback = standing(sample())
    ratings = [answer for answer in feedback.answers if isinstance(answer, Rating)]
    report = write_feedback(tmp_path / "ratings", feedback, "ultrafeedback")
    back = read_feedback(tmp_path / "ratings")
    assert report.written == len(back.answers) == len(ratings) == 12
    for ours, theirs in zip(ratings, back.answers, strict=True):
        one, other = feedback.question_of[ours.question_id], back.question_of[theirs.question_id]
        assert (one.id, one.prompt) == (other.id, other.prompt)
        marks = [{(q.texts[k], c.model): m for c in q.candidates for k, m in r.scores.items() if k == c.id}
                 for q, r in ((one, ours), (other, theirs))]  # fmt: skip
        assert marks[0] == marks[1]


def test_label_studio_keeps_all_but_display_and_context(tmp_path):
    feedback = standing(sample())
    report = write_feedback(tmp_path / "tasks.json", feedback, "label-studio")
    back = read_feedback(tmp_path / "tasks.json")
    kept = {a.id: replace(a, displayed=(), context={}) for a in feedback.answers if a.status != "undecided"}
    assert back.questions == feedback.questions and {a.id: a for a in back.answers} == kept
    said = "\n".join(report.dropped)
    assert "1 answer without a decision left out" in said and "contexts of answers (1)" in said
    assert "grades" not in said and "times that" not in said and "sampling" not in said


def test_argilla_keeps_questions_and_decisions(tmp_path):
    feedback = standing(sample())
    report = write_feedback(tmp_path / "records.json", feedback, "argilla")
    back = read_feedback(tmp_path / "records.json")
    tied = [a for a in feedback.answers if isinstance(a, Ranking) and any(len(tier) > 1 for tier in a.order)]
    assert f"{len(tied)} rankings with ties left out" in "\n".join(report.dropped)
    assert [q.texts for q in back.questions] == [q.texts for q in feedback.questions]

    def decisions(answers):
        fields = ("question_id", "annotator", "order", "scores", "candidate", "up", "text")
        return Counter(str([getattr(a, name, None) for name in fields]) for a in answers)

    assert decisions(back.answers) == decisions(a for a in feedback.answers if a.given and a not in tied)


@pytest.mark.parametrize("form", ["argilla", "label-studio"])
def test_questions_without_answers_become_tasks(tmp_path, form):
    questions = sample(plain=True).questions
    write_feedback(tmp_path / "tasks.json", Feedback(questions, ()), form)
    assert [q.texts for q in read_feedback(tmp_path / "tasks.json").questions] == [q.texts for q in questions]


@pytest.mark.parametrize("form", WRITTEN)
def test_nothing_to_write_is_said_and_the_old_file_stays(tmp_path, form):
    (tmp_path / "file").write_text("old")
    with pytest.raises(InputError, match=f"nothing to write to .*: '{form}' holds"):
        write_feedback(tmp_path / "file", Feedback((), ()), form)
    assert (tmp_path / "file").read_text() == "old"


# --- real pairs ---


@pytest.mark.parametrize("form", [form for form in WRITTEN if form not in ("trl-unpaired", "trl-sft", "ultrafeedback")])
def test_real_pairs_go_through_every_form(tmp_path, form):
    """1,500 real pairs; a failure here must not print their texts, so only truth values are asserted."""
    if not HARMLESS.exists():
        pytest.skip("the real pairs are not on this machine")
    feedback = read_feedback(HARMLESS)
    report = write_feedback(tmp_path / "file", feedback, form)
    back = read_feedback(tmp_path / "file", form)
    same = stated(back) == stated(feedback) and len(back.answers) == 1500
    assert same, "the pairs that were read back differ"
    assert not [words for words in report.dropped if "left out" in words]
    if form in ("trl", "hh"):
        known = {replace(pair, question_id="", annotator="") for pair in read_pairs(tmp_path / "file")}
        assert known == set(read_pairs(HARMLESS)), "read_pairs reads something else"


# --- into a store ---


@pytest.mark.parametrize("form", [*PAIRS, "ultrafeedback", "label-studio", "jsonl", "parquet"])
def test_importing_twice_changes_nothing(tmp_path, store, form):
    write_feedback(tmp_path / "file", sample(), form)
    new = import_into(store, read_feedback(tmp_path / "file"))
    events = store.events()
    assert new == len(events) > 0
    assert import_into(store, read_feedback(tmp_path / "file")) == 0 and store.events() == events


def test_lines_that_move_keep_their_ids(tmp_path, store):
    write_feedback(tmp_path / "a", sample(), "hh")
    import_into(store, read_feedback(tmp_path / "a"))
    lines = (tmp_path / "a").read_bytes().splitlines()
    (tmp_path / "b").write_bytes(b"\n\n".join(lines[::-1]))
    assert import_into(store, read_feedback(tmp_path / "b")) == 0


def test_a_conflict_adds_nothing_at_all(tmp_path, store):
    store.add_question(Question("q0-5", "another prompt", (Candidate("a", "x"),)))
    write_feedback(tmp_path / "file", sample(), "jsonl")
    with pytest.raises(InputError, match="another question under the id 'q0-5'"):
        import_into(store, read_feedback(tmp_path / "file"))
    assert store.events() == [] and len(store.questions()) == 1


def test_two_people_share_a_question_and_one_person_does_not_replace_their_own(tmp_path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    turned = {"prompt": "p", "chosen": "b", "rejected": "a"}
    lines = [pair, pair | {"annotator": "Ada"}, turned | {"annotator": "Bo"}, turned | {"annotator": "Ada"}]
    (tmp_path / "file").write_text("".join(json.dumps(line) + "\n" for line in lines))
    feedback = read_feedback(tmp_path / "file", annotator="me")
    assert [a.annotator for a in feedback.answers] == ["me", "Ada", "Bo", "Ada"]
    ids = [a.question_id for a in feedback.answers]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert len(standing(feedback).answers) == 4


# --- other people's files ---


def read_json(tmp_path, *records, form=None):
    (tmp_path / "theirs.json").write_text(json.dumps(list(records)), encoding="utf-8")
    return read_feedback(tmp_path / "theirs.json", form)


def test_openais_example(tmp_path):
    record = {
        "info": {"id": "t3_2vwp1w", "post": "I had an accident.", "title": "Dutch law", "subreddit": "legaladvice"},
        "summaries": [{"text": " a", "policy": "sup4", "note": "?"}, {"text": " b", "policy": "ref", "note": None}],
        "choice": 1, "worker": "ikN", "batch": "batch9", "split": "train", "extra": {"confidence": 8},
    }  # fmt: skip
    feedback = read_json(tmp_path, record)
    [answer], [question] = feedback.answers, feedback.questions
    assert question.prompt == "SUBREDDIT: r/legaladvice\n\nTITLE: Dutch law\n\nPOST: I had an accident.\n\nTL;DR:"
    assert [question.texts[key] for (key,) in answer.order] == [" b", " a"]
    assert (answer.annotator, answer.grade) == ("ikN", "better") and feedback.left_out == (
        "1 note on a summary left out",
    )
    odd = read_json(tmp_path, record | {"extra": {"confidence": 2}})
    assert odd.answers[0].grade == "" and "1 confidence left out: it does not lean to the choice" in odd.left_out


def test_ultrafeedbacks_not_rated(tmp_path):
    def completion(model, **ratings):
        notes = {name: {"Rating": mark, "Rationale": "because"} for name, mark in ratings.items()}
        return {"model": model, "response": f"by {model}", "annotations": notes, "overall_score": 7.5}

    record = {"instruction": "Do.", "completions": [completion("m", honesty="4", truth="N/A"), completion("n", honesty=2, truth="5")]}  # fmt: skip # noqa: E501
    feedback = read_json(tmp_path, record)
    assert sorted(feedback.answers[0].scores.values(), key=str) == [{"honesty": 2}, {"honesty": 4}]
    assert feedback.left_out == (
        "4 rationales left out",
        "1 attribute of a question left out: not every completion is rated for it",
    )


def test_label_studios_pairwise_and_cancelled(tmp_path):
    task = {
        "id": 7, "data": {"prompt": "Hi", "text1": "one", "text2": "two"}, "predictions": [{"result": []}],
        "annotations": [
            {"id": 1, "completed_by": 3, "lead_time": 4.25, "result": [
                {"from_name": "pw", "to_name": "text1", "type": "pairwise", "value": {"selected": "right"}},
                {"from_name": "why", "to_name": "text1", "type": "textarea", "value": {"text": ["shorter"]}}]},
            {"id": 2, "completed_by": {"id": 4, "email": "b@x.org"}, "was_cancelled": True, "result": []},
        ],
    }  # fmt: skip
    feedback = read_json(tmp_path, task)
    one, other = feedback.answers
    assert (one.annotator, one.seconds, one.order) == ("3", 4.25, (("text2",), ("text1",)))
    assert (other.annotator, other.status) == ("b@x.org", "skipped")
    assert any("'textarea'" in words for words in feedback.left_out) and "1 prediction" in feedback.left_out[-1]


def test_argillas_rankings_of_the_sdk_and_of_the_server(tmp_path):
    fields = {"instruction": "Hi", "generation-a": "one", "generation-b": "two"}
    sdk = {"ranking": [{"value": ["generation-b", "generation-a"], "user_id": "u1"}]}
    tie = [{"rank": 1, "value": "generation-a"}, {"rank": 1, "value": "generation-b"}]
    server = [{"user_id": "u2", "status": "submitted", "values": {"ranking": {"value": tie}}},
              {"user_id": "u3", "status": "draft", "values": {}}]  # fmt: skip
    records = [{"id": "r1", "fields": fields, "responses": sdk, "suggestions": {"ranking": {"value": [], "score": 1}}},
               {"id": "r2", "fields": fields, "responses": server}]  # fmt: skip
    feedback = read_json(tmp_path, *records)
    assert [a.order for a in feedback.answers] == [
        (("generation-b",), ("generation-a",)),
        (("generation-a", "generation-b"),),
    ]
    assert feedback.questions[0].prompt == "Hi"
    assert feedback.left_out == ("1 suggestion left out: a model made it", "1 draft response left out")


def test_the_arenas_battles(tmp_path):
    def talk(*said):
        return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]

    battle = {"question_id": "x", "model_a": "m", "model_b": "n", "judge": "arena_user_1", "tstamp": 1.5,
              "conversation_a": talk("q", "one"), "conversation_b": talk("q", "two")}  # fmt: skip
    feedback = read_json(tmp_path, battle | {"winner": "model_b"}, battle | {"winner": "tie (bothbad)"})
    won, tied = feedback.answers
    best = next(c for c in feedback.question_of[won.question_id].candidates if c.id == won.order[0][0])
    assert (best.text, best.model, won.annotator) == ("two", "n", "arena_user_1")
    assert len(tied.order) == 1 and len(tied.order[0]) == 2


def test_what_no_record_holds_is_refused_with_its_reason(tmp_path):
    for record, words in (
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, "field 'completions' holds the steps"),
        ({"prompt": "p", "completion": "c"}, "field 'original' is missing"),
        ({"prompt": "p", "text": "c"}, "say which of trl,"),
    ):
        with pytest.raises(InputError, match=words):
            read_json(tmp_path, record, form="trl" if "completions" in record else None)


# --- datasets ---


def test_datasets_both_ways_and_from_disk(tmp_path):
    feedback = sample()
    own = to_dataset(feedback, "parquet")
    assert from_dataset(own) == feedback
    own.save_to_disk(str(tmp_path / "saved"))
    assert read_feedback(tmp_path / "saved") == feedback
    pairs = to_dataset(feedback, "trl")
    assert {"prompt", "chosen", "rejected"} <= set(pairs.column_names)
    assert stated(from_dataset(pairs)) == stated(standing(feedback))
    chat = to_dataset(feedback, "trl-chat")
    assert chat[0]["prompt"][-1]["role"] == "user" and stated(from_dataset(chat)) == stated(standing(feedback))
    chat.to_parquet(str(tmp_path / "chat.parquet"))
    assert stated(read_feedback(tmp_path / "chat.parquet")) == stated(standing(feedback))


def test_a_folder_that_is_no_data_set_says_so(tmp_path):
    with pytest.raises(InputError, match="is a folder, but not one that datasets saved"):
        read_feedback(tmp_path)
