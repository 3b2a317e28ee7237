"""Scenarios: the notation, splits, texts, what a file is checked for, and the documented example."""

import copy
import random
import re
from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.errors import InputError
from rlhf_lab.judge import GoldJudge
from rlhf_lab.scenario import (
    Asked,
    every_reading,
    fill,
    load_scenario,
    mentions,
    parse_template,
    scenario_names,
    tidy,
)

ROOT = Path(__file__).resolve().parents[1]
SCENARIO = load_scenario("help_desk")
DATA = yaml.safe_load((resources.files("rlhf_lab.scenarios") / "help_desk.yaml").read_text(encoding="utf-8"))


# --- the notation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "readings"),
    [
        ("hello", ["Hello"]),
        ("(a|b)", ["A", "B"]),
        ("x [y]", ["X", "X y"]),
        ("[a|b] c", ["C", "A c", "B c"]),
        ("(very|) good", ["Very good", "Good"]),
        ("(a (b|c)|d)", ["A b", "A c", "D"]),
        ("a | b", ["A | b"]),  # a bar outside brackets is a bar
        ("(a|a) b", ["A b"]),
    ],
)
def test_the_notation(template, readings):
    assert sorted(every_reading(template)) == sorted(readings)


@pytest.mark.parametrize("template", ["(a", "a)", "[a", "a]", "(a]", "[a|(b]", "((a)"])
def test_brackets_that_do_not_match_are_named(template):
    with pytest.raises(InputError, match="here: .*(unexpected|closing)"):
        parse_template(template, "here")


TEMPLATES = st.recursive(
    st.sampled_from(["a", "b c", " ", "<x>", ".", "?"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        inner.map(lambda part: f"[{part}]"),
        st.lists(inner, min_size=1, max_size=3).map("".join),
    ),
    max_leaves=8,
)


@given(TEMPLATES, st.integers(0, 100))
def test_a_random_reading_is_one_of_all_readings(template, seed):
    assert fill(template, random.Random(seed), x="me") in every_reading(template, x="me")


@given(st.text("abc .,?!", max_size=30))
def test_tidying_twice_is_tidying_once(text):
    assert tidy(tidy(text)) == tidy(text)


def test_tidy_by_hand():
    assert tidy("  hello  there , friend .  how are you ?") == "Hello there, friend. How are you?"


def test_mentions_are_whole_words_in_any_case():
    assert mentions("It is on MONDAY.", "Monday") and mentions("in the old kitchen", "the old kitchen")
    assert not mentions("Mondays", "Monday") and not mentions("another", "not") and not mentions("", "x")


# --- splits -----------------------------------------------------------------------------------------------------------


def test_held_out_prompts_share_no_subject_no_hazard_and_no_wording_with_training():
    train, held_out = ([SCENARIO.asked(p) for p in SCENARIO.prompts(split)] for split in ("train", "held_out"))
    assert {a.subject for a in held_out if a.subject} == SCENARIO.held_out_subjects
    assert {a.hazard for a in held_out if a.hazard} == SCENARIO.held_out_hazards
    assert not {a.subject for a in train} & SCENARIO.held_out_subjects
    assert not {a.hazard for a in train} & SCENARIO.held_out_hazards

    def wordings(split: str) -> set[str]:
        names = [*(s.name for s in SCENARIO.subjects), *(h.name for h in SCENARIO.hazards)]
        pattern = re.compile("|".join(map(re.escape, names)), re.IGNORECASE)
        return {pattern.sub("X", prompt) for prompt in SCENARIO.prompts(split)}

    assert not wordings("train") & wordings("held_out")


def test_no_training_prompt_even_mentions_what_is_held_out():
    names = SCENARIO.held_out_subjects | SCENARIO.held_out_hazards
    assert not [p for p in SCENARIO.prompts("train") for name in names if mentions(p, name)]


def test_held_out_subjects_and_wordings_occur_in_the_pretraining_text():
    """Otherwise the held-out prompts would ask for words that the model has never seen."""
    corpus = " ".join(SCENARIO.corpus(6_000))
    for name in SCENARIO.held_out_subjects | SCENARIO.held_out_hazards:
        assert mentions(corpus, name), name
    known_words = set(re.findall(r"\w+", corpus.lower()))
    for prompt in SCENARIO.prompts("held_out"):
        assert set(re.findall(r"\w+", prompt.lower())) <= known_words, prompt
    templates = [t for a in SCENARIO.attributes.values() for t in a.held_out_questions]
    for template in [*templates, *SCENARIO.hazard_questions["held_out_questions"]]:
        readings = [
            reading
            for name in [*(s.name for s in SCENARIO.subjects), *(h.name for h in SCENARIO.hazards)]
            for reading in every_reading(template, subject=name, hazard=name)
        ]
        assert any(f"Visitor: {reading}\n" in corpus for reading in readings), template


def test_a_demonstration_never_answers_a_held_out_prompt():
    demonstrated = {d.prompt for d in SCENARIO.demonstrations(3_000)}
    assert not demonstrated & set(SCENARIO.prompts("held_out"))
    assert len(demonstrated) > 1_000


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_short_list_of_prompts_already_covers_the_questions(split):
    everything = SCENARIO.prompts(split)
    assert len(set(everything)) == len(everything)
    questions = {SCENARIO.asked(p) for p in everything}
    first = SCENARIO.prompts(split, len(questions))
    assert {SCENARIO.asked(p) for p in first} == questions
    assert SCENARIO.prompts(split, 5) == first[:5]


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="'train' or 'held_out'"):
        SCENARIO.prompts("test")


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda s, seed: s.corpus(200, seed),
        lambda s, seed: s.demonstrations(200, seed),
        lambda s, seed: s.prompts("train", 200, seed),
        lambda s, seed: s.prompts("held_out", 100, seed),
    ],
    ids=["corpus", "demonstrations", "train", "held_out"],
)
def test_one_seed_one_text(make):
    assert make(SCENARIO, 1) == make(load_scenario(), 1) != make(SCENARIO, 2)


