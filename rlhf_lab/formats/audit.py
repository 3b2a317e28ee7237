"""The audit export: every event of a feedback store in order, in words, for a person who has to account for it.

Written as CSV, HTML or JSON Lines, by the file's ending. It starts with a header (which store and schema, how many of
what) and has an entry for each event: sequence number, when the store received it, who, what, the prompt, the replies
in the order of display with where they came from, the decision in plain words, how long it took, its context, and
whether it is in force now, or withdrawn or replaced, by which event.

The entries are chained: each one's SHA-256 is that of the one before, a line break, and the entry's facts as a JSON
array (`FACTS`, in that order; no blanks, characters not escaped). The first starts from `START`. Facts never change, so
a later export of the same store repeats the hashes of an earlier one; whoever kept the last hash sees any change before
it. `in_force` changes as events come; `verify_audit` works it out again from the facts. Characters that could hide
something (controls other than line breaks, direction overrides) are written visibly, as \\\\x00 or \\\\u202e.

CSV: a cell that starts with = + - @, an apostrophe, a tab or one of their wide forms would be a formula to a
spreadsheet, or look like one; it gets an apostrophe in front. To read the text back, drop one leading apostrophe.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

from ..errors import InputError
from ..records import ANSWERS, Answer, Correction, Question, Ranking, Rating, Vote, answer_from_dict, utc_now
from ..store import Event, FeedbackStore
from .feedback import Report, count
from .files import Fields, located, parse_object, read_bytes, write_atomically

TITLE, VERSION = "RLHF Lab audit", "1"
START = hashlib.sha256(f"{TITLE} {VERSION}".encode()).hexdigest()
FACTS = (
    *("event", "received", "annotator", "kind", "id", "about", "question", "prompt", "replies"),
    *("decision", "seconds", "context", "answered", "withdraws"),
)  # `about`: the reply that an answer is about; `withdraws`: the id of the answer that a withdrawal takes back
COLUMNS = (*FACTS, "in_force", "sha256")
_FORMULA = tuple("=+-@'\t\r\n＝＋－＠")
Row = dict[str, str]


def write_audit(store: FeedbackStore, path: str | Path) -> Report:
    """Write the audit of a store to a .csv, .html or .jsonl file, whole or not at all."""
    path = Path(path)
    encode = _ENCODERS.get(path.suffix.lower())
    if encode is None:
        raise InputError(f"{path}: an audit is written as {', '.join(_ENCODERS)}; end the name with one of them")
    header, rows = audit_of(store)
    write_atomically(path, encode(header, rows))
    return Report(str(path), f"{path.suffix[1:]} audit; last SHA-256 {header['last_sha256']}", len(rows), "event")


def verify_audit(path: str | Path) -> str:
    """Work out an audit's hashes and states again and return its last hash; InputError naming the first wrong event."""
    path = Path(path)
    decode = _DECODERS.get(path.suffix.lower())
    if decode is None:
        raise InputError(f"{path}: an audit is a file that ends with {', '.join(_DECODERS)}")
    try:
        said = read_bytes(path).decode("utf-8")
        header, rows = decode(said)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start + 1}") from None
    except (InputError, csv.Error) as error:
        raise InputError(f"{path}: not an audit that can be read: {error}") from None
    with located(str(path)):
        last = _verified(header, rows)
        if decode is _from_html and _html(header, rows).decode("utf-8") != said:
            raise InputError("the page around its entries was changed: what is shown may not be what they say")
    return last


def _verified(header: Row, rows: list[Row]) -> str:
    if header.get("title") != TITLE or header.get("version") != VERSION:
        raise InputError(f"it does not start with the header of {TITLE} {VERSION}")
    last = START
    for place, (row, state) in enumerate(zip(rows, _states(rows), strict=True), start=1):
        last = _chained(last, row)
        if row["sha256"] != last:
            raise InputError(f"entry {place} (event {row['event'][:20]}) or one before it was changed after the export")
        if row["in_force"] != state:
            raise InputError(f"entry {place} (event {row['event'][:20]}): 'in_force' is not what the events say")
    for name, value in _counted(rows).items():
        if header.get(name) != value:
            raise InputError(
                f"'{name}' of the header is {header.get(name, 'missing')[:80]!r}; the events say {value!r}"
            )
    if header.get("last_sha256") != last:
        raise InputError("'last_sha256' of the header is not the hash of the last event: entries were removed or added")
    return last


