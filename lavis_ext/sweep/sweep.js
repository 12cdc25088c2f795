// Follows plots.js in the same script.

const COLORS = 8;
const FEWEST_TICKS = 4;
const hidden = new Set();
// A search has too many trials for a color each: the best one stands out.
const colorOf = (choice) => content.search ? (choice === 0 ? 1 : COLORS) : 1 + (choice % COLORS);
const isAgain = (choice) => !content.search && choice >= COLORS;
const kindOf = (choice, kind) => `${kind} c${colorOf(choice)}${isAgain(choice) ? " again" : ""}`;
const isMetricShare = content.metric.unit === "share";
const words = (value, unit) => unit === "share" ? percent(value) : unit === "percent" ? `${value.toFixed(1)} %` : compact(value);

function rounded(low, high) {
  if (low === high) [low, high] = [low - Math.max(Math.abs(low) * 0.05, 1e-6), high + Math.max(Math.abs(high) * 0.05, 1e-6)];
  const [first, second] = ticks(low, high, 2 * FEWEST_TICKS);
  const step = second - first;
  return [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
}

function swatch(choice) {
  return element("span", { class: kindOf(choice, "swatch"), "aria-hidden": "true" });
}

// ---------------------------------------------------------------------------------------------
// The table.

function strip(choice, place, [low, high]) {
  return (width) => {
    const x = (value) => 6 + (width - 12) * ((value - low) / (high - low || 1));
    const svg = drawn("svg", { width, height: 30, class: `c${colorOf(place)}`, role: "img", "aria-label": `${choice.label}: ${choice.shown}` },
      line(6, 15, width - 6, 15, "grid"));
    if (choice.reached.length > 1) {
      svg.append(line(x(choice.mean), 6, x(choice.mean), 24, "interval choice"));
    }
    for (const { seed, value } of choice.reached) {
      svg.append(drawn("circle", { cx: x(value), cy: 15, r: 4, class: choice.reached.length > 1 ? "point run" : "point" },
        described(`${seed === "" ? "" : `seed ${seed}: `}${words(value, content.metric.unit)}`)));
    }
    return svg;
  };
}

function differenceStrip({ value, low, high, shown }, place, [least, most]) {
  return (width) => {
    const x = (each) => 6 + (width - 12) * ((each - least) / (most - least || 1));
    const svg = drawn("svg", { width, height: 30, class: `c${colorOf(place)}`, role: "img", "aria-label": `difference ${shown}` },
      line(6, 15, width - 6, 15, "grid"), line(x(0), 6, x(0), 24, "axis"));
    if (low !== null) svg.append(line(x(low), 15, x(high), 15, "interval choice"));
    svg.append(drawn("circle", { cx: x(value), cy: 15, r: 4.5, class: "point" }));
    return svg;
  };
}

function tableColumns() {
  const reached = content.choices.flatMap((choice) => choice.reached.map(({ value }) => value));
  const differences = content.choices.map(({ difference }) => difference).filter(isNumber);
  const columns = [];
  if (content.search) columns.push(["Trial", (_, place) => content.runs[place].name]);
  content.keys.forEach((key, place) => columns.push([key, (choice) => choice.values[place]]));
  if (columns.length === 0) columns.push(["", (choice) => choice.label]);
  if (!content.search) columns.push(["Runs", (choice) => choice.runs]);
  columns.push([content.metric.name || "Metric", (choice) => choice.shown, "value"]);
  if (content.choices.some(({ spread }) => spread)) columns.push(["Spread", (choice) => choice.spread]);
  if (reached.length > 0) {
    const range = rounded(Math.min(...reached), Math.max(...reached));
    columns.push([range.map((each) => words(each, content.metric.unit)).join(" to "),
      (choice, place) => choice.reached.length > 0 ? plot(strip(choice, place, range)) : "", "range"]);
  }
  if (differences.length > 0) {
    const ends = differences.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]);
    const range = rounded(Math.min(0, ...ends), Math.max(0, ...ends));
    const unit = isMetricShare ? ", points" : "";
    const shownEnd = (end) => isMetricShare ? String(+(100 * end).toFixed(6)) : compact(end);
    columns.push([`Difference${unit}`, ({ difference }) => difference?.shown ?? "", "value"]);
    columns.push(["95 % interval", ({ difference }) => difference?.interval ?? ""]);
    // Where it is the same for all, the note below the table says it.
    if (new Set(differences.map(({ over }) => over)).size > 1) columns.push(["Over", ({ difference }) => difference?.over ?? ""]);
    columns.push([range.map(shownEnd).join(" to "),
      ({ difference }, place) => difference ? plot(differenceStrip(difference, place, range)) : "", "range"]);
  }
  if (content.choices.some(({ blind }) => blind)) {
    columns.push(["Question only", ({ blind }) => blind, "value"]);
    columns.push([isMetricShare ? "Above it, points" : "Above it", ({ aboveBlind }) => aboveBlind?.shown ?? "", "value"]);
    columns.push(["95 % interval of that", ({ aboveBlind }) => aboveBlind?.interval ?? ""]);
  }
  return columns;
}

