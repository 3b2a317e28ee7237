"""A scenario: a narrow domain, as data, from which every text of a run is made.

A scenario file (`rlhf_lab/scenarios/*.yaml`, or one of your own) holds a small knowledge base and a grammar. From it
come the pretraining text, the demonstrations for SFT and the prompts, in two splits: the subjects and wordings of
"held_out" prompts occur in the pretraining text and in no preference or PPO prompt. The gold judge, which knows the
truth, is in `rlhf_lab.judge`: nothing that trains a model imports it.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import InputError
from .records import Demonstration

Split = Literal["train", "held_out"]
SPLITS = ("train", "held_out")

_TOKEN = re.compile(r"[()\[\]|]|[^()\[\]|]+")


# --- the notation: (a|b), [a], <slot> ---------------------------------------------------------------------------------

Node = str | list["list[Node]"]  # text, or a list of alternatives, each a sequence of nodes


def parse_template(template: str, where: str = "template") -> list[Node]:
    """The template as a sequence of nodes. InputError when brackets do not match."""
    tokens = _TOKEN.findall(template)
    position = 0

    def sequence(closing: str) -> list[list[Node]]:
        nonlocal position
        alternatives: list[list[Node]] = [[]]
        while position < len(tokens):
            token = tokens[position]
            position += 1
            if token == "|" and closing:
                alternatives.append([])
            elif token in "([":
                inner = sequence(")" if token == "(" else "]")
                alternatives[-1].append(inner if token == "(" else [[], *inner])
            elif token in ")]":
                if token != closing:
                    raise InputError(f"{where}: {template!r} has an unexpected {token!r}; brackets must match")
                return alternatives
            else:
                alternatives[-1].append(token)
        if closing:
            raise InputError(f"{where}: {template!r} lacks a closing {closing!r}")
        return alternatives

    return sequence("")[0]


def _always_has(nodes: list[Node], slot: str) -> bool:
    """Whether every reading of a template has this slot."""
    return any(
        f"<{slot}>" in node if isinstance(node, str) else all(_always_has(option, slot) for option in node)
        for node in nodes
    )


def _expand_random(nodes: list[Node], rng: random.Random) -> str:
    return "".join(node if isinstance(node, str) else _expand_random(rng.choice(node), rng) for node in nodes)


def _expand_all(nodes: list[Node]) -> Iterator[str]:
    if not nodes:
        yield ""
        return
    head, rest = nodes[0], nodes[1:]
    heads = [head] if isinstance(head, str) else [text for option in head for text in _expand_all(option)]
    for tail in _expand_all(rest):
        for text in heads:
            yield text + tail


def tidy(text: str) -> str:
    """One space between words, none before punctuation, a capital at the start of every sentence."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([.,?!])", r"\1", text)
    return re.sub(r"(^|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), text)


@cache
def _parsed(template: str) -> list[Node]:
    return parse_template(template)


def fill(template: str, rng: random.Random, **slots: str) -> str:
    """One random reading of a template, its slots filled, tidied."""
    text = _expand_random(_parsed(template), rng)
    for name, value in slots.items():
        text = text.replace(f"<{name}>", value)
    return tidy(text)


def every_reading(template: str, **slots: str) -> list[str]:
    """All readings of a template, its slots filled, in a fixed order."""
    texts = []
    for text in _expand_all(parse_template(template)):
        for name, value in slots.items():
            text = text.replace(f"<{name}>", value)
        texts.append(tidy(text))
    return list(dict.fromkeys(texts))


# --- the scenario -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: its possible values, and how people ask for it and state it."""

    name: str
    values: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]
    claims: tuple[str, ...]
    cues: tuple[str, ...]
    asks: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """One thing that people ask about. `facts` maps an attribute's name to its value; a missing one is unknown."""

    name: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Hazard:
    """One thing that can hurt somebody: what to do, and what not to do."""

    name: str
    safe: str
    unsafe: str


