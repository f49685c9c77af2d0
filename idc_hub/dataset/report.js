"use strict";
// Fills report.html from its JSON block. Text from outside is only ever set as textContent or as an option's label.
// A photograph has: id, state, error, why, cells, curve; and either `patches` (index, lr, hr, real, box, distance) with
// `photo`, or the small pictures `strip` and `photo`. Pictures are "image/...;base64,...".
const data = JSON.parse(document.getElementById("data").textContent);
const FIRST_CARDS = 12;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function picture(source, properties = {}) {
  return make("img", { src: `data:${source}`, alt: "", decoding: "async", ...properties });
}

function short(value) {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (Math.abs(value) < 1e-3) return value.toExponential(1);
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

// Whatever is far below the window is made when it comes near.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    entry.target.fill();
  }
}, { rootMargin: "800px" });

function lazily(element, fill) {
  element.fill = fill;
  near.observe(element);
  return element;
}

// Charts

const COLORS = ["var(--accent)", "var(--second)", "var(--third)"];

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function chart({ title, log, across, series }) {
  const [width, height, left, bottom, top] = [360, 200, 48, 24, 8];
  const values = series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]);
  const usable = values.filter((v) => Number.isFinite(v) && (!log || v > 0));
  const figure = make("figure", {}, make("figcaption", { textContent: title }));
  if (!usable.length) return figure;
  const logarithmic = log && Math.max(...usable) > 2 * Math.min(...usable);
  const scaled = (v) => (logarithmic ? Math.log10(Math.max(v, Math.min(...usable))) : v);
  let [low, high] = [scaled(Math.min(...usable)), scaled(Math.max(...usable))];
  if (!logarithmic) low = Math.min(low, 0);
  if (high === low) high = low + 1;
  const xs = series.flatMap((s) => s.x);
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const x = (v) => left + ((v - first) / (last - first || 1)) * (width - left - 8);
  const y = (v) => top + (1 - (scaled(v) - low) / (high - low)) * (height - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (let tick = 0; tick <= 4; tick++) {
    const at = low + ((high - low) * tick) / 4;
    const value = logarithmic ? 10 ** at : at;
    const level = y(value);
    drawing.append(svg("line", { class: "axis", x1: left, x2: width - 8, y1: level, y2: level }));
    drawing.append(svg("text", { x: left - 6, y: level + 4, "text-anchor": "end" }, String(Number(value.toPrecision(2)))));
  }
  drawing.append(svg("text", { x: left, y: height - 6 }, short(first)));
  drawing.append(svg("text", { x: width - 8, y: height - 6, "text-anchor": "end" }, `${across} ${short(last)}`));
  const points = (s, level) => s.x.map((v, i) => `${x(v).toFixed(1)},${y(level[i]).toFixed(1)}`);
  series.forEach((s, number) => {
    const style = `--color:${COLORS[number % COLORS.length]}`;
    if (s.low) {
      const outline = [...points(s, s.high), ...points(s, s.low).reverse()].join(" ");
      drawing.append(svg("polygon", { class: "band", points: outline, style }));
    }
    drawing.append(svg("polyline", { class: "line", points: points(s, s.y).join(" "), style }));
  });
  figure.append(drawing);
  if (series.length > 1) {
    const legend = make("div", { className: "legend" });
    series.forEach((s, number) => {
      const mark = make("i");
      mark.style.setProperty("--color", COLORS[number % COLORS.length]);
      legend.append(make("span", {}, mark, s.name));
    });
    figure.append(legend);
  }
  return figure;
}

function spark(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const points = values.map((v, i) => `${(i / (values.length - 1 || 1)) * 120},${30 - ((v - low) / (high - low || 1)) * 28}`);
  const line = svg("polyline", { class: "line", points: points.join(" "), style: "--color:var(--accent)" });
  return svg("svg", { viewBox: "0 0 120 31", role: "img", "aria-label": "instance loss over the steps" }, line);
}

for (const place of document.querySelectorAll("[data-charts]")) {
  const charts = data[place.dataset.charts];
  const chosen = place.dataset.number === undefined ? charts : [charts[Number(place.dataset.number)]];
  lazily(place, () => place.append(...chosen.map(chart)));
}

// Cards with sliders