# --- store → header and entries ---


def audit_of(store: FeedbackStore) -> tuple[Row, list[Row]]:
    """The header and the entries, every value a text."""
    events = store.events()
    asked = {question.id: question for question in store.questions()}
    by_id = {event.id: event for event in events}
    rows = [_facts(event, asked[event.question_id], by_id) for event in events]
    last = START
    for row, state in zip(rows, _states(rows), strict=True):
        last = _chained(last, row)
        row |= {"in_force": state, "sha256": last}
    header = {"title": TITLE, "version": VERSION, "store": visible(store.name), "schema": store.schema_version}
    header |= {"exported": utc_now(), "questions": str(len(asked)), **_counted(rows), "last_sha256": last}
    return header, rows


def _facts(event: Event, question: Question, by_id: dict[str, Event]) -> Row:
    """What happened, in words."""
    answer = answer_from_dict(event.kind, event.payload) if event.kind in ANSWERS else None
    shown = (answer.displayed if answer else ()) or tuple(question.texts)
    places = {key: f"reply {place}" for place, key in enumerate(shown, start=1)}
    taken = by_id.get(event.withdraws or "")
    decision = _decision(answer, places) if answer else f"took back event {taken.seq if taken else '?'}"
    context = answer.context if answer else {}
    row = {
        "event": str(event.seq),
        "received": event.created,
        "annotator": event.annotator,
        "kind": event.kind,
        "id": event.id,
        "about": event.target,
        "question": question.id,
        "prompt": question.prompt,
        "replies": _replies(question, places, bool(answer and answer.displayed)),
        "decision": decision,
        "seconds": f"{answer.seconds:g}" if answer and answer.seconds else "",
        "context": "\n".join(f"{name}: {value}" for name, value in context.items()),
        "answered": answer.created if answer else "",
        "withdraws": event.withdraws or "",
    }
    return {name: visible(value) for name, value in row.items()}


def _replies(question: Question, places: dict[str, str], displayed: bool) -> str:
    """The replies as the person saw them, with their origins; texts are indented, so that none can pose as another."""
    replies = {candidate.id: candidate for candidate in question.candidates}
    lines = [] if displayed else ["(The order of display was not recorded; this is the question's own.)"]
    for key, place in places.items():
        reply = replies[key]
        sampling = ", ".join(f"{name} {value}" for name, value in reply.sampling.items())
        origin = "; ".join(filter(None, (f"model {reply.model}" if reply.model else "model not recorded", sampling)))
        text = reply.text.replace("\n", "\n  ")
        lines.append(" ".join(f"{place} [{origin}; id {reply.id}]:".split()) + f"\n  {text}")
    return "\n".join(lines)


def _decision(answer: Answer, places: dict[str, str]) -> str:
    if not answer.given:
        return "could not decide" if answer.status == "undecided" else "skipped the question"
    if isinstance(answer, Ranking):
        if answer.grade:
            return f"{places[answer.order[0][0]]} is {answer.grade} than {places[answer.order[1][0]]}"
        tiers = [" and ".join(places[key] for key in tier) + " (tied)" * (len(tier) > 1) for tier in answer.order]
        return "best first: " + ", then ".join(tiers)
    if isinstance(answer, Rating):
        marks = {key: ", ".join(f"{name} {mark}" for name, mark in each.items()) for key, each in answer.scores.items()}
        return "marks from 1 to 5: " + "; ".join(f"{places[key]}: {said}" for key, said in marks.items())
    if isinstance(answer, Vote):
        return f"thumb {'up' if answer.up else 'down'} for {places[answer.candidate]}"
    assert isinstance(answer, Correction)
    return f"rewrote {places[answer.candidate]} as:\n{answer.text}"