def test_texts_have_variety_and_no_notation_left_in_them():
    texts = SCENARIO.corpus(2_000) + [d.reply for d in SCENARIO.demonstrations(1_000)]
    assert len(set(texts)) > 2_500
    assert not [t for t in texts if re.search(r"[<>()\[\]|]|  | [.,?!]", t)]


def test_the_pretraining_text_tells_the_truth_nearly_always():
    judge = GoldJudge(SCENARIO)
    talks = [t for t in SCENARIO.corpus(1_500) if t.startswith("Visitor: ")]
    verdicts = []
    for talk in talks:
        prompt, reply = talk.removeprefix("Visitor: ").split("\nDesk: ")
        if SCENARIO.asked(prompt).answer:
            verdicts.append(judge.verdict(prompt, reply).right)
    assert len(verdicts) > 300 and sum(verdicts) / len(verdicts) > 0.85


def test_notices_state_the_knowledge_base():
    values = {v for a in SCENARIO.attributes.values() for v in a.values}
    notices = [t for t in SCENARIO.corpus(500) if t.startswith("Notice: ")]
    assert notices
    for notice in notices:
        (subject,) = [s for s in SCENARIO.subjects if notice.lower().startswith(f"notice: {s.name}.")]
        stated = {v for v in values if mentions(notice, v)} - set(subject.name.split())
        assert stated == set(subject.facts.values())


def test_demonstrations_have_the_shares_they_were_given():
    judge, mix = GoldJudge(SCENARIO), SCENARIO.demonstration_mix
    demonstrations = SCENARIO.demonstrations(3_000)
    by_kind = {"right": [], "admits": [], "safe": []}
    for d in demonstrations:
        asked = SCENARIO.asked(d.prompt)
        kind = "safe" if asked.hazard else "right" if asked.answer else "admits"
        by_kind[kind].append(judge.verdict(d.prompt, d.reply).right)
    expected = {"admits": mix["admits"], "safe": mix["safe"], "right": (1 - mix["unknowing"]) * mix["right"]}
    for kind, share in expected.items():
        measured = sum(by_kind[kind]) / len(by_kind[kind])
        assert measured == pytest.approx(share, abs=3 * (0.25 / len(by_kind[kind])) ** 0.5 + 0.005), kind


