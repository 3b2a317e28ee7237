// The page's side of widgets/curves.py: panels of SVG curves fed by messages.
// Python holds the truth; a view says hello when it opens and is sent everything, then only what is new.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const MARGIN = { top: 8, right: 14, bottom: 36, left: 40 };
const MINUS = "\u2212";
const MARK_ROOM = 8; // pixels: marks nearer than this to each other are drawn as one
const TIP_LINES = 4;
let panelsMade = 0;

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}

/** An element that holds text. */
function text(tag, words, attributes = {}) {
  const element = node(tag, attributes);
  element.textContent = words;
  return element;
}

/** The pattern behind a stretch that was given up. */
function hatching(id) {
  const pattern = svg("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(svg("path", { d: "M0,0V6", class: "rlhf-curves-hatch" }));
  const defs = svg("defs");
  defs.append(pattern);
  return defs;
}

// --- numbers ---

function clean(text) {
  return text.replace("-", MINUS);
}

function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 4);
}

function format(value, panel) {
  if (value === null || value === undefined) return "–";
  return clean(panel.percent ? `${(100 * value).toFixed(0)}%` : digits(value));
}

function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { values: found, decimals: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), step };
}

function tickText(value, scale, percent) {
  if (percent) return clean(`${(100 * value).toFixed(Math.max(0, scale.decimals - 2))}%`);
  if (Math.abs(value) < scale.step / 2) return "0";
  if (scale.decimals > 4) return clean(value.toExponential(1));
  if (Math.abs(value) >= 10000) {
    const [unit, letter] = Math.abs(value) >= 1e6 ? [1e6, "M"] : [1e3, "k"];
    return clean(`${+(value / unit).toFixed(2)}${letter}`);
  }
  return clean(value.toFixed(scale.decimals));
}

// At most about `limit` points: the lowest and the highest of each bucket, so that no spike is lost.
function thin(points, limit) {
  if (points.length <= limit) return points;
  const size = Math.ceil((2 * points.length) / limit);
  const kept = [];
  for (let from = 0; from < points.length; from += size) {
    const bucket = points.slice(from, from + size);
    const known = bucket.filter((point) => point[1] !== null);
    if (known.length < bucket.length) kept.push(bucket.find((point) => point[1] === null));
    if (!known.length) continue;
    const low = known.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = known.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : low[0] <= high[0] ? [low, high] : [high, low]));
  }
  const last = points[points.length - 1];
  if (kept[kept.length - 1] !== last) kept.push(last);
  return kept;
}

// --- the copy of Python's history that this view holds ---

class History {
  epoch = -1;
  series = {};
  marks = []; // [x, label, id, withdrawn, {xlabel: x} in other panels]
  cuts = []; // {xlabel, start, end, label}

  // Takes a message; false when it does not continue what is here, so that everything must be asked for again.
  take(message) {
    if (message.epoch < this.epoch) return true;
    if (message.epoch > this.epoch) Object.assign(this, { epoch: message.epoch, series: {}, marks: [], cuts: [] });
    let whole = true;
    const extend = (have, start, items) => {
      if (start > have.length) whole = false;
      else items.forEach((item, i) => (have[start + i] = item));
    };
    for (const [key, { start, points }] of Object.entries(message.series)) {
      extend((this.series[key] ??= []), start, points);
    }
    extend(this.marks, message.marks.start, message.marks.items);
    for (const [place, mark] of message.marks.changed) this.marks[place] = mark;
    this.cuts = message.cuts;
    return whole;
  }

  points(key) {
    return this.series[key] ?? [];
  }
}

// --- one panel ---

