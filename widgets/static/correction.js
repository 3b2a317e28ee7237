// The correction widget's own part: the reply in a text field, and below it, live, which words were changed.

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const SAVE_CAP = MAC ? "⌘ ↵" : "Ctrl ↵";

/** A text field knows one kind of line end. */
const asField = (text) => text.replace(/\r\n?/g, "\n");
const words = (text) => text.match(/\s+|[^\s\p{P}]+|\p{P}/gu) ?? [];

/**
 * What happened to the words, in order: [kind, text] with kind "same", "del" or "ins", by the longest common
 * subsequence (after the shared beginning and end were set aside; past `LARGEST` cells the middle counts as replaced).
 */
const LARGEST = 4_000_000;
function wordDiff(before, after) {
  const [a, b] = [words(before), words(after)];
  let start = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  let end = 0;
  while (end < Math.min(a.length, b.length) - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const middle = lcsDiff(a.slice(start, a.length - end), b.slice(start, b.length - end));
  return joined([...a.slice(0, start).map((word) => ["same", word]), ...middle, ...a.slice(a.length - end).map((word) => ["same", word])]);
}

function lcsDiff(a, b) {
  if ((a.length + 1) * (b.length + 1) > LARGEST) return [...a.map((word) => ["del", word]), ...b.map((word) => ["ins", word])];
  const width = b.length + 1;
  const length = new Uint16Array((a.length + 1) * width); // of the longest common subsequence of a[i…] and b[j…]
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i * width + j] = a[i] === b[j] ? length[(i + 1) * width + j + 1] + 1 : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    }
  }
  const steps = [];
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    if (i < a.length && j < b.length && a[i] === b[j]) { steps.push(["same", a[i++]]); j++; }
    else if (j >= b.length || (i < a.length && length[(i + 1) * width + j] >= length[i * width + j + 1])) steps.push(["del", a[i++]]);
    else steps.push(["ins", b[j++]]);
  }
  return steps;
}

/** Runs joined: deletions before insertions, and a lone space between two changes belongs to them. */
function joined(steps) {
  const runs = [];
  let del = "";
  let ins = "";
  const flush = () => {
    if (del) runs.push(["del", del]);
    if (ins) runs.push(["ins", ins]);
    del = ins = "";
  };
  steps.forEach(([kind, text], i) => {
    const between = kind === "same" && text === " " && (del || ins) && i + 1 < steps.length && steps[i + 1][0] !== "same";
    if (kind === "del" || between) del += text;
    if (kind === "ins" || between) ins += text;
    if (kind !== "same" || between) return;
    flush();
    const last = runs.at(-1);
    if (last?.[0] === "same") last[1] += text;
    else runs.push(["same", text]);
  });
  flush();
  return runs;
}

const countWords = (runs, kind) => runs.filter(([k]) => k === kind).flatMap(([, text]) => text.match(/[^\s\p{P}]+/gu) ?? []).length;
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