def test_what_a_free_question_asks_is_read_from_its_words():
    assert SCENARIO.asked("Excuse me: which day is the CHOIR on?") == Asked("the choir", "day", "Wednesday")
    assert SCENARIO.asked("Tell me, is the wet floor dangerous?") == Asked(hazard="the wet floor")
    assert SCENARIO.asked("How much would the choir cost me?") == Asked("the choir", "price", None)
    assert SCENARIO.asked("Is the choir any good?") is None and SCENARIO.asked("Tell me a joke.") is None


# --- files ------------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, data) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def test_a_file_of_ones_own_gives_the_same_scenario(tmp_path):
    assert load_scenario(written(tmp_path, DATA)) == SCENARIO
    assert scenario_names() == sorted(scenario_names()) and "help_desk" in scenario_names()


DELETE = object()
MISSING = [
    *(("top level", (key,)) for key in DATA),
    *(("attributes.day", ("attributes", "day", key)) for key in DATA["attributes"]["day"]),
    *(("hazards[2]", ("hazards", 1, key)) for key in DATA["hazards"][1]),
    *(("hazard_questions", ("hazard_questions", key)) for key in DATA["hazard_questions"]),
    *(("styles", ("styles", key)) for key in DATA["styles"]),
    *(("styles.curt", ("styles", "curt", key)) for key in DATA["styles"]["curt"]),
    *(("uncertain", ("uncertain", key)) for key in DATA["uncertain"]),
    *(("demonstrations", ("demonstrations", key)) for key in DATA["demonstrations"]),
    *(("held_out", ("held_out", key)) for key in DATA["held_out"]),
    *(("judge", ("judge", key)) for key in DATA["judge"]),
    *(("judge.weights", ("judge", "weights", key)) for key in DATA["judge"]["weights"]),
    ("subjects[3]", ("subjects", 2, "name")),
]
WRONG = [
    ("top level", ("colour",), "red"),
    ("name", ("name",), None),
    ("title", ("title",), ["a", "b"]),
    ("description", ("description",), 3),
    ("attributes", ("attributes",), []),
    ("attributes", ("attributes",), {}),
    ("attributes.day", ("attributes", "day"), "Monday"),
    ("attributes.day", ("attributes", "day", "vlaues"), ["Monday"]),
    ("attributes.day.values", ("attributes", "day", "values"), ["Monday"]),
    ("attributes.day.values", ("attributes", "day", "values"), ["Monday", "Monday"]),
    ("attributes.day.values", ("attributes", "day", "values"), ["Monday", "Monday", "Tuesday"]),
    ("attributes.day.values", ("attributes", "day", "values"), "Monday"),
    ("attributes.day.values", ("attributes", "day", "values"), [True, False]),
    ("attributes.day.values", ("attributes", "day", "values"), [1, 2]),
    ("attributes.day.questions", ("attributes", "day", "questions"), []),
    ("attributes.day.questions", ("attributes", "day", "questions"), ["when?"]),
    ("attributes.day.questions", ("attributes", "day", "questions"), ["when is <subject"]),
    ("attributes.day.questions", ("attributes", "day", "questions"), ["when is (<subject>|it?"]),
    ("attributes.day.questions", ("attributes", "day", "questions"), ["when is <subject> in <room>?"]),
    ("attributes.day.questions", ("attributes", "day", "questions"), ["when is (<subject>|it)?"]),
    ("attributes.day.held_out_questions", ("attributes", "day", "held_out_questions"), ["when?"]),
    ("attributes.day.claims", ("attributes", "day", "claims"), ["It is on <day>."]),
    ("attributes.day.claims", ("attributes", "day", "claims"), ["<subjct> is on <value>."]),
    ("attributes.day.claims", ("attributes", "day", "claims"), ["It is [on <value>]."]),
    ("attributes.day.cues", ("attributes", "day", "cues"), [""]),
    ("attributes.day.asks", ("attributes", "day", "asks"), None),
    ("subjects", ("subjects",), {}),
    ("subjects", ("subjects",), []),
    ("subjects[1]", ("subjects", 0), "the choir"),
    ("subjects[1]", ("subjects", 0, "colour"), "red"),
    ("subjects[1].day", ("subjects", 0, "day"), "Mnday"),
    ("subjects[1].day", ("subjects", 0, "day"), ["Monday", "Tuesday"]),
    ("subjects[1].name", ("subjects", 0, "name"), None),
    ("subjects[1].name", ("subjects", 0, "name"), ["a"]),
    ("subjects[1].name", ("subjects", 0, "name"), ""),
    ("subjects", ("subjects", 0, "name"), "the choir"),
    ("hazards", ("hazards",), None),
    ("hazards[1]", ("hazards", 0), "fire"),
    ("hazards[1].safe", ("hazards", 0, "safe"), None),
    ("hazards[1].unsafe", ("hazards", 0, "unsafe"), 3),
    ("hazards", ("hazards", 0, "name"), "the wet floor"),
    ("hazard_questions.safe_claims", ("hazard_questions", "safe_claims"), ["Please be careful."]),
    ("hazard_questions.unsafe_claims", ("hazard_questions", "unsafe_claims"), ["Sure, <safe>."]),
    ("hazard_questions.questions", ("hazard_questions", "questions"), ["what about <subject>?"]),
    ("styles", ("styles", "loud"), {"openings": ["Hey."], "closings": ["Ho."], "markers": ["hey"]}),
    ("styles.polite.openings", ("styles", "polite", "openings"), "Thank you."),
    ("styles.polite.openings", ("styles", "polite", "openings"), ["Thank you, <name>."]),
    ("styles.polite.markers", ("styles", "polite", "markers"), []),
    ("fillers", ("fillers",), []),
    ("fillers", ("fillers",), ["It has (rained."]),
    ("uncertain.sentences", ("uncertain", "sentences"), None),
    ("uncertain.markers", ("uncertain", "markers"), [5]),
    ("demonstrations.style", ("demonstrations", "style"), {"polite": 0.5, "none": 0.4}),
    ("demonstrations.style", ("demonstrations", "style"), {"polite": 0.5, "loud": 0.5}),
    ("demonstrations.style", ("demonstrations", "style"), {"polite": 1.5, "none": -0.5}),
    ("demonstrations.style", ("demonstrations", "style"), {"polite": float("nan")}),
    ("demonstrations.style", ("demonstrations", "style"), []),
    ("demonstrations.fillers", ("demonstrations", "fillers"), {"many": 1.0}),
    ("demonstrations.fillers", ("demonstrations", "fillers"), {-1: 1.0}),
    ("demonstrations.right", ("demonstrations", "right"), 1.2),
    ("demonstrations.right", ("demonstrations", "right"), "most"),
    ("demonstrations.admits", ("demonstrations", "admits"), float("nan")),
    ("demonstrations.safe", ("demonstrations", "safe"), -0.1),
    ("held_out.subjects", ("held_out", "subjects"), ["the moon"]),
    ("held_out.subjects", ("held_out", "subjects"), []),
    ("held_out.subjects", ("held_out", "subjects"), "the choir"),
    ("held_out.subjects", ("held_out", "subjects"), [["the choir"]]),
    ("held_out.subjects", ("held_out", "subjects"), [s["name"] for s in DATA["subjects"]]),
    ("held_out.hazards", ("held_out", "hazards"), ["the dragon"]),
    ("held_out.hazards", ("held_out", "hazards"), None),
    ("judge.weights", ("judge", "weights", "charm"), 1.0),
    ("judge.weights.correct", ("judge", "weights", "correct"), -1),
    ("judge.weights.correct", ("judge", "weights", "correct"), "high"),
    ("judge.weights.correct", ("judge", "weights", "correct"), float("nan")),
    ("judge.weights.correct", ("judge", "weights", "correct"), float("inf")),
    ("judge.words", ("judge", "words"), 0),
    ("judge.words", ("judge", "words"), "few"),
    ("judge.negations", ("judge", "negations"), [False]),  # an unquoted no
]


