// What the feedback widgets share. Python joins this file and one widget's own file into one module (no CDN, no
// bundler). The model's traits hold all state, so that every view of a widget shows the same and a reloaded page
// gets it back; a view only draws them. See feedback.py for the traits and who writes which.

const PATIENCE_MS = 8000; // how long an answer may be on its way before the person is told
const REST_MS = 150; // a draft is saved when the keys have rested so long …
const UNSAVED_MS = 1000; // … and while they do not, this often

/** An element with attributes, `on…` listeners and children. Strings become text, never HTML. */
function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// Characters that would act on the page's text instead of showing: C0 (but tab and newline), C1, line separators,
// bidirectional controls and marks, zero-width space, word joiner, byte-order mark.
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]/g;

/** How a control character is made visible: ␀ for U+0000, ␡ for U+007F, ‹U+202E› for the rest. */
function symbolOf(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `\u2039U+${code.toString(16).toUpperCase().padStart(4, "0")}\u203a`;
}

/** Model or person's text as inert nodes: text, with control characters spelt out. */
function inert(text) {
  const fragment = document.createDocumentFragment();
  let end = 0;
  for (const match of text.matchAll(CONTROL)) {
    fragment.append(text.slice(end, match.index), h("span", { class: "rlhf-control" }, symbolOf(match[0])));
    end = match.index + 1;
  }
  fragment.append(text.slice(end));
  return fragment;
}

/** The same as one string, for screen-reader labels. */
const inertString = (text) => text.replace(CONTROL, symbolOf);

/** A fresh 32-digit id. `crypto.randomUUID` is missing on plain-http class servers; `getRandomValues` is not. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const kbd = (text) => h("kbd", { class: "rlhf-kbd" }, text);

/** A button for one action; `aria-disabled` rather than `disabled`, so that it keeps the focus. */
function actionButton(action, run) {
  const button = h("button", { type: "button", class: "rlhf-button", "aria-keyshortcuts": action.shortcut, title: action.hint, onclick: run });
  if (action.primary) button.classList.add("rlhf-primary");
  button.append(h("span", {}, action.label), kbd(action.cap));
  return button;
}

/** A value as text in which equal values are equal, whatever the order of their fields. */
const canonical = (value) =>
  JSON.stringify(value, (_, v) => (v && typeof v === "object" && !Array.isArray(v) ? Object.fromEntries(Object.entries(v).sort()) : v));

/** A line of guidelines as inert nodes; **words** stand out. */
function emphasised(line) {
  const fragment = document.createDocumentFragment();
  line.split(/\*\*(?=\S)(.+?)(?<=\S)\*\*/).forEach((text, i) => fragment.append(i % 2 ? h("strong", {}, inert(text)) : inert(text)));
  return fragment;
}

/** Guidelines as inert elements: blank lines part paragraphs, lines that begin with "- ", "* " or "•" are bullets. */
function paragraphs(text) {
  const blocks = [];
  let block;
  for (const line of text.split(/\r?\n/)) {
    const [, bullet] = line.match(/^\s*[-*•]\s+(.*)$/) ?? [];
    const kind = bullet !== undefined ? "UL" : line.trim() ? "P" : "";
    if (kind && block?.tagName !== kind) blocks.push((block = h(kind.toLowerCase(), { dir: "auto" })));
    if (kind === "UL") block.append(h("li", {}, emphasised(bullet)));
    if (kind === "P") block.append(block.firstChild ? "\n" : "", emphasised(line.trim()));
    if (!kind) block = undefined;
  }
  return blocks;
}

const WIDE = 760; // from this width, in pixels, guidelines stand beside the task, not above it

/**
 * One view of a feedback widget. `kind` says what differs:
 *   name, title, given    CSS name, text, and the status of an answer that decides something;
 *   blank(view)           the fields of a draft in which nothing was done yet;
 *   actions(view)         its own actions: {label, cap, shortcut, keys, run, hint?, enabled?, pressed?, primary?, otherwise?},
 *                         where `otherwise` is what its key does while it is not enabled;
 *   key(view, event)      handles other keys (the replies' numbers, arrows);
 *   typed(view, event)    handles keys in a text field, where no other key does anything but write;
 *   build(view)           the replies' elements for a new question, put into view.body;
 *   update(view)          draw the draft;   status(view) one sentence on where the draft stands.
 * Returns the clean-up.
 */
