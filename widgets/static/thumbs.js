// The thumbs widget's own part: one reply, one click or key up or down.

const THUMB = "M2 9h3.2v9H2zM6.8 17.2V9.3l3.5-7.4c1.3 0 2.1.9 2.1 2.1 0 1-.4 2.4-.8 3.6h4.6c1.3 0 2.1 1.1 1.8 2.3l-1.5 6.3c-.3 1-1.1 1.8-2.2 1.8H9.2c-1 0-1.7-.2-2.4-.8z";

/** A thumb as a picture; the words beside it say the same. */
function thumb(up) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 20 20", width: 26, height: 26, "aria-hidden": "true", class: up ? "rlhf-thumb" : "rlhf-thumb rlhf-down" })) picture.setAttribute(name, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", THUMB);
  picture.append(path);
  return picture;
}

const VOTES = [
  { up: true, label: "Good reply", cap: "↑", keys: ["ArrowUp", "y", "1"] },
  { up: false, label: "Bad reply", cap: "↓", keys: ["ArrowDown", "n", "0"] },
];

const thumbs = {
  name: "thumbs",
  given: "voted",
  title: "Is this a good reply?",
  blank: () => ({ up: null }),
  actions: () => [],

  key(view, event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const vote = VOTES.find(({ keys }) => keys.includes(key));
    if (vote) return view.submit({ up: vote.up });
    const by = { ArrowLeft: 0, ArrowRight: 1 }[key];
    if (by !== undefined) view.votes[by].focus();
  },

  build(view) {
    const { reply, of } = view.shown;
    const name = of > 1 ? `Reply ${reply} of ${of}` : "Reply";
    view.votes = VOTES.map(({ up, label, cap, keys }) =>
      h(
        "button", { type: "button", class: "rlhf-vote", "data-up": String(up), "aria-keyshortcuts": keys.join(" "), title: `${label} (${cap}, ${keys[1].toUpperCase()} or ${keys[2]})`, onclick: (event) => { view.submit({ up }); if (event.detail > 0) view.root.focus({ preventScroll: true }); } },
        thumb(up), h("span", {}, label), kbd(cap), kbd(keys[1].toUpperCase()), h("span", { class: "rlhf-earlier" }),
      ),
    );
    view.body.replaceChildren(
      h("div", { class: "rlhf-one" }, h("span", { class: "rlhf-label" }, name), h("div", { class: "rlhf-text", dir: "auto" }, inert(view.replies[0]))),
      h("div", { class: "rlhf-votes", role: "group", "aria-label": "Your vote" }, ...view.votes),
    );
  },

  /** After an undo the draft holds the vote that was taken back; mark it. */
  update(view) {
    view.votes.forEach((button, i) => {
      const was = view.draft.up === VOTES[i].up;
      button.classList.toggle("rlhf-was", was);
      button.lastChild.textContent = was ? "your last answer" : "";
    });
  },

  status: () => "One key or click is one vote: ↑ good, ↓ bad.",
};

export default { render: ({ model, el }) => feedbackView(model, el, thumbs) };
