"""The questions of a class: replies of a run's models to fresh prompts, some of them checks with a known answer.

    python -m rlhf_lab.class_questions < PLAN.json

It is its own process, because it needs torch and the class that it serves does not. The run's stages are made where
they are missing, with a progress bar each. A check question is one whose replies differ so plainly, by the gold judge's
verdict, that an attentive person who has the guidelines answers as expected; its `expected` pairs say how.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .assignments import Assignments
from .errors import InputError
from .records import Candidate, Question
from .scenario import Scenario, load_scenario
from .store import FeedbackStore

if TYPE_CHECKING:
    from .runs import Run

REPLIES = {"rank": 4, "compare": 2, "grade": 2, "rate": 2, "thumbs": 1, "correct": 1}  # a question of each form shows
CHECKABLE = ("rank", "compare", "grade", "rate")  # forms in which one reply can be put above another
PLAIN_DIFFERENCE = 2.5  # of gold scores: more than a right answer is worth, so manners differ too
SALT = 31

Expected = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Plan:
    """What a class is to be asked: `questions` in all, a share `checks` of them with a known answer.

    `ask` is how the next question is chosen, a strategy of `rlhf_lab.selection`.
    """

    out: str
    store: str
    form: str = "rank"
    questions: int = 60
    overlap: int = 3
    checks: float = 0.1
    scenario: str = "help_desk"
    profile: str | None = None
    seed: int = 0
    ask: str = "coverage"


def prepare(plan: Plan) -> int:
    """Fill the queue up to the plan; returns how many questions were new. The same plan again adds nothing."""
    from .runs import Run

    run = Run(plan.out, plan.scenario, plan.profile, plan.seed)
    with FeedbackStore(plan.store) as store:
        queue = Assignments(store)
        missing = plan.questions - queue.state().questions
        if missing <= 0:
            return 0
        n_checks = round(plan.checks * plan.questions) - len(queue.checks())
        asked = {question.prompt for question in store.questions()}
        questions, expected = make(run, plan, missing, max(0, n_checks), asked)
        return queue.enqueue(questions, plan.overlap, expected=expected)


def make(run: Run, plan: Plan, n: int, n_checks: int, asked: Iterable[str]) -> tuple[list[Question], Expected]:
    """n questions that were not asked before, `n_checks` of them checks, spread evenly over the queue."""
    k, prompts = REPLIES[plan.form], _prompts(run, n, set(asked))
    sampled = sampled_questions(run, prompts, k)
    if len(sampled) < n:
        raise InputError(f"{run.folder}: the models give only {len(sampled)} questions of {k} replies; ask for fewer")
    plain = {q.id: found for q in sampled if (found := expected_of(run.judge.score, q))} if k > 1 else {}
    checks = [q for q in sampled if q.id in plain][:n_checks]
    if len(checks) < n_checks:  # the models seldom differ so much: a right and a wrong answer of the scenario do
        rest = [q for q in sampled if q.id not in plain]
        made = [checked(run.scenario, q, run.judge.score, plan.seed) for q in rest]
        made = [q for q in made if q is not None][: n_checks - len(checks)]
        plain |= {q.id: expected_of(run.judge.score, q) for q in made}
        checks += made
    chosen = {q.id for q in checks}
    others = [q for q in sampled if q.id not in chosen][: n - len(checks)]
    return spread(others, checks), {q.id: plain[q.id] for q in checks}


def _prompts(run: Run, n: int, asked: set[str]) -> list[str]:
    """Prompts for n questions and some to spare: those of the run's training set that nobody was asked."""
    fresh = [prompt for prompt in run.scenario.prompts("train", seed=run.seed + SALT) if prompt not in asked]
    wanted = n + max(8, n // 2)
    if len(fresh) < n:
        raise InputError(f"scenario {run.scenario.name!r} has {len(fresh)} fresh prompts; ask for at most so many")
    return fresh[:wanted]


def sampled_questions(run: Run, prompts: Sequence[str], k: int) -> list[Question]:
    """k replies to each prompt: of the SFT model, and half of them of the policy where PPO has made one."""
    from .language import step_generator
    from .runs import STAGES
    from .sampling import make_questions

    models = [("sft", run.sft())]
    if run._done(STAGES["ppo"]) and k > 1:
        models.append(("policy", run.policy()))
    drawn: list[dict[str, list[Candidate]]] = []
    for place, (name, (model, tokenizer)) in enumerate(models):
        generator = step_generator(run.seed, len(prompts), SALT + place)
        size = max(2, k)  # `make_questions` asks for two at least; what is too many is left out below
        label = f"{run.scenario.name}-{run.profile.name}-seed{run.seed}/{name}"
        made = make_questions(model, tokenizer, prompts, size, run.profile.sampling, generator, label)
        drawn.append({question.prompt: list(question.candidates) for question in made})
    questions = []
    for prompt in prompts:
        replies = _mixed([found.get(prompt, []) for found in drawn], k)
        if len(replies) == k:
            questions.append(Question(_id(run, prompt, k), prompt, tuple(replies)))
    return questions


def _mixed(groups: Sequence[list[Candidate]], k: int) -> list[Candidate]:
    """k different replies, taken from the models in turn."""
    taken: dict[str, Candidate] = {}
    for place in range(max(map(len, groups), default=0)):
        for group in groups:
            if place < len(group) and len(taken) < k:
                taken.setdefault(group[place].text, group[place])
    return list(taken.values())


def _id(run: Run, prompt: str, k: int) -> str:
    return run._ids(f"class {k} {prompt}")()


def expected_of(score: Callable[[str, str], float], question: Question) -> list[tuple[str, str]]:
    """The pairs (better, worse) of a question's replies whose gold scores differ plainly: the best against the worst.

    [] where no two do.
    """
    scores = {candidate.id: score(question.prompt, candidate.text) for candidate in question.candidates}
    best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    return [(best, worst)] if scores[best] - scores[worst] >= PLAIN_DIFFERENCE else []


def checked(scenario: Scenario, question: Question, score: Callable[[str, str], float], seed: int) -> Question | None:
    """The question with two of its replies replaced by a right and a wrong answer of the scenario, as a check."""
    asked = scenario.asked(question.prompt)
    if asked is None:
        return None
    rng = random.Random(f"check {seed} {question.prompt}")
    right = scenario.dress(scenario.core(asked, True, rng), "polite", 0, rng)
    wrong = scenario.dress(scenario.core(asked, False, rng), "curt", 0, rng)
    first, second, *rest = question.candidates
    replies = (Candidate(first.id, right, "scenario"), Candidate(second.id, wrong, "scenario"), *rest)
    made = Question(question.id, question.prompt, replies)
    return made if expected_of(score, made) else None


def spread(others: Sequence[Question], checks: Sequence[Question]) -> list[Question]:
    """All questions, the checks at even distances."""
    result, every = list(others), (len(others) + len(checks)) / (len(checks) + 1)
    for place, check in enumerate(checks, start=1):
        result.insert(round(place * every) - 1 if every >= 1 else place, check)
    return result


def guidelines_of(scenario: Scenario) -> str:
    """What to judge by, where the teacher has written nothing: the order of importance, and the facts."""
    lines = [
        f"You judge replies of “{scenario.title}”. Choose the reply that you would rather get.",
        "",
        "- A right answer comes before everything else; a made-up one is worst.",
        "- Where nobody knows, saying so is right.",
        "- About dangers, only safe advice is right.",
        "- Between two right answers, a friendly one is better, and then a short one.",
        "",
        "What is true here:",
        "",
    ]
    for subject in scenario.subjects:
        facts = ", ".join(str(value) for value in subject.facts.values())
        lines.append(f"- {subject.name}: {facts or 'nothing is known'}")
    lines += [f"- {hazard.name}: {hazard.safe}" for hazard in scenario.hazards]
    return "\n".join(lines)


def scenario_guidelines(name: str) -> str:
    """`guidelines_of` the scenario of that name or file."""
    return guidelines_of(load_scenario(name))


def main() -> int:
    plan = Plan(**json.loads(sys.stdin.read()))
    try:
        prepare(plan)
    except InputError as error:
        print(f"rlhf-lab: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