def _states(rows: list[Row]) -> list[str]:
    """For each entry whether it is in force, from the facts alone; "" for a withdrawal."""
    withdrawn = {row["withdraws"]: row for row in rows if row["withdraws"]}
    later: dict[tuple[str, ...], Row] = {}  # the next standing answer to the same
    states = []
    for row in reversed(rows):
        same = tuple(row[name] for name in ("annotator", "kind", "question", "about"))
        if row["kind"] not in ANSWERS:
            states.append("")
        elif row["id"] in withdrawn:
            by = withdrawn[row["id"]]
            states.append(f"no: withdrawn by event {by['event']}, {by['received']}")
        else:
            by = later.get(same)
            states.append(f"no: replaced by event {by['event']}, {by['received']}" if by else "yes")
            later[same] = row
    return states[::-1]


def _counted(rows: list[Row]) -> Row:
    """The header's counts, which follow from the entries."""
    kinds = Counter(row["kind"] for row in rows)
    return {
        "events": str(len(rows)),
        "kinds": ", ".join(count(n, kind) for kind, n in sorted(kinds.items())),
        "annotators": str(len({row["annotator"] for row in rows})),
        "answers_in_force": str(sum(state == "yes" for state in _states(rows))),
    }


def _chained(before: str, row: Row) -> str:
    """The hash of an entry, given the one before it."""
    facts = json.dumps([row[name] for name in FACTS], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(f"{before}\n{facts}".encode()).hexdigest()


def visible(said: str) -> str:
    """`said`, in which every character that hides, or that a file would change, is written out."""
    return "".join(character if _plain(character) else _escaped(character) for character in said)


def _plain(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


# --- CSV ---


def _csv(header: Row, rows: list[Row]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerows([[name, _cell(value)] for name, value in header.items()])
    writer.writerows([[], COLUMNS, *([_cell(row[name]) for name in COLUMNS] for row in rows)])
    return b"\xef\xbb\xbf" + out.getvalue().encode("utf-8")  # the mark tells spreadsheets that this is UTF-8


def _cell(value: str) -> str:
    return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value


def _from_csv(said: str) -> tuple[Row, list[Row]]:
    limit = csv.field_size_limit(2**31 - 1)  # a prompt may be long
    try:
        table = list(csv.reader(io.StringIO(said.removeprefix("\ufeff"), newline="")))
    finally:
        csv.field_size_limit(limit)
    if [] not in table or len(table) < table.index([]) + 2:
        raise InputError("the blank line after the header is missing")
    blank = table.index([])
    if tuple(table[blank + 1]) != COLUMNS or any(len(row) != 2 for row in table[:blank]):
        raise InputError("its columns are not those of an audit")
    header = {name: value.removeprefix("'") for name, value in table[:blank]}
    return header, [_row((cell.removeprefix("'") for cell in cells), at) for at, cells in enumerate(table[blank + 2 :])]


def _row(values: Iterable[str], at: int) -> Row:
    values = list(values)
    if len(values) != len(COLUMNS):
        raise InputError(f"entry {at + 1} has {len(values)} values; {len(COLUMNS)} are wanted")
    return dict(zip(COLUMNS, values, strict=True))


# --- JSON Lines ---


def _jsonl(header: Row, rows: list[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n" for row in (header, *rows))


def _from_jsonl(said: str) -> tuple[Row, list[Row]]:
    found = [Fields(parse_object(line, once=True)) for line in said.split("\n") if line.strip()]
    if not found:
        raise InputError("it is empty")
    header, *rows = ({name: fields.text(name) for name in fields} for fields in found)
    for at, row in enumerate(rows):
        if tuple(row) != COLUMNS:
            raise InputError(f"entry {at + 1} does not have the fields of an audit")
    return header, rows


# --- HTML ---

_NAMES = {
    "event": "Event", "received": "Received (UTC)", "annotator": "Who", "kind": "What", "id": "Id", "about": "Reply",
    "question": "Question", "prompt": "Prompt", "replies": "Replies, as displayed", "decision": "Decision",
    "seconds": "Seconds taken", "context": "Context", "answered": "Answered (UTC)", "withdraws": "Withdraws",
    "in_force": "In force", "sha256": "SHA-256", "title": "Document", "version": "Version", "store": "Store",
    "schema": "Schema version", "exported": "Exported (UTC)", "questions": "Questions", "events": "Events",
    "kinds": "Of these", "annotators": "People", "answers_in_force": "Answers in force",
    "last_sha256": "Last SHA-256",
}  # fmt: skip
_STYLE = """
:root { color-scheme: light dark; --line: #c9ced6; --soft: #f4f6f8; --dim: #59636e; --no: #9a3412; }
@media (prefers-color-scheme: dark) { :root { --line: #444c56; --soft: #1c2128; --dim: #9aa4af; --no: #f0a080; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
section { border: 1px solid var(--line); border-radius: 6px; padding: .75rem 1rem; margin: 0 0 1rem; }
dl { display: grid; grid-template-columns: 10rem 1fr; gap: .15rem 1rem; margin: 0; }
dt { color: var(--dim); } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
dd[data-field=prompt], dd[data-field=replies], dd[data-field=decision] { background: var(--soft); padding: 0 .4rem; }
dd[data-field=sha256], dd[data-field=id], dd[data-field=question], dd[data-field=last_sha256] {
  font: 12px/1.8 ui-monospace, monospace; }
.over { border-left: 4px solid var(--no); } .over dd[data-field=in_force] { color: var(--no); font-weight: 600; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } section { break-inside: avoid-page; } }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } }
"""


def _html(header: Row, rows: list[Row]) -> bytes:
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f'<meta name="viewport" content="width=device-width"><title>{TITLE}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{TITLE}</h1>\n<section data-entry=header>{_list(header, header)}</section>",
    ]
    for row in rows:
        over = ' class="over"' if row["in_force"].startswith("no") else ""
        title = html.escape(f"Event {row['event']}: {row['kind']} by {row['annotator']}")
        parts.append(f"<section data-entry=event{over}><h2>{title}</h2>{_list(row, COLUMNS)}</section>")
    return "\n".join([*parts, "</body></html>\n"]).encode("utf-8")


def _list(row: Row, names: Iterable[str]) -> str:
    """Every value, escaped; what is empty is there for the proof, and not shown."""
    shown = []
    for name in names:
        hidden = "" if row[name] else " hidden"
        term, field, value = (html.escape(said) for said in (_NAMES.get(name, name), name, row[name]))
        shown.append(f"<dt{hidden}>{term}</dt><dd{hidden} data-field={field}>{value}</dd>")
    return f"<dl>{''.join(shown)}</dl>"


class _Reader(HTMLParser):
    """Collects the values of an HTML audit."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.entries: list[Row] = []
        self._field = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "section":
            self.entries.append({})
        if tag == "dd" and self.entries:
            self._field = found.get("data-field") or ""
            self.entries[-1][self._field] = ""

    def handle_endtag(self, tag: str) -> None:
        self._field = ""

    def handle_data(self, data: str) -> None:
        if self._field:
            self.entries[-1][self._field] += data


def _from_html(said: str) -> tuple[Row, list[Row]]:
    reader = _Reader()
    reader.feed(said)
    reader.close()
    if not reader.entries:
        raise InputError("it holds no entry")
    header, *rows = reader.entries
    return header, [_row((row[name] for name in COLUMNS if name in row), at) for at, row in enumerate(rows)]


_ENCODERS = {".csv": _csv, ".html": _html, ".jsonl": _jsonl}
_DECODERS = {".csv": _from_csv, ".html": _from_html, ".jsonl": _from_jsonl}
