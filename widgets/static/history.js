// The page's side of widgets/history.py: a person's labels, newest first, each with a way back.
// Python sends the rows that are new or changed, as messages; a view says hello when it opens and gets them all.

const PAGE = 25; // rows drawn at first, and with each "Show more"
const ROW_ACTIONS = [
  { action: "withdraw", key: "w", label: "Withdraw", hint: "Take this label back; the reward model unlearns it", can: (row) => !row.gone },
  { action: "change", key: "c", label: "Change", hint: "Answer the question again; the new label takes this one's place", can: (row) => row.can_change },
  { action: "rollback", key: "b", label: "Roll back to before this", hint: "Take this label and all later ones back, and put the models back", can: (row) => !row.gone },
];

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const clock = (created) => new Date(created).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = (created) => new Date(created).toLocaleString();

function render({ model, el }) {
  let rows = [];
  let limit = PAGE;
  let current = null; // id of the row that Tab reaches
  let asking = null; // id of the row that asks "sure?"
  const drawn = new Map(); // row's place → [what was drawn, its element]

  const count = node("span", { class: "rlhf-history-count" });
  const summary = node("summary", {}, node("span", { class: "rlhf-history-title" }, "History"), count);
  const hint = node("p", { class: "rlhf-history-hint" }, "↑ ↓ walk through your labels; W withdraws, C changes, B rolls back to before one.");
  const list = node("ul", { class: "rlhf-history-list", "aria-label": "Your labels, newest first" });
  const more = node("button", { type: "button", class: "rlhf-history-button" }, "Show more");
  const root = node("details", { class: "rlhf-history", "data-lm-suppress-shortcuts": "true" }, summary, hint, list, more);

  const act = (row, action) => {
    const spec = ROW_ACTIONS.find((each) => each.action === action);
    if (!spec?.can(row)) return;
    if (action !== "rollback") return model.send({ action, id: row.id });
    asking = row.id;
    draw();
    list.querySelector(".rlhf-history-sure button")?.focus();
  };

  /** How many labels a rollback to before `row` takes back: this one and all later ones that count. */
  const withdrawn = (row) => rows.slice(rows.indexOf(row)).filter((each) => each.id && !each.gone).length;

  function sure(row) {
    const n = withdrawn(row);
    const to = row.step === null ? "where this session began" : `PPO step ${row.step}`;
    const words = `Withdraw ${n === 1 ? "this label" : `this label and ${n - 1} later one${n === 2 ? "" : "s"}`}, and take the policy from PPO step ${model.get("step")} back to ${to}?`;
    const yes = node("button", { type: "button", class: "rlhf-history-button rlhf-history-yes" }, "Roll back");
    const no = node("button", { type: "button", class: "rlhf-history-button" }, "Keep all");
    yes.addEventListener("click", () => { model.send({ action: "rollback", id: row.id }); done(); });
    no.addEventListener("click", done);
    return node("div", { class: "rlhf-history-sure", role: "group", "aria-label": words }, node("span", {}, words), yes, no);
  }
  function done() {
    const id = asking;
    asking = null;
    draw();
    focusRow(id);
  }

  function drawRow(row) {
    if (row.kind === "rollback") {
      return node("li", { class: "rlhf-history-row rlhf-history-rollback" }, node("span", { class: "rlhf-history-mark", "aria-hidden": "true" }, "↩"), node("span", {}, row.decision), node("span", { class: "rlhf-history-when" }, `at PPO step ${row.step}`));
    }
    const name = row.number ? `Label ${row.number}` : "No label";
    const step = row.step === null ? "earlier" : `PPO step ${row.step}`;
    const what = node("div", { class: "rlhf-history-what" });
    const said = node(row.gone ? "s" : "span", {}, node("span", { class: "rlhf-history-prompt", dir: "auto" }, row.prompt), node("span", { class: "rlhf-history-decision", dir: "auto" }, row.decision));
    what.append(said);
    if (row.state) what.append(node("b", { class: "rlhf-history-state" }, row.state));
    if (row.effect) what.append(node("span", { class: "rlhf-history-effect" }, row.effect));
    const buttons = ROW_ACTIONS.filter((spec) => spec.can(row)).map((spec) => {
      const button = node("button", { type: "button", class: "rlhf-history-button", "data-action": spec.action, title: spec.hint, "aria-keyshortcuts": spec.key.toUpperCase() }, spec.label, node("kbd", { "aria-hidden": "true" }, spec.key.toUpperCase()));
      button.addEventListener("click", () => act(row, spec.action));
      return button;
    });
    const item = node(
      "li", { class: `rlhf-history-row${row.gone ? " rlhf-history-gone" : ""}`, "data-id": row.id },
      node("div", { class: "rlhf-history-name" }, node("b", {}, name), node("span", {}, row.kind)),
      what,
      node("div", { class: "rlhf-history-when" }, node("time", { datetime: row.created, title: day(row.created) }, clock(row.created)), node("span", {}, step)),
      node("div", { class: "rlhf-history-buttons" }, ...buttons),
    );
    if (asking === row.id) item.append(sure(row));
    return item;
  }

  function draw() {
    if (root.open !== model.get("opened")) root.open = model.get("opened");
    const labels = rows.filter((row) => row.id && row.number);
    const standing = labels.filter((row) => !row.state).length; // neither taken back nor replaced
    count.textContent = labels.length ? `${standing} label${standing === 1 ? "" : "s"} count${standing === 1 ? "s" : ""}${labels.length > standing ? `, ${labels.length - standing} taken back or replaced` : ""}` : "every label you give appears here";
    hint.hidden = !rows.length;
    if (!root.open) return;
    const shown = rows.map((row, place) => [row, place]).slice(-limit).reverse();
    if (!shown.some(([row]) => row.id && row.id === current)) current = shown.find(([row]) => row.id)?.[0].id ?? null;
    const held = list.contains(document.activeElement) ? document.activeElement : null;
    const at = held && { id: held.closest("[data-id]")?.dataset.id, action: held.dataset.action, sure: held.closest(".rlhf-history-sure") !== null };
    const elements = shown.map(([row, place]) => {
      const look = JSON.stringify([row, asking === row.id && [model.get("step"), withdrawn(row)]]);
      const [before, old] = drawn.get(place) ?? [];
      if (before === look) return old;
      const fresh = drawRow(row);
      drawn.set(place, [look, fresh]);
      old?.replaceWith(fresh);
      return fresh;
    });
    if (elements.length !== list.children.length || elements.some((element, i) => list.children[i] !== element)) list.replaceChildren(...elements);
    letTabReach();
    more.hidden = rows.length <= limit;
    more.textContent = `Show ${Math.min(PAGE, rows.length - limit)} more`;
    if (at && document.activeElement !== held) refocus(at);
  }

  /** Tab reaches one row and its buttons; arrows change which. */
  function letTabReach() {
    for (const item of list.querySelectorAll("[data-id]")) {
      const reach = item.dataset.id === current ? "0" : "-1";
      for (const each of [item, ...item.querySelectorAll(".rlhf-history-buttons button")]) each.setAttribute("tabindex", reach);
    }
  }

  function refocus({ id, action, sure: inside }) {
    const item = id && list.querySelector(`[data-id="${CSS.escape(id)}"]`);
    const target = (inside && item?.querySelector(".rlhf-history-sure button")) || (action && item?.querySelector(`[data-action="${action}"]`)) || item || list.querySelector("[data-id]");
    target?.focus({ preventScroll: true });
  }

  function focusRow(id) {
    if (!id) return;
    current = id;
    const place = rows.findIndex((row) => row.id === id);
    limit = Math.max(limit, rows.length - place);
    draw();
    list.querySelector(`[data-id="${CSS.escape(id)}"]`)?.focus();
  }

  // Notebook shortcuts must not see the keys; Tab must still move on.
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    const item = event.target.closest("[data-id]");
    if (event.key === "Escape" && asking) { event.preventDefault(); return done(); }
    if (!item || ((event.key === "Enter" || event.key === " ") && event.target.closest("button"))) return;
    const ids = rows.slice(-limit).reverse().map((row) => row.id).filter(Boolean);
    const at = ids.indexOf(item.dataset.id);
    const moves = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: ids.length - 1 };
    const spec = ROW_ACTIONS.find((each) => each.key === event.key.toLowerCase());
    if (event.key in moves) focusRow(ids[Math.max(0, Math.min(ids.length - 1, moves[event.key]))]);
    else if (spec && !event.repeat) act(rows.find((row) => row.id === item.dataset.id), spec.action);
    else return;
    event.preventDefault();
  });
  list.addEventListener("focusin", (event) => {
    const id = event.target.closest("[data-id]")?.dataset.id;
    if (!id || id === current) return;
    current = id;
    letTabReach();
  });
  root.addEventListener("toggle", () => {
    if (root.open !== model.get("opened")) { model.set("opened", root.open); model.save_changes(); }
    draw();
  });
  more.addEventListener("click", () => { limit += PAGE; draw(); });

  let frame = 0;
  function schedule() {
    frame ||= requestAnimationFrame(() => { frame = 0; draw(); });
  }
  function onMessage(message) {
    if (message.type === "rows") {
      for (const [place, row] of message.rows) rows[place] = row;
      if (rows.length < message.count || rows.includes(undefined)) { rows = []; return model.send({ type: "hello" }); }
      schedule();
    } else if (message.type === "reveal") {
      root.open = true;
      focusRow(message.id);
    }
  }
  const onStep = () => asking && schedule();
  model.on("msg:custom", onMessage);
  model.on("change:opened", schedule);
  model.on("change:step", onStep);
  el.replaceChildren(root);
  model.send({ type: "hello" });
  draw();
  return () => {
    cancelAnimationFrame(frame);
    model.off("msg:custom", onMessage);
    model.off("change:opened", schedule);
    model.off("change:step", onStep);
    el.replaceChildren();
  };
}

export default { render };