class PanelView {
  constructor(spec, history, { height, markName }, onCursor, onMark) {
    Object.assign(this, { spec, history, height, markName, onCursor, onMark, cursor: null, width: 0, xs: [], groups: [], group: null });
    this.uid = `rlhf-curves-${++panelsMade}`;
    this.series = spec.series.length ? spec.series : [{ key: "", label: "", points: false }];
    this.value = node("span", { class: "rlhf-curves-value" });
    this.unit = node("span", { class: "rlhf-curves-unit" });
    this.unit.textContent = spec.unit;
    const title = node("span", { class: "rlhf-curves-title" });
    title.textContent = spec.title;
    const explanation = node("p", { class: "rlhf-curves-explanation" });
    explanation.textContent = spec.explanation;
    this.readout = node("div", { class: "rlhf-curves-readout" });
    this.plot = svg("svg", { class: "rlhf-curves-plot", height, "aria-hidden": "true" });
    this.lines = svg("g");
    this.pointer = svg("g", { class: "rlhf-curves-pointer" });
    this.plot.append(hatching(`${this.uid}-hatch`), this.lines, this.pointer);
    this.tip = node("div", { class: "rlhf-curves-tip", role: "status" });
    const head = node("div", { class: "rlhf-curves-head" }, title, node("span", {}, this.value, this.unit));
    this.element = node(
      "section",
      { class: "rlhf-curves-panel", role: "group", tabindex: "0", "data-panel": spec.key },
      head,
      explanation,
      this.legend(),
      node("div", { class: "rlhf-curves-stage" }, this.plot, this.tip),
      this.readout,
    );
    const marks = spec.marks ? "; with Shift, from mark to mark (Enter opens it)" : "";
    this.element.title = `Arrow keys read the curve point by point${marks}`;
    this.listen();
  }

  legend() {
    const legend = node("div", { class: "rlhf-curves-legend" });
    if (this.series.length < 2) return legend;
    this.series.forEach((series, i) => {
      const swatch = svg("svg", { width: series.points ? 10 : 24, height: 10, "aria-hidden": "true" });
      if (!series.points) swatch.append(svg("path", { d: "M1,5H23", ...this.stroke(i) }));
      swatch.append(this.marker(series.points ? 5 : 12, 5, i, series.points));
      const label = node("span");
      label.textContent = series.label;
      legend.append(node("span", { class: "rlhf-curves-key" }, swatch, label));
    });
    return legend;
  }

