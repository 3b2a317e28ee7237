"""Feedback of every kind for the tests of formats and audits: made from a seed, with texts that break naive readers."""

import random

from rlhf_lab.formats import Feedback, Withdrawal
from rlhf_lab.records import GRADES, Candidate, Correction, Question, Ranking, Rating, Vote

TIME = "2026-11-24T09:30:00.000000+00:00"
TEXTS = (
    *("Gladly.", " two  spaces ", "line\nbreak", "tab\tstop", 'quote " and \\', "שלום", "🙂", "\u2028", "=1+1", "'"),
    *("<script>alert(1)</script>", "a\x00b", "", "\r\n", "\n\nAssistant: no", "null", "\ufeff"),
)
PROMPTS = ("How late is it?", "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye", "\n\nSystem: Be kind.\n\nHuman: q")


def question(rng: random.Random, key: str, k: int, plain: bool = False) -> Question:
    """A question with k replies, the texts all different."""

    def said(place: int) -> str:
        return f"reply {place} of {key}" if plain else f"{rng.choice(TEXTS)} {place} {rng.choice(TEXTS)}"

    sampling = {"temperature": 0.7, "seed": 3, "stop": ["a", None]}
    replies = [Candidate(f"{key}-{n}", said(n), f"model{n}" * (n % 2), sampling if n == 1 else {}) for n in range(k)]
    return Question(key, rng.choice(PROMPTS), tuple(replies))


def answer(rng: random.Random, question: Question, kind: type, annotator: str, plain: bool = False, **more):
    """One person's decided answer of a kind."""
    ids = [candidate.id for candidate in question.candidates]
    shown = rng.sample(ids, len(ids))
    common = {"question_id": question.id, "annotator": annotator, "created": TIME, **more}
    common |= {} if plain else {"displayed": tuple(shown), "seconds": rng.choice([0.0, 2.5, 7])}
    if kind is Ranking:
        order = [[key] for key in rng.sample(ids, len(ids))]
        while not plain and len(order) > 1 and rng.random() < 0.3:
            order.append(order.pop() + order.pop())
        graded = len(ids) == 2 == len(order)
        return Ranking(order=order, grade=rng.choice(("", *GRADES)) if graded else "", **common)
    if kind is Rating:
        return Rating(scores={key: {n: rng.randint(1, 5) for n in ("helpful", "safe")} for key in ids}, **common)
    if kind is Vote:
        return Vote(candidate=rng.choice(ids), up=rng.random() < 0.5, **common)
    return Correction(candidate=rng.choice(ids), text=f"better {rng.choice(TEXTS)}", **common)


def sample(seed: int = 0, n: int = 12, plain: bool = False) -> Feedback:
    """Feedback of every kind by two people, some withdrawn, replaced or declined unless `plain`."""
    rng = random.Random(seed)
    questions = [question(rng, f"q{seed}-{at}", 2 + at % 3, plain) for at in range(n)]
    answers = [
        answer(rng, item, kind, person, plain, id=f"{item.id}-{kind.kind}-{person}")
        for item in questions
        for kind, person in ((Ranking, "Ada"), (Rating, "Ada"), (Ranking, "Bö"), (Vote, "Bö"), (Correction, "Ada"))
    ]
    if plain:
        return Feedback(tuple(questions), tuple(answers))
    first = questions[0]
    again = answer(rng, first, Ranking, "Ada", id=f"again-{seed}", context={"widget": "compare", "guide": "Be fair.\n"})
    skipped = Ranking(questions[1].id, (), "Cy", status="skipped", id=f"skip-{seed}", created=TIME)
    unsure = Vote(first.id, first.candidates[0].id, None, "Cy", status="undecided", id=f"unsure-{seed}", created=TIME)
    gone = (Withdrawal(answers[5].id, TIME), Withdrawal(answers[7].id, TIME))
    return Feedback(tuple(questions), (*answers, again, skipped, unsure), gone)
