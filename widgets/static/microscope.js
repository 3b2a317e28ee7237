// The page's side of widgets/microscope.py: one reply, token by token, with every number that PPO makes of it.
// Python's traits hold the state (reply, token, colour, before or after), so two views agree; hovering is each view's own.

const MINUS = "\u2212";
const LABEL = 104; // pixels: the names of the tracks
const PAD = 10; // pixels a token's cell is wider than its text
const LEAST = 30; // pixels a token's cell is wide at least
// The tracks under the text: a bar for `bar`, a line across for `line`.
const TRACKS = [
  { key: "kl" },
  { key: "reward" },
  { key: "value", line: "return_", lineName: "return" },
  { key: "advantage" },
  { key: "ratio" },
  { key: "logprob", line: "ref_logprob", lineName: "reference" },
];

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function format(value, plus = false) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size < 5e-4 ? "0.000" : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3);
  return (plus && value > 0 && Number(text) !== 0 ? "+" : "") + text.replace("-", MINUS);
}

/** A symbol such as π_ref, with what follows the underscore set lower. */
function symbol(text) {
  const parts = text.split(/_(\w+)/).map((part, i) => (i % 2 ? node("sub", {}, part) : part));
  return node("span", { class: "rlhf-scope-symbol" }, ...parts);
}

/** A token as it is shown: a space at its beginning is a space, the end token a word. */
const shown = (token) => (token.end ? "end" : token.text.replaceAll("\n", "↵") || "·");