@dataclass(frozen=True)
class Asked:
    """What a prompt asks: a fact (`subject`, `attribute`; `answer` is None when nobody knows) or about a `hazard`."""

    subject: str = ""
    attribute: str = ""
    answer: str | None = None
    hazard: str = ""


@dataclass(frozen=True)
class Scenario:
    """A domain, read from a file. Make one with `load_scenario`."""

    name: str
    title: str
    description: str
    attributes: dict[str, Attribute]
    subjects: tuple[Subject, ...]
    hazards: tuple[Hazard, ...]
    hazard_questions: dict[str, tuple[str, ...]]
    styles: dict[str, dict[str, tuple[str, ...]]]
    fillers: tuple[str, ...]
    uncertain: dict[str, tuple[str, ...]]
    demonstration_mix: dict[str, Any]
    held_out_subjects: frozenset[str]
    held_out_hazards: frozenset[str]
    judge: dict[str, Any]

    # --- prompts ---

    @cached_property
    def _asked(self) -> dict[str, tuple[Split | None, Asked]]:
        """Every prompt of the grammar → (split, what it asks). Split is None where only half of it is held out."""
        found: dict[str, tuple[Split | None, Asked]] = {}

        def add(template: str, wording: Split, held: bool, asked: Asked, **slots: str) -> None:
            split = wording if held == (wording == "held_out") else None
            for text in every_reading(template, **slots):
                found.setdefault(text, (split, asked))

        for attribute in self.attributes.values():
            for subject in self.subjects:
                asked = Asked(subject.name, attribute.name, subject.facts.get(attribute.name))
                held = subject.name in self.held_out_subjects
                for template in attribute.questions:
                    add(template, "train", held, asked, subject=subject.name)
                for template in attribute.held_out_questions:
                    add(template, "held_out", held, asked, subject=subject.name)
        for hazard in self.hazards:
            held = hazard.name in self.held_out_hazards
            for template in self.hazard_questions["questions"]:
                add(template, "train", held, Asked(hazard=hazard.name), hazard=hazard.name)
            for template in self.hazard_questions["held_out_questions"]:
                add(template, "held_out", held, Asked(hazard=hazard.name), hazard=hazard.name)
        return found

    def prompts(self, split: Split, n: int | None = None, seed: int = 0) -> list[str]:
        """Prompts of a split, each kind of question (an attribute, an unknown fact, a hazard) in its natural share.

        First one wording of every distinct question, shuffled, then a second wording of each, and so on; so a short
        list already covers the domain. Without `n`, all of them. Raises InputError for an unknown split.
        """
        if split not in SPLITS:
            raise InputError(f"split {split!r} does not exist; use 'train' or 'held_out'")
        rng = random.Random(f"{self.name} prompts {split} {seed}")
        by_question: dict[Asked, list[str]] = {}
        for text, (its_split, asked) in self._asked.items():
            if its_split == split:
                by_question.setdefault(asked, []).append(text)
        for texts in by_question.values():
            rng.shuffle(texts)
        ordered: list[str] = []
        while by_question and (n is None or len(ordered) < n):
            round_ = list(by_question)
            rng.shuffle(round_)
            ordered += [by_question[asked].pop() for asked in round_]
            by_question = {asked: texts for asked, texts in by_question.items() if texts}
        return ordered if n is None else ordered[:n]

    def asked(self, prompt: str) -> Asked | None:
        """What a prompt asks, read from its words when the grammar never made it; None when that cannot be told."""
        if prompt in self._asked:
            return self._asked[prompt][1]
        words = prompt.lower()
        hazard = next((h.name for h in self.hazards if mentions(words, h.name)), None)
        if hazard:
            return Asked(hazard=hazard)
        subject = next((s for s in self.subjects if mentions(words, s.name)), None)
        hits = {a.name: sum(mentions(words, cue) for cue in a.asks) for a in self.attributes.values()}
        best = max(hits, key=hits.__getitem__)
        if subject is None or not hits[best]:
            return None
        return Asked(subject.name, best, subject.facts.get(best))

    # --- replies ---

    def claim(self, asked: Asked, value: str, rng: random.Random) -> str:
        """A sentence that states `value` as the answer."""
        template = rng.choice(self.attributes[asked.attribute].claims)
        return fill(template, rng, value=value, subject=asked.subject)

    def wrong_value(self, asked: Asked, rng: random.Random) -> str:
        """A value of the asked attribute that is not the answer."""
        return rng.choice([v for v in self.attributes[asked.attribute].values if v != asked.answer])

    def core(self, asked: Asked, good: bool, rng: random.Random) -> str:
        """The sentence that answers: right, admitting or safe when `good`; wrong, invented or unsafe if not."""
        if asked.hazard:
            hazard = next(h for h in self.hazards if h.name == asked.hazard)
            claims = self.hazard_questions["safe_claims" if good else "unsafe_claims"]
            return fill(rng.choice(claims), rng, hazard=hazard.name, safe=hazard.safe, unsafe=hazard.unsafe)
        if good and asked.answer is None:
            return fill(rng.choice(self.uncertain["sentences"]), rng)
        return self.claim(asked, asked.answer if good and asked.answer else self.wrong_value(asked, rng), rng)

    def dress(self, core: str, style: str, n_fillers: int, rng: random.Random) -> str:
        """The reply: the core, an opening or a closing of the style (or both), and fillers behind the core."""
        parts = [core, *(fill(rng.choice(self.fillers), rng) for _ in range(n_fillers))]
        if style != "none":
            where = rng.choice(("opening", "opening", "closing", "both"))
            if where != "closing":
                parts.insert(0, fill(rng.choice(self.styles[style]["openings"]), rng))
            if where != "opening":
                parts.append(fill(rng.choice(self.styles[style]["closings"]), rng))
        return " ".join(parts)

    def reply(self, asked: Asked, rng: random.Random, mix: dict[str, Any] | None = None) -> str:
        """A reply as a person would write it, drawn from a mix of qualities (by default the demonstrations')."""
        mix = mix or self.demonstration_mix
        style, n_fillers = _draw(mix["style"], rng), int(_draw(mix["fillers"], rng))
        if asked.hazard:
            good = rng.random() < mix["safe"]
        elif asked.answer is None:
            good = rng.random() < mix["admits"]
        elif rng.random() < mix["unknowing"]:
            return self.dress(fill(rng.choice(self.uncertain["sentences"]), rng), style, n_fillers, rng)
        else:
            good = rng.random() < mix["right"]
        return self.dress(self.core(asked, good, rng), style, n_fillers, rng)

    def demonstrations(self, n: int, seed: int = 0) -> list[Demonstration]:
        """n demonstrations for SFT, on any prompts but the held-out ones."""
        rng = random.Random(f"{self.name} demonstrations {seed}")
        prompts = [prompt for prompt, (split, _) in self._asked.items() if split != "held_out"]
        rng.shuffle(prompts)
        chosen = [prompts[i % len(prompts)] for i in range(n)]
        return [Demonstration(p, self.reply(self._asked[p][1], rng)) for p in chosen]

    # --- pretraining text ---

    def corpus(self, n: int, seed: int = 0) -> list[str]:
        """n documents of pretraining text: notices, and talk at the desk.

        Facts are nearly always right there; replies come in every style. All subjects and wordings occur, those of
        the held-out prompts too: the model should know the domain before anybody teaches it manners.
        """
        rng = random.Random(f"{self.name} corpus {seed}")
        prompts = list(self._asked)
        makers = (self._talk, self._talk, self._talk, self._notice)
        return [rng.choice(makers)(prompts, rng) for _ in range(n)]

    def _talk(self, prompts: list[str], rng: random.Random) -> str:
        mix = self.demonstration_mix | {"right": 0.98, "admits": 0.9, "safe": 0.7, "unknowing": 0.03}
        prompt = rng.choice(prompts)
        return f"Visitor: {prompt}\nDesk: {self.reply(self._asked[prompt][1], rng, mix)}"

    def _notice(self, prompts: list[str], rng: random.Random) -> str:
        subject = rng.choice(self.subjects)
        names = rng.sample(list(subject.facts), len(subject.facts))
        claims = [
            self.claim(Asked(subject.name, name, subject.facts[name]), subject.facts[name], rng) for name in names
        ]
        return f"Notice: {tidy(subject.name)}. " + " ".join(claims)