function showTable() {
  byId("table-title").textContent = content.search ? "Trials, the best first" : "Choices";
  const columns = tableColumns();
  const head = element("tr", {}, ...columns.map(([title, , kind]) => element("th", { scope: "col", class: kind === "range" ? "range" : null }, title)));
  const body = content.choices.map((choice, place) => element("tr", {}, ...columns.map(([title, of, kind], column) => {
    const cell = of(choice, place);
    const children = cell === "" ? [] : [cell];
    if (column === 0) return element("th", { scope: "row" }, swatch(place), ...children);
    return element("td", { class: kind ?? null, "data-label": title }, ...children);
  })));
  byId("metrics-table").append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
  byId("notes").append(...content.notes.slice(1).map((note) => element("p", { class: "note" }, `${capitalized(note)}.`)));
}

// ---------------------------------------------------------------------------------------------
// Curves over each other, and a search's keys.

function curvesPlot(chart) {
  return (width) => {
    const lines = chart.lines.filter(({ choice }) => !hidden.has(choice));
    const means = chart.means.filter(({ choice }) => !hidden.has(choice));
    const points = lines.flatMap((each) => each.points);
    const values = points.map(([, value]) => value);
    const range = points.length > 0 ? rounded(Math.min(...values), Math.max(...values)) : [0, 1];
    const lastStep = Math.max(1, ...points.map(([step]) => step));
    const { svg, x, y, left, right, bottom } = frame(width, 260, [0, lastStep], range, chart.unit === "share" ? "%" : "", "optimizer step");
    svg.setAttribute("aria-label", `${chart.name}, ${chart.series}, by optimizer step`);
    for (const step of ticks(0, lastStep, Math.max(2, Math.floor((right - left) / 80)))) {
      svg.append(text(x(step), bottom + 16, compact(step), { "text-anchor": "middle", class: "faint" }));
    }
    const averaged = new Set(means.map(({ choice }) => choice));
    const drawnLine = (each, kind, title) => {
      const placed = each.points.map(([step, value]) => [x(step), y(value)]);
      svg.append(drawn("path", { class: kindOf(each.choice, `line ${kind}`), d: path(placed) }, described(title)));
      if (each.points.length > 20) return;
      each.points.forEach(([step, value], place) => svg.append(
        drawn("circle", { cx: placed[place][0], cy: placed[place][1], r: kind === "mean" ? 3.5 : 2, class: kindOf(each.choice, `point ${kind}`) },
          described(`${title}, step ${step}: ${words(value, chart.unit)}`))));
    };
    // The best trial of a search is drawn last, above the others.
    for (const each of content.search ? [...lines].reverse() : lines) {
      const thin = averaged.has(each.choice) || (content.search && each.choice !== 0);
      drawnLine(each, thin ? "run" : "mean", each.run);
    }
    for (const each of means) drawnLine(each, "mean", `${content.choices[each.choice].label}, mean`);
    return svg;
  };
}

function drawCurves() {
  forgetPlots(byId("curves-charts"));
  byId("curves-charts").replaceChildren(...content.charts.map((chart) =>
    element("figure", {}, element("figcaption", {}, `${chart.name}, ${chart.series}${titleUnit(chart.unit)}`), plot(curvesPlot(chart)))));
}