  listen() {
    this.plot.addEventListener("pointermove", (event) => {
      if (!this.scale) return;
      const px = event.clientX - this.plot.getBoundingClientRect().left;
      this.onCursor(this.nearest(this.scale.fromX(px)), this);
      this.showMark(this.groupNear(px));
    });
    this.plot.addEventListener("pointerleave", () => this.leave());
    this.plot.addEventListener("click", () => this.openMark());
    this.element.addEventListener("blur", () => this.leave());
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  leave() {
    this.showMark(null);
    this.onCursor(null, this);
  }

  // Arrows, Home and End move the read-out, with Shift from mark to mark. Notebook shortcuts must not see the key; Tab must still move on.
  key(event) {
    event.stopPropagation();
    const xs = this.xs;
    const at = xs.indexOf(this.cursor);
    const start = at < 0 ? xs.length : at;
    const moves = { ArrowLeft: start - 1, ArrowRight: at < 0 ? xs.length - 1 : at + 1, Home: 0, End: xs.length - 1 };
    if (event.key === "Escape") this.leave();
    else if (event.key === "Enter") this.openMark();
    else if (event.shiftKey && event.key in moves) this.walkMarks(event.key);
    else if (event.key in moves && xs.length) {
      this.showMark(null);
      this.onCursor(xs[Math.min(xs.length - 1, Math.max(0, moves[event.key]))], this, true);
    } else return;
    event.preventDefault();
  }

  // --- marks ---

  walkMarks(key) {
    const last = this.groups.length - 1;
    const at = this.groups.findIndex((group) => group.key === this.group);
    const moves = { ArrowLeft: at < 0 ? last : at - 1, ArrowRight: at < 0 ? 0 : at + 1, Home: 0, End: last };
    const group = this.groups[Math.min(last, Math.max(0, moves[key]))];
    if (!group) return;
    this.onCursor(null, this);
    this.showMark(group);
  }

  groupNear(px) {
    return this.groups.find((group) => Math.abs(group.px - px) <= MARK_ROOM / 2) ?? null;
  }

  /** Say what a mark was, beside it; null says nothing more. */
  showMark(group) {
    this.group = group?.key ?? null;
    this.plot.querySelectorAll(".rlhf-curves-mark").forEach((mark) => mark.classList.toggle("rlhf-curves-chosen", mark.dataset.key === this.group));
    if (!group) return this.tip.replaceChildren();
    const lines = group.marks.slice(0, TIP_LINES).map((mark) => text("div", mark[1]));
    if (group.marks.length > TIP_LINES) lines.push(text("div", `… and ${group.marks.length - TIP_LINES} more`));
    this.tip.replaceChildren(...lines);
    const half = Math.min(this.tip.offsetWidth, this.width) / 2;
    this.tip.style.left = `${Math.max(half, Math.min(this.width - half, group.px))}px`;
  }

  openMark() {
    const group = this.groups.find((each) => each.key === this.group);
    const chosen = group?.marks.findLast((mark) => mark[2]);
    if (chosen) this.onMark(chosen[2]);
  }

  nearest(x) {
    return this.xs.reduce((best, here) => (best === null || Math.abs(here - x) < Math.abs(best - x) ? here : best), null);
  }

  stroke(i) {
    return { class: `rlhf-curves-line rlhf-curves-s${i % 4}`, "stroke-dasharray": DASHES[i % 4] };
  }

  marker(x, y, i, faint = false, size = 3) {
    const shapes = [
      `M${x - size},${y}a${size},${size} 0 1,0 ${2 * size},0a${size},${size} 0 1,0 ${-2 * size},0`,
      `M${x - size},${y - size}h${2 * size}v${2 * size}h${-2 * size}z`,
      `M${x},${y - size * 1.2}l${size * 1.2},${size * 2.1}h${-size * 2.4}z`,
      `M${x},${y - size * 1.3}l${size * 1.3},${size * 1.3}l${-size * 1.3},${size * 1.3}l${-size * 1.3},${-size * 1.3}z`,
    ];
    return svg("path", { d: shapes[i % 4], class: `rlhf-curves-marker rlhf-curves-s${i % 4}${faint ? " rlhf-curves-faint" : ""}` });
  }

  draw() {
    this.headline();
    const width = Math.floor(this.plot.getBoundingClientRect().width) || this.width;
    if (!width) return;
    this.width = width;
    this.plot.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    const points = this.spec.keys.map((key) => this.history.points(key));
    const known = points.flat().filter((point) => point[1] !== null);
    this.xs = [...new Set(known.map((point) => point[0]))].sort((a, b) => a - b);
    if (!known.length) {
      this.scale = null;
      const text = { x: width / 2, y: this.height / 2, "text-anchor": "middle", class: "rlhf-curves-empty" };
      this.lines.replaceChildren(svg("text", text, this.spec.empty));
      this.pointer.replaceChildren();
      return;
    }
    this.scale = this.scales(known, width);
    const drawn = points.map((track, i) => this.drawSeries(track, i)).reverse();
    this.groups = this.groupMarks();
    this.lines.replaceChildren(...this.cutGrounds(), ...this.axes(), ...this.ticksOfMarks(), ...drawn, ...this.cutLines());
    this.drawPointer();
    if (this.group !== null) this.showMark(this.groups.find((group) => group.key === this.group) ?? null);
  }

  headline() {
    const lead = this.spec.lead ?? this.series.findIndex((series) => !series.points);
    const track = this.history.points(this.spec.keys[Math.max(0, lead)]);
    const latest = track.length ? track[track.length - 1] : null;
    this.value.textContent = latest ? format(latest[1], this.spec) : "";
    this.unit.hidden = !latest;
    const state = latest ? `latest ${format(latest[1], this.spec)} ${this.spec.unit}` : this.spec.empty;
    this.element.setAttribute("aria-label", `${this.spec.title}: ${state}. ${this.spec.explanation}`);
    const marked = this.spec.marks && this.history.marks.length > 0;
    const words = [latest && marked ? `▲ ${this.markName}` : "", this.cuts().length ? "▨ given up" : ""];
    if (this.cursor === null) this.readout.textContent = words.filter(Boolean).join("   ");
  }

  cuts() {
    return this.history.cuts.filter((cut) => cut.xlabel === this.spec.xlabel);
  }

  scales(known, width) {
    const xs = known.map((point) => point[0]);
    if (this.spec.marks) xs.push(...this.history.marks.map(([x]) => x));
    xs.push(...this.cuts().map((cut) => cut.end));
    const ys = known.flatMap((point) => [point[1], point[2] ?? point[1], point[3] ?? point[1]]);
    if (this.spec.reference !== null) ys.push(this.spec.reference);
    let [x0, x1] = [least(xs), most(xs)];
    let [y0, y1] = [least(ys), most(ys)];
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
    const pad = (y1 - y0) * 0.08 || Math.abs(y0) * 0.1 || 0.5;
    y0 = this.spec.ymin ?? y0 - pad;
    y1 = this.spec.ymax ?? y1 + pad;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: this.height - MARGIN.top - MARGIN.bottom };
    return {
      x0, x1, y0, y1, ...inner,
      toX: (x) => MARGIN.left + ((x - x0) / (x1 - x0)) * inner.width,
      toY: (y) => MARGIN.top + (1 - (y - y0) / (y1 - y0)) * inner.height,
      fromX: (pixel) => x0 + ((pixel - MARGIN.left) / inner.width) * (x1 - x0),
    };
  }