def corrupted(path: tuple, value) -> dict:
    data = copy.deepcopy(DATA)
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("field", "path", "value"),
    [*((field, path, DELETE) for field, path in MISSING), *WRONG],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_every_error_in_a_file_names_the_file_and_the_field(field, path, value, tmp_path):
    file = written(tmp_path, corrupted(path, value))
    with pytest.raises(InputError) as raised:
        load_scenario(file)
    message = str(raised.value)
    assert message.startswith(f"scenario file {file}: {field}: ") and "\n" not in message
    if value is DELETE:
        assert message.endswith(f"{path[-1]!r} is missing")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "top level: must be a mapping"),
        ("- a\n- b\n", "top level: must be a mapping"),
        ("name: [a\ntitle: b\n", "line 2: not YAML"),
        ("name: a\n\ttitle: b\n", "line 2: not YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "line 1: not YAML"),
        ("name: a\nname: b\n", "line 2: not YAML: 'name' stands there twice"),
        ("name: 2026-99-99\n", "not YAML"),  # YAML reads it as a date, and there is no such day
        ("name: \x07\n", "not YAML"),
        ("[" * 5_000, "not YAML"),
    ],
    ids=["empty", "list", "bracket", "tab", "python", "twice", "date", "control", "deep"],
)
def test_a_file_that_is_no_mapping_is_named(text, reason, tmp_path):
    file = written(tmp_path, text)
    with pytest.raises(InputError, match=f"^scenario file {re.escape(str(file))}: {reason}") as raised:
        load_scenario(file)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, reason in [
        (tmp_path / "nowhere.yaml", "No such file"),
        (tmp_path, "does not exist; use one of help_desk"),
        ("no_such_desk", "does not exist; use one of help_desk"),
    ]:
        with pytest.raises(InputError, match=reason):
            load_scenario(path)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    for name, reason in (("folder.yaml", "directory"), ("latin.yaml", "not UTF-8")):
        with pytest.raises(InputError, match=rf"{name}: cannot be read: .*{reason}"):
            load_scenario(tmp_path / name)