function showCurves() {
  byId("curves").hidden = content.charts.length === 0;
  if (content.search) {
    byId("curves-note").textContent = "The best trial in color, the others in gray.";
  } else {
    const averaged = content.charts.some(({ means }) => means.length > 0);
    byId("curves-note").textContent = `${averaged ? "Thick: mean over seeds; thin: each run. " : ""}A button hides its choice's lines or shows them again.`;
    byId("key").append(...content.choices.map((choice, place) => element("button", {
      type: "button", "aria-pressed": "true",
      onclick: ({ currentTarget }) => {
        if (!hidden.delete(place)) hidden.add(place);
        currentTarget.setAttribute("aria-pressed", String(!hidden.has(place)));
        drawCurves();
      },
    }, swatch(place), choice.label)));
  }
  drawCurves();
}

function keyPlot(key, column) {
  return (width) => {
    const tried = content.choices.map((choice, place) => ({ choice, place, at: choice.values[column], value: choice.mean }))
      .filter(({ value }) => isNumber(value));
    const numbers = tried.map(({ at }) => Number(at));
    const isNumeric = numbers.every(Number.isFinite);
    const names = [...new Set(tried.map(({ at }) => at))].sort();
    const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
    const isLog = isNumeric && least > 0 && most / least > 30;
    const across = (at) => isLog ? Math.log10(Number(at)) : isNumeric ? Number(at) : names.indexOf(at);
    const span = isNumeric ? [across(least), across(most)] : [-0.5, names.length - 0.5];
    const margin = isNumeric ? (span[1] - span[0] || 1) * 0.04 : 0;
    const values = tried.map(({ value }) => value);
    const { svg, x, y, left, right, bottom } = frame(width, 240, [span[0] - margin, span[1] + margin],
      rounded(Math.min(...values), Math.max(...values)), isMetricShare ? "%" : "", key);
    svg.setAttribute("aria-label", `${content.metric.name} by ${key}`);
    const marks = !isNumeric ? names.map((name, place) => [place, name])
      : ticks(...span, Math.max(2, Math.floor((right - left) / 80))).map((each) => [each, compact(isLog ? 10 ** each : each)]);
    for (const [at, name] of marks) {
      svg.append(text(x(at), bottom + 16, name, { "text-anchor": "middle", class: "faint" }));
    }
    for (const { choice, place, at, value } of tried.reverse()) {
      svg.append(drawn("circle", { cx: x(across(at)), cy: y(value), r: place === 0 ? 6 : 4, class: `point c${colorOf(place)}` },
        described(`${choice.label}: ${words(value, content.metric.unit)}`)));
    }
    return svg;
  };
}

function showSearched() {
  const found = content.choices.some(({ mean }) => isNumber(mean));
  byId("searched").hidden = !(content.search && found);
  if (byId("searched").hidden) return;
  byId("searched-charts").append(...content.keys.map((key, column) =>
    element("figure", {}, element("figcaption", {}, `${content.metric.name}${titleUnit(content.metric.unit)}, by ${key}`), plot(keyPlot(key, column)))));
}

// A name that may break into lines after its commas and equals signs.
const broken = (name) => name.split(/(?<=[,=])/).flatMap((part) => [part, element("wbr")]);

function showRuns() {
  const titles = ["Run", "Status", content.metric.name || "Metric", "Error"];
  const failing = content.runs.some(({ error }) => error);
  const head = element("tr", {}, ...(failing ? titles : titles.slice(0, 3)).map((each) => element("th", { scope: "col" }, each)));
  const rows = content.runs.map((run) => element("tr", {},
    element("th", { scope: "row" }, ...(run.report ? [element("a", { href: run.report }, ...broken(run.name))] : broken(run.name))),
    element("td", { class: run.failed ? "failed" : null }, run.status), element("td", {}, run.shown),
    failing ? element("td", { class: "error" }, run.error) : null));
  byId("runs-table").append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

byId("headline").textContent = `${content.notes[0]}.`;
byId("facts").append(...content.facts.map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value))));
showTable();
showSearched();
showCurves();
showRuns();
