"""More than a thousand malformed variants of every format: read correctly, or one InputError that names the place."""

import copy
import json
import random
import re

import pytest
from feedback_samples import sample

from rlhf_lab.errors import InputError
from rlhf_lab.formats import WRITTEN, import_into, read_feedback, tables, write_feedback
from rlhf_lab.store import FeedbackStore

VARIANTS = 1_000
PAIR = b'{"prompt": "p", "chosen": "a", "rejected": "b"}'
BATTLE = {
    "question_id": "x", "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "u", "tstamp": 1.5,
    "conversation_a": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"}],
    "conversation_b": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "two"}],
}  # fmt: skip
STRANGE = (
    *(None, True, False, 0, -1, 3, 6, 2.5, 1e308, 10**400, float("nan"), float("inf"), "", "x", "a\x00b", "\ud83d"),
    *("=1+1", "x" * 300, [], {}, [[]], [{}], {"a": 1}, ["x", "x"], [1], [None], "2026-13-45", "N/A", "left", {"": ""}),
)
PLACE = re.compile(r"(, line \d+|, record \d+|, rows? \d+)")
# What is wrong with a record as a whole, or with the file as a whole, has no field.
WHOLE = ("not JSON", "a JSON ", "not UTF-8", "twice in one object")
FILE = (
    "is a binary file",
    "holds no feedback",
    "holds no record",
    "is compressed",
    "not a Parquet file",
    "two columns",
)


def places(value, path=()):
    """The paths of everything inside a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(rng, records):
    """The records with one to three things wrong (or, now and then, merely different)."""
    records = copy.deepcopy(records)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        everywhere = list(places(records))
        if not everywhere:
            break
        *path, last = rng.choice(everywhere)
        inside = records
        for key in path:
            inside = inside[key]
        kind = rng.choice(("delete", "retype", "retype", "rename", "nest", "repeat", "swap"))
        if kind == "delete":
            del inside[last]
        elif kind == "retype":
            inside[last] = copy.deepcopy(rng.choice(STRANGE))
        elif kind == "rename" and isinstance(inside, dict):
            inside[f"{last}{rng.choice(('_', 'S', ' '))}"] = inside.pop(last)
        elif kind == "nest":
            inside[last] = rng.choice(({"value": inside[last]}, [inside[last]]))
        elif kind == "repeat" and isinstance(inside, list):
            inside.insert(last, copy.deepcopy(inside[last]))
        elif kind == "swap":
            *path, other = rng.choice(everywhere)
            source = records
            try:
                for key in path:
                    source = source[key]
                inside[last] = copy.deepcopy(source[other])
            except (KeyError, IndexError, TypeError):
                pass
    return records


def damaged(rng, data):
    """The bytes with something wrong that JSON's own reader has to notice."""
    at = rng.randrange(len(data))
    kind = rng.choice(("cut", "byte", "nul", "utf8", "double", "gone"))
    if kind == "cut":
        return data[:at]
    if kind == "double":
        return data[:at] + data[max(0, at - 30) :]
    if kind == "gone":
        return data[:at] + data[at + rng.randrange(1, 20) :]
    new = {"byte": bytes([rng.randrange(1, 128)]), "nul": b"\x00", "utf8": b"\xff"}[kind]
    return data[:at] + new + data[at + 1 :]


def check(path, form, store):
    """Read and import a file: all of it, or one InputError that names where; True when it was read."""
    before = store.last_seq, len(store.questions())
    try:
        feedback = read_feedback(path, form)
    except InputError as error:
        said = str(error)
        assert said.startswith(str(path)) and len(said) < 700, said
        assert "\n" not in said and "\x00" not in said
        if not any(words in said for words in FILE):
            assert PLACE.search(said), said
            assert any(words in said for words in ("field", "'role'", *WHOLE)), said
        return False
    try:
        import_into(store, feedback)
        assert store.last_seq - before[0] <= len(feedback.answers) + len(feedback.withdrawals)
    except InputError:  # another variant's question or answer under the same id
        assert (store.last_seq, len(store.questions())) == before, "imported by halves"
    return True


def variants(form, tmp_path):
    """(name, bytes) of the malformed files of a text format."""
    rng = random.Random(form)
    path = tmp_path / "good"
    if form == "arena":
        path.write_text(json.dumps(BATTLE) + "\n" + json.dumps(BATTLE | {"winner": "tie"}) + "\n")
    else:
        write_feedback(path, sample(1, n=2), form)
    data = path.read_bytes()
    as_array = data.startswith(b"[")
    records = json.loads(data) if as_array else [json.loads(line) for line in data.splitlines()]
    for _ in range(VARIANTS):
        wrong = mutated(rng, records)
        lines = wrong if as_array or not isinstance(wrong, list) else None
        text = json.dumps(lines) if lines is not None else "\n".join(json.dumps(line) for line in wrong)
        yield text.encode()
    for _ in range(VARIANTS // 4):
        yield damaged(rng, data)


@pytest.mark.parametrize("form", [*(form for form in WRITTEN if form != "parquet"), "arena"])
def test_malformed_text(tmp_path, form):
    path, read = tmp_path / "variant", 0
    with FeedbackStore("sqlite://") as store:
        for data in variants(form, tmp_path):
            path.write_bytes(data)
            read += check(path, form, store)
    assert 0 < read < VARIANTS  # some variants are merely different; most are wrong


def test_malformed_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rng, path, read, made = random.Random("parquet"), tmp_path / "variant", 0, 0
    rows, *_ = tables.rows(sample(1, n=2))
    good = tables.parquet_bytes(rows)
    with FeedbackStore("sqlite://") as store:
        while made < VARIANTS:
            try:
                wrong = [row for row in mutated(rng, rows) if isinstance(row, dict)]
                names = dict.fromkeys(name for row in wrong for name in row)
                table = pa.Table.from_pylist([dict.fromkeys(names) | row for row in wrong])
                pyarrow.parquet.write_table(table, path)
            except Exception:  # Arrow itself cannot hold this variant
                continue
            made += 1
            read += check(path, "parquet", store)
        for _ in range(VARIANTS // 2):
            path.write_bytes(damaged(rng, good))
            check(path, "parquet", store)
    assert 0 < read < VARIANTS


def test_values_beyond_what_a_mutation_finds(tmp_path):
    path = tmp_path / "file"
    for data, words in (
        (b"[" * 100_000, "record 1: not JSON at line 1 (too deep or too long)"),
        (b'[{"a": ' + b"1" * 5_000 + b"}]", "record 1: not JSON"),
        (b"[" + PAIR + b" " + PAIR + b"]", "a comma or ] is wanted after 1"),
        (b"[" + PAIR + b"]\n\nmore", "line 3: not JSON (something follows the array's end)"),
        (b'[{"a": 1, "a": 2}]', "record 1: field 'a' is there twice"),
        (b'[{"a": "\xff"}]', "line 1: not UTF-8 at byte 9"),
        (b"[\n" + PAIR + b"\n,\n7]", "record 2: a JSON number"),
        (PAIR + b'\n{"prompt": "p", "prompt": "q"}', "line 2: field 'prompt' is there twice"),
        (b'{"a": 1}', "line 1: no format that is known has the fields 'a'"),
        (b"[]", "holds no record"),
        (b"\x1f\x8b\x08", "is compressed"),
        (b"PAR1 and nothing more", "not a Parquet file that can be read"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=re.escape(words)):
            read_feedback(path)