function render({ model, el }) {
  const uid = `rlhf-scope-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  const canvas = document.createElement("canvas").getContext("2d");
  const quantities = Object.fromEntries(model.get("quantities").map((quantity) => [quantity.key, quantity]));
  let hovered = null; // the token under the mouse, in this view alone
  let scales = {}; // of each quantity, over all replies of the step
  let drawn = ""; // what the lines were drawn from

  const step = () => model.get("data");
  const replies = () => step().replies ?? [];
  const at = () => Math.max(0, Math.min(replies().length - 1, model.get("reply")));
  const reply = () => replies()[at()];
  const tokens = () => reply()?.tokens ?? [];
  const after = () => model.get("after");
  const current = () => Math.max(0, Math.min(tokens().length - 1, hovered ?? model.get("token")));
  const set = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  };

  /** The value that is shown now: before the update a ratio is 1, and what the update changes is as it was. */
  function valueOf(token, key) {
    if (key === "ratio" && !after()) return 1;
    const field = after() ? quantities[key].after || key : key;
    return token[field];
  }
  const cut = (token) => after() && token.clipped;

  // --- the parts ---

  const button = (label, key, action, attributes = {}) =>
    node("button", { type: "button", class: "rlhf-scope-button", "aria-keyshortcuts": key, onclick: action, ...attributes }, label, node("kbd", { "aria-hidden": "true" }, key));
  const walk = (by) => {
    const to = Math.max(0, Math.min(replies().length - 1, at() + by));
    hovered = null;
    if (to !== at()) set({ reply: to, token: 0 });
  };
  const previous = button("‹ Reply", "P", () => walk(-1), { "aria-label": "Previous reply" });
  const next = button("Reply ›", "N", () => walk(1), { "aria-label": "Next reply" });
  const place = node("span", { class: "rlhf-scope-place", role: "status" });
  const flip = button("", "U", () => set({ after: !after() }), { "aria-pressed": "false" });
  const flipText = node("span");
  flip.prepend(flipText);
  const toClipped = button("Next clipped", "C", () => walkToClipped());
  const about = node("span", { class: "rlhf-scope-about" });

  const colours = node("div", { class: "rlhf-scope-colours", role: "radiogroup", "aria-label": "Colour tokens by" });
  const legend = node("div", { class: "rlhf-scope-legend", "aria-hidden": "true" });
  TRACKS.forEach(({ key }, i) => {
    const choice = node("button", { type: "button", role: "radio", class: "rlhf-scope-colour", "data-key": key, "aria-keyshortcuts": String(i + 1), onclick: () => set({ colour: key }) }, quantities[key].title, node("kbd", { "aria-hidden": "true" }, String(i + 1)));
    colours.append(choice);
  });

  const prompt = node("p", { class: "rlhf-scope-prompt", dir: "auto" });
  const facts = node("p", { class: "rlhf-scope-facts" });
  const lines = node("div", { class: "rlhf-scope-lines", role: "listbox", tabindex: "0", "aria-label": "Tokens of the reply: arrow keys walk through them", "aria-describedby": `${uid}-hint` });
  const hint = node("p", { class: "rlhf-scope-hint", id: `${uid}-hint` }, "← → walk through the tokens, ↑ ↓ through the lines, 1–6 choose the colour. A click keeps a token. Clipped tokens are underlined, their ratio hatched.");
  const strip = node("section", { class: "rlhf-scope-strip", "aria-label": "The token's numbers" });
  const empty = node("p", { class: "rlhf-scope-hint" }, "No step yet.");
  const root = node("section", { class: "rlhf-scope", "aria-label": "PPO microscope", "data-lm-suppress-shortcuts": "true" },
    node("div", { class: "rlhf-scope-head" },
      node("span", { class: "rlhf-scope-title" }, "Microscope"), about,
      node("div", { class: "rlhf-scope-buttons" }, previous, place, next, flip, toClipped)),
    empty, prompt, facts,
    node("div", { class: "rlhf-scope-bar" }, node("span", { class: "rlhf-scope-hint" }, "Colour by"), colours, legend),
    lines, hint, strip);

  // --- numbers to colours and bars ---

  /** For each quantity the largest distance from its neutral value, of nearly all tokens of the step. */
  function measure() {
    const all = replies().flatMap((each) => each.tokens);
    const spread = (keys, neutral) => {
      const sizes = all.flatMap((token) => keys.map((key) => Math.abs((token[key] ?? neutral) - neutral))).sort((a, b) => a - b);
      return sizes[Math.min(sizes.length - 1, Math.floor(0.96 * sizes.length))] || 1e-6;
    };
    scales = Object.fromEntries(TRACKS.map(({ key, line }) => {
      const { after: later, neutral } = quantities[key];
      return [key, spread([key, later, line].filter(Boolean), neutral)];
    }));
  }

  /** From −1 to 1: where the value stands between the extremes. */
  const share = (key, value) => Math.max(-1, Math.min(1, (value - quantities[key].neutral) / scales[key]));

  function tint(token, key) {
    const amount = share(key, valueOf(token, key));
    const strength = Math.round(4 + 50 * Math.abs(amount) ** 0.7);
    return Math.abs(amount) < 0.02 ? "" : `color-mix(in srgb, var(--rlhf-m-${amount > 0 ? "high" : "low"}) ${strength}%, var(--rlhf-m-card))`;
  }

  /** One cell of a track: a bar from the neutral line, up or down; perhaps a line across. */
  function cell(token, index, { key, line }) {
    const negative = key === "logprob"; // never above 0: its neutral line is the ceiling
    const amount = share(key, valueOf(token, key));
    const zero = negative ? 2 : 50;
    const reach = negative ? 94 : 46;
    const height = Math.abs(amount) * reach;
    const bar = node("span", { class: `rlhf-scope-bit rlhf-scope-${amount > 0 ? "high" : "low"}${key === "ratio" && cut(token) ? " rlhf-scope-cut" : ""}` });
    bar.style.top = `${amount > 0 ? zero - height : zero}%`;
    bar.style.height = `max(${height}%, ${amount === 0 ? 0 : 1}px)`;
    const parts = [bar];
    if (line) {
      const across = node("span", { class: "rlhf-scope-across" });
      across.style.top = `${zero - share(key, token[line]) * reach}%`;
      parts.push(across);
    }
    return node("span", { class: `rlhf-scope-cell${negative ? " rlhf-scope-hanging" : ""}`, "data-token": index }, ...parts);
  }

  // --- lines of tokens, each with its tracks ---

  /** Tokens in lines of like length, each [index, width in pixels], so that a line's tracks can stand under its words. */
  function broken(width) {
    canvas.font = getComputedStyle(lines).font;
    const widths = tokens().map((token) => Math.max(LEAST, Math.ceil(canvas.measureText(shown(token).trim()).width) + PAD));
    const total = widths.reduce((a, b) => a + b, 0);
    const most = Math.max(LEAST, width - LABEL);
    const room = total > most ? Math.min(most, total / Math.ceil(total / most) + Math.max(...widths)) : most;
    const found = [[]];
    let used = 0;
    widths.forEach((wide, index) => {
      if (used + wide > room && found.at(-1).length) { found.push([]); used = 0; }
      found.at(-1).push([index, wide]);
      used += wide;
    });
    return found;
  }

  function drawLines() {
    const width = lines.clientWidth;
    if (!width) return;
    drawn = look();
    lines.replaceChildren(...broken(width).map((row) => {
      const line = node("div", { class: "rlhf-scope-line", role: "presentation" });
      line.style.gridTemplateColumns = `${LABEL}px ${row.map(([, wide]) => `${wide}px`).join(" ")}`;
      line.append(node("span", { class: "rlhf-scope-corner", "aria-hidden": "true" }));
      for (const [index] of row) line.append(option(tokens()[index], index));
      for (const track of TRACKS) {
        const name = node("span", { class: "rlhf-scope-track", "aria-hidden": "true", "data-key": track.key }, node("span", {}, quantities[track.key].title));
        if (track.lineName) name.append(node("small", {}, `— ${track.lineName}`));
        line.append(name, ...row.map(([index]) => cell(tokens()[index], index, track)));
      }
      line.querySelectorAll(".rlhf-scope-cell").forEach((each) => each.setAttribute("aria-hidden", "true"));
      return line;
    }));
  }

  function option(token, index) {
    const words = [`token ${index + 1} of ${tokens().length}`, shown(token).trim() || "space"];
    for (const { key } of TRACKS) words.push(`${quantities[key].title} ${format(valueOf(token, key))}`);
    if (cut(token)) words.push("clipped");
    const classes = ["rlhf-scope-token", token.end && "rlhf-scope-end", cut(token) && "rlhf-scope-clipped"];
    const made = node("span", { id: `${uid}-${index}`, role: "option", class: classes.filter(Boolean).join(" "), "data-token": index, "aria-label": words.join(", "), "aria-selected": "false" }, shown(token).trim() || "␣");
    made.style.background = tint(token, model.get("colour"));
    return made;
  }

  const look = () => JSON.stringify([step().step, at(), after(), model.get("colour"), lines.clientWidth, replies().length]);

  // --- the strip: every number of one token, each with its meaning ---

  function card(quantity, token) {
    const { key } = quantity;
    const before = key === "ratio" ? 1 : token[key];
    const later = quantity.after ? token[quantity.after] : null;
    const value = valueOf(token, key);
    const moved = later !== null && after() && format(before) !== format(later);
    return node("div", { class: `rlhf-scope-card${model.get("colour") === key ? " rlhf-scope-chosen" : ""}` },
      node("div", { class: "rlhf-scope-names" }, node("span", { class: "rlhf-scope-name" }, quantity.title), symbol(quantity.symbol)),
      node("div", {},
        node("span", { class: "rlhf-scope-value" }, format(value, quantity.neutral === 0 && key !== "logprob" && key !== "ref_logprob")),
        quantity.unit ? node("span", { class: "rlhf-scope-unit" }, quantity.unit) : "",
        moved ? node("span", { class: "rlhf-scope-was" }, `was ${format(before)}`) : "",
        node("p", {}, quantity.explanation)));
  }

  function drawStrip() {
    const index = current();
    const token = tokens()[index];
    if (!token) return strip.replaceChildren();
    const name = node("span", { class: "rlhf-scope-which" }, shown(token).trim() || "␣");
    const clip = cut(token) ? node("span", { class: "rlhf-scope-clip" }, `✂ clipped: the ratio left 1 ± ${format(step().clip_range)} on the side that pays, so this token earns the policy nothing more`) : "";
    strip.replaceChildren(
      node("div", { class: "rlhf-scope-which-line" }, name, node("span", { class: "rlhf-scope-hint" }, `token ${index + 1} of ${tokens().length}`), clip),
      node("div", { class: "rlhf-scope-cards" }, ...model.get("quantities").map((quantity) => card(quantity, token))));
  }

  function drawPointer() {
    const index = current();
    lines.querySelectorAll("[data-token]").forEach((each) => {
      const here = Number(each.dataset.token) === index;
      each.classList.toggle("rlhf-scope-here", here);
      if (each.role === "option" || each.getAttribute("role") === "option") each.setAttribute("aria-selected", String(here));
    });
    if (tokens().length) lines.setAttribute("aria-activedescendant", `${uid}-${index}`);
    drawStrip();
  }

  function drawHead() {
    const { step: number, beta, clip_range: clip } = step();
    const many = replies().length;
    about.textContent = many ? `PPO step ${number} · β ${format(beta)} · clip ${clip === null ? "off" : `1 ± ${format(clip)}`}` : "";
    place.textContent = many ? `${at() + 1} of ${many}` : "";
    previous.disabled = at() <= 0;
    next.disabled = at() >= many - 1;
    flipText.textContent = after() ? "Shown: after the update" : "Shown: before the update";
    flip.setAttribute("aria-pressed", String(after()));
    flip.setAttribute("aria-label", "Numbers after the update");
    const clipped = tokens().filter(cut).length;
    toClipped.disabled = !clipped;
    const key = model.get("colour");
    for (const choice of colours.children) {
      const chosen = choice.dataset.key === key;
      choice.setAttribute("aria-checked", String(chosen));
      choice.setAttribute("tabindex", chosen ? "0" : "-1");
    }
    const { neutral } = quantities[key];
    legend.replaceChildren(node("span", {}, format(neutral - scales[key])), node("span", { class: "rlhf-scope-ramp" }), node("span", {}, key === "logprob" ? "0" : format(neutral + scales[key], neutral === 0)));
    legend.classList.toggle("rlhf-scope-half", key === "logprob");
    const here = reply();
    prompt.textContent = here?.prompt ?? "";
    const words = here ? [`score ${format(here.score, true)}`, `KL ${format(here.kl)} nats`, `${tokens().length} tokens`, after() ? `${clipped} clipped` : "", here.truncated ? "cut off: no end token" : ""] : [];
    facts.replaceChildren(...words.filter(Boolean).map((word) => node("span", { class: word.startsWith("cut") ? "rlhf-scope-warning" : "" }, word)));
    empty.hidden = many > 0;
    for (const part of [prompt, facts, lines, hint, strip]) part.hidden = !many;
  }

  function draw() {
    drawHead();
    if (!replies().length) return;
    if (drawn !== look()) drawLines();
    drawPointer();
  }

  // --- moving ---

  const select = (index) => {
    hovered = null;
    if (index !== model.get("token")) set({ token: index });
    else drawPointer();
    lines.querySelector(`#${uid}-${index}`)?.scrollIntoView?.({ block: "nearest" });
  };

  function walkToClipped() {
    const clipped = tokens().map((token, index) => (cut(token) ? index : -1)).filter((index) => index >= 0);
    if (clipped.length) select(clipped.find((index) => index > current()) ?? clipped[0]);
  }

  /** The token above or below, nearest to the middle of the one here. */
  function neighbour(by) {
    const here = lines.querySelector(`#${uid}-${current()}`);
    const rows = [...lines.children];
    const row = rows[rows.indexOf(here?.parentElement) + by];
    if (!row) return current();
    const middle = (each) => each.offsetLeft + each.offsetWidth / 2;
    const nearest = [...row.querySelectorAll("[role=option]")].reduce((a, b) => (Math.abs(middle(b) - middle(here)) < Math.abs(middle(a) - middle(here)) ? b : a));
    return Number(nearest.dataset.token);
  }

  // Notebook shortcuts must not see the keys; Tab must still move on.
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    if ((event.key === "Enter" || event.key === " ") && event.target.closest("button")) return;
    const onColours = colours.contains(event.target);
    const last = tokens().length - 1;
    const moves = { ArrowLeft: () => select(Math.max(0, current() - 1)), ArrowRight: () => select(Math.min(last, current() + 1)), ArrowUp: () => select(neighbour(-1)), ArrowDown: () => select(neighbour(1)), Home: () => select(0), End: () => select(last) };
    const keys = { p: () => walk(-1), n: () => walk(1), u: () => set({ after: !after() }), c: walkToClipped };
    const key = event.key.toLowerCase();
    const number = Number(event.key) - 1;
    if (onColours && ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(event.key)) {
      const by = event.key === "ArrowLeft" || event.key === "ArrowUp" ? -1 : 1;
      const now = TRACKS.findIndex((track) => track.key === model.get("colour"));
      set({ colour: TRACKS[(now + by + TRACKS.length) % TRACKS.length].key });
      colours.querySelector("[tabindex='0']")?.focus();
    } else if (event.key in moves && tokens().length) moves[event.key]();
    else if (key in keys) keys[key]();
    else if (TRACKS[number]) set({ colour: TRACKS[number].key });
    else if (event.key === "Escape" && hovered !== null) { hovered = null; drawPointer(); }
    else if (event.key.length > 1 && event.key !== "Delete" && event.key !== "Backspace") return;
    event.preventDefault();
  });
  lines.addEventListener("pointermove", (event) => {
    const index = event.target.closest("[data-token]")?.dataset.token;
    if (index === undefined || Number(index) === hovered) return;
    hovered = Number(index);
    drawPointer();
  });
  lines.addEventListener("pointerleave", () => { hovered = null; drawPointer(); });
  lines.addEventListener("click", (event) => {
    const index = event.target.closest("[data-token]")?.dataset.token;
    if (index !== undefined) select(Number(index));
  });

  let frame = 0;
  const schedule = () => { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); };
  const onData = () => { hovered = null; drawn = ""; measure(); schedule(); };
  const onReply = () => { hovered = null; schedule(); };
  const listeners = { "change:data": onData, "change:reply": onReply, "change:token": schedule, "change:colour": schedule, "change:after": schedule };
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);
  el.replaceChildren(root);
  measure();
  const observer = new ResizeObserver(schedule);
  observer.observe(lines);
  draw();
  return () => {
    observer.disconnect();
    cancelAnimationFrame(frame);
    for (const [name, listener] of Object.entries(listeners)) model.off(name, listener);
    el.replaceChildren();
  };
}

export default { render };
