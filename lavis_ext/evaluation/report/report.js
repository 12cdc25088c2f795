// Follows plots.js in the same script.

const AT_ONCE = 48;

const examplesNoun = () => `${split.noun}s`;
// The first baseline is the one that plots show.
const mainBaseline = () => Object.keys(split.baselines)[0];
const baselineOf = (row) => row.baselines[mainBaseline()];

function summary(row) {
  const interval = row.shown.interval && `, 95 % interval ${row.shown.interval}`;
  const blind = isNumber(baselineOf(row)) ? `; baseline ${split.baselines[mainBaseline()]} ${row.shown.baselines[mainBaseline()]}` : "";
  return `${row.name}: ${row.shown.value}${interval}, ${grouped(row.count)} ${examplesNoun()}${blind}`;
}

function dotPlot(rows, label) {
  return (width) => {
    const pitch = 26;
    const room = Math.min(Math.ceil(measured(rows.map((row) => row.name))), width * 0.36) + 12;
    const side = Math.ceil(measured(rows.map((row) => grouped(row.count)).concat(examplesNoun()))) + 14;
    const values = 58;
    const [left, right] = [room, width - side - values];
    const x = (share) => left + (right - left) * Math.min(Math.max(share, 0), 1);
    const top = 22;
    const bottom = top + rows.length * pitch;
    const svg = drawn("svg", { width, height: bottom + 38, role: "img", "aria-label": label });
    for (const share of right - left > 180 ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.5, 1]) {
      svg.append(
        line(x(share), top, x(share), bottom, "grid"),
        text(x(share), bottom + 16, String(100 * share), { "text-anchor": "middle", class: "faint" }),
      );
    }
    svg.append(
      text((left + right) / 2, bottom + 33, "accuracy, %", { "text-anchor": "middle", class: "faint" }),
      text(width, 12, examplesNoun(), { "text-anchor": "end", class: "faint" }),
    );
    rows.forEach((row, place) => {
      const y = top + (place + 0.5) * pitch;
      const group = drawn("g", {}, described(summary(row)));
      group.append(text(left - 10, y + 4, shortened(row.name, room - 12), { "text-anchor": "end" }));
      if (row.low !== null) group.append(line(x(row.low), y, x(row.high), y, "interval"));
      if (isNumber(baselineOf(row))) {
        group.append(line(x(baselineOf(row)), y - 7, x(baselineOf(row)), y + 7, "baseline"));
      }
      group.append(
        drawn("circle", { cx: x(row.value), cy: y, r: 4.5, class: "mark" }),
        text(width - side, y + 4, row.shown.value, { "text-anchor": "end" }),
        text(width, y + 4, grouped(row.count), { "text-anchor": "end", class: "faint" }),
      );
      svg.append(group);
    });
    return svg;
  };
}

function lengthPlot(rows, title) {
  return (width) => {
    const numbers = rows.map((row) => Number(row.name));
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    const { svg, x, y, bottom } = frame(width, 240, [low - 0.4, high + 0.4], [0, 1], "%", title.toLowerCase());
    svg.setAttribute("aria-label", `Accuracy by ${title.toLowerCase()}`);
    const every = Math.ceil(((high - low + 1) * 26) / width);
    for (let n = low; n <= high; n += every) {
      svg.append(text(x(n), bottom + 16, String(n), { "text-anchor": "middle", class: "faint" }));
    }
    const sure = rows.map((row, place) => [row, numbers[place]]).sort((a, b) => a[1] - b[1]);
    const blind = sure.filter(([row]) => isNumber(baselineOf(row)));
    svg.append(drawn("path", { class: "line s3", d: path(blind.map(([row, n]) => [x(n), y(baselineOf(row))])) }));
    svg.append(drawn("path", { class: "line s1", d: path(sure.map(([row, n]) => [x(n), y(row.value)])) }));
    for (const [row, n] of sure) {
      const group = drawn("g", {}, described(summary({ ...row, name: `${row.name} ${title.toLowerCase()}` })));
      if (row.low !== null) group.append(line(x(n), y(row.low), x(n), y(row.high), "interval"));
      group.append(drawn("circle", { cx: x(n), cy: y(row.value), r: 1.5 + Math.min(1.25 * Math.log10(row.count), 4), class: "mark" }));
      svg.append(group);
    }
    return svg;
  };
}