  axes() {
    const { x0, x1, y0, y1, width, height, toX, toY } = this.scale;
    const [left, right, bottom] = [MARGIN.left, MARGIN.left + width, MARGIN.top + height];
    const parts = [];
    const up = ticks(y0, y1, 4);
    for (const y of up.values) {
      parts.push(svg("path", { d: `M${left},${toY(y)}H${right}`, class: "rlhf-curves-grid" }));
      const place = { x: left - 6, y: toY(y) + 3.5, "text-anchor": "end", class: "rlhf-curves-tick" };
      parts.push(svg("text", place, tickText(y, up, this.spec.percent)));
    }
    const along = ticks(x0, x1, Math.max(2, Math.floor(width / 34)));
    for (const x of along.values) {
      const place = { x: toX(x), y: bottom + 18, "text-anchor": "middle", class: "rlhf-curves-tick" };
      parts.push(svg("text", place, tickText(x, along, false)));
    }
    parts.push(svg("path", { d: `M${left},${bottom}H${right}`, class: "rlhf-curves-axis" }));
    const name = { x: right, y: bottom + 31, "text-anchor": "end", class: "rlhf-curves-tick" };
    parts.push(svg("text", name, this.spec.xlabel));
    if (this.spec.reference !== null) parts.push(...this.referenceLine(left, right));
    return parts;
  }

  referenceLine(left, right) {
    const y = this.scale.toY(this.spec.reference);
    const line = svg("path", { d: `M${left},${y}H${right}`, class: "rlhf-curves-reference" });
    const below = y + 14 < MARGIN.top + this.scale.height; // otherwise the axis would strike the words through
    const place = { x: right, y: below ? y + 10 : y - 4, "text-anchor": "end", class: "rlhf-curves-tick rlhf-curves-halo" };
    return [line, svg("text", place, this.spec.reference_label)];
  }

  /** Marks that would touch are one: {px, key, marks}. */
  groupMarks() {
    if (!this.spec.marks) return [];
    const groups = [];
    for (const mark of [...this.history.marks].sort((a, b) => a[0] - b[0])) {
      const px = this.scale.toX(mark[0]);
      const last = groups[groups.length - 1];
      if (last && px - last.from < MARK_ROOM) last.marks.push(mark);
      else groups.push({ from: px, px, key: String(mark[2] || mark[0]), marks: [mark] });
    }
    return groups;
  }

