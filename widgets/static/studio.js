// The page's side of widgets/studio.py: the bar with the controls, the choice of form, the effect of the latest label,
// the policy's replies.
// Python sends plain data; whatever a model wrote goes in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const MINUS = "\u2212";
const ROW = 46; // height of a reply's row in the effect view, in pixels

const CONTROLS = [
  { action: "start", key: "r", label: "Start", icon: "M4 2.5v11l9-5.5z", off: ["running"], hint: "Let PPO run in the background" },
  { action: "pause", key: "p", label: "Pause", icon: "M4 3h3v10H4zM9 3h3v10H9z", off: ["idle", "paused", "stopped", "error"], hint: "Let PPO wait; feedback goes on" },
  { action: "step", key: "n", label: "Step", icon: "M3 2.5v11L10 8zM11 3h2v10h-2z", off: ["running"], hint: "Do one PPO step" },
  { action: "stop", key: "x", label: "Stop", icon: "M3.5 3.5h9v9h-9z", off: ["idle", "stopped"], hint: "End the worker; labels are kept" },
  { action: "again", key: "a", label: "Ask me again", icon: "M8 3a5 5 0 1 0 4.6 3h-1.7A3.4 3.4 0 1 1 8 4.6V7l4-3.2L8 .5z", off: [], hint: "Answer an earlier question once more, to see how consistent you are" },
];
const STATES = { idle: "Ready", running: "Running", paused: "Paused", stopped: "Stopped", error: "Error" };

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function signed(value) {
  if (value === null || value === undefined) return "–";
  return `${value < 0 ? MINUS : "+"}${Math.abs(value).toFixed(2)}`;
}

// --- the bar ---

function control(spec, act) {
  const icon = svg("svg", { width: 14, height: 14, viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: spec.icon }));
  const cap = node("kbd", { "aria-hidden": "true" }, spec.key.toUpperCase());
  const attributes = {
    type: "button", class: "rlhf-studio-button", "data-action": spec.action,
    "aria-label": spec.label, "aria-keyshortcuts": spec.key.toUpperCase(), title: `${spec.hint} (key ${spec.key.toUpperCase()})`,
  };
  const button = node("button", attributes, icon, node("span", {}, spec.label), cap);
  button.addEventListener("click", () => act(spec.action));
  return button;
}

function counter(label) {
  const value = node("b", {}, "0");
  return { value, element: node("span", { class: "rlhf-studio-counter" }, value, label) };
}

function bar(model, root) {
  const pill = node("span", { class: "rlhf-studio-pill" });
  const message = node("span", { class: "rlhf-studio-message", role: "status" });
  const counters = { labels: counter("your labels"), step: counter("PPO steps"), waiting: counter("waiting for you") };
  const errors = node("div", { class: "rlhf-studio-errors", role: "alert" });
  const buttons = CONTROLS.map((spec) => control(spec, act));
  const counts = node("span", { class: "rlhf-studio-counters" }, ...Object.values(counters).map((each) => each.element));
  root.append(
    node(
      "div", { class: "rlhf-studio-line" },
      node("span", { class: "rlhf-studio-brand" }, "Studio"), pill, message, counts,
    ),
    node("div", { class: "rlhf-studio-controls", role: "toolbar", "aria-label": "PPO controls" }, ...buttons),
    errors,
  );

  // A control that is off keeps the focus (aria-disabled, not disabled): lost focus would hand the keys to the notebook.
  function act(action) {
    const button = buttons.find((each) => each.dataset.action === action);
    if (button?.getAttribute("aria-disabled") !== "true") model.send({ action });
  }
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const spec = CONTROLS.find((each) => each.key === event.key.toLowerCase());
    if (!spec) return;
    event.preventDefault();
    if (!event.repeat) act(spec.action);
  });

  return (data) => {
    const state = data.state ?? "idle";
    root.dataset.state = state;
    pill.textContent = STATES[state] ?? state;
    if (message.textContent !== data.message) message.textContent = data.message ?? "";
    for (const [name, each] of Object.entries(counters)) each.value.textContent = data[name] ?? 0;
    buttons.forEach((button, i) => button.setAttribute("aria-disabled", CONTROLS[i].off.includes(state)));
    showErrors(errors, data.errors ?? [], () => model.send({ action: "dismiss" }));
  };
}

function showErrors(box, errors, dismiss) {
  const key = JSON.stringify(errors);
  if (box.dataset.shown === key) return;
  box.dataset.shown = key;
  const rows = errors.map((error) => node("p", {}, node("b", {}, `${error.where}: `), error.message));
  const button = node("button", { type: "button", class: "rlhf-studio-button" }, "Dismiss");
  button.addEventListener("click", dismiss);
  box.replaceChildren(...(rows.length ? [node("div", {}, ...rows), button] : []));
}

// --- the choice of form ---