const colorOf = (chart, name) => name === "train" ? 1 : chart.overlaid.includes(name) ? 3 : 2;

function curvePlot(chart) {
  const share = chart.unit === "share";
  return (width) => {
    const series = Object.entries(chart.series);
    const points = series.flatMap(([, each]) => each);
    const values = points.map(([, value]) => value);
    let [low, high] = share ? [0, 1] : [Math.min(0, ...values), Math.max(...values)];
    if (low === high) high = low + 1;
    const [first, second] = ticks(low, high, 4);
    high = first + Math.ceil((high - first) / (second - first) - 1e-9) * (second - first);
    const lastStep = Math.max(...points.map(([step]) => step));
    const { svg, x, y, left, right, bottom } = frame(width, 210, [0, lastStep], [low, high], share ? "%" : "", "optimizer step");
    svg.setAttribute("aria-label", `${chart.name} by optimizer step`);
    for (const step of ticks(0, lastStep, Math.max(2, Math.floor((right - left) / 80)))) {
      svg.append(text(x(step), bottom + 16, compact(step), { "text-anchor": "middle", class: "faint" }));
    }
    series.forEach(([name, each]) => {
      const color = colorOf(chart, name);
      const placed = each.map(([step, value]) => [x(step), y(value)]);
      svg.append(drawn("path", { class: `line s${color}`, d: path(placed) }));
      if (name === "train" && each.length > 1) return;
      if (color === 3 && each.length > 1) return;
      each.forEach(([step, value], place) => {
        svg.append(drawn("circle", { cx: placed[place][0], cy: placed[place][1], r: 3.5, class: `f${color}` },
          described(`${name}, step ${step}: ${share ? percent(value) : compact(value)}`)));
      });
    });
    return svg;
  };
}

function keyOf(chart) {
  return element("p", { class: "key" }, ...Object.keys(chart.series).map((name) => {
    const color = colorOf(chart, name);
    const sample = drawn("svg", { width: 22, height: 10, "aria-hidden": "true" }, line(0, 5, 22, 5, `line s${color}`));
    if (color === 2) sample.append(drawn("circle", { cx: 11, cy: 5, r: 3.5, class: "f2" }));
    return element("span", {}, sample, name);
  }));
}

// ---------------------------------------------------------------------------------------------
// Sections.

function showFacts() {
  byId("facts").append(...content.facts.map(([label, value]) =>
    element("div", {}, element("dt", {}, label), element("dd", {}, value))));
}

function rangePlot(row) {
  return (width) => {
    const [left, right] = [6, width - 6];
    const x = (share) => left + (right - left) * Math.min(Math.max(share, 0), 1);
    const svg = drawn("svg", { width, height: 30, "aria-hidden": "true" }, line(left, 15, right, 15, "grid"));
    for (const share of [0, 0.5, 1]) svg.append(line(x(share), 11, x(share), 19, "grid"));
    if (row.low !== null) svg.append(line(x(row.low), 15, x(row.high), 15, "interval"));
    for (const value of Object.values(row.baselines)) svg.append(line(x(value), 8, x(value), 22, "baseline"));
    // Beyond the scale, an arrow at its end.
    svg.append(row.value > 1
      ? drawn("path", { d: `M${right - 6},9L${right + 6},15L${right - 6},21Z`, class: "mark" })
      : drawn("circle", { cx: x(row.value), cy: 15, r: 4.5, class: "mark" }));
    return svg;
  };
}

