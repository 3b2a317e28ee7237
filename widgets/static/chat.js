// The chat's own part: a conversation, each reply of which can be marked, ranked or corrected. The conversation and the
// drafts stand in the model's traits; what the person does goes to Python as a message with an id (see chat.py).

const CHECKPOINT_NAMES = { policy: "Policy, as it is now", sft: "SFT model, before PPO", base: "Pretrained model" };
const checkpointName = (name) => CHECKPOINT_NAMES[name] ?? name;

/** Who wrote a reply: the policy of that step, which may have moved on since. */
function writer({ model, checkpoint }) {
  const step = /^policy-step(\d+)$/.exec(model)?.[1];
  return step ? `Policy after PPO step ${step}` : checkpointName(checkpoint);
}

/** The tiers with `n` next (or, with `tie`, beside the last one); a reply that has its place is taken out. */
function placed(tiers, n, tie) {
  if (tiers.flat().includes(n)) return tiers.map((tier) => tier.filter((m) => m !== n)).filter((tier) => tier.length);
  return tie && tiers.length ? [...tiers.slice(0, -1), [...tiers.at(-1), n]] : [...tiers, [n]];
}

function chatView(model, host) {
  const pending = new Map(); // requests on their way, by id
  let late = false;
  let patience;

  function request(action, fields = {}) {
    const message = { id: newId(), action, ...fields };
    pending.set(message.id, message);
    model.send(message);
    clearTimeout(patience);
    patience = setTimeout(() => { late = pending.size > 0; draw(); }, PATIENCE_MS);
    draw();
  }
  const resend = () => pending.forEach((message) => model.send(message));
  const isPending = (action, turn) => [...pending.values()].some((message) => message.action === action && message.turn === turn);

  const draft = () => model.get("draft");
  function setDraft(change) {
    model.set("draft", { ...draft(), ...change });
    model.save_changes();
  }
  const orderOf = (turn) => (draft().order?.turn === turn.id ? draft().order : { turn: turn.id, tiers: [], tie: false });
  const editing = (turn) => draft().edit?.turn === turn.id && draft().edit.version === turn.chosen;
  const busy = () => model.get("turns").find((turn) => turn.wanted);

  // --- what can be done with a reply ---
  const k = () => model.get("alternatives");
  const version = (turn) => turn.versions[turn.chosen];
  const ready = (turn) => turn.versions.length > 0 && !turn.choices.length && !turn.wanted && !editing(turn);
  const ACTIONS = [
    { name: "up", cap: "Y", label: "👍", spoken: "Good reply", pressed: (turn) => version(turn)?.up === true, can: (turn) => ready(turn) && !version(turn).original, run: (turn) => vote(turn, true) },
    { name: "down", cap: "N", label: "👎", spoken: "Bad reply", pressed: (turn) => version(turn)?.up === false, can: (turn) => ready(turn) && !version(turn).original, run: (turn) => vote(turn, false) },
    { name: "correct", cap: "E", label: "Correct", can: ready, run: (turn) => setDraft({ edit: { turn: turn.id, version: turn.chosen, text: version(turn).text } }) },
    { name: "again", cap: "A", label: "Another reply", can: (turn) => !busy() && !turn.choices.length && !editing(turn), run: (turn) => request("again", { turn: turn.id, k: 1 }) },
    { name: "several", cap: "R", label: () => `Show ${k()} to rank`, can: (turn) => !busy() && !turn.choices.length && !editing(turn), run: (turn) => request("again", { turn: turn.id, k: k() }) },
  ];
  const vote = (turn, up) => request("vote", { turn: turn.id, version: turn.chosen, up });

  function actionRow(turn) {
    const buttons = ACTIONS.filter((action) => !(turn.error && !turn.versions.length) || action.name === "again").map((action) => {
      const label = turn.error && !turn.versions.length ? "Try again" : typeof action.label === "function" ? action.label() : action.label;
      const button = actionButton({ label, cap: action.cap, shortcut: action.cap.toLowerCase() }, () => action.can(turn) && action.run(turn));
      button.dataset.focus = action.name;
      button.setAttribute("aria-disabled", String(!action.can(turn)));
      if (action.spoken) button.setAttribute("aria-label", action.spoken);
      if (action.pressed) button.setAttribute("aria-pressed", String(action.pressed(turn)));
      return button;
    });
    return h("div", { class: "rlhf-buttons" }, ...buttons);
  }

  // --- a turn's parts ---
  function pager(turn) {
    const to = (n) => request("choose", { turn: turn.id, version: n });
    const arrow = (text, label, n) => {
      const button = h("button", { type: "button", class: "rlhf-button rlhf-chat-page", "aria-label": label, onclick: () => turn.versions[n] && to(n) }, text);
      button.dataset.focus = label;
      button.setAttribute("aria-disabled", String(!turn.versions[n]));
      return button;
    };
    return h("span", { class: "rlhf-chat-pager" }, arrow("‹", "Previous reply", turn.chosen - 1), `${turn.chosen + 1} of ${turn.versions.length}`, arrow("›", "Next reply", turn.chosen + 1));
  }

  function labels(turn) {
    const { up, place, of, original } = version(turn);
    const words = [];
    if (up !== null) words.push(up ? "✓ Saved: 👍" : "✓ Saved: 👎");
    if (place) words.push(`✓ Saved: ranked ${place} of ${of}`);
    if (original) words.push("✓ Saved: corrected by you");
    return words.join("   ");
  }

  function replyBody(turn) {
    const parts = [h("div", { class: "rlhf-text", dir: "auto" }, inert(version(turn).text))];
    if (version(turn).original) parts.push(h("div", { class: "rlhf-text rlhf-chat-original", dir: "auto" }, h("b", {}, "It wrote: "), inert(version(turn).original)));
    return parts;
  }

  function editor(turn) {
    const field = h("textarea", { class: "rlhf-chat-field", rows: "3", dir: "auto", "aria-label": "Your wording of this reply" });
    field.value = draft().edit.text;
    field.dataset.focus = "edit";
    field.addEventListener("input", () => setDraft({ edit: { ...draft().edit, text: field.value } }));
    const save = () => {
      if (field.value.trim() && field.value.trim() !== version(turn).text) request("correct", { turn: turn.id, version: turn.chosen, text: field.value });
    };
    const cancel = () => setDraft({ edit: null });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(); }
      else if (event.key === "Escape") { event.preventDefault(); cancel(); }
    });
    const saveButton = actionButton({ label: "Save correction", cap: "Ctrl ↵", primary: true, shortcut: "Control+Enter" }, save);
    saveButton.dataset.focus = "save";
    const cancelButton = actionButton({ label: "Cancel", cap: "Esc", shortcut: "Escape" }, cancel);
    return [field, h("div", { class: "rlhf-buttons" }, saveButton, cancelButton)];
  }

  function ranker(turn) {
    const { tiers, tie } = orderOf(turn);
    const place = (n) => tiers.findIndex((tier) => tier.includes(n)) + 1;
    const cards = turn.choices.map((text, i) => {
      const at = place(i + 1);
      const tied = at && tiers[at - 1].length > 1 ? "=" : "";
      const card = h(
        "button", { type: "button", class: `rlhf-card rlhf-chat-choice${at ? " rlhf-chat-placed" : ""}`, "aria-pressed": String(Boolean(at)), "aria-keyshortcuts": String(i + 1), onclick: () => choose(turn, i + 1) },
        kbd(String(i + 1)), h("span", { class: "rlhf-text", dir: "auto" }, inert(text)), h("span", { class: "rlhf-chat-place" }, at ? `${tied}${at}.` : "–"),
      );
      card.dataset.focus = `choice${i + 1}`;
      return card;
    });
    const left = turn.choices.length - tiers.flat().length;
    const rank = actionButton({ label: "Save ranking", cap: "Enter", primary: true, shortcut: "Enter" }, () => saveOrder(turn));
    rank.setAttribute("aria-disabled", String(!complete(turn)));
    rank.dataset.focus = "rank";
    const tieButton = actionButton({ label: "Tie next", cap: "=", shortcut: "=" }, () => toggleTie(turn));
    tieButton.setAttribute("aria-pressed", String(Boolean(tie)));
    tieButton.dataset.focus = "tie";
    const keep = actionButton({ label: "Don't rank", cap: "Esc", shortcut: "Escape" }, () => request("keep", { turn: turn.id }));
    keep.dataset.focus = "keep";
    const say = tiers.length ? (left > 1 ? `Next: ${tie ? "tied with the last" : `place ${tiers.length + 1}`}` : "Enter saves; the best goes on in the conversation") : "Best first: press the replies' numbers or click them";
    return [h("div", { class: "rlhf-chat-say" }, say), h("div", { class: "rlhf-list" }, ...cards), h("div", { class: "rlhf-buttons" }, rank, tieButton, keep)];
  }
  const choose = (turn, n) => setDraft({ order: { turn: turn.id, tiers: placed(orderOf(turn).tiers, n, orderOf(turn).tie), tie: false } });
  const toggleTie = (turn) => orderOf(turn).tiers.length && setDraft({ order: { ...orderOf(turn), tie: !orderOf(turn).tie } });
  function complete(turn) {
    const { tiers, tie } = orderOf(turn);
    const rest = turn.choices.map((_, i) => i + 1).filter((n) => !tiers.flat().includes(n));
    if (rest.length > 1 || !tiers.length) return null;
    return rest.length ? placed(tiers, rest[0], tie) : tiers;
  }
  function saveOrder(turn) {
    if (complete(turn) && !isPending("rank", turn.id)) request("rank", { turn: turn.id, order: complete(turn) });
  }

  const dots = () => h("span", { class: "rlhf-dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"));

  function thinking(turn) {
    const words = turn.wanted > 1 ? `is writing ${turn.wanted} replies…` : "is writing…";
    const stop = actionButton({ label: "Stop", cap: "Esc", shortcut: "Escape" }, () => request("stop", { turn: turn.id }));
    stop.dataset.focus = "stop";
    return h("div", { class: "rlhf-chat-thinking" }, dots(), h("span", {}, `${checkpointName(turn.checkpoint)} ${words}`), stop);
  }

  function drawTurn(turn, number) {
    if (turn.role === "user") {
      return h("div", { class: "rlhf-chat-turn rlhf-chat-user", role: "group", "aria-label": `You, turn ${number}` }, h("div", { class: "rlhf-text", dir: "auto" }, inert(turn.text)));
    }
    const shown = turn.versions.length && !turn.choices.length ? writer(version(turn)) : checkpointName(turn.checkpoint);
    const head = h("div", { class: "rlhf-chat-head" }, h("span", { class: "rlhf-chat-who" }, inert(shown)));
    if (turn.versions.length > 1 && !turn.choices.length) head.append(pager(turn));
    const parts = [head];
    if (turn.choices.length) parts.push(...ranker(turn));
    else if (turn.versions.length) parts.push(...(editing(turn) ? editor(turn) : replyBody(turn)));
    if (turn.error) parts.push(h("div", { class: "rlhf-chat-error" }, `⚠ ${inertString(turn.error)}`));
    if (turn.wanted) parts.push(thinking(turn));
    else if (!turn.choices.length && !editing(turn)) {
      parts.push(actionRow(turn));
      if (turn.versions.length && labels(turn)) parts.push(h("div", { class: "rlhf-saved" }, labels(turn)));
    }
    return h("div", { class: "rlhf-chat-turn rlhf-chat-reply", role: "group", tabindex: "0", "data-turn": turn.id, "data-focus": "turn", "aria-label": `${inertString(shown)}, turn ${number}` }, ...parts);
  }

  // --- keys ---
  const turnAt = (element) => {
    const id = element.closest("[data-turn]")?.dataset.turn;
    return model.get("turns").find((turn) => turn.id === id);
  };

  function walk(from, by) {
    const replies = [...log.querySelectorAll("[data-turn]")];
    const at = replies.indexOf(from.closest("[data-turn]")) + by;
    if (at >= replies.length) field.focus();
    else replies[Math.max(0, at)]?.focus();
  }

  function turnKey(turn, key, event) {
    const n = Number(key);
    if (key === "Escape" && turn.wanted) request("stop", { turn: turn.id });
    else if (turn.choices.length && n >= 1 && n <= turn.choices.length) choose(turn, n);
    else if (turn.choices.length && key === "=") toggleTie(turn);
    else if (turn.choices.length && key === "Backspace") setDraft({ order: { turn: turn.id, tiers: placed(orderOf(turn).tiers, orderOf(turn).tiers.flat().at(-1), false), tie: false } });
    else if (turn.choices.length && key === "Enter") saveOrder(turn);
    else if (turn.choices.length && key === "Escape") request("keep", { turn: turn.id });
    else if (key === "ArrowUp" || key === "ArrowDown") walk(event.target, key === "ArrowUp" ? -1 : 1);
    else {
      const action = ACTIONS.find(({ cap }) => cap.toLowerCase() === key);
      if (action?.can(turn)) action.run(turn);
    }
  }

  // JupyterLab must not see the keys: `x` would cut the cell, Enter would edit it.
  function onkeydown(event) {
    event.stopPropagation();
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if ((event.ctrlKey || event.metaKey) && key === "s") event.preventDefault(); // the browser's "save page" dialog
    if (event.target.closest("textarea, select") || event.ctrlKey || event.metaKey || event.altKey || key === "Tab") return;
    const onButton = event.target.closest("button");
    const turn = turnAt(event.target);
    if (onButton && (key === " " || (key === "Enter" && !onButton.classList.contains("rlhf-chat-choice")))) return; // the button's own click
    event.preventDefault();
    if (event.repeat) return;
    if (key === "u") undo();
    else if (turn) turnKey(turn, key, event);
  }
  const undo = () => model.get("can_undo") && request("undo");

  // --- the page ---
  const menu = h("select", { class: "rlhf-chat-menu", "aria-label": "Talk with", onchange: () => { model.set("checkpoint", menu.value); model.save_changes(); } });
  const clear = h("button", { type: "button", class: "rlhf-button rlhf-chat-plain", onclick: () => { asking = true; draw(); sure.focus(); } }, "Clear");
  const undoButton = actionButton({ label: "Undo label", cap: "U", shortcut: "u", hint: "Take your last label back" }, undo);
  const sure = h("button", { type: "button", class: "rlhf-button rlhf-chat-plain", onclick: () => { asking = false; request("clear"); field.focus(); } }, "Clear");
  const not = h("button", { type: "button", class: "rlhf-button rlhf-chat-plain", onclick: () => { asking = false; draw(); clear.focus(); } }, "Keep it");
  const question = h("div", { class: "rlhf-chat-question", role: "group", "aria-label": "Clear the conversation?" }, h("span", {}, "Clear the conversation? Your labels stay stored."), sure, not);
  let asking = false;
  const log = h("div", { class: "rlhf-chat-log", role: "log", "aria-label": "Conversation", tabindex: "0" });
  const empty = h("p", { class: "rlhf-chat-empty" }, "Say something below. You can mark, rank and correct every reply: each is a label like any other.");
  const field = h("textarea", { class: "rlhf-chat-field", rows: "2", dir: "auto", placeholder: "Write a message…", "aria-label": "Your message", oninput: () => setDraft({ text: field.value }) });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    if (event.key === "Escape") { const turn = busy(); if (turn) request("stop", { turn: turn.id }); else walk(log, 0); }
    if (event.key === "ArrowUp" && !field.value) { event.preventDefault(); log.querySelector("[data-turn]:last-child")?.focus(); }
  });
  const sendButton = actionButton({ label: "Send", cap: "Enter", primary: true, shortcut: "Enter", hint: "Enter sends, Shift+Enter begins a line" }, send);
  const alertText = h("span", {});
  const again = h("button", { type: "button", class: "rlhf-button", onclick: resend }, "Send again");
  const alert = h("div", { class: "rlhf-alert", role: "alert" }, h("span", { "aria-hidden": "true" }, "⚠ "), alertText, again);
  const rules = h("details", { class: "rlhf-chat-rules" }, h("summary", {}, "Guidelines"), ...paragraphs(model.get("guidelines").text ?? ""));
  rules.hidden = !model.get("guidelines").text;
  const root = h(
    "div", { class: "rlhf-feedback rlhf-chat", role: "group", "aria-label": "Chat with a checkpoint", "data-lm-suppress-shortcuts": "true", onkeydown },
    h("div", { class: "rlhf-header" }, h("span", { class: "rlhf-title" }, "Chat"), h("label", { class: "rlhf-chat-with" }, "with ", menu), h("span", { class: "rlhf-chat-tools" }, undoButton, clear)),
    question, rules, log,
    h("div", { class: "rlhf-chat-composer" }, field, sendButton),
    alert,
  );

  function send() {
    if (!field.value.trim() || busy() || isPending("send")) return;
    request("send", { text: field.value });
  }

  // --- drawing ---
  const drawn = new Map(); // turn's id → [what was drawn, its element]

  /** The conversation: only turns that changed are made anew, and the focus stays where it was. */
  function drawLog() {
    const turns = model.get("turns");
    const focused = log.contains(document.activeElement) ? document.activeElement : null;
    const at = focused && { turn: focused.closest("[data-turn]")?.dataset.turn, part: focused.dataset.focus, selection: focused.selectionStart };
    const grown = turns.length > drawn.size;
    const idle = !busy();
    turns.forEach((turn, i) => {
      const look = JSON.stringify([turn, i, idle, editing(turn), turn.choices?.length ? orderOf(turn) : null]);
      const [before, old] = drawn.get(turn.id) ?? [];
      if (before === look) return;
      const fresh = drawTurn(turn, i + 1);
      drawn.set(turn.id, [look, fresh]);
      if (old) old.replaceWith(fresh);
    });
    for (const id of drawn.keys()) if (!turns.some((turn) => turn.id === id)) drawn.delete(id);
    const wanted = turns.length ? turns.map((turn) => drawn.get(turn.id)[1]) : [empty];
    if (wanted.length !== log.children.length || wanted.some((element, i) => log.children[i] !== element)) log.replaceChildren(...wanted);
    if (grown) log.scrollTop = log.scrollHeight;
    if (at && !log.contains(document.activeElement)) refocus(at);
  }

  function refocus({ turn, part, selection }) {
    const card = turn && drawn.get(turn)?.[1];
    if (!card) return field.focus();
    const target = card.querySelector("[data-focus='edit']") ?? (part && card.querySelector(`[data-focus='${part}']`)) ?? card;
    target.focus({ preventScroll: true });
    if (selection !== undefined && target.setSelectionRange && part === "edit") target.setSelectionRange(selection, selection);
  }

  function settle() {
    for (const id of model.get("handled")) {
      const message = pending.get(id);
      if (!message) continue;
      pending.delete(id);
      if (model.get("error")) continue;
      if (message.action === "send" && field.value === message.text) { field.value = ""; setDraft({ text: "" }); }
      if (message.action === "correct") setDraft({ edit: null });
      if (message.action === "rank") setDraft({ order: null });
    }
    if (!pending.size) late = false;
  }

  function draw() {
    settle();
    const names = model.get("checkpoints");
    if (menu.children.length !== names.length) menu.replaceChildren(...names.map((name) => h("option", { value: name }, checkpointName(name))));
    menu.value = model.get("checkpoint");
    if (document.activeElement !== field && field.value !== (draft().text ?? "")) field.value = draft().text ?? "";
    question.hidden = !asking;
    clear.setAttribute("aria-disabled", String(!model.get("turns").length));
    undoButton.setAttribute("aria-disabled", String(!model.get("can_undo")));
    sendButton.setAttribute("aria-disabled", String(Boolean(busy()) || !field.value.trim()));
    const unanswered = "The kernel has not confirmed this yet; a label counts once it says “Saved”.";
    const message = model.get("error") || (late ? unanswered : "");
    alert.hidden = !message;
    again.hidden = !late;
    alertText.textContent = inertString(message);
    drawLog();
  }

  let scheduled = false;
  let alive = true;
  function schedule() {
    if (scheduled) return;
    scheduled = true;
    queueMicrotask(() => {
      scheduled = false;
      if (alive) draw();
    });
  }
  const traits = ["turns", "checkpoints", "checkpoint", "draft", "handled", "error", "can_undo"];
  for (const trait of traits) model.on(`change:${trait}`, schedule);
  host.append(root);
  field.value = draft().text ?? "";
  draw();
  log.scrollTop = log.scrollHeight;
  return () => {
    alive = false;
    clearTimeout(patience);
    for (const trait of traits) model.off(`change:${trait}`, schedule);
    root.remove();
  };
}

export default { render: ({ model, el }) => chatView(model, el) };
