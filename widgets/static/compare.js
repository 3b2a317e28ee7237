// The pairwise widgets' own part: one click or key is one label. Without grades: which is better; with: by how much.

const LETTERS = ["A", "B"];

/** The head and text of reply `i`, for a card. */
function replyParts(view, i, ...cap) {
  const head = h("div", { class: "rlhf-card-head" }, h("span", { class: "rlhf-letter" }, `Reply ${LETTERS[i]}`), h("span", { class: "rlhf-earlier" }), ...cap);
  return [head, h("div", { class: "rlhf-text", dir: "auto" }, inert(view.replies[i]))];
}

/** After an undo the draft holds the answer that was taken back: what it said of reply `i`, in words. */
function earlierOf(view, i) {
  const { tiers, grade } = view.draft;
  const [best = []] = tiers;
  if (!best.includes(i + 1)) return "";
  return `your last answer: ${best.length > 1 ? "tie" : grade || "better"}`;
}

const compare = {
  name: "compare",
  given: "ranked",
  title: "Which reply is better?",
  help: "Press 1 or 2 for the better reply, 0 for a tie, or click.",
  blank: () => ({ tiers: [] }),

  actions(view) {
    return [{ label: "Tie: equally good", cap: "0", shortcut: "0", keys: ["0"], run: () => view.submit({ order: [[1, 2]] }) }];
  },

  choose: (view, n) => view.submit({ order: [[n], [3 - n]] }),

  key(view, event) {
    const n = { 1: 1, 2: 2 }[event.key];
    if (n) return compare.choose(view, n);
    const focused = event.target.closest?.(".rlhf-card");
    if (focused && (event.key === "Enter" || event.key === " ")) return focused.click();
    if (event.key === "ArrowLeft" || event.key === "ArrowUp") view.cards[0].focus();
    if (event.key === "ArrowRight" || event.key === "ArrowDown") view.cards[1].focus();
  },

  build(view) {
    view.cards = view.replies.map((_, i) =>
      h(
        "div",
        { class: "rlhf-card", role: "button", tabindex: "0", "aria-keyshortcuts": String(i + 1), onclick: () => compare.choose(view, i + 1) },
        ...replyParts(view, i, kbd(String(i + 1))),
      ),
    );
    view.body.replaceChildren(h("div", { class: "rlhf-pair" }, ...view.cards));
  },

  update(view) {
    view.cards.forEach((card, i) => {
      const earlier = earlierOf(view, i);
      card.querySelector(".rlhf-earlier").textContent = earlier;
      card.setAttribute("aria-label", `Reply ${LETTERS[i]} is better${earlier && ` (${earlier})`}: ${inertString(view.replies[i])}`);
    });
  },

  status: () => compare.help,
};

/**
 * The scale from left to right: {order, grade, says, cap, keys, strength} for each step, A's grades from the strongest
 * to the weakest, a tie, B's from the weakest to the strongest. `grades` come weakest first.
 */
function scaleOf(grades) {
  const k = grades.length;
  const step = (grade, side, at, strength) => ({
    order: side ? [[2], [1]] : [[1], [2]], grade, side: LETTERS[side], says: `${LETTERS[side]} ${grade}`, cap: String(at), keys: [String(at)], strength,
  });
  const tie = { order: [[1, 2]], grade: "", side: "", says: "Tie: equally good", cap: String(k + 1), keys: [String(k + 1), "0"], strength: 0 };
  const left = grades.map((grade, i) => step(grade, 0, k - i, i + 1)).reverse();
  return [...left, tie, ...grades.map((grade, i) => step(grade, 1, k + 2 + i, i + 1))];
}

const graded = {
  ...compare,
  name: "graded",
  title: "Which reply is better, and by how much?",
  help: "Press the number under your choice, or click it. One choice is one label.",
  blank: () => ({ tiers: [], grade: "" }),
  actions: () => [],

  choose: (view, { order, grade }) => view.submit({ order, grade }),

  key(view, event) {
    const chosen = view.scale.find(({ keys }) => keys.includes(event.key));
    if (chosen) return graded.choose(view, chosen);
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!by) return;
    const at = view.steps.indexOf(event.target.closest?.(".rlhf-step"));
    const next = at < 0 ? view.steps.findIndex((step) => step.tabIndex === 0) : Math.max(0, Math.min(at + by, view.steps.length - 1));
    view.steps.forEach((step, i) => step.setAttribute("tabindex", i === next ? "0" : "-1"));
    view.steps[next].focus();
  },

  build(view) {
    view.scale = scaleOf(view.model.get("grades"));
    view.cards = view.replies.map((_, i) => h("div", { class: "rlhf-card", role: "group" }, ...replyParts(view, i)));
    view.steps = view.scale.map((step) => {
      const button = h(
        "button",
        {
          type: "button", class: `rlhf-step rlhf-strength-${step.strength}`, "data-side": step.side, "aria-label": step.says, "aria-keyshortcuts": step.keys.join(" "),
          tabindex: step.grade ? "-1" : "0", title: step.keys.length > 1 ? `Keys ${step.keys.join(" or ")}` : `Key ${step.cap}`,
          onclick: () => graded.choose(view, step),
        },
        h("span", { class: "rlhf-step-text" }, step.grade || "tie"), kbd(step.cap),
      );
      return button;
    });
    const side = (letter) => h("div", { class: "rlhf-side", "data-side": letter }, h("span", { class: "rlhf-side-name", "aria-hidden": "true" }, letter ? `Reply ${letter} is` : "\u00a0"), h("div", { class: "rlhf-steps" }, ...view.steps.filter((step) => step.dataset.side === letter)));
    const scale = h("div", { class: "rlhf-scale", role: "group", "aria-label": "How much better?" }, side("A"), side(""), side("B"));
    view.body.replaceChildren(h("div", { class: "rlhf-pair" }, ...view.cards), scale);
  },

  update(view) {
    const { tiers, grade } = view.draft;
    view.cards.forEach((card, i) => {
      const earlier = earlierOf(view, i);
      card.querySelector(".rlhf-earlier").textContent = earlier;
      card.setAttribute("aria-label", `Reply ${LETTERS[i]}${earlier && ` (${earlier})`}`);
    });
    view.steps.forEach((button, i) => {
      const was = canonical(tiers) === canonical(view.scale[i].order) && grade === view.scale[i].grade;
      button.classList.toggle("rlhf-was", was);
      button.setAttribute("aria-label", view.scale[i].says + (was ? " (your last answer)" : ""));
    });
  },

  status: () => graded.help,
};

export default { render: ({ model, el }) => feedbackView(model, el, model.get("grades").length ? graded : compare) };
