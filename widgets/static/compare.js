// The pairwise widget's own part: one click or key is one label.

const LETTERS = ["A", "B"];

const compare = {
  name: "compare",
  title: "Which reply is better?",
  help: "Press 1 or 2 for the better reply, 0 for a tie, or click.",

  actions(view) {
    return [{ label: "Tie: equally good", cap: "0", shortcut: "0", keys: ["0"], run: () => view.submit([[1, 2]]) }];
  },

  choose: (view, n) => view.submit([[n], [3 - n]]),

  key(view, event) {
    const n = { 1: 1, 2: 2 }[event.key];
    if (n) return compare.choose(view, n);
    const focused = event.target.closest?.(".rlhf-card");
    if (focused && (event.key === "Enter" || event.key === " ")) return focused.click();
    if (event.key === "ArrowLeft" || event.key === "ArrowUp") view.cards[0].focus();
    if (event.key === "ArrowRight" || event.key === "ArrowDown") view.cards[1].focus();
  },

  build(view) {
    view.cards = view.replies.map((text, i) =>
      h(
        "div",
        { class: "rlhf-card", role: "button", tabindex: "0", "aria-keyshortcuts": String(i + 1), onclick: () => compare.choose(view, i + 1) },
        h("div", { class: "rlhf-card-head" }, h("span", { class: "rlhf-letter" }, `Reply ${LETTERS[i]}`), h("span", { class: "rlhf-earlier" }), kbd(String(i + 1))),
        h("div", { class: "rlhf-text", dir: "auto" }, inert(text)),
      ),
    );
    view.body.replaceChildren(h("div", { class: "rlhf-pair" }, ...view.cards));
  },

  /** After an undo the draft holds the answer that was taken back; mark it. */
  update(view) {
    const [best = []] = view.draft.tiers;
    view.cards.forEach((card, i) => {
      const earlier = best.includes(i + 1) ? (best.length > 1 ? "your last answer: tie" : "your last answer: better") : "";
      card.querySelector(".rlhf-earlier").textContent = earlier;
      card.setAttribute("aria-label", `Reply ${LETTERS[i]} is better${earlier && ` (${earlier})`}: ${inertString(view.replies[i])}`);
    });
  },

  status: () => compare.help,
};

export default { render: ({ model, el }) => feedbackView(model, el, compare) };