function fillCard(card, photograph) {
  const facts = data.columns.map((_, i) => [labels[i], photograph.cells[i]]).filter(([, value]) => value !== null);
  const stage = make("div");
  card.append(stage);
  let shown = 0;
  const choice = {};
  const draw = () => {
    const patch = photograph.patches[shown];
    const sources = [];
    if (patch.real) sources.push(["real", patch.real, false]);
    sources.push([`LR patch ${patch.index}`, patch.lr, true]);
    patch.hr.forEach((source, i) => sources.push([`HR: ${data.versions[i]}`, source, false]));
    choice.left ??= patch.hr.length ? (patch.real ? 1 : 0) : 0;
    choice.right ??= Math.min(choice.left + 1, sources.length - 1);
    choice.place ??= 50;
    const compare = make("div", { className: "compare" });
    const slider = make("input", { type: "range", min: 0, max: 100, step: 1, value: choice.place, ariaLabel: "Border between the two pictures" });
    const edge = make("div", { className: "edge" });
    const place = () => {
      choice.place = Number(slider.value);
      compare.children[1].style.clipPath = `inset(0 0 0 ${choice.place}%)`;
      edge.style.left = `${choice.place}%`;
    };
    const side = (name) => {
      const select = make("select", { ariaLabel: `${name} picture` });
      sources.forEach(([label], i) => select.append(new Option(label, i, false, i === choice[name])));
      select.addEventListener("change", () => { choice[name] = Number(select.value); layers(); });
      return select;
    };
    const layers = () => {
      const images = ["left", "right"].map((name) => {
        const [label, source, pixels] = sources[choice[name]];
        return picture(source, { alt: label, className: pixels ? "pixels" : "" });
      });
      compare.replaceChildren(...images, edge);
      place();
    };
    slider.addEventListener("input", place);
    const all = make("div", { className: "all" });
    for (const [label, source] of sources) {
      const caption = make("figcaption", { textContent: label.replace("HR: ", "") });
      all.append(make("figure", {}, picture(source, { alt: label }), caption));
    }
    const parts = [make("div", { className: "sides" }, side("left"), side("right")), compare, slider, all];
    if (photograph.patches.length > 1) {
      const steps = make("div", { className: "steps" });
      photograph.patches.forEach((other, i) => {
        const button = make("button", { type: "button", textContent: `patch ${other.index}`, ariaPressed: String(i === shown) });
        button.addEventListener("click", () => { shown = i; draw(); });
        steps.append(button);
      });
      parts.push(steps);
    }
    stage.replaceChildren(...parts, below());
    layers();
  };
  const below = () => {
    const left = make("div");
    if (photograph.photo) {
      const photo = make("div", { className: "photo" }, picture(photograph.photo, { alt: "photograph" }));
      (photograph.patches || []).forEach((patch, i) => {
        if (!patch.box) return;
        const mark = make("span", { className: i === shown ? "shown" : "" });
        ["left", "top", "width", "height"].forEach((name, n) => { mark.style[name] = `${100 * patch.box[n]}%`; });
        photo.append(mark);
      });
      left.append(photo);
    }
    if (photograph.curve.length > 1) left.append("Instance loss", spark(photograph.curve));
    const list = make("dl");
    const patch = photograph.patches && photograph.patches[shown];
    const known = patch && patch.distance !== undefined ? [["RMS to the real patch, gray levels", patch.distance], ...facts] : facts;
    for (const [label, value] of known) list.append(make("dt", { textContent: label }), make("dd", { textContent: short(value) }));
    const row = make("div", { className: "below" });
    if (left.childNodes.length) row.append(left);
    row.append(make("div", {}, list));
    return row;
  };
  if (photograph.patches) draw();
  else stage.append(below());
}

function card(photograph) {
  const element = make("article", { className: "card" }, make("h3", { textContent: photograph.id }));
  const why = photograph.error || photograph.why;
  if (why) element.append(make("p", { className: photograph.error ? "why failed" : "why", textContent: why }));
  return lazily(element, () => fillCard(element, photograph));
}

function thumbnail(photograph) {
  const element = make("div", { className: "thumb", textContent: photograph.id, title: photograph.id });
  return lazily(element, () => {
    for (const source of [photograph.strip, photograph.photo]) if (source) element.prepend(picture(source));
  });
}

// The table, and what the filter leaves

const headings = [...document.querySelectorAll("#table thead th")];
const labels = headings.slice(2).map((heading) => heading.textContent);
const body = document.querySelector("#table tbody");
const rows = data.photographs.map((photograph) => {
  const row = make("tr", {}, make("td", { textContent: photograph.id, title: photograph.id }), make("td", { textContent: photograph.state }));
  for (const value of photograph.cells) row.append(make("td", { textContent: short(value) }));
  return row;
});
body.append(...rows);

let order = data.photographs.map((_, i) => i);
const value = (photograph, column) => (column === 0 ? photograph.id : column === 1 ? photograph.state : photograph.cells[column - 2]);
headings.forEach((heading, column) => {
  heading.querySelector("button").addEventListener("click", () => {
    const before = heading.getAttribute("aria-sort");
    const down = before === null ? column > 1 : before === "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    order.sort((one, other) => {
      const [a, b] = [value(data.photographs[one], column), value(data.photographs[other], column)];
      if (a === null || b === null) return (a === null) - (b === null); // unknown ones come last
      const difference = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return down ? -difference : difference;
    });
    body.append(...order.map((i) => rows[i]));
  });
});

const detailed = data.photographs.map((p, i) => i).filter((i) => data.photographs[i].patches || data.photographs[i].error);
const rest = data.photographs.map((p, i) => i).filter((i) => !detailed.includes(i) && (data.photographs[i].strip || data.photographs[i].photo));
const made = new Map();
let visible = FIRST_CARDS;
const filter = document.getElementById("filter");
const state = document.getElementById("state");
const more = document.getElementById("more");

function show(container, indices, build) {
  container.replaceChildren(...indices.map((i) => {
    if (!made.has(i)) made.set(i, build(data.photographs[i]));
    return made.get(i);
  }));
}

function update() {
  const wanted = filter.value.trim().toLowerCase();
  const fits = data.photographs.map((p) =>
    (p.id.toLowerCase().includes(wanted) || p.state.includes(wanted)) && (!state || !state.value || p.state === state.value));
  rows.forEach((row, i) => { row.hidden = !fits[i]; });
  const cards = detailed.filter((i) => fits[i]);
  const others = rest.filter((i) => fits[i]);
  show(document.getElementById("cards"), cards.slice(0, visible), card);
  show(document.getElementById("rest"), others, thumbnail);
  more.hidden = cards.length <= visible;
  more.textContent = `Show more (${cards.length - visible})`;
  const details = document.getElementById("others");
  details.hidden = !others.length;
  details.open ||= wanted !== "";
  details.firstElementChild.textContent = `Others, without sliders (${others.length})`;
  document.getElementById("count").textContent = `${fits.filter(Boolean).length} of ${fits.length}`;
}

more.addEventListener("click", () => { visible += 2 * FIRST_CARDS; update(); });
filter.addEventListener("input", update);
if (state) state.addEventListener("change", update);
update();
