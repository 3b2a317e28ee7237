// The regions of the teacher's dashboard. Python puts plain data into `data`; nothing here keeps the truth.
// Names, prompts and replies reach the page as text only.

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const percent = (share) => `${Math.round(100 * share)}%`;

/** How long ago a moment was, in words short enough for a table. */
function ago(moment) {
  if (!moment) return "–";
  const seconds = Math.max(0, (Date.now() - Date.parse(moment)) / 1000);
  if (seconds < 60) return "now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86400)} d ago`;
}

// --- overview: counts, buttons, agreement ---

const overview = (model) => {
  const title = node("h1", {}, "");
  const button = (label, action) => node("button", { type: "button", class: "rlhf-dash-button", onclick: () => model.send({ action }) }, label);
  const pause = button("", "pause");
  const names = button("Hide names", "names");
  const theme = window.rlhfToggleTheme ? [node("button", { type: "button", class: "rlhf-dash-button", "aria-label": "Light or dark", title: "Light or dark", onclick: window.rlhfToggleTheme }, "◐")] : [];
  const counts = node("dl", { class: "rlhf-dash-counts" });
  const fill = node("span", {});
  const bar = node("div", { class: "rlhf-dash-bar", role: "progressbar", "aria-label": "Answers of those wanted", "aria-valuemin": "0" }, fill);
  const error = node("p", { class: "rlhf-dash-error", role: "alert" });
  const cards = node("div", { class: "rlhf-dash-cards" });
  const message = node("p", { class: "rlhf-dash-hint" });
  const agreementTitle = node("h2", {}, "Agreement");
  const root = node("section", { class: "rlhf-dash-part", "aria-label": "Overview" },
    node("div", { class: "rlhf-dash-head" }, title, node("div", { class: "rlhf-dash-buttons" }, pause, names, ...theme)),
    error, counts, bar, agreementTitle, message, cards);

  function draw(data) {
    title.textContent = data.title ?? "";
    pause.textContent = data.paused ? "▶ Resume" : "⏸ Pause";
    names.setAttribute("aria-pressed", String(Boolean(data.anonymous)));
    error.textContent = data.error ?? "";
    error.hidden = !data.error;
    const queue = data.queue;
    if (!queue) return;
    const done = Math.min(queue.answered, queue.places);
    const entries = [[data.students, "students"], [data.answers, "answers in force"], [`${done} of ${queue.places}`, "places answered"], [queue.open, "being answered now"], [queue.questions, "questions"]];
    counts.replaceChildren(...entries.map(([value, label]) => node("div", {}, node("dt", {}, label), node("dd", {}, String(value)))));
    bar.setAttribute("aria-valuemax", String(queue.places));
    bar.setAttribute("aria-valuenow", String(done));
    fill.style.width = queue.places ? `${(100 * done) / queue.places}%` : "0";
    message.textContent = data.message ?? "";
    message.hidden = !data.message;
    cards.replaceChildren(...data.agreement.map(card));
  }
  return { root, draw };
};

function card({ title, value, interval, word, meaning }) {
  return node("div", { class: "rlhf-dash-card" },
    node("h3", {}, title),
    node("p", { class: "rlhf-dash-value" }, value, node("span", {}, word)),
    node("p", { class: "rlhf-dash-interval" }, value === "–" ? interval : `95%: ${interval}`),
    node("p", { class: "rlhf-dash-meaning" }, meaning));
}

// --- students: a table that sorts by any column ---

const COLUMNS = [
  { key: "name", label: "Student", value: (row) => row.name, text: true },
  { key: "answered", label: "Answered", value: (row) => row.answered, cell: (row) => `${row.answered} of ${row.assigned}`, hint: "questions answered, of those handed out so far" },
  { key: "pace", label: "Per min", value: (row) => row.pace, cell: (row) => row.pace.toFixed(1), hint: "labels a minute over the last five minutes" },
  { key: "seconds", label: "Seconds", value: (row) => row.seconds ?? -1, cell: (row) => (row.seconds === null ? "–" : row.seconds.toFixed(1)), hint: "median time of a label" },
  { key: "agreement", label: "Agrees", value: (row) => row.agreement ?? -1, cell: (row) => (row.agreement === null ? "–" : percent(row.agreement)), hint: "how often they agree with the others, ties included" },
  { key: "checks", label: "Checks", value: (row) => (row.checks[1] ? row.checks[0] / row.checks[1] : -1), cell: (row) => (row.checks[1] ? `${row.checks[0]} of ${row.checks[1]}` : "–"), hint: "check questions passed" },
  { key: "first", label: "First wins", value: (row) => (row.first[1] ? row.first[0] / row.first[1] : -1), cell: (row) => (row.first[1] ? percent(row.first[0] / row.first[1]) : "–"), hint: "how often the reply shown first won" },
  { key: "last_seen", label: "Last answer", value: (row) => row.last_seen, cell: (row) => ago(row.last_seen) },
  { key: "concerns", label: "Worth a look", value: (row) => row.concerns.length },
];

