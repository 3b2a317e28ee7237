// The ranking widget's own part: tiers of reply numbers, best first, ordered by key, click or drag.

const ordinal = (n) => {
  const teens = n % 100 > 10 && n % 100 < 14;
  return `${n}${(!teens && ["th", "st", "nd", "rd"][n % 10]) || "th"}`;
};
const without = (tiers, n) => tiers.map((tier) => tier.filter((m) => m !== n)).filter((tier) => tier.length);
const tierOf = (tiers, n) => tiers.findIndex((tier) => tier.includes(n));

/** `n` takes the next rank, or (`tie`) stands beside the last one. */
const assigned = (tiers, n, tie) => (tie && tiers.length ? [...tiers.slice(0, -1), [...tiers.at(-1), n]] : [...tiers, [n]]);

/** Tie or untie the neighbours `above` and `below`. */
function toggledTie(tiers, above, below) {
  const i = tierOf(tiers, above);
  if (i !== tierOf(tiers, below)) return [...tiers.slice(0, i), [...tiers[i], ...tiers[i + 1]], ...tiers.slice(i + 2)];
  const cut = tiers[i].indexOf(below);
  return [...tiers.slice(0, i), tiers[i].slice(0, cut), tiers[i].slice(cut), ...tiers.slice(i + 1)];
}

/**
 * The tiers after `n` was dropped: on reply `tie`, or before row `index` of the `rows` (without `n`) on screen.
 * Rows that were not ranked yet and stand above the place are taken along, as they are seen.
 */
function dropped(tiers, rows, n, { tie, index }) {
  const kept = without(tiers, n);
  const ranked = kept.flat().length;
  const upTo = tie === undefined ? index : rows.indexOf(tie) + 1;
  const grown = [...kept, ...rows.slice(ranked, Math.max(upTo, ranked)).map((m) => [m])];
  if (tie !== undefined) return grown.map((tier) => (tier.includes(tie) ? [...tier, n] : tier));
  const result = [];
  let row = 0;
  let placed = false;
  for (const tier of grown) {
    if (!placed && index <= row) { result.push([n]); placed = true; }
    if (!placed && index < row + tier.length) { result.push([...tier.slice(0, index - row), n, ...tier.slice(index - row)]); placed = true; } // between two that are tied: tied with both
    else result.push(tier);
    row += tier.length;
  }
  return placed ? result : [...result, [n]];
}

/** `n` one rank up (−1) or down (+1), as a tier of its own. */
function moved(tiers, n, by) {
  const i = tierOf(tiers, n);
  const alone = tiers[i].length === 1;
  const rest = without(tiers, n);
  const at = alone ? i + by : i + (by > 0 ? 1 : 0);
  return at < 0 || at > rest.length ? tiers : [...rest.slice(0, at), [n], ...rest.slice(at)];
}