// Alt with a digit works everywhere in the Studio, in text fields too; single letters belong to the forms themselves.
function forms(model, root) {
  const tabs = node("div", { class: "rlhf-studio-tabs", role: "tablist", "aria-label": "Form of feedback" });
  const hint = node("span", { class: "rlhf-studio-tab-hint" });
  root.append(tabs, hint);
  let followed = null; // the form that is to get the focus once it is there
  let studio = null;

  const keys = () => model.get("data").forms ?? [];
  function choose(key, follow) {
    followed = follow ? key : null;
    if (key === model.get("data").form) follow && focusForm(key, 0);
    else model.send({ action: "form", form: key });
  }

  // A form's view is made anew when it is shown: the focus waits on its tab until then.
  function focusForm(key, tries) {
    const form = studio?.querySelector(`.rlhf-studio-row .rlhf-form-${key}`);
    const target = form?.querySelector(key === "chat" ? ".rlhf-chat-composer textarea" : ".rlhf-feedback");
    if (target) target.focus({ preventScroll: true });
    else if (tries < 100) setTimeout(() => followed === key && focusForm(key, tries + 1), 20);
  }

  function onShortcut(event) {
    const number = /^Digit([1-9])$/.exec(event.code)?.[1];
    const chosen = event.altKey && !event.ctrlKey && !event.metaKey && number && keys()[number - 1];
    if (!chosen) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.repeat) return;
    tabs.children[number - 1].focus({ preventScroll: true });
    choose(chosen.key, true);
  }

  tabs.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const at = keys().findIndex((each) => each.key === document.activeElement?.dataset?.form);
    const last = keys().length - 1;
    const moves = { ArrowLeft: at > 0 ? at - 1 : last, ArrowRight: at < last ? at + 1 : 0, Home: 0, End: last };
    if (event.key in moves) {
      event.preventDefault();
      tabs.children[moves[event.key]].focus();
      choose(keys()[moves[event.key]].key, false);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (keys()[at]) choose(keys()[at].key, true);
    }
  });

  function tab(form, i) {
    const key = node("kbd", { "aria-hidden": "true" }, `Alt ${i + 1}`);
    const button = node("button", { type: "button", role: "tab", class: "rlhf-studio-tab", "data-form": form.key, "aria-keyshortcuts": `Alt+${i + 1}`, title: `${form.hint} (Alt+${i + 1})` }, form.label, key);
    button.addEventListener("click", () => choose(form.key, true));
    return button;
  }

  // The parts of a Studio may come into the page in any order.
  const listening = setInterval(() => {
    studio = root.closest(".rlhf-studio");
    if (!studio) return;
    clearInterval(listening);
    studio.addEventListener("keydown", onShortcut, true);
  }, 50);

  const show = (data) => {
    const all = data.forms ?? [];
    root.hidden = all.length < 2;
    if (tabs.children.length !== all.length) tabs.replaceChildren(...all.map(tab));
    all.forEach((form, i) => {
      const chosen = form.key === data.form;
      tabs.children[i].setAttribute("aria-selected", String(chosen));
      tabs.children[i].setAttribute("tabindex", chosen ? "0" : "-1");
      if (chosen) hint.textContent = form.hint;
    });
    if (followed === data.form) focusForm(followed, 0);
  };
  show.cleanup = () => {
    clearInterval(listening);
    studio?.removeEventListener("keydown", onShortcut, true);
  };
  return show;
}

// --- the effect of the latest label ---

// Lines from each reply's place before to its place after; `rows` come in the order after.
function slope(rows, width, step, radius) {
  const height = rows.length * step;
  const y = (rank) => (rank - 0.5) * step;
  const [left, right] = [radius + 1, width - radius - 1];
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "rlhf-studio-slope", "aria-hidden": "true" });
  for (const row of [...rows].sort((a, b) => Math.abs(a.rank_before - a.rank_after) - Math.abs(b.rank_before - b.rank_after))) {
    const [y0, y1, middle] = [y(row.rank_before), y(row.rank_after), (left + right) / 2];
    const line = svg("path", { d: `M${left},${y0}C${middle},${y0} ${middle},${y1} ${right},${y1}` });
    const group = svg("g", { class: `rlhf-studio-${movement(row)}` }, line);
    for (const [x, rank] of [[left, row.rank_before], [right, row.rank_after]]) {
      group.append(svg("circle", { cx: x, cy: y(rank), r: radius }));
      if (radius < 6) continue;
      group.append(svg("text", { x, y: y(rank) + 3.5, "text-anchor": "middle" }, String(rank)));
    }
    picture.append(group);
  }
  return picture;
}

function movement(row) {
  return row.rank_after < row.rank_before ? "up" : row.rank_after > row.rank_before ? "down" : "same";
}

const MOVED = { up: "▲ ", down: "▼ ", same: "" };