const correction = {
  name: "correction",
  given: "corrected",
  title: "Make this reply better",
  blank: () => ({ text: null }),

  original: (view) => asField(view.replies[0] ?? ""),
  text: (view) => view.draft.text ?? correction.original(view),
  changed: (view) => correction.text(view) !== correction.original(view),
  ready: (view) => correction.changed(view) && Boolean(correction.text(view).trim()),

  actions(view) {
    return [
      {
        label: "Save correction", cap: SAVE_CAP, shortcut: MAC ? "Meta+Enter" : "Control+Enter", keys: [], primary: true,
        enabled: () => correction.ready(view), run: () => correction.save(view),
      },
      {
        label: "It is good as it is", cap: "Y", shortcut: "y", keys: ["y"], hint: "Leave the reply unchanged and go on",
        enabled: () => !correction.changed(view), run: () => view.submit({ verdict: "good as it is" }, "skipped"),
      },
      {
        label: "Restore", cap: "Esc", shortcut: "Escape", keys: [], hint: "Bring the original back (Escape in the text)",
        enabled: () => correction.changed(view), run: () => { correction.restore(view); view.field.focus(); },
      },
    ];
  },

  save(view) {
    if (correction.ready(view)) view.submit({ text: correction.text(view) });
  },

  /** Bring the original back, in a way that the field's own undo (Ctrl+Z) can take back. */
  restore(view) {
    view.field.focus();
    view.field.select();
    const text = correction.original(view);
    const done = text ? document.execCommand("insertText", false, text) : document.execCommand("delete");
    if (!done) view.field.value = text;
    correction.typedText(view);
  },

  typedText(view) {
    view.setDraft({ text: view.field.value === correction.original(view) ? null : view.field.value });
  },

  /** A key in the field. Everything else there is writing. */
  typed(view, event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (!event.repeat) correction.save(view);
    } else if (event.key === "Escape" && !event.isComposing) {
      event.preventDefault();
      if (correction.changed(view)) correction.restore(view);
      else view.root.focus({ preventScroll: true });
    }
  },

  key(view, event) {
    if (event.key === "Enter" || event.key.toLowerCase() === "e") {
      view.field.focus();
      view.field.setSelectionRange(view.field.value.length, view.field.value.length);
    }
  },

  build(view) {
    const { reply, of } = view.shown;
    const name = of > 1 ? `Reply ${reply} of ${of}` : "Reply";
    view.field = h("textarea", { class: "rlhf-field", "aria-label": `${name}: your version`, dir: "auto", spellcheck: "true", "aria-keyshortcuts": "e", oninput: () => correction.typedText(view) });
    view.diff = h("div", { class: "rlhf-text rlhf-diff-text", dir: "auto" });
    view.counts = h("span", { class: "rlhf-diff-counts" });
    view.body.replaceChildren(
      h("div", { class: "rlhf-field-head" }, h("span", { class: "rlhf-label" }, `${name}: edit it here`), kbd("E")),
      view.field,
      h("div", { class: "rlhf-diff", role: "region", "aria-label": "What you changed" }, h("div", { class: "rlhf-diff-head" }, h("span", { class: "rlhf-label" }, "What you changed"), view.counts), view.diff),
      h("p", { class: "rlhf-purpose" }, "Your version teaches twice: as a demonstration for fine-tuning (SFT), and as a comparison, your version above the original, for the reward model."),
    );
    view.drawn = undefined;
  },

  update(view) {
    const text = correction.text(view);
    if (view.field.value !== text) view.field.value = text;
    view.field.readOnly = view.pending;
    if (view.drawn === text) return;
    view.drawn = text;
    view.field.style.height = "auto";
    view.field.style.height = `${Math.max(72, Math.min(view.field.scrollHeight + 2, 420))}px`;
    drawDiff(view, wordDiff(correction.original(view), text));
  },

  status(view) {
    const [changed, ready] = [correction.changed(view), correction.ready(view)];
    if (ready) return `${SAVE_CAP} saves your correction; Escape in the text restores the original.`;
    return changed ? "The text is empty: write what the reply should have been." : "Press E and edit; if nothing is wrong, press Y.";
  },
};

const SPOKEN = { del: "removed: ", ins: "added: " };

/** A changed run: its words marked, the spaces around them left alone; a change of spaces alone is made visible. */
function marked(kind, text) {
  const [, before, core, after] = text.match(/^(\s*)(.*?)(\s*)$/su);
  const said = core ? inert(core) : text.replace(/\n/g, "↵\n").replace(/[^\S\n]/g, "␣");
  return [core ? before : "", h(kind, {}, h("span", { class: "rlhf-unseen" }, SPOKEN[kind]), said), core ? after : ""];
}

/** The runs as text: removed words struck through, added ones underlined and bold, both named for screen readers. */
function drawDiff(view, runs) {
  const isSame = runs.every(([kind]) => kind === "same");
  const parts = runs.flatMap(([kind, text]) => (kind === "same" ? [inert(text)] : marked(kind, text)));
  view.diff.replaceChildren(...(isSame ? [h("span", { class: "rlhf-nothing" }, "Nothing yet.")] : parts));
  const [removed, added] = [countWords(runs, "del"), countWords(runs, "ins")];
  view.counts.textContent = isSame ? "" : `− ${plural(removed, "word")} removed   + ${plural(added, "word")} added`;
}

export default { render: ({ model, el }) => feedbackView(model, el, correction) };