function showMetrics(split) {
  const table = byId("metrics-table");
  forgetPlots(table);
  byId("others-list").replaceChildren(...split.others.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  byId("others").hidden = split.others.length === 0;
  byId("others").open = split.metrics.length === 0;
  byId("metrics-note").textContent = split.note;
  if (split.metrics.length === 0) {
    table.replaceChildren();
    return;
  }
  const counted = split.metrics.some((row) => isNumber(row.count));
  const baselines = Object.entries(split.baselines);
  const heads = ["Metric", "Value", ...(counted ? ["95 % interval"] : []), ...baselines.map(([, label]) => `Baseline, ${label}`),
    ...(counted ? [capitalized(examplesNoun())] : []), "0 to 100 %"];
  const body = split.metrics.map((row) => {
    const name = element("th", { scope: "row" }, row.name + (row.lower ? " (lower is better)" : ""));
    if (row.reason) {
      return element("tr", {}, name, element("td", {}, "–"),
        element("td", { class: "reason", colspan: heads.length - 2 }, `not computed: ${row.reason}`));
    }
    const cells = [...(counted ? [row.shown.interval] : []), ...baselines.map(([key]) => row.shown.baselines[key] ?? ""),
      ...(counted ? [isNumber(row.count) ? grouped(row.count) : ""] : [])];
    return element("tr", {}, name,
      element("td", { class: "value" }, row.shown.value),
      ...cells.map((cell, place) => element("td", { "data-label": heads[place + 2] }, ...(cell ? [cell] : []))),
      element("td", { class: "range" }, row.unit === "share" ? plot(rangePlot(row)) : null));
  });
  const head = element("tr", {}, ...heads.map((each, place) =>
    element("th", { scope: "col", class: place === heads.length - 1 ? "range" : null }, each)));
  table.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

function showCurves() {
  byId("curves").hidden = content.curves.length === 0;
  byId("curves-charts").append(...content.curves.map((chart) =>
    element("figure", {}, element("figcaption", {}, chart.name + titleUnit(chart.unit)),
      plot(curvePlot(chart)), keyOf(chart))));
}

function showKinds(split) {
  byId("kinds").hidden = split.breakdowns.length === 0;
  byId("kinds-title").textContent = `Accuracy by kind of ${split.noun}`;
  forgetPlots(byId("kinds"));
  const swatch = (kind) => {
    const svg = drawn("svg", { width: 24, height: 14, "aria-hidden": "true" });
    if (kind === "baseline") svg.append(line(12, 0, 12, 14, "baseline"));
    else svg.append(line(1, 7, 23, 7, "interval"), drawn("circle", { cx: 12, cy: 7, r: 4.5, class: "mark" }));
    return svg;
  };
  byId("kinds-key").replaceChildren(
    element("span", {}, swatch("mark"), "accuracy with its 95 % interval"),
    mainBaseline() ? element("span", {}, swatch("baseline"), `baseline, ${split.baselines[mainBaseline()]}`) : "",
    split.breakdowns.some(({ numbers }) => numbers)
      ? element("span", {}, `By number: ${mainBaseline() ? "the dashed line is the baseline, and " : ""}a larger dot means more ${examplesNoun()}.`) : "");
  byId("kinds-charts").replaceChildren(...split.breakdowns.filter(({ more }) => !more).map(({ title, rows, numbers }) =>
    element("figure", {}, element("figcaption", {}, numbers ? `${title}: accuracy, %` : title),
      plot(numbers ? lengthPlot(rows, title) : dotPlot(rows, `Accuracy by ${title.toLowerCase()}`)))));
  const detailed = split.breakdowns.find(({ more }) => more);
  byId("detailed").hidden = !detailed;
  if (!detailed) return;
  const rows = [...detailed.rows].sort((a, b) => b.count - a.count);
  byId("detailed").firstElementChild.textContent = `${rows.length} ${detailed.title.toLowerCase()}s`;
  byId("detailed-chart").replaceChildren(plot(dotPlot(rows, `Accuracy by ${detailed.title.toLowerCase()}`)));
}

// A matrix that is wider than a phone fades out where it goes on.
function showMore() {
  const { scrollWidth, clientWidth, scrollLeft } = byId("matrix");
  byId("matrix").classList.toggle("more", scrollWidth - clientWidth - scrollLeft > 2);
}

function showConfusions(split) {
  const found = split.confusions;
  byId("confusions").hidden = !found || found.pairs.length === 0;
  if (!found || found.pairs.length === 0) return;
  // A training that goes on has no examples yet.
  const disabled = split.examples.length === 0;
  byId("pointer").hidden = disabled;
  const most = Math.max(1, ...found.counts.flatMap((row, i) => row.filter((_, j) => i !== j)));
  const cell = (i, j) => {
    const count = found.counts[i][j];
    const [answer, prediction] = [found.answers[i], found.answers[j]];
    if (count === 0) return element("td", { class: i === j ? "diagonal" : null }, element("span", {}, "·"));
    const button = element("button", {
      type: "button", disabled, onclick: () => showPair(answer, prediction),
      "aria-label": `right: ${answer}, given: ${prediction}, ${count}`,
    }, grouped(count));
    if (i === j) button.style.background = "none";
    else button.style.background = `color-mix(in srgb, var(--wrong) ${Math.round(55 * Math.sqrt(count / most))}%, var(--page))`;
    return element("td", { class: i === j ? "diagonal" : null }, button);
  };
  const head = element("tr", {}, element("th", { class: "corner" }, "right ↓  given →"),
    ...found.answers.map((answer) => element("th", { scope: "col" }, answer)));
  const rows = found.answers.map((answer, i) =>
    element("tr", {}, element("th", { scope: "row" }, answer), ...found.answers.map((_, j) => cell(i, j))));
  byId("matrix").replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  showMore();
  const pairs = found.pairs.map(([answer, prediction, count]) => element("tr", {},
    element("td", {}, answer), element("td", {}, prediction),
    element("td", {}, element("button", { type: "button", disabled, onclick: () => showPair(answer, prediction), "aria-label": `right: ${answer}, given: ${prediction}, ${count}` }, grouped(count)))));
  const titles = element("tr", {}, ...["Right", "Given", capitalized(examplesNoun())].map((each) => element("th", { scope: "col" }, each)));
  byId("pairs").replaceChildren(element("table", {}, element("thead", {}, titles), element("tbody", {}, ...pairs)));
}

// ---------------------------------------------------------------------------------------------
// Examples. Cards are made as they come into view.

let split = content.splits[0];
let found = [];
let made = 0;
let pair = null;

const isRated = (example) => isNumber(example.answer) && isNumber(example.prediction);
const isRight = (example) => isRated(example) && example.prediction === example.answer;
const isWrong = (example) => isRated(example) && example.prediction !== example.answer;
const outcomeOf = (example) => isRight(example) ? "right" : isWrong(example) ? "wrong" : "";
const titleOf = (example) => example.question || `${capitalized(split.noun)} ${example.id}`;

function heatCanvas(heat, label) {
  const canvas = element("canvas", { width: heat.width, height: heat.height, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(heat.width, heat.height);
  const cells = atob(heat.cells);
  for (let place = 0; place < cells.length; place += 1) {
    const share = cells.charCodeAt(place);
    const [red, green, blue] = content.heatColors[share];
    // What isn't heated stays visible; what is shows its color.
    pixels.data.set([red, green, blue, 110 + Math.round(share * 0.45)], 4 * place);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function panel(example, label, heat) {
  const uri = Object.hasOwn(content.images, example.image) ? content.images[example.image] : null;
  const picture = element("span", { class: "picture" });
  if (uri) picture.append(element("img", { src: uri, class: heat ? "heated" : null, alt: heat ? "" : `image ${example.image}`, decoding: "async" }));
  if (heat) picture.append(heatCanvas(heat, label));
  return element("span", { class: "panel" }, picture, element("span", { class: "label" }, uri ? label : `${label}: no image`));
}

function panels(example) {
  const all = example.image === undefined ? [] : [panel(example, "image")];
  if (example.raw) all.push(panel(example, "raw heat", example.raw), panel(example, "refined heat", example.refined));
  return all;
}

function answers(example) {
  return element("dl", { class: "answers" },
    ...(isNumber(example.prediction) ? [element("dt", {}, "Prediction"), element("dd", { class: "given" },
      `${example.prediction === "" ? "(empty)" : example.prediction}${isRated(example) ? ` (${outcomeOf(example)})` : ""}`)] : []),
    ...(isNumber(example.answer) ? [element("dt", {}, "Right answer"), element("dd", {}, String(example.answer))] : []));
}

function about(example) {
  const kinds = Object.keys(split.filters).map((key) => example[key]).filter(Boolean).join(", ");
  const parts = [
    kinds,
    example.question ? `${split.noun} ${example.id}` : "",
    example.image === undefined || example.image === example.id ? "" : `image ${example.image}`,
    isNumber(example.matching) ? `${split.noun} and image match: ${Math.round(100 * example.matching)} %` : "",
  ];
  return element("p", { class: "about" }, parts.filter(Boolean).join(" · "));
}

function captions(example, open) {
  if (!example.captionsFound) return null;
  const left = example.captionsFound - example.captions.length;
  const list = element("ul", { class: "captions" }, ...example.captions.map((each) => element("li", {}, each)),
    left > 0 ? element("li", {}, `and ${left} more`) : null);
  return element("details", { open }, element("summary", {}, `${example.captionsFound} captions`), list);
}

function card(example, place) {
  const enlarge = element("button", { type: "button", class: "panels", "aria-label": `Enlarge: ${titleOf(example)}`, onclick: () => enlargeAt(place) }, ...panels(example));
  return element("article", { class: `card ${outcomeOf(example)}` }, enlarge,
    element("h3", {}, titleOf(example)), answers(example), about(example), captions(example, false));
}

function makeMore() {
  const until = Math.min(made + AT_ONCE, found.length);
  const cards = document.createDocumentFragment();
  for (; made < until; made += 1) cards.append(card(found[made], made));
  byId("gallery").append(cards);
  byId("more").hidden = made >= found.length;
  byId("more").textContent = `Show ${Math.min(AT_ONCE, found.length - made)} more`;
}

function filter() {
  const outcome = byId("filters").elements.outcome.value;
  const chosen = Object.keys(split.filters).map((key) => [key, byId(key)?.value]).filter(([, value]) => value);
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  found = split.examples.filter((example) =>
    (outcome === "all" || outcomeOf(example) === outcome) &&
    chosen.every(([key, value]) => example[key] === value) &&
    (!pair || (example.answer === pair[0] && example.prediction === pair[1])) &&
    (words.length === 0 || words.every((word) => haystack(example).includes(word))));
  made = 0;
  byId("gallery").replaceChildren();
  byId("count").textContent =
    `${grouped(found.length)} of ${grouped(split.examples.length)} examples` +
    (split.examples.length < split.count ? `, drawn at random from ${grouped(split.count)} ${examplesNoun()}.` : ".");
  byId("pair").hidden = !pair;
  if (pair) byId("pair").textContent = `right: ${pair[0]}, given: ${pair[1]}  ×`;
  makeMore();
}

function haystack(example) {
  return example.words ??= [example.question, example.answer, example.prediction, example.id, example.image].filter(isNumber).join(" ").toLowerCase();
}

function showPair(answer, prediction) {
  byId("filters").reset();
  pair = [answer, prediction];
  filter();
  byId("examples").scrollIntoView();
  byId("pair").focus({ preventScroll: true });
}

function showExamples() {
  const { examples } = split;
  byId("examples").hidden = examples.length === 0;
  if (examples.length === 0) return;
  const outcomes = { all: examples.length, right: examples.filter(isRight).length, wrong: examples.filter(isWrong).length };
  byId("outcomes").hidden = !examples.some(isRated);
  byId("outcome").replaceChildren(...Object.entries(outcomes).map(([name, count]) =>
    element("label", {}, element("input", { type: "radio", name: "outcome", value: name, checked: name === "all" }),
      element("span", {}, `${name} ${grouped(count)}`))));
  for (const label of byId("filters").querySelectorAll("label.kind")) label.remove();
  for (const [kind, title] of Object.entries(split.filters)) {
    const names = [...new Set(examples.map((example) => example[kind]).filter(Boolean))].sort();
    const options = [element("option", { value: "" }, "all"), ...names.map((name) => element("option", { value: name }, name))];
    if (names.length > 0) byId("search").parentElement.before(element("label", { class: "kind" }, `${title} `, element("select", { id: kind }, ...options)));
  }
  const asked = examples.some((example) => example.question);
  byId("search").placeholder = `words of ${asked ? `${split.noun}, ` : ""}answer or id`;
  const heated = examples.some((example) => example.raw);
  byId("heat-key").hidden = !heated;
  if (heated) {
    const ramp = element("canvas", { class: "ramp", width: 256, height: 1, "aria-hidden": "true" });
    const context = ramp.getContext("2d");
    content.heatColors.forEach((color, place) => { context.fillStyle = `rgb(${color})`; context.fillRect(place, 0, 1, 1); });
    byId("heat-key").replaceChildren(element("span", {}, "no heat", ramp, "hottest in its map"),
      element("span", {}, split.heatNote ?? ""));
  }
  pair = null;
  filter();
}

let enlarged = 0;

function enlargeAt(place) {
  enlarged = Math.min(Math.max(place, 0), found.length - 1);
  const example = found[enlarged];
  byId("place").textContent = `${grouped(enlarged + 1)} of ${grouped(found.length)}`;
  byId("previous").disabled = enlarged === 0;
  byId("next").disabled = enlarged === found.length - 1;
  byId("enlarged-content").replaceChildren(element("article", { class: `card ${outcomeOf(example)}` },
    element("div", { class: "panels" }, ...panels(example)), element("h3", { id: "enlarged-title" }, titleOf(example)),
    answers(example), about(example), captions(example, true)));
  if (!byId("enlarged").open) byId("enlarged").showModal();
}

function showSplit(name) {
  split = content.splits.find((each) => each.name === name);
  for (const button of byId("splits").children) button.setAttribute("aria-pressed", String(button.value === name));
  byId("headline").textContent = split.headline;
  showMetrics(split);
  showKinds(split);
  showConfusions(split);
  showExamples();
}

byId("filters").addEventListener("input", filter);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => { pair = null; setTimeout(filter); });
byId("pair").addEventListener("click", () => { pair = null; filter(); byId("search").focus({ preventScroll: true }); });
byId("more").addEventListener("click", makeMore);
byId("matrix").addEventListener("scroll", showMore);
new ResizeObserver(showMore).observe(byId("matrix"));
new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) makeMore(); }, { rootMargin: "600px" })
  .observe(byId("more"));
byId("previous").addEventListener("click", () => enlargeAt(enlarged - 1));
byId("next").addEventListener("click", () => enlargeAt(enlarged + 1));
byId("close").addEventListener("click", () => byId("enlarged").close());
byId("enlarged").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") enlargeAt(enlarged - 1);
  if (event.key === "ArrowRight") enlargeAt(enlarged + 1);
});

showFacts();
if (content.splits.length > 1) {
  byId("splits").hidden = false;
  byId("splits").append(...content.splits.map((each) =>
    element("button", { type: "button", value: each.name, onclick: () => showSplit(each.name) }, each.name)));
}
showCurves();
showSplit(content.splits[0].name);