function replyRow(row) {
  const text = node("div", { class: "rlhf-studio-reply", title: row.text, dir: "auto" }, row.text);
  const spoken = { up: "moved up", down: "moved down", same: "stayed" }[movement(row)];
  const change = node(
    "div", { class: `rlhf-studio-score rlhf-studio-${movement(row)}` },
    node("b", {}, signed(row.after)),
    node("span", { "aria-label": `${spoken}, before ${signed(row.before)}` }, `${MOVED[movement(row)]}was ${signed(row.before)}`),
  );
  if (row.who) text.prepend(node("b", { class: "rlhf-studio-who" }, `${row.who}: `));
  const place = row.you === null ? "–" : String(row.you);
  const meant = typeof row.you === "string" ? (row.agrees ? "its score went your way" : "its score did not go your way") : row.agrees ? "the same place as you gave it" : "not the place that you gave it";
  const you = node("div", { class: `rlhf-studio-you${row.agrees ? " rlhf-studio-agrees" : ""}`, title: meant }, place);
  return node("div", { class: "rlhf-studio-row-reply", style: `height:${ROW}px` }, text, change, you);
}

function earlierRow(view) {
  const agrees = view.pairs > 0 && view.agreed_after === view.pairs;
  const [first] = view.rows;
  const score = view.pairs ? `${view.agreed_before} → ${view.agreed_after} of ${view.pairs}` : `score ${signed(first.before)} → ${signed(first.after)}`;
  return node(
    "li", { title: view.verdict },
    slope(view.rows, 40, 8, 2),
    node("span", { class: "rlhf-studio-prompt", dir: "auto" }, view.prompt),
    node("span", { class: "rlhf-studio-pairs" }, `${score} ${agrees ? "✓" : ""}`),
  );
}

function effect(model, root) {
  const title = node("h3", {}, "What your label changed");
  const body = node("div");
  root.append(title, body);
  return (data) => {
    title.textContent = data.taken_back ? "What taking your label back changed" : "What your label changed";
    const pending = data.pending ? `Label ${data.pending} is stored. Its effect appears here once the reward model has learned from it.` : "";
    if (!data.latest) {
      const hint = "Answer a question: here you will see how the reward model scored its replies before and after it learned from you.";
      body.replaceChildren(node("p", { class: "rlhf-studio-hint" }, pending || hint));
      return;
    }
    const { latest, earlier } = data;
    const complete = latest.pairs > 0 && latest.agreed_after === latest.pairs;
    const flat = latest.rows.length < 2 || latest.rows.some((row) => row.who); // no order to draw lines for
    const head = node(
      "div", { class: `rlhf-studio-columns${flat ? " rlhf-studio-flat" : ""}` },
      node("span", {}, flat ? "" : "before → after"), node("span", {}, `Label ${data.label}${data.taken_back ? ", taken back" : ""}: ${flat ? "reward model's score" : "reward model's order"}`),
      node("span", {}, "score"), node("span", {}, "you"),
    );
    const parts = [
      node("p", { class: "rlhf-studio-question", dir: "auto" }, latest.prompt),
      head,
      node("div", { class: `rlhf-studio-effect${flat ? " rlhf-studio-flat" : ""}` }, flat ? null : slope(latest.rows, 92, ROW, 9), node("div", {}, ...latest.rows.map(replyRow))),
      node("p", { class: "rlhf-studio-verdict", role: "status" }, data.taken_back ? "The reward model has unlearned this label." : `${complete ? "✓ " : ""}${latest.verdict}`),
    ];
    if (data.taught) parts.push(node("p", { class: "rlhf-studio-taught" }, data.taught));
    if (earlier.length) {
      parts.push(node("h4", {}, "Your questions before that: pairs in your order"));
      parts.push(node("ul", { class: "rlhf-studio-earlier" }, ...earlier.map(earlierRow)));
    }
    if (pending) parts.push(node("p", { class: "rlhf-studio-hint" }, pending));
    body.replaceChildren(...parts);
  };
}

// --- what the policy says now ---

function samples(model, root) {
  const when = node("span", { class: "rlhf-studio-when" });
  const list = node("div", { class: "rlhf-studio-samples" });
  root.append(node("h3", {}, "What the policy says now ", when), list);
  return (data) => {
    const items = data.items ?? [];
    when.textContent = items.length ? `after PPO step ${data.step}` : "";
    const cards = items.map((item) =>
      node(
        "figure", {},
        node("figcaption", { dir: "auto" }, item.prompt),
        node("blockquote", { dir: "auto" }, item.reply),
        node(
          "div", { class: "rlhf-studio-facts" },
          node("span", {}, `reward ${signed(item.score)}`), node("span", {}, `KL ${item.kl.toFixed(1)} nats`),
          item.truncated ? node("span", { class: "rlhf-studio-cut" }, "cut off") : null,
        ),
      ),
    );
    const hint = node("p", { class: "rlhf-studio-hint" }, "Fresh replies of the policy appear here with every PPO step.");
    list.replaceChildren(...(cards.length ? cards : [hint]));
  };
}

const PARTS = { bar, forms, effect, samples };

function render({ model, el }) {
  const part = model.get("part");
  const root = node("section", { class: `rlhf-studio-part rlhf-studio-${part}-part`, "data-lm-suppress-shortcuts": "true" });
  const show = PARTS[part](model, root);
  const update = () => show(model.get("data"));
  el.replaceChildren(root);
  model.on("change:data", update);
  update();
  return () => {
    model.off("change:data", update);
    show.cleanup?.();
    el.replaceChildren();
  };
}

export default { render };