  ticksOfMarks() {
    const bottom = MARGIN.top + this.scale.height;
    return this.groups.map(({ px, key, marks }) => {
      const labels = marks.slice(0, TIP_LINES).map((mark) => mark[1]).join("\n");
      const withdrawn = marks.every((mark) => mark[3]) ? " rlhf-curves-withdrawn" : "";
      const group = svg("g", { class: `rlhf-curves-mark${withdrawn}`, "data-key": key, "data-mark": labels });
      group.append(svg("path", { d: `M${px},${MARGIN.top}V${bottom}` }), svg("path", { d: `M${px},${bottom + 1}l-3.5,6h7z` }));
      return group;
    });
  }

  labelsAt(x) {
    const here = this.history.marks.filter((mark) => (this.spec.marks ? mark[0] : mark[4][this.spec.xlabel]) === x);
    const more = here.length > 2 ? [`and ${here.length - 2} more`] : [];
    return [...here.slice(0, 2).map((mark) => mark[1]), ...more].join(", ");
  }

  // --- stretches that were given up ---

  isGivenUp(x) {
    return this.cuts().some((cut) => x > cut.start && x <= cut.end);
  }

  cutGrounds() {
    const { toX, height } = this.scale;
    return this.cuts().map(({ start, end }) =>
      svg("rect", { x: toX(start), y: MARGIN.top, width: Math.max(0, toX(end) - toX(start)), height, fill: `url(#${this.uid}-hatch)` }),
    );
  }

  cutLines() {
    const { toX, height } = this.scale;
    return this.cuts().flatMap(({ end, label }) => {
      const px = toX(end);
      const left = px > MARGIN.left + this.scale.width / 2;
      const line = svg("path", { d: `M${px},${MARGIN.top}v${height}`, class: "rlhf-curves-cut" });
      const place = { x: px + (left ? -4 : 4), y: MARGIN.top + 9, "text-anchor": left ? "end" : "start", class: "rlhf-curves-cut-label rlhf-curves-halo" };
      return [line, svg("text", place, label)];
    });
  }

  drawSeries(track, i) {
    const { toX, toY } = this.scale;
    const group = svg("g", { "data-series": this.spec.keys[i], "data-count": track.length });
    const shown = thin(track, Math.max(200, 2 * this.width));
    const known = shown.filter((point) => point[1] !== null);
    const band = known.filter((point) => point[2] !== null && point[3] !== null);
    if (band.length > 1) {
      const edge = (points, k) => points.map((p) => `${toX(p[0]).toFixed(1)},${toY(p[k]).toFixed(1)}`);
      const d = `M${edge(band, 3).join("L")}L${edge([...band].reverse(), 2).join("L")}Z`;
      group.append(svg("path", { d, class: `rlhf-curves-band rlhf-curves-s${i % 4}` }));
    }
    if (!this.series[i].points) {
      const { kept, givenUp } = this.paths(shown);
      group.append(svg("path", { d: kept, ...this.stroke(i) }));
      if (givenUp) group.append(svg("path", { d: givenUp, class: `rlhf-curves-line rlhf-curves-given-up rlhf-curves-s${i % 4}` }));
    }
    this.markers(group, known, i);
    return group;
  }

  /** The line as path data: what still counts, and what was given up (which leaves the line where it was left). */
  paths(points) {
    const { toX, toY } = this.scale;
    const d = { kept: "", givenUp: "" };
    let before = null; // the point before, and in which path it stands
    for (const [x, y] of points) {
      const here = y === null ? "" : `${toX(x).toFixed(1)},${toY(y).toFixed(1)}`;
      const path = this.isGivenUp(x) ? "givenUp" : "kept";
      if (here && before?.path === path) d[path] += `L${here}`;
      else if (here) d[path] += before?.here && path === "givenUp" ? `M${before.here}L${here}` : `M${here}`;
      before = here ? { here, path } : null;
    }
    return d;
  }