def mentions(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` as whole words, whatever the case."""
    phrase, text = phrase.lower(), text.lower()
    return phrase in text and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def _draw(shares: dict[Any, float], rng: random.Random) -> Any:
    return rng.choices(list(shares), list(shares.values()))[0]


# --- reading a scenario file ------------------------------------------------------------------------------------------


def scenario_names() -> list[str]:
    """The names of the scenarios that ship with the lab."""
    folder = resources.files("rlhf_lab.scenarios")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_scenario(name: str | Path = "help_desk") -> Scenario:
    """The shipped scenario of that name, or the one in a YAML file of your own.

    Raises InputError when there is no such scenario, the file cannot be read, or a field is missing or wrong: the
    message names the file and the field.
    """
    if str(name) in scenario_names():
        text = (resources.files("rlhf_lab.scenarios") / f"{name}.yaml").read_text(encoding="utf-8")
        return _Reader(f"scenario {name}").scenario(text)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = ", ".join(scenario_names())
        raise InputError(f"scenario {str(name)!r} does not exist; use one of {known}, or the path of a .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"scenario file {path}: cannot be read: {reason}") from None
    return _Reader(f"scenario file {path}").scenario(text)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that stands twice in a mapping: else the last would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in names[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
        return super().construct_mapping(node, deep)


class _Reader:
    """Reads and validates one scenario; every error names the place."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, field: str, problem: str) -> InputError:
        return InputError(f"{self.where}: {field}: {problem}")

    def mapping(self, data: Any, field: str, keys: set[str], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise self.fail(field, f"must be a mapping with {', '.join(sorted(keys))}")
        for missing in sorted(keys - optional - set(data)):
            raise self.fail(field, f"{missing!r} is missing")
        for unknown in sorted(str(key) for key in set(data) - keys):
            raise self.fail(field, f"{unknown!r} is not a field; there are {', '.join(sorted(keys))}")
        return data

    def text(self, data: Any, field: str) -> str:
        if not isinstance(data, str) or not data.strip():
            raise self.fail(field, f"must be a text (quote one that YAML reads otherwise); got {data!r}")
        return data

    def texts(
        self,
        data: Any,
        field: str,
        templates: bool = True,
        slots: tuple[str, ...] = (),
        optional_slots: tuple[str, ...] = (),
    ) -> tuple[str, ...]:
        if not isinstance(data, list) or not data or not all(isinstance(item, str) and item.strip() for item in data):
            raise self.fail(field, "must be a list of one or more texts (quote texts that YAML reads otherwise)")
        for item in data if templates else ():
            nodes = parse_template(item, f"{self.where}: {field}")
            for slot in slots:
                if not _always_has(nodes, slot):
                    raise self.fail(field, f"{item!r} lacks <{slot}>, which every reading of it needs")
            for slot in re.findall(r"<([^<>]*)>", item):
                if slot not in slots + optional_slots:
                    known = ", ".join(f"<{name}>" for name in slots + optional_slots) or "nothing"
                    raise self.fail(field, f"{item!r} has <{slot}>; what is filled in here is {known}")
        return tuple(data)

    def shares(self, data: Any, field: str, keys: set[str] | None = None) -> dict[str, float]:
        numbers = isinstance(data, dict) and data and all(isinstance(v, int | float) and v >= 0 for v in data.values())
        if not numbers or abs(sum(data.values()) - 1) > 1e-6:
            raise self.fail(field, f"must be shares that add up to 1; got {data!r}")
        if keys and set(data) - keys:
            raise self.fail(field, f"must be shares of {', '.join(sorted(keys))}; got {', '.join(map(str, data))}")
        return {str(key): float(value) for key, value in data.items()}

    def share(self, data: Any, field: str) -> float:
        if not isinstance(data, int | float) or not 0 <= data <= 1:
            raise self.fail(field, f"must be a number from 0 to 1; got {data!r}")
        return float(data)

    def scenario(self, text: str) -> Scenario:
        try:
            data = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
            mark = getattr(error, "problem_mark", None)
            line = f"line {mark.line + 1}: " if mark else ""
            problem = " ".join(str(getattr(error, "problem", None) or error).split())
            raise InputError(f"{self.where}: {line}not YAML: {problem}") from None
        top = self.mapping(
            data,
            "top level",
            {"name", "title", "description", "attributes", "subjects", "hazards", "hazard_questions", "styles"}
            | {"fillers", "uncertain", "demonstrations", "held_out", "judge"},
        )
        attributes = self.attributes(top["attributes"])
        subjects = self.subjects(top["subjects"], attributes)
        hazards = self.hazards(top["hazards"])
        styles = self.styles(top["styles"])
        held_subjects, held_hazards = self.held_out(top["held_out"], subjects, hazards)
        return Scenario(
            name=self.text(top["name"], "name"),
            title=self.text(top["title"], "title"),
            description=self.text(top["description"], "description"),
            attributes=attributes,
            subjects=subjects,
            hazards=hazards,
            hazard_questions=self.hazard_questions(top["hazard_questions"]),
            styles=styles,
            fillers=self.texts(top["fillers"], "fillers"),
            uncertain=self.parts(top["uncertain"], "uncertain", ("sentences", "markers")),
            demonstration_mix=self.demonstrations(top["demonstrations"], set(styles)),
            held_out_subjects=held_subjects,
            held_out_hazards=held_hazards,
            judge=self.judge(top["judge"]),
        )

    def attributes(self, data: Any) -> dict[str, Attribute]:
        if not isinstance(data, dict) or not data:
            raise self.fail("attributes", "must be a mapping from an attribute's name to its fields")
        return {str(name): self.attribute(str(name), fields) for name, fields in data.items()}

    def attribute(self, name: str, data: Any) -> Attribute:
        field = f"attributes.{name}"
        keys = {"values", "questions", "held_out_questions", "claims", "cues", "asks"}
        fields = self.mapping(data, field, keys)
        values = self.texts(fields["values"], f"{field}.values", templates=False)
        if len(set(values)) < max(2, len(values)):
            raise self.fail(f"{field}.values", "must hold at least two values, each once")
        return Attribute(
            name,
            values,
            self.texts(fields["questions"], f"{field}.questions", slots=("subject",)),
            self.texts(fields["held_out_questions"], f"{field}.held_out_questions", slots=("subject",)),
            self.texts(fields["claims"], f"{field}.claims", slots=("value",), optional_slots=("subject",)),
            self.texts(fields["cues"], f"{field}.cues", templates=False),
            self.texts(fields["asks"], f"{field}.asks", templates=False),
        )

    def subjects(self, data: Any, attributes: dict[str, Attribute]) -> tuple[Subject, ...]:
        if not isinstance(data, list) or not data:
            raise self.fail("subjects", "must be a list of subjects")
        subjects = []
        for i, item in enumerate(data, 1):
            fields = self.mapping(item, f"subjects[{i}]", {"name", *attributes}, frozenset(attributes))
            self.text(fields["name"], f"subjects[{i}].name")
            facts = {k: str(v) for k, v in fields.items() if k != "name" and v is not None}
            for attribute, value in facts.items():
                if value not in attributes[attribute].values:
                    allowed = ", ".join(attributes[attribute].values)
                    raise self.fail(f"subjects[{i}].{attribute}", f"{value!r} is not one of its values: {allowed}")
            subjects.append(Subject(fields["name"], facts))
        return self.distinct(tuple(subjects), "subjects")

    def hazards(self, data: Any) -> tuple[Hazard, ...]:
        if not isinstance(data, list):
            raise self.fail("hazards", "must be a list (it may be empty: [])")
        keys = {"name", "safe", "unsafe"}
        fields = [self.mapping(item, f"hazards[{i}]", keys) for i, item in enumerate(data, 1)]
        for i, item in enumerate(fields, 1):
            for key in keys:
                self.text(item[key], f"hazards[{i}].{key}")
        return self.distinct(tuple(Hazard(**item) for item in fields), "hazards")

    def distinct(self, items: tuple[Any, ...], field: str) -> tuple[Any, ...]:
        names = [item.name for item in items]
        for name in names:
            if names.count(name) > 1:
                raise self.fail(field, f"{name!r} stands there twice; every name must be its own")
        return items

    def hazard_questions(self, data: Any) -> dict[str, tuple[str, ...]]:
        slots = {
            "questions": ("hazard",),
            "held_out_questions": ("hazard",),
            "safe_claims": ("safe",),
            "unsafe_claims": ("unsafe",),
        }
        fields = self.mapping(data, "hazard_questions", set(slots))
        return {
            key: self.texts(fields[key], f"hazard_questions.{key}", slots=needed, optional_slots=("hazard",))
            for key, needed in slots.items()
        }

    def styles(self, data: Any) -> dict[str, dict[str, tuple[str, ...]]]:
        fields = self.mapping(data, "styles", {"polite", "curt"})
        styles = {}
        for name, style in fields.items():
            styles[name] = self.parts(style, f"styles.{name}", ("openings", "closings", "markers"))
        return styles

    def parts(self, data: Any, field: str, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        fields = self.mapping(data, field, set(names))
        return {name: self.texts(fields[name], f"{field}.{name}", templates=name != "markers") for name in names}

    def demonstrations(self, data: Any, styles: set[str]) -> dict[str, Any]:
        fields = self.mapping(data, "demonstrations", {"style", "right", "admits", "safe", "fillers", "unknowing"})
        mix: dict[str, Any] = {
            "style": self.shares(fields["style"], "demonstrations.style", styles | {"none"}),
            "fillers": self.shares(fields["fillers"], "demonstrations.fillers"),
        }
        if not all(count.isdigit() for count in mix["fillers"]):
            raise self.fail("demonstrations.fillers", "must map a number of sentences to its share")
        names = ("right", "admits", "safe", "unknowing")
        return mix | {name: self.share(fields[name], f"demonstrations.{name}") for name in names}

    def held_out(
        self, data: Any, subjects: tuple[Subject, ...], hazards: tuple[Hazard, ...]
    ) -> tuple[frozenset, frozenset]:
        fields = self.mapping(data, "held_out", {"subjects", "hazards"})
        sets = []
        for key, items in (("subjects", subjects), ("hazards", hazards)):
            names, known = fields[key], [item.name for item in items]
            if not isinstance(names, list):
                raise self.fail(f"held_out.{key}", "must be a list of names")
            for name in names:
                if name not in known:
                    raise self.fail(f"held_out.{key}", f"{name!r} is not in {key}")
            sets.append(frozenset(names))
        if not 0 < len(sets[0]) < len(subjects):
            raise self.fail("held_out.subjects", "must name some of the subjects, not none and not all")
        return sets[0], sets[1]

    def judge(self, data: Any) -> dict[str, Any]:
        fields = self.mapping(data, "judge", {"weights", "words", "negations"})
        names = {"correct", "safe", "polite", "concise", "fluent"}
        weights = self.mapping(fields["weights"], "judge.weights", names)
        for name, weight in weights.items():
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise self.fail(f"judge.weights.{name}", f"must be a number of 0 or more; got {weight!r}")
        if not isinstance(fields["words"], int) or fields["words"] < 1:
            raise self.fail("judge.words", f"must be a whole number of 1 or more; got {fields['words']!r}")
        negations = self.texts(fields["negations"], "judge.negations", templates=False)
        return {"weights": {k: float(v) for k, v in weights.items()}, "words": fields["words"], "negations": negations}