const ranking = {
  name: "ranking",
  given: "ranked",
  blank: () => ({ tiers: [], tie: false }),
  title: "Rank the replies, best first",
  help: "Best first: press a reply's number, click it, or drag it.",

  rows(view) {
    const placed = view.draft.tiers.flat();
    return [...placed, ...view.replies.map((_, i) => i + 1).filter((n) => !placed.includes(n))];
  },

  /** The tiers that Enter would confirm: complete, or with one reply left, which comes last. Else null. */
  complete(view) {
    const { tiers, tie } = view.draft;
    const placed = tiers.flat();
    const left = view.replies.map((_, i) => i + 1).filter((n) => !placed.includes(n));
    if (left.length > 1 || !placed.length) return null;
    return left.length ? assigned(tiers, left[0], tie) : tiers;
  },

  actions(view) {
    const draft = () => view.draft;
    return [
      {
        label: "Confirm", cap: "Enter", shortcut: "Enter", keys: ["Enter"], primary: true,
        enabled: () => ranking.complete(view) !== null, run: () => view.submit({ order: ranking.complete(view) }),
      },
      {
        label: "Tie next", cap: "=", shortcut: "=", keys: ["=", "t"], hint: "The next reply ties with the last one ranked (= or T)",
        pressed: () => Boolean(draft().tie),
        enabled: () => draft().tiers.length > 0 && draft().tiers.flat().length < view.replies.length,
        run: () => view.setDraft({ tie: !draft().tie }),
      },
      {
        label: "Take back", cap: "⌫", hint: "Take the last ranked reply out again (Backspace)", shortcut: "Backspace", keys: ["Backspace"],
        enabled: () => draft().tiers.length > 0,
        run: () => view.setDraft({ tie: false, tiers: without(draft().tiers, draft().tiers.flat().at(-1)) }),
      },
    ];
  },

  /** Give reply `n` the next rank; a reply that has one is taken out. */
  choose(view, n) {
    const { tiers, tie } = view.draft;
    const next = tierOf(tiers, n) < 0 ? assigned(tiers, n, tie) : without(tiers, n);
    view.setDraft({ tiers: next, tie: false });
  },

  key(view, event) {
    const n = Number(event.key);
    if (n >= 1 && n <= view.replies.length) return ranking.choose(view, n);
    const focused = Number(event.target.closest?.(".rlhf-card")?.dataset.number) || 0;
    if (event.key === " " && focused) return ranking.choose(view, focused);
    if (event.key === "Escape") return view.cancelDrag?.() || (view.draft.tie && view.setDraft({ tie: false }));
    const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
    if (!by) return;
    if (!event.shiftKey) {
      const rows = ranking.rows(view);
      const at = focused ? rows.indexOf(focused) + by : by > 0 ? 0 : rows.length - 1;
      view.cards[rows[Math.max(0, Math.min(at, rows.length - 1))]].focus();
    } else if (focused && tierOf(view.draft.tiers, focused) >= 0) {
      view.setDraft({ tiers: moved(view.draft.tiers, focused, by) });
    }
  },

  build(view) {
    view.cancelDrag?.();
    view.cards = {};
    view.replies.forEach((text, i) => {
      const n = i + 1;
      const card = h(
        "div",
        { class: "rlhf-card", role: "button", tabindex: "0", "data-number": String(n), onclick: () => { if (!view.justDragged) ranking.choose(view, n); } },
        h("span", { class: "rlhf-handle", "aria-hidden": "true", title: "Drag" }, "⠿"),
        kbd(String(n)),
        h("div", { class: "rlhf-text", dir: "auto" }, inert(text)),
        h("span", { class: "rlhf-rank", "aria-hidden": "true" }),
      );
      if (n <= 9) card.setAttribute("aria-keyshortcuts", String(n));
      card.addEventListener("pointerdown", (event) => startDrag(view, n, event));
      view.cards[n] = card;
    });
    view.list = h("div", { class: "rlhf-list" });
    view.dropLine = h("div", { class: "rlhf-drop-line", "aria-hidden": "true" });
    view.dropLine.hidden = true;
    view.body.replaceChildren(view.list, view.dropLine);
    view.placed = undefined;
  },

  update(view) {
    const { tiers, tie } = view.draft;
    const asPlaced = canonical([tiers, tie]);
    if (asPlaced === view.placed) return; // a card that is put in anew, where it was, would lose the pointer that drags it
    view.placed = asPlaced;
    const placed = tiers.flat();
    const children = [];
    placed.forEach((n, i) => {
      if (i > 0) children.push(link(view, placed[i - 1], n, tierOf(tiers, placed[i - 1]) === tierOf(tiers, n)));
      children.push(view.cards[n]);
    });
    const rest = ranking.rows(view).slice(placed.length);
    if (placed.length && rest.length) children.push(h("div", { class: "rlhf-divider" }, tie ? `Next: tied for ${ordinal(tiers.length)}` : `Next: ${ordinal(tiers.length + 1)}`));
    children.push(...rest.map((n) => view.cards[n]));
    for (const [number, card] of Object.entries(view.cards)) drawCard(view, Number(number), card);
    place(view, children);
  },

  status(view) {
    const { tiers, tie } = view.draft;
    const placed = tiers.flat();
    const said = tiers.map((tier, i) => `${ordinal(i + 1)}: ${tier.length > 1 ? `replies ${tier.join(" and ")} (tie)` : `reply ${tier[0]}`}`).join(", ");
    const left = view.replies.length - placed.length;
    if (!placed.length) return ranking.help;
    if (!left) return `${said}. Enter confirms.`;
    if (left === 1) return `${said}. Reply ${ranking.rows(view).at(-1)} is left: Enter ${tie ? "ties it with the previous" : "puts it last"} and confirms.`;
    return `${said}. ${tie ? "The next reply ties with the previous." : `${left} left.`}`;
  },

  cleanup(view) {
    view.cancelDrag?.();
  },
};

function drawCard(view, n, card) {
  const { tiers } = view.draft;
  const tier = tierOf(tiers, n);
  const tied = tier >= 0 && tiers[tier].length > 1;
  card.classList.toggle("rlhf-ranked", tier >= 0);
  card.lastChild.textContent = tier < 0 ? "–" : `${tied ? "=" : ""}${ordinal(tier + 1)}`;
  const rank = tier < 0 ? "not ranked yet" : `ranked ${ordinal(tier + 1)}${tied ? ", tied" : ""}`;
  card.setAttribute("aria-label", `Reply ${n}, ${rank}: ${inertString(view.replies[n - 1])}`);
  card.setAttribute("aria-pressed", String(tier >= 0));
}