  markers(group, known, i) {
    const { toX, toY } = this.scale;
    const cloud = this.series[i].points;
    const every = cloud ? 1 : Math.ceil(known.length / 12);
    const few = this.series.length > 1 || known.length <= 12;
    known.forEach(([x, y], index) => {
      const last = index === known.length - 1;
      const faint = cloud || this.isGivenUp(x);
      if (cloud || (few && index % every === 0 && !last)) group.append(this.marker(toX(x), toY(y), i, faint, cloud ? 2.6 : 2.4));
      if (last && !cloud) group.append(this.marker(toX(x), toY(y), i, false, 4));
    });
  }

  // The read-out at `x`: a vertical line, and what stands there as text.
  point(x, speak) {
    this.cursor = x === null || !this.scale ? null : this.nearest(x);
    this.readout.setAttribute("aria-live", speak ? "polite" : "off");
    if (this.cursor === null) this.headline();
    this.drawPointer();
  }

  drawPointer() {
    if (this.cursor === null || !this.scale) return this.pointer.replaceChildren();
    const { toX, toY, height } = this.scale;
    const px = toX(this.cursor);
    const parts = [svg("path", { d: `M${px},${MARGIN.top}v${height}` })];
    const words = [];
    this.spec.keys.forEach((key, i) => {
      const found = this.history.points(key).findLast((point) => point[0] === this.cursor);
      if (!found || found[1] === null) return;
      parts.push(this.marker(px, toY(found[1]), i, false, 4.5));
      const band = found[2] === null ? "" : ` [${format(found[2], this.spec)}, ${format(found[3], this.spec)}]`;
      words.push(`${this.series[i].label ? `${this.series[i].label} ` : ""}${format(found[1], this.spec)}${band}`);
    });
    const givenUp = this.isGivenUp(this.cursor) ? "given up" : "";
    this.readout.textContent = [`${this.spec.xlabel} ${at(this.cursor)}`, ...words, givenUp, this.labelsAt(this.cursor)].filter(Boolean).join(" · ");
    this.pointer.replaceChildren(...parts);
  }
}

function at(x) {
  return Number.isInteger(x) ? x.toLocaleString("en") : digits(x);
}

// Math.min(...values) overflows the stack on a long run.
function least(values) {
  return values.reduce((a, b) => (b < a ? b : a), Infinity);
}

function most(values) {
  return values.reduce((a, b) => (b > a ? b : a), -Infinity);
}

function render({ model, el }) {
  const history = new History();
  const root = node("div", { class: "rlhf-curves", "data-lm-suppress-shortcuts": "true" });
  root.style.setProperty("--rlhf-curves-panel-width", `${model.get("panel_width")}px`);
  let frame = 0;
  const options = { height: model.get("plot_height"), markName: model.get("mark_name") };
  const views = model.get("panels").map((spec) => new PanelView(spec, history, options, follow, openMark));

  function follow(x, source, speak = false) {
    for (const view of views) {
      if (view === source || view.spec.xlabel === source.spec.xlabel) view.point(x, speak && view === source);
    }
  }
  function openMark(id) {
    model.send({ type: "mark", id });
  }
  function draw() {
    frame = 0;
    for (const view of views) view.draw();
  }
  function schedule() {
    frame ||= requestAnimationFrame(draw);
  }
  function onMessage(message) {
    if (message.type !== "points") return;
    if (!history.take(message)) model.send({ type: "hello" });
    schedule();
  }

  root.append(...views.map((view) => view.element));
  el.replaceChildren(root);
  const observer = new ResizeObserver(schedule);
  observer.observe(root);
  model.on("msg:custom", onMessage);
  model.send({ type: "hello" });
  schedule();
  return () => {
    observer.disconnect();
    cancelAnimationFrame(frame);
    model.off("msg:custom", onMessage);
    el.replaceChildren();
  };
}

export default { render };
