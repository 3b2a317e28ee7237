// The rating widget's own part: a row of five marks for each attribute of each reply.

const MARKS = [1, 2, 3, 4, 5];

const rating = {
  name: "rating",
  given: "rated",
  title: "Rate each reply",

  blank: (view) => ({ marks: view.replies.map(() => view.model.get("attributes").map(() => null)) }),

  /** The marks in the order of the rows on the screen. */
  flat: (view) => view.draft.marks.flat(),
  missing: (view) => rating.flat(view).flatMap((mark, row) => (mark === null ? [row] : [])),

  actions(view) {
    return [
      {
        label: "Confirm", cap: "Enter", shortcut: "Enter", keys: ["Enter"], primary: true,
        enabled: () => rating.missing(view).length === 0, run: () => view.submit({ scores: view.draft.marks }),
        otherwise: () => rating.focus(view, rating.missing(view)[0]),
      },
      {
        label: "Clear row", cap: "⌫", shortcut: "Backspace", keys: ["Backspace"], hint: "Take this row's mark out again (Backspace)",
        enabled: () => rating.flat(view)[rating.current(view)] != null, run: () => rating.mark(view, rating.current(view), null),
      },
    ];
  },

  /** The row that keys act on: the one with the focus, or else the first without a mark. */
  current(view) {
    const focused = view.rows?.findIndex((row) => row.contains(document.activeElement)) ?? -1;
    return focused >= 0 ? focused : Math.max(0, rating.missing(view)[0] ?? (view.rows?.length ?? 1) - 1);
  },

  /** Give a row its mark; `onward` then goes to the next row. */
  mark(view, row, mark, onward = false) {
    const width = view.model.get("attributes").length;
    const marks = view.draft.marks.map((each) => [...each]);
    marks[Math.floor(row / width)][row % width] = mark;
    view.setDraft({ marks });
    if (onward) rating.focus(view, Math.min(row + 1, view.rows.length - 1));
  },

  /** Put the focus on a row: on its mark, or its first radio button. */
  focus(view, row) {
    const mark = rating.flat(view)[row];
    view.radios[row][(mark ?? 1) - 1].focus();
  },

  key(view, event) {
    const row = rating.current(view);
    const mark = Number(event.key);
    if (MARKS.includes(mark)) return rating.mark(view, row, mark, true);
    if (event.key === " ") {
      const at = view.radios[row].indexOf(event.target);
      return at >= 0 ? rating.mark(view, row, at + 1) : rating.focus(view, row);
    }
    const within = view.rows[row].contains(document.activeElement);
    const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (down) return rating.focus(view, within ? Math.max(0, Math.min(row + down, view.rows.length - 1)) : row);
    const right = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!right) return;
    const now = rating.flat(view)[row] ?? (right > 0 ? 0 : 6);
    rating.mark(view, row, Math.max(1, Math.min(now + right, 5)));
    rating.focus(view, row);
  },

  build(view) {
    view.rows = [];
    view.radios = [];
    const cards = view.replies.map((text, i) => {
      const name = `Reply ${i + 1}`;
      return h(
        "div", { class: "rlhf-card", role: "group", "aria-label": name },
        h("div", { class: "rlhf-rated" }, view.replies.length > 1 ? h("span", { class: "rlhf-label" }, name) : "", h("div", { class: "rlhf-text", dir: "auto" }, inert(text))),
        h("div", { class: "rlhf-rows" }, scaleHead(view), ...view.model.get("attributes").map((attribute) => attributeRow(view, name, attribute))),
      );
    });
    view.body.replaceChildren(...cards);
  },

  update(view) {
    const marks = rating.flat(view);
    view.rows.forEach((row, r) => {
      row.classList.toggle("rlhf-marked", marks[r] !== null);
      row.querySelector(".rlhf-row-state").textContent = marks[r] === null ? "" : "✓";
      view.radios[r].forEach((radio, i) => {
        radio.setAttribute("aria-checked", String(marks[r] === i + 1));
        radio.setAttribute("tabindex", (marks[r] ?? 1) === i + 1 ? "0" : "-1");
      });
    });
  },

  status(view) {
    const missing = rating.missing(view);
    const all = rating.flat(view).length;
    if (!missing.length) return "Every mark is given. Enter confirms.";
    if (missing.length === all) return "1 to 5 marks a row and goes on to the next; arrows move.";
    return `Missing: ${missingIn(view, missing)}.`;
  },
};

/** Names of the rows without a mark, by reply: "reply 2: polite, safe". */
function missingIn(view, missing) {
  const names = view.model.get("attributes").map(({ name }) => inertString(name));
  const byReply = view.replies.map((_, i) => missing.filter((row) => Math.floor(row / names.length) === i).map((row) => names[row % names.length]));
  const several = view.replies.length > 1;
  return byReply.flatMap((list, i) => (list.length ? [`${several ? `reply ${i + 1}: ` : ""}${list.join(", ")}`] : [])).join("; ");
}

/** What the ends of the scale mean, above its first and last mark. */
function scaleHead(view) {
  const [low, high] = view.model.get("ends");
  return h("div", { class: "rlhf-scale-head", "aria-hidden": "true" }, h("span", {}), h("span", { class: "rlhf-ends" }, h("span", {}, low), h("span", {}, high)), h("span", {}));
}

function attributeRow(view, reply, { name, question }) {
  const row = view.rows.length;
  const [low, high] = view.model.get("ends");
  const meaning = { 1: `, ${low}`, 5: `, ${high}` };
  const radios = MARKS.map((mark) =>
    h("span", { class: "rlhf-radio", role: "radio", "aria-checked": "false", "aria-label": `${mark}${meaning[mark] ?? ""}`, tabindex: "-1", onclick: () => rating.mark(view, row, mark) }, String(mark)),
  );
  const label = h("span", { class: "rlhf-attribute" }, h("b", {}, inert(name)), question ? h("span", { class: "rlhf-asks" }, inert(question)) : "");
  const spoken = inertString(`${reply}, ${name}${question ? `: ${question}` : ""}`);
  const element = h("div", { class: "rlhf-row" }, label, h("div", { class: "rlhf-radios", role: "radiogroup", "aria-label": spoken }, ...radios), h("span", { class: "rlhf-row-state", "aria-hidden": "true" }));
  view.rows.push(element);
  view.radios.push(radios);
  return element;
}

export default { render: ({ model, el }) => feedbackView(model, el, rating) };