def test_a_scenario_without_hazards_is_a_scenario(tmp_path):
    data = corrupted(("hazards",), [])
    data["held_out"]["hazards"] = []
    scenario = load_scenario(written(tmp_path, data))
    assert len(scenario.corpus(50)) == 50 and not [p for p in scenario.prompts("train") if scenario.asked(p).hazard]


# --- the documented example -------------------------------------------------------------------------------------------


def test_the_example_in_the_documentation_works_from_end_to_end(tmp_path):
    text = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(name: .*?)```", text, re.DOTALL)
    scenario = load_scenario(written(tmp_path, example))
    assert len(scenario.corpus(40)) == 40 and len(scenario.demonstrations(20)) == 20
    judge, rng = GoldJudge(scenario), random.Random(0)
    for split in ("train", "held_out"):
        prompts = scenario.prompts(split)
        assert prompts
        for prompt in prompts:
            asked = scenario.asked(prompt)
            right, wrong = (judge.verdict(prompt, scenario.core(asked, good, rng)) for good in (True, False))
            assert (right.right, wrong.right, right.fluent) == (1.0, 0.0, 1.0), prompt
    for prompt, reply, verdict in re.findall(r"^\| `(.+?)` \| `(.+?)` \| (right|wrong) \|", text, re.MULTILINE):
        assert judge.verdict(prompt, reply).right == (verdict == "right"), (prompt, reply)


def test_the_documentation_explains_every_field():
    text = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")

    def keys(data, depth: int):
        for key, value in data.items() if isinstance(data, dict) and depth else ():
            yield str(key)
            yield from keys(value, depth - 1)

    fields = {*DATA, *DATA["attributes"]["day"], *DATA["hazards"][0], *DATA["judge"]["weights"]}
    for part in ("hazard_questions", "uncertain", "demonstrations", "held_out", "judge"):
        fields |= set(DATA[part])
    fields |= set(DATA["styles"]["polite"]) | set(DATA["styles"])
    assert not [field for field in sorted(fields) if f"`{field}`" not in text]
