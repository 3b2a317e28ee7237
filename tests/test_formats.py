"""Preference pairs: every accepted form, round trips, and one clear InputError for everything else."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.errors import InputError
from rlhf_lab.formats import read_pairs, write_pairs
from rlhf_lab.records import Comparison

HARMLESS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh_harmless" / "pairs.jsonl"
GOOD = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}


def dialogue(*texts: str) -> str:
    """An HH-RLHF transcript of these turns, the human first."""
    return "".join(f"\n\n{('Human', 'Assistant')[place % 2]}: {text}" for place, text in enumerate(texts))


def messages(*texts: str, first: int = 0) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[(place + first) % 2], "content": text} for place, text in enumerate(texts)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture
def read(folder):
    """Read a file of these objects, one a line."""

    def read_objects(*objects):
        path = folder / "pairs.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in objects), encoding="utf-8")
        return read_pairs(path)

    return read_objects


# --- forms ---


def test_one_question_becomes_plain_prompt_and_replies(read):
    assert read(GOOD) == [Comparison("Hi", "Hello!", "What?")]


def test_a_longer_dialogue_keeps_its_markers_in_the_prompt(read):
    pair = {"chosen": dialogue("a", "b", "c", "yes"), "rejected": dialogue("a", "b", "c", "no")}
    assert read(pair) == [Comparison("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "yes", "no")]


def test_dialogues_that_part_early_share_only_what_they_share(read):
    pair = {"chosen": dialogue("a", "b", "c", "yes"), "rejected": dialogue("a", "B", "C", "no")}
    assert read(pair) == [Comparison("a", "b\n\nHuman: c\n\nAssistant: yes", "B\n\nHuman: C\n\nAssistant: no")]


def test_dialogues_that_part_at_a_human_turn_split_before_the_assistant_turn_they_share(read):
    pair = {"chosen": dialogue("a", "b", "c", "yes"), "rejected": dialogue("a", "b", "C", "no")}
    assert read(pair) == [Comparison("a", "b\n\nHuman: c\n\nAssistant: yes", "b\n\nHuman: C\n\nAssistant: no")]


def test_dialogues_of_different_length_split_where_they_part(read):
    pair = {"chosen": dialogue("a", "b"), "rejected": dialogue("a", "B", "c", "d")}
    assert read(pair) == [Comparison("a", "b", "B\n\nHuman: c\n\nAssistant: d")]


def test_dialogues_without_a_common_question_stay_whole(read):
    pair = {"chosen": dialogue("a", "yes"), "rejected": dialogue("b", "no")}
    assert read(pair) == [Comparison("", pair["chosen"], pair["rejected"])]


def test_identical_dialogues_are_a_pair_of_identical_replies(read):
    assert read({"chosen": dialogue("a", "b"), "rejected": dialogue("a", "b")}) == [Comparison("a", "b", "b")]


def test_explicit_strings_are_kept_exactly(read):
    pair = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " yes ", "rejected": ""}
    assert read(pair) == [Comparison(pair["prompt"], " yes ", "")]


@pytest.mark.parametrize(
    "pair",
    [
        {"chosen": messages("q", "yes"), "rejected": messages("q", "no")},
        {"prompt": messages("q"), "chosen": messages("yes", first=1), "rejected": messages("no", first=1)},
        {"prompt": "q", "chosen": messages("yes", first=1), "rejected": messages("no", first=1)},
        {"prompt": "q", "chosen": messages("q", "yes"), "rejected": messages("q", "no")},
        {"prompt": messages("q"), "chosen": "yes", "rejected": "no"},
    ],
    ids=["implicit", "explicit", "text prompt", "prompt repeated", "text replies"],
)
def test_message_lists_mean_the_same_as_text(read, pair):
    assert read(pair) == [Comparison("q", "yes", "no")]


def test_a_system_message_stands_in_the_prompt(read):
    start = [{"role": "system", "content": "Be kind."}]
    pair = {"chosen": start + messages("q", "yes"), "rejected": start + messages("q", "no")}
    assert read(pair) == [Comparison("\n\nSystem: Be kind.\n\nHuman: q", "yes", "no")]


def test_origin_is_read_and_other_fields_are_ignored(read):
    pair = {**GOOD, "question_id": "q1", "annotator": None, "score_chosen": 9.5}
    assert read(pair) == [Comparison("Hi", "Hello!", "What?", question_id="q1")]


def test_windows_line_ends_byte_order_mark_and_blank_lines_are_accepted(folder):
    path = folder / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(GOOD).encode())
    assert read_pairs(path) == [Comparison("Hi", "Hello!", "What?")] * 2


def test_real_human_pairs_round_trip(tmp_path):
    """1,500 real pairs; a failure here must not print their texts, so only counts and truth values are asserted."""
    if not HARMLESS.exists():
        pytest.skip("the real pairs are not on this machine")
    pairs = read_pairs(HARMLESS)
    assert len(pairs) == 1500
    assert sum("\n\nAssistant:" in pair.chosen for pair in pairs) <= 1  # line 1255 parts before its last turn
    write_pairs(tmp_path / "hh.jsonl", pairs, form="hh")
    write_pairs(tmp_path / "trl.jsonl", pairs, form="trl")
    same_records = read_pairs(tmp_path / "hh.jsonl") == pairs and read_pairs(tmp_path / "trl.jsonl") == pairs
    assert same_records, "the pairs that were read back differ"
    original, written = ([json.loads(line) for line in open(p, "rb")] for p in (HARMLESS, tmp_path / "hh.jsonl"))
    same_transcripts = original == written
    assert same_transcripts, "the transcripts that were written differ from the original's"


# --- round trips ---

# Texts with what breaks naive readers: line separators that str.splitlines knows, markers, quotes, right-to-left, NUL.
TEXT = st.lists(
    st.sampled_from(
        ["a", " ", "\n", "\r", "\u2028", "\x85", "\x00", '"', "\\", "שלום", "🙂", "\n\nHuman:", "Assistant:"]
    )
    | st.text(max_size=5)
).map("".join)
PLAIN = TEXT.filter(lambda text: "\n\n" not in text and not text.startswith("\n") and not text.endswith("\n"))
COMPARISON = st.builds(Comparison, TEXT, TEXT, TEXT, st.just(False), TEXT, TEXT)


@given(st.lists(COMPARISON, min_size=1, max_size=4))
def test_trl_round_trips_any_texts(folder, comparisons):
    assert write_pairs(folder / "trl.jsonl", comparisons) == len(comparisons)
    assert read_pairs(folder / "trl.jsonl") == comparisons


@given(st.lists(PLAIN, min_size=0, max_size=2), PLAIN, PLAIN, PLAIN)
def test_hh_round_trips_dialogues(folder, earlier, question, chosen, rejected):
    turns = [text for said in earlier for text in (said, "ok")] + [question]
    prompt = dialogue(*turns) if earlier else question
    comparison = Comparison(prompt, chosen, rejected)
    write_pairs(folder / "hh.jsonl", [comparison], form="hh")
    assert read_pairs(folder / "hh.jsonl") == [comparison]


@given(COMPARISON)
def test_hh_reads_back_the_same_or_refuses(folder, comparison):
    path = folder / "faithful.jsonl"
    path.unlink(missing_ok=True)
    try:
        write_pairs(path, [comparison], form="hh")
    except InputError as error:
        assert "comparison 1" in str(error) and not path.exists()
    else:
        assert read_pairs(path) == [comparison]


@given(st.lists(PLAIN, min_size=1, max_size=3), st.lists(PLAIN, min_size=1, max_size=3), st.integers(0, 3))
def test_a_split_loses_no_word(folder, one, other, shared):
    """Prompt and reply together are the transcript, wherever two dialogues part."""
    transcripts = [dialogue(*[text for said in said_by for text in (said, "ok")]) for said_by in (one, other)]
    if shared:  # give both the same beginning
        transcripts = [dialogue(*["s", "t"] * shared) + text for text in transcripts]
    path = folder / "split.jsonl"
    path.write_bytes(json.dumps(dict(zip(("chosen", "rejected"), transcripts, strict=True))).encode())
    [pair] = read_pairs(path)
    prompt = pair.prompt if pair.prompt.startswith("\n\nHuman:") else dialogue(pair.prompt)
    for reply, transcript in zip((pair.chosen, pair.rejected), transcripts, strict=True):
        assert transcript in (f"{prompt}\n\nAssistant: {reply}", reply)


# --- what is wrong is said, and nothing is read by halves ---

BAD_LINES = {
    "not JSON": (b"{chosen: 1}", "not JSON"),
    "cut off": (json.dumps(GOOD).encode()[:-5], "not JSON"),
    "an array": (json.dumps([GOOD]).encode(), "array"),
    "too deep": (b"[" * 100_000, "too deep"),
    "endless number": (b'{"chosen": ' + b"1" * 5_000 + b"}", "too long"),
    "not UTF-8": (b'{"chosen": "caf\xe9"}', "UTF-8 at byte 16"),
    "no rejected": (json.dumps({"chosen": GOOD["chosen"]}).encode(), "'rejected' is missing"),
    "null": (json.dumps(GOOD | {"chosen": None}).encode(), "'chosen' is missing"),
    "a number": (json.dumps(GOOD | {"rejected": 3}).encode(), "'rejected' is a JSON number"),
    "no markers": (json.dumps(GOOD | {"chosen": "Hello!"}).encode(), "'chosen' has no 'prompt'"),
    "assistant first": (json.dumps(GOOD | {"chosen": "\n\nAssistant: Hello!"}).encode(), "start with"),
    "no reply": (
        json.dumps(GOOD | {"rejected": dialogue("Hi")}).encode(),
        "'rejected' must end with",
    ),
    "mixed forms": (json.dumps(GOOD | {"chosen": messages("Hi", "Hello!")}).encode(), "differ in form"),
    "half a surrogate": (b'{"prompt": "q", "chosen": "\\ud83d", "rejected": ""}', "'chosen' holds half"),
    "no prompt": (
        json.dumps({"chosen": messages("a", first=1), "rejected": messages("b", first=1)}).encode(),
        "'chosen' starts with the assistant",
    ),
    "wrong prompt": (
        json.dumps({"prompt": "p", "chosen": messages("q", "a"), "rejected": messages("q", "b")}).encode(),
        "'prompt' is not the beginning",
    ),
    "prompt not waiting": (
        json.dumps({"prompt": messages("q", "a"), "chosen": "a", "rejected": "b"}).encode(),
        "'prompt' must wait",
    ),
    "empty messages": (json.dumps({"chosen": [], "rejected": []}).encode(), "'chosen' must end"),
    "role": (
        json.dumps({"chosen": [{"role": "bot", "content": ""}], "rejected": []}).encode(),
        "1: its 'role'",
    ),
    "content": (
        json.dumps({"chosen": [{"role": "user", "content": [1]}], "rejected": []}).encode(),
        "its 'content' is a",
    ),
    "message": (json.dumps({"chosen": ["hi"], "rejected": []}).encode(), "message 1: a JSON string"),
    "origin": (json.dumps(GOOD | {"annotator": 7}).encode(), "'annotator' is a JSON number"),
}


@pytest.mark.parametrize(("line", "wanted"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, line, wanted):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(InputError) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path}, line 3: ") and wanted in str(caught.value)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(list(GOOD.values())),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "role", "content"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(JSON)
def test_any_json_is_read_or_refused_in_one_line(folder, value):
    path = folder / "any.jsonl"
    path.write_text(json.dumps(value), encoding="utf-8")
    try:
        [pair] = read_pairs(path)
    except InputError as error:
        assert str(error).startswith(f"{path}, line 1: ") and "\n" not in str(error)
    else:
        assert isinstance(pair, Comparison)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(folder, data):
    path = folder / "bytes.jsonl"
    path.write_bytes(data)
    with pytest.raises(InputError, match="bytes.jsonl"):  # 60 bytes are too few for a pair
        read_pairs(path)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [(b"", "no pairs"), (b" \n\n", "no pairs"), (b"\x89PNG\x00\x00", "binary"), (b"\x1f\x8b\x08\x00", "gunzip")],
    ids=["empty", "blank", "binary", "gzip"],
)
def test_a_file_without_pairs_says_so(tmp_path, data, wanted):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InputError, match=wanted):
        read_pairs(tmp_path / "file")


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_pairs(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="directory"):
        read_pairs(tmp_path)


# --- writing ---


@pytest.mark.parametrize(
    ("comparisons", "form", "wanted"),
    [
        ([], "trl", "no comparisons"),
        ([Comparison("q", "a", "b")], "csv", "must be one of trl, hh"),
        ([Comparison("q", "a", "b"), Comparison("q", "a", "b", tie=True)], "trl", "comparison 2 is a tie"),
        ([Comparison("q", "a \n\nAssistant: b", "c\n\nHuman: d")], "hh", "comparison 1"),
        ([Comparison("q", "\ud83d", "b")], "trl", "surrogate"),
    ],
    ids=["nothing", "form", "tie", "not faithful", "surrogate"],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, comparisons, form, wanted):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [Comparison("old", "a", "b")])
    with pytest.raises(InputError, match=wanted):
        write_pairs(path, comparisons, form=form)
    assert read_pairs(path) == [Comparison("old", "a", "b")]
    assert os.listdir(tmp_path) == ["pairs.jsonl"]


def test_a_disk_that_fails_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [Comparison("old", "a", "b")])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*pairs.jsonl: No space left"):
        write_pairs(path, [Comparison("new", "a", "b")])
    assert read_pairs(path) == [Comparison("old", "a", "b")]
    assert os.listdir(tmp_path) == ["pairs.jsonl"]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        write_pairs(tmp_path / "nowhere" / "pairs.jsonl", [Comparison("q", "a", "b")])