function feedbackView(model, host, kind) {
  const view = {
    model,
    get shown() { return model.get("shown"); },
    get replies() { return this.shown.replies ?? []; },
    get open() { return Boolean(this.shown.id) && !this.pending; },
    get draft() {
      const draft = [unsaved, model.get("draft")].find(isAboutShown);
      return { ...kind.blank(this), ...(draft ?? about(this.shown)) };
    },
    get begun() { return Object.entries(kind.blank(this)).some(([field, value]) => canonical(this.draft[field]) !== canonical(value)); },
    get saving() { return isWaiting("answer", "acknowledged"); },
    get undoing() { return isWaiting("undo", "undone"); },
    get pending() { return this.saving || this.undoing; },
    setDraft(change) {
      if (!this.open) return;
      unsaved = { since: Date.now(), ...this.draft, ...change };
      unsavedSince ??= Date.now();
      clearTimeout(saving);
      saving = setTimeout(saveDraft, Math.min(REST_MS, Math.max(0, unsavedSince + UNSAVED_MS - Date.now())));
      schedule();
    },
    submit(decision, status = kind.given) {
      if (!this.open) return;
      const seconds = Math.max(0, Date.now() - (this.draft.since ?? Date.now())) / 1000;
      const { id: question, reply } = this.shown;
      send({ question, ...(reply && { reply }), ...decision, status }, seconds);
    },
  };

  /** What a draft is about. No `undefined`: the kernel's echo of a message has none and would look like another draft. */
  function about({ id: question, reply }) {
    return reply === undefined ? { question } : { question, reply };
  }

  // The draft is drawn at once but saved when the keys rest, or together with the answer: each key as a message of its
  // own would stand in the kernel's queue before the answer.
  let unsaved;
  let unsavedSince;
  let saving;
  const isAboutShown = (draft) => draft?.question === view.shown.id && draft?.reply === view.shown.reply;

  function forgetUnsaved() {
    clearTimeout(saving);
    unsaved = unsavedSince = undefined;
  }

  /** Another view, or Python, knows better; the echo of our own message, late on a busy machine, does not. */
  let known = canonical(model.get("draft"));
  function onDraft() {
    const draft = canonical(model.get("draft"));
    if (draft !== known) forgetUnsaved();
    known = draft;
  }

  /** The draft as a change of the model: {draft} when some of it is not saved yet. */
  function takeUnsaved() {
    const change = isAboutShown(unsaved) ? { draft: unsaved } : {};
    forgetUnsaved();
    return change;
  }

  function saveDraft() {
    const change = takeUnsaved();
    if (!change.draft) return;
    model.set(change);
    model.save_changes();
  }

  function isWaiting(request, reply) {
    const id = model.get(request).id;
    return Boolean(id) && model.get(reply).id !== id && model.get("error") === "";
  }

  function send(decision, seconds) {
    // The same decision sent again (after an error) keeps its id, so that the store recognises it.
    const { id, attempt, seconds: _, ...last } = model.get("answer");
    const same = id && id !== model.get("acknowledged").id && canonical(last) === canonical(decision);
    const sent = same ? { ...model.get("answer"), attempt: attempt + 1 } : { id: newId(), ...decision, seconds, attempt: 1 };
    model.set({ ...takeUnsaved(), answer: sent, error: "" });
    model.save_changes();
  }

  function undo() {
    model.set({ ...takeUnsaved(), undo: { id: newId() }, error: "" });
    model.save_changes();
  }

  function toggleGuidelines() {
    model.set("guidelines_open", !model.get("guidelines_open"));
    model.save_changes();
  }

  const actions = [
    ...kind.actions(view),
    { label: "Can't decide", cap: "D", shortcut: "d", keys: ["d"], run: () => view.submit({}, "undecided"), quiet: true },
    { label: "Skip", cap: "S", shortcut: "s", keys: ["s"], run: () => view.submit({}, "skipped"), quiet: true },
    {
      label: "Undo", cap: "U", shortcut: "u", keys: ["u"], run: undo, hint: "Take your last saved answer back and ask its question again", quiet: true,
      enabled: () => model.get("can_undo") && !view.pending, always: true,
    },
  ];
  const isEnabled = (action) => (action.always || view.open) && (action.enabled?.() ?? true);

  // --- the page ---
  const progressText = h("span", { class: "rlhf-progress-text" });
  const progressBar = h("span", { class: "rlhf-progress-fill" });
  const prompt = h("div", { class: "rlhf-text rlhf-prompt-text", dir: "auto" });
  const saved = h("span", { class: "rlhf-saved" });
  const standing = h("span", {});
  const status = h("div", { class: "rlhf-status", role: "status", "aria-live": "polite" }, saved, standing);
  const alertText = h("span", {});
  const again = h("button", { type: "button", class: "rlhf-button", onclick: resend }, "Send again");
  const alert = h("div", { class: "rlhf-alert", role: "alert" }, h("span", { "aria-hidden": "true" }, "⚠ "), alertText, again);
  const wait = h("div", { class: "rlhf-wait" }, h("span", { class: "rlhf-dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), h("span", { class: "rlhf-wait-text" }));
  const buttons = actions.map((action) =>
    actionButton(action, (event) => {
      if (isEnabled(action)) action.run();
      if (event.detail > 0) root.focus({ preventScroll: true }); // a mouse click: keys go on working from here
    }),
  );
  const group = (quiet) => h("div", { class: "rlhf-buttons" }, ...buttons.filter((_, i) => Boolean(actions[i].quiet) === quiet));
  view.body = h("div", { class: "rlhf-body" });
  const rules = h("div", { class: "rlhf-guidelines", role: "region", "aria-label": "Guidelines", tabindex: "0" });
  const rulesButton = actionButton({ label: "Guidelines", cap: "G", shortcut: "g", hint: "Show or hide the guidelines" }, toggleGuidelines);
  const asked = h(
    "div", { class: "rlhf-asked" },
    h("div", { class: "rlhf-prompt" }, h("span", { class: "rlhf-label" }, "Prompt"), prompt),
    view.body,
  );
  const root = h(
    "div",
    { class: `rlhf-feedback rlhf-${kind.name}`, role: "group", "aria-label": kind.title, tabindex: "0", "data-lm-suppress-shortcuts": "true", onkeydown, onpointerdown, onfocusout },
    h(
      "div", { class: "rlhf-header" },
      h("span", { class: "rlhf-title" }, kind.title),
      rulesButton,
      h("span", { class: "rlhf-progress" }, progressText, h("span", { class: "rlhf-progress-track", "aria-hidden": "true" }, progressBar)),
    ),
    h(
      "div", { class: "rlhf-layout" },
      h(
        "div", { class: "rlhf-task" },
        asked, wait,
        h("div", { class: "rlhf-footer" }, group(false), group(true)),
        h("div", { class: "rlhf-line" }, status, h("span", { class: "rlhf-focus-hint" }, "Click or Tab here to use the keys")),
        alert,
      ),
      rules,
    ),
  );
  view.root = root;

  function resend() {
    model.set({ answer: { ...model.get("answer"), attempt: model.get("answer").attempt + 1 }, error: "" });
    model.save_changes();
  }

  function onpointerdown(event) {
    if (!event.target.closest("button, textarea, [tabindex]:not(.rlhf-feedback)")) root.focus({ preventScroll: true });
  }

  function onfocusout(event) {
    if (!root.contains(event.relatedTarget)) saveDraft(); // before what was clicked instead does something with it
  }

  // JupyterLab must not see the keys: `x` would cut the cell, Enter would edit it.
  function onkeydown(event) {
    event.stopPropagation();
    if (event.altKey) saveDraft(); // the first half of a shortcut that leads away from here
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if ((event.ctrlKey || event.metaKey) && key === "s") event.preventDefault(); // the browser's "save page" dialog
    if (event.target.closest("textarea")) return kind.typed?.(view, event);
    if (event.ctrlKey || event.metaKey || event.altKey || key === "Tab" || /^F\d+$|^Page|^Home$|^End$/.test(key)) return;
    if (event.target.closest("button") && (key === "Enter" || key === " ")) return; // the button's own click
    event.preventDefault();
    if (event.repeat) return;
    if (key === "g" && !rulesButton.hidden) return toggleGuidelines();
    const action = actions.find(({ keys }) => keys.includes(key));
    if (action) return isEnabled(action) ? action.run() : view.open ? action.otherwise?.() : undefined;
    if (view.open) kind.key(view, event);
  }

  // --- drawing ---
  let drawn; // the question that view.body holds, as text
  let late = false;
  let patience;

  function draw() {
    const hadFocus = root.contains(document.activeElement);
    const { id, prompt: text } = view.shown;
    const asking = JSON.stringify(view.shown);
    if (asking !== drawn) {
      drawn = asking;
      prompt.replaceChildren(inert(text ?? ""));
      view.body.replaceChildren();
      if (id) kind.build(view);
      if (id && !view.draft.since && view.open) { // first sight of it: the clock starts, for every view of it at once
        model.set("draft", { ...view.draft, since: Date.now() });
        model.save_changes();
      }
    }
    asked.hidden = !id;
    reachPrompt();
    wait.hidden = Boolean(id);
    wait.lastChild.textContent = model.get("wait_text");
    wait.firstChild.hidden = !model.get("wait_text").endsWith("…"); // the moving dots: something is on its way
    root.classList.toggle("rlhf-busy", view.pending);
    if (id) kind.update(view);
    if (hadFocus && !root.contains(document.activeElement)) root.focus({ preventScroll: true });
    drawGuidelines();
    actions.forEach((action, i) => {
      buttons[i].setAttribute("aria-disabled", String(!isEnabled(action)));
      if (action.pressed) buttons[i].setAttribute("aria-pressed", String(action.pressed()));
    });
    drawProgress();
    drawMessages();
  }

  let drawnRules;
  function drawGuidelines() {
    const { text = "" } = model.get("guidelines");
    const isOpen = Boolean(text) && model.get("guidelines_open");
    if (text !== drawnRules) rules.replaceChildren(...paragraphs((drawnRules = text)));
    rulesButton.hidden = !text;
    rulesButton.setAttribute("aria-expanded", String(isOpen));
    rules.hidden = !isOpen;
    root.classList.toggle("rlhf-guided", isOpen);
  }

  function drawProgress() {
    const { done = 0, total } = model.get("progress");
    progressText.textContent = total ? `${Math.min(done + (view.shown.id ? 1 : 0), total)} of ${total}` : done ? `${done} answered` : "";
    progressBar.parentNode.hidden = !total;
    progressBar.style.width = total ? `${(100 * Math.min(done, total)) / total}%` : "0";
  }

  function drawMessages() {
    clearTimeout(patience);
    if (!view.pending) late = false;
    else if (!late) patience = setTimeout(() => { late = true; drawMessages(); }, PATIENCE_MS);
    const unanswered = "The kernel has not confirmed this yet. Your answer is kept here; it counts once this says “Saved”.";
    const message = model.get("error") || (late ? unanswered : "");
    alert.hidden = !message;
    again.hidden = !(late && view.saving);
    alertText.textContent = inertString(message);
    write(saved, isSaved() ? "✓ Saved. " : "");
    write(standing, view.saving ? "Saving…" : view.undoing ? "Taking your last answer back…" : view.shown.id ? kind.status(view) : "");
  }

  /** Text that did not change is not announced again. */
  function write(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  /** Whether the last answer is in the database and the next has not been begun. */
  function isSaved() {
    const { id } = model.get("acknowledged");
    return Boolean(id) && id === model.get("answer").id && model.get("error") === "" && !view.begun && !view.undoing;
  }

  // Several traits change in one message: draw once, after all of them.
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
  const traits = ["shown", "draft", "answer", "acknowledged", "undo", "undone", "error", "progress", "wait_text", "can_undo", "guidelines", "guidelines_open"];
  for (const trait of traits) model.on(`change:${trait}`, schedule);
  model.on("change:draft", onDraft);
  window.addEventListener("pagehide", saveDraft);
  const sizes = new ResizeObserver(() => {
    root.classList.toggle("rlhf-wide", root.clientWidth >= WIDE);
    reachPrompt();
  });
  /** What scrolls must be reachable by keyboard. */
  function reachPrompt() {
    if (prompt.scrollHeight > prompt.clientHeight + 1) prompt.setAttribute("tabindex", "0");
    else prompt.removeAttribute("tabindex");
  }
  sizes.observe(root);
  sizes.observe(prompt);
  host.append(root);
  draw();
  return () => {
    saveDraft();
    alive = false;
    window.removeEventListener("pagehide", saveDraft);
    model.off("change:draft", onDraft);
    sizes.disconnect();
    clearTimeout(patience);
    kind.cleanup?.(view);
    for (const trait of traits) model.off(`change:${trait}`, schedule);
    root.remove();
  };
}
