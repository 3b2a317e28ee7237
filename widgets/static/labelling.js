// The strip above a student's questions. Python puts plain data into `data`; this draws it.

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A button where the page can change its theme: the class's own pages can, JupyterLab has its own way. */
function themeButton() {
  if (!window.rlhfToggleTheme) return [];
  const button = node("button", { type: "button", class: "rlhf-page-theme", "aria-label": "Light or dark", title: "Light or dark" });
  button.append(node("span", { "aria-hidden": "true" }, "◐"));
  button.addEventListener("click", window.rlhfToggleTheme);
  return [button];
}

/** On a page of its own the task has the keys from the start; in a notebook the notebook keeps them. */
function focusTask(tries = 60) {
  if (!window.rlhfToggleTheme || document.activeElement !== document.body) return;
  const task = document.querySelector(".rlhf-feedback");
  if (task?.offsetParent) task.focus({ preventScroll: true });
  else if (tries) setTimeout(focusTask, 100, tries - 1);
}

function render({ model, el }) {
  const title = node("h1", { class: "rlhf-page-name" });
  const own = node("span", { class: "rlhf-page-own" });
  const fill = node("span", { class: "rlhf-page-fill" });
  const bar = node("span", { class: "rlhf-page-bar", role: "progressbar", "aria-label": "The class", "aria-valuemin": "0" }, fill);
  const words = node("span", { class: "rlhf-page-words" });
  const error = node("p", { class: "rlhf-page-error", role: "alert" });
  const line = node("div", { class: "rlhf-page-line" }, title, own, node("span", { class: "rlhf-page-class" }, bar, words), ...themeButton());
  const root = node("header", { class: "rlhf-page-header" }, line, error);

  function draw() {
    const { name, answered, done, places, error: message } = model.get("data");
    line.hidden = !name;
    title.textContent = name ?? "";
    if (name) document.title = `${name} – RLHF Lab`;
    own.textContent = answered === 1 ? "1 question answered" : `${answered} questions answered`;
    bar.parentNode.hidden = !places;
    bar.setAttribute("aria-valuemax", String(places));
    bar.setAttribute("aria-valuenow", String(done));
    fill.style.width = places ? `${(100 * done) / places}%` : "0";
    words.textContent = `class ${done} of ${places}`;
    error.textContent = message;
    error.hidden = !message;
  }
  focusTask();
  model.on("change:data", draw);
  el.append(root);
  draw();
  return () => {
    model.off("change:data", draw);
    root.remove();
  };
}

export default { render };