const students = (model) => {
  let order = { key: "name", down: false };
  const body = node("tbody");
  const heads = COLUMNS.map((column) => {
    const arrow = node("span", { "aria-hidden": "true", class: "rlhf-dash-arrow" });
    const button = node("button", { type: "button", title: column.hint, onclick: () => {
      order = { key: column.key, down: order.key === column.key ? !order.down : !column.text };
      draw(model.get("data"));
    } }, column.label, arrow);
    return node("th", { scope: "col", class: column.text || column.key === "concerns" ? "rlhf-dash-text" : undefined }, button);
  });
  const table = node("table", { class: "rlhf-dash-table" }, node("caption", {}, "Students"), node("thead", {}, node("tr", {}, ...heads)), body);
  const note = node("p", { class: "rlhf-dash-hint" }, "“Worth a look” is no verdict: somebody may be tired, or see it differently. Talk first.");
  const root = node("section", { class: "rlhf-dash-part", "aria-label": "Students" }, node("div", { class: "rlhf-dash-scroll", tabindex: "0", role: "group", "aria-label": "Table of students" }, table), note);

  function draw({ rows = [] }) {
    const column = COLUMNS.find(({ key }) => key === order.key);
    const compare = (a, b) => (column.text || typeof a === "string" ? String(a).localeCompare(String(b), undefined, { numeric: true }) : a - b);
    const sorted = [...rows].sort((a, b) => (order.down ? -1 : 1) * compare(column.value(a), column.value(b)));
    heads.forEach((head, i) => {
      const mine = COLUMNS[i].key === order.key;
      mine ? head.setAttribute("aria-sort", order.down ? "descending" : "ascending") : head.removeAttribute("aria-sort");
      head.querySelector(".rlhf-dash-arrow").textContent = mine ? (order.down ? " ▼" : " ▲") : "";
    });
    body.replaceChildren(...sorted.map(rowOf));
    note.hidden = !rows.some((row) => row.concerns.length);
  }
  const clock = setInterval(() => draw(model.get("data")), 20000); // "now" becomes "1 min ago"
  return { root, draw, end: () => clearInterval(clock) };
};

function rowOf(row) {
  const cells = COLUMNS.slice(1, -1).map((column) => node("td", {}, column.cell(row)));
  const concerns = node("td", { class: "rlhf-dash-text" }, ...row.concerns.map((reason) => node("p", { class: "rlhf-dash-concern" }, node("span", { "aria-hidden": "true" }, "⚑ "), reason)));
  const name = node("th", { scope: "row", class: "rlhf-dash-text" }, node("bdi", {}, row.name));
  return node("tr", {}, name, ...cells, concerns);
}

// --- items: what to talk about ---

const items = () => {
  const list = node("div", { class: "rlhf-dash-items" });
  const hint = node("p", { class: "rlhf-dash-hint" }, "Questions on which students differ appear here, the most disputed first.");
  const root = node("section", { class: "rlhf-dash-part", "aria-label": "Worth discussing" }, node("h2", {}, "Worth discussing"), hint, list);
  function draw({ items: shown = [] }) {
    hint.hidden = shown.length > 0;
    list.replaceChildren(...shown.map(itemOf));
  }
  return { root, draw };
};

function itemOf(item) {
  const replies = item.replies.map((text, i) => node("li", { value: String(i + 1), dir: "auto" }, text));
  const opinions = item.opinions.map(({ verdict, people }) => node("li", {}, node("b", {}, verdict), " ", node("bdi", {}, people.join(", "))));
  return node("article", { class: "rlhf-dash-item" },
    node("h3", { dir: "auto" }, item.prompt),
    node("ol", { class: "rlhf-dash-replies" }, ...replies),
    node("ul", { class: "rlhf-dash-opinions", "aria-label": "Who said what" }, ...opinions),
    node("p", { class: "rlhf-dash-interval" }, `${percent(item.agreement)} of verdicts equal`));
}

function render({ model, el }) {
  const part = { overview, students, items }[model.get("part")](model);
  const draw = () => part.draw(model.get("data"));
  part.root.addEventListener("keydown", (event) => event.stopPropagation()); // notebook shortcuts must not see keys
  part.root.setAttribute("data-lm-suppress-shortcuts", "true");
  model.on("change:data", draw);
  el.append(part.root);
  draw();
  return () => {
    model.off("change:data", draw);
    part.end?.();
    part.root.remove();
  };
}

export default { render };
