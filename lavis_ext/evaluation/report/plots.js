"use strict";

// What the pages share: elements, numbers in words, and the frame of a plot.
// Everything that comes from data is set as text or as an attribute, never parsed as HTML.

const content = JSON.parse(document.getElementById("content").textContent);
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const element = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const drawn = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const grouped = (count) => count.toLocaleString("en-US");
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const isNumber = (value) => value !== null && value !== undefined;
const capitalized = (words) => words.charAt(0).toUpperCase() + words.slice(1);
const titleUnit = (unit) => unit === "share" || unit === "percent" ? ", %" : unit ? `, ${unit}` : "";

// ---------------------------------------------------------------------------------------------
// Plots. They are drawn anew at the width that they have, so that letters keep their size.

const plots = new Map();
const resized = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const plot = plots.get(target);
    const width = Math.floor(contentRect.width);
    if (plot && width > 0 && plot.width !== width) {
      plot.width = width;
      target.replaceChildren(plot.draw(width));
    }
  }
});

function plot(draw) {
  const box = element("div");
  plots.set(box, { draw, width: 0 });
  resized.observe(box);
  return box;
}

function forgetPlots(container) {
  for (const box of [...plots.keys()].filter((each) => container.contains(each))) {
    resized.unobserve(box);
    plots.delete(box);
  }
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) {
    found.push(k * step);
  }
  return found;
}

function compact(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001 || size >= 1e6) return value.toExponential(0).replace("e+", "e");
  if (size >= 1e4) return `${+(value / 1000).toPrecision(3)}k`;
  return String(+value.toPrecision(3));
}

const text = (x, y, words, attributes = {}) => drawn("text", { x, y, ...attributes }, words);
const line = (x1, y1, x2, y2, kind) => drawn("line", { x1, y1, x2, y2, class: kind });
const described = (words) => drawn("title", {}, words);

function measured(rows) {
  const context = measured.context ??= document.createElement("canvas").getContext("2d");
  context.font = '12px system-ui, "Noto Sans", "Liberation Sans", sans-serif';
  return Math.max(...rows.map((row) => context.measureText(row).width));
}

function shortened(words, room) {
  if (measured([words]) <= room) return words;
  let kept = words;
  while (kept && measured([`${kept}…`]) > room) kept = kept.slice(0, -1);
  return `${kept}…`;
}

function frame(width, height, [low, high], [bottomValue, topValue], unit, axis) {
  const span = topValue - bottomValue;
  const marks = ticks(bottomValue, topValue, 4);
  const words = marks.map((value) => (unit === "%" ? String(+(100 * value).toFixed(6)) : compact(value)));
  const left = Math.ceil(measured(words)) + 12;
  const [right, top, bottom] = [width - 10, 10, height - 40];
  const x = (value) => left + ((right - left) * (value - low)) / (high - low || 1);
  const y = (value) => bottom - ((bottom - top) * (value - bottomValue)) / (span || 1);
  const svg = drawn("svg", { width, height, role: "img" });
  marks.forEach((value, place) => {
    svg.append(
      line(left, y(value), right, y(value), "grid"),
      text(left - 8, y(value) + 4, words[place], { "text-anchor": "end", class: "faint" }),
    );
  });
  svg.append(line(left, bottom, right, bottom, "axis"));
  svg.append(text((left + right) / 2, height - 4, axis, { "text-anchor": "middle", class: "faint" }));
  return { svg, x, y, left, right, top, bottom };
}

const path = (points) => points.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