/** The button between two ranked neighbours: "better than" or "as good as". */
function link(view, above, below, tied) {
  const says = tied ? "as good as" : "better than";
  const label = `Reply ${above} is ${says} reply ${below}. ${tied ? "Untie them" : "Tie them"}`;
  const toggle = () => view.setDraft({ tiers: toggledTie(view.draft.tiers, above, below) });
  const button = h("button", { type: "button", class: "rlhf-link", "aria-pressed": String(tied), "aria-label": label, onclick: toggle });
  button.append(h("span", { "aria-hidden": "true" }, tied ? "=" : "▼"), ` ${says} `, h("span", { class: "rlhf-link-offer" }, tied ? "untie" : "tie"));
  button.dataset.pair = `${above}-${below}`;
  return button;
}

/** Put `children` into the list, keep the focus, and slide moved cards to their new places. */
function place(view, children) {
  const focus = view.list.contains(document.activeElement) ? document.activeElement : null;
  const cards = Object.values(view.cards);
  const before = new Map(cards.filter((card) => card.isConnected).map((card) => [card, card.getBoundingClientRect().top]));
  view.list.replaceChildren(...children);
  if (focus) (focus.isConnected ? focus : view.list.querySelector(`[data-pair="${focus.dataset.pair}"]`) ?? view.root).focus({ preventScroll: true });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const [card, top] of before) {
    const shift = top - card.getBoundingClientRect().top;
    if (shift) card.animate([{ transform: `translateY(${shift}px)` }, { transform: "none" }], { duration: 140, easing: "ease-out" });
  }
}

// --- drag and drop: pointer events, so that mouse, pen and touch are one thing ---

const DRAG_STARTS_AT = 6; // pixels; less is a click

/** Where a card let go at height `y` would land: on the middle of another card (tie), or before row `index`. */
function dropTarget(view, rows, y) {
  for (const [index, n] of rows.entries()) {
    const { top, height } = view.cards[n].getBoundingClientRect();
    if (y < top + height * 0.3) return { index };
    if (y < top + height * 0.7) return { tie: n };
  }
  return { index: rows.length };
}

function showTarget(view, rows, target, card) {
  for (const n of rows) view.cards[n].classList.toggle("rlhf-tie-target", n === target?.tie);
  card.classList.toggle("rlhf-will-tie", target?.tie !== undefined);
  view.dropLine.hidden = target?.index === undefined;
  if (view.dropLine.hidden) return;
  const { index } = target;
  const edge = index < rows.length ? view.cards[rows[index]].getBoundingClientRect().top - 5 : view.cards[rows.at(-1)].getBoundingClientRect().bottom + 3;
  view.dropLine.style.top = `${edge - view.body.getBoundingClientRect().top}px`;
}

function startDrag(view, n, down) {
  const onHandle = down.target.closest(".rlhf-handle");
  if (!view.open || down.button !== 0 || (down.pointerType === "touch" && !onHandle)) return; // elsewhere a finger scrolls
  const card = view.cards[n];
  const rows = ranking.rows(view).filter((m) => m !== n);
  let dragging = false;
  let target;
  view.justDragged = false;

  function move(event) {
    const dy = event.clientY - down.clientY;
    if (!dragging && Math.hypot(event.clientX - down.clientX, dy) < DRAG_STARTS_AT) return;
    if (!dragging) card.setPointerCapture(down.pointerId);
    dragging = true;
    card.classList.add("rlhf-dragging");
    card.style.transform = `translateY(${dy}px)`;
    target = dropTarget(view, rows, event.clientY);
    showTarget(view, rows, target, card);
  }
  function end(drop) {
    card.removeEventListener("pointermove", move);
    card.removeEventListener("pointerup", up);
    card.removeEventListener("pointercancel", cancel);
    card.classList.remove("rlhf-dragging");
    card.style.transform = "";
    showTarget(view, rows, undefined, card);
    view.cancelDrag = undefined;
    view.justDragged = dragging;
    setTimeout(() => { view.justDragged = false; }); // the click that follows a drag is not a choice
    if (drop && dragging && target) view.setDraft({ tiers: dropped(view.draft.tiers, rows, n, target), tie: false });
  }
  const up = () => end(true);
  const cancel = () => end(false);
  view.cancelDrag = () => { end(false); return true; };
  card.addEventListener("pointermove", move);
  card.addEventListener("pointerup", up);
  card.addEventListener("pointercancel", cancel);
}

export default { render: ({ model, el }) => feedbackView(model, el, ranking) };
