// The two regions of widgets/ablations.py: "choose" (the switches, what each is for, Run) and "outcome" (symptoms, replies).
// Python keeps the truth in `data`; the page only draws it and says what was pressed.

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const signed = (score) => `${score > 0 ? "+" : ""}${score.toFixed(2)}`.replace("-", "\u2212");

function chooser(model) {
  const switches = model.get("switches");
  const families = [...new Set(switches.map((each) => each.family))];
  const data = () => model.get("data");
  const spec = () => switches.find((each) => each.name === data().selected) ?? switches[0];
  const send = (action, name = data().selected) => model.send({ action, name, seed: data().seed });

  const chips = new Map();
  const list = node("div", { class: "rlhf-abl-list", role: "radiogroup", "aria-label": "Implementation details" },
    ...families.map((family) => node("div", { class: "rlhf-abl-family", role: "presentation" },
      node("span", { class: "rlhf-abl-label", "aria-hidden": "true" }, family),
      node("div", { class: "rlhf-abl-chips", role: "presentation" }, ...switches.filter((each) => each.family === family).map((each) => {
        const mark = node("span", { class: "rlhf-abl-mark", "aria-hidden": "true" });
        const chip = node("button", { type: "button", role: "radio", class: "rlhf-abl-chip", "data-name": each.name, onclick: () => send("select", each.name) }, mark, each.title);
        chips.set(each.name, chip);
        return chip;
      })))));

  const title = node("h3", { class: "rlhf-abl-title" });
  const purpose = node("p");
  const failure = node("p");
  const right = node("code");
  const wrong = node("code");
  const measured = node("p");
  const source = node("p", { class: "rlhf-abl-hint" });
  const fact = (name, body) => node("div", { class: "rlhf-abl-fact" }, node("h4", {}, name), body);
  const line = (mark, name, code) => node("div", { class: "rlhf-abl-line" }, node("span", { class: "rlhf-abl-sign", "aria-hidden": "true" }, mark), node("span", { class: "rlhf-abl-arm" }, name), code);
  const measuredFact = fact("Measured", measured);
  measuredFact.append(node("p", { class: "rlhf-abl-hint" }, model.get("measured_in")));
  const run = node("button", { type: "button", class: "rlhf-abl-button rlhf-abl-primary", "aria-keyshortcuts": "R", onclick: () => send("run") }, "Run both", node("kbd", { "aria-hidden": "true" }, "R"));
  const stop = node("button", { type: "button", class: "rlhf-abl-button", "aria-keyshortcuts": "S", onclick: () => send("stop") }, "Stop", node("kbd", { "aria-hidden": "true" }, "S"));
  const seed = node("select", { class: "rlhf-abl-seed", onchange: () => model.send({ action: "select", name: data().selected, seed: Number(seed.value) }) });
  const seedLabel = node("label", { class: "rlhf-abl-hint" }, "Seed ", seed);
  const fill = node("span");
  const bar = node("div", { class: "rlhf-abl-bar", role: "progressbar", "aria-label": "Steps of both arms", "aria-valuemin": "0" }, fill);
  const status = node("span", { class: "rlhf-abl-hint", role: "status" });
  const error = node("p", { class: "rlhf-abl-error", role: "alert" });
  const root = node("section", { class: "rlhf-abl", "aria-label": "Break one detail of PPO", "data-lm-suppress-shortcuts": "true" },
    node("div", { class: "rlhf-abl-head" }, node("span", { class: "rlhf-abl-name" }, "What is it for?"), node("span", { class: "rlhf-abl-hint" }, "Break one detail of PPO, and watch it fail beside the right one.")),
    list,
    node("div", { class: "rlhf-abl-detail" }, title,
      node("div", { class: "rlhf-abl-code" }, line("✓", "right", right), line("✗", "broken", wrong)),
      node("div", { class: "rlhf-abl-facts" }, fact("What it is for", purpose), fact("Without it", failure), measuredFact), source),
    node("div", { class: "rlhf-abl-run" }, run, stop, seedLabel, bar, status), error);

  function draw() {
    const now = data();
    const chosen = spec();
    for (const [name, chip] of chips) {
      const here = name === chosen.name;
      chip.setAttribute("aria-checked", String(here));
      chip.setAttribute("tabindex", here ? "0" : "-1");
      const ran = now.done.includes(name);
      chip.querySelector(".rlhf-abl-mark").textContent = name === now.running ? "◐" : ran ? "●" : "";
      chip.title = name === now.running ? "running" : ran ? "has run" : "";
    }
    title.textContent = chosen.title;
    purpose.textContent = chosen.purpose;
    failure.textContent = chosen.failure;
    right.textContent = chosen.right;
    wrong.textContent = chosen.wrong;
    measured.textContent = chosen.measured;
    measuredFact.hidden = !chosen.measured;
    source.textContent = `Source: ${chosen.source}`;
    const busy = now.state === "running" || now.state === "stopping";
    run.disabled = now.state === "closed";
    stop.disabled = now.state !== "running";
    if (seed.children.length !== now.seeds.length) seed.replaceChildren(...now.seeds.map((each) => node("option", { value: each }, String(each))));
    seed.value = String(now.seed);
    bar.setAttribute("aria-valuemax", String(now.steps));
    bar.setAttribute("aria-valuenow", String(now.step));
    fill.style.width = `${(100 * now.step) / now.steps}%`;
    bar.hidden = !now.step && !busy;
    const elsewhere = busy && now.running && now.running !== chosen.name ? ` Running: ${switches.find((each) => each.name === now.running).title}.` : "";
    const words = {
      idle: now.step >= now.steps ? `Done: ${now.steps} steps of each.` : now.step ? `Stopped after ${now.step} of ${now.steps} steps.` : `${now.steps} PPO steps of each, from the same checkpoint and seed.`,
      running: now.step ? `Step ${now.step} of ${now.steps}.` : "Starting …",
      stopping: "Stopping after the step in hand …",
      error: "It stopped at an error.",
      closed: "This panel has ended; run the cell again for a new one.",
    };
    status.textContent = elsewhere ? elsewhere.trim() : words[now.state];
    error.textContent = now.error;
    error.hidden = !now.error;
  }

  // Notebook shortcuts must not see the keys; Tab must still move on.
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab" || event.target === seed) return;
    if ((event.key === "Enter" || event.key === " ") && event.target.closest("button")) return;
    const names = switches.map((each) => each.name).sort((a, b) => [...chips.keys()].indexOf(a) - [...chips.keys()].indexOf(b));
    const at = names.indexOf(data().selected);
    const moves = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: names.length - 1 };
    const key = event.key.toLowerCase();
    if (event.key in moves && list.contains(event.target)) {
      const name = names[Math.max(0, Math.min(names.length - 1, moves[event.key]))];
      chips.get(name).focus();
      send("select", name);
    } else if (key === "r" && !run.disabled && !event.repeat) send("run");
    else if (key === "s" && !stop.disabled) send("stop");
    else if (event.key.length > 1 && event.key !== "Delete" && event.key !== "Backspace") return;
    event.preventDefault();
  });
  return { root, draw };
}

function outcome(model) {
  const found = node("ul", { class: "rlhf-abl-symptoms", role: "list" });
  const heading = node("h3", { class: "rlhf-abl-title" }, "What is wrong with the broken one");
  const none = node("p", { class: "rlhf-abl-hint" });
  const rows = node("tbody");
  const head = node("tr", {}, node("th", { scope: "col" }, "question"), node("th", { scope: "col" }, "right"), node("th", { scope: "col" }, "broken"));
  const table = node("table", { class: "rlhf-abl-replies" }, node("caption", {}), node("thead", {}, head), rows);
  const root = node("section", { class: "rlhf-abl rlhf-abl-outcome", "aria-label": "Outcome", "data-lm-suppress-shortcuts": "true" }, heading, node("div", { role: "status" }, found, none), table);

  const cell = (reply) => node("td", { dir: "auto" }, reply.text || "(nothing)", reply.truncated ? node("span", { class: "rlhf-abl-cut" }, " … cut off") : "", node("span", { class: "rlhf-abl-score" }, signed(reply.score)));

  function draw() {
    const { step, steps, symptoms, replies } = model.get("data");
    root.hidden = !step;
    const lines = symptoms.map(({ name, words }) => node("li", {}, node("b", {}, name), node("span", {}, words)));
    found.replaceChildren(...lines);
    found.hidden = !lines.length;
    none.textContent = lines.length ? "" : step < steps ? "Nothing to see yet." : "No clear difference in this run: at this scale the detail matters little, or later.";
    none.hidden = !none.textContent;
    table.querySelector("caption").textContent = `The same questions, answered by both at step ${step}`;
    rows.replaceChildren(...replies.map((reply) => node("tr", {}, node("th", { scope: "row", dir: "auto" }, reply.prompt), cell(reply.right), cell(reply.broken))));
  }
  return { root, draw };
}

function render({ model, el }) {
  const { root, draw } = (model.get("part") === "choose" ? chooser : outcome)(model);
  let frame = 0;
  const schedule = () => { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); };
  model.on("change:data", schedule);
  el.replaceChildren(root);
  draw();
  return () => {
    cancelAnimationFrame(frame);
    model.off("change:data", schedule);
    el.replaceChildren();
  };
}

export default { render };
