// What has time on its x axis: lines, bars, states, heatmaps. Each returns how many marks it drew.
"use strict";

const FOOT = 18;

// Series of all queries, with a number or null for each time of the grid.
function sampled(answers) {
  const found = [];
  const length = Math.round((PAGE.end - PAGE.start) / PAGE.step) + 1;
  for (const answer of answers) {
    for (const series of answer.series) {
      const values = new Array(length).fill(null);
      for (const [at, text] of series.values || []) {
        const value = Number(text);
        if (!Number.isNaN(value)) values[Math.round((at - PAGE.start) / PAGE.step)] = value;
      }
      found.push({ name: named(answer, series), values });
    }
  }
  return found.sort((a, b) => (a.name < b.name ? -1 : 1)).filter((one) => one.values.some((v) => v !== null));
}

function nice(low, high, count, unit) {
  // Steps of bytes are powers of 1024 times something round.
  const whole = unit === "bytes" ? 1024 ** Math.max(0, Math.floor(Math.log(Math.max(high, 1)) / Math.log(1024))) : 1;
  if (whole > 1) return nice(low / whole, high / whole, count, "").map((tick) => tick * whole);
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const width = [1, 2, 2.5, 5, 10].find((one) => one * power >= raw) * power;
  const ticks = [];
  for (let at = Math.ceil(low / width) * width; at <= high + width * 1e-9; at += width) ticks.push(at);
  return ticks;
}

function timeAxis(svg, left, right, height) {
  const span = PAGE.end - PAGE.start;
  const every = [60, 120, 180, 300, 600].find((one) => span / one <= (right - left) / 70) || 900;
  for (let at = Math.ceil(PAGE.start / every) * every; at <= PAGE.end; at += every) {
    const x = left + ((at - PAGE.start) / span) * (right - left);
    shape(svg, "line", { x1: x, x2: x, y1: 4, y2: height - FOOT, stroke: "#24272e" });
    const text = new Date(at * 1000).toISOString().slice(11, 16);
    shape(svg, "text", { x, y: height - 5, "text-anchor": "middle" }, text);
  }
}

function canvas(body, height) {
  const width = body.clientWidth;
  const holder = element(body, "div", { style: `height:${height}px` });
  return [shape(holder, "svg", { width, height }), width];
}

function legend(body, drawn, panel, unit) {
  const options = panel.options.legend || {};
  if (options.displayMode !== "table") {
    const list = element(body, "div", { class: "list" });
    for (const one of drawn) {
      const item = element(list, "span", { class: "item" });
      element(item, "span", { class: "key", style: `background:${one.color}` });
      item.append(one.name);
    }
    return;
  }
  const table = element(body, "table", { class: "legend" });
  const head = element(table, "tr");
  for (const title of ["Name", "Mean", "Max"]) element(head, "th", {}, title);
  const shown = drawn.length > panel.legendRows ? drawn.slice(0, panel.legendRows - 1) : drawn;
  for (const one of shown) {
    const known = one.values.filter((value) => value !== null);
    const line = element(table, "tr");
    const name = element(line, "td");
    element(name, "span", { class: "key", style: `background:${one.color}` });
    name.append(one.name);
    element(line, "td", {}, formatted(known.reduce((a, b) => a + b, 0) / known.length, unit));
    element(line, "td", {}, formatted(Math.max(...known), unit));
  }
  if (shown.length < drawn.length) element(body, "div", { class: "more" }, `and ${drawn.length - shown.length} more`);
}

function timeseries(body, panel, answers) {
  const drawn = sampled(answers);
  const defaults = panel.fieldConfig.defaults;
  const custom = defaults.custom;
  const below = (panel.fieldConfig.overrides[0]?.matcher.options || "").slice(1, -1);
  drawn.forEach((one, index) => {
    one.color = PALETTE[index % PALETTE.length];
    one.sign = below && new RegExp(below).test(one.name) ? -1 : 1;
  });
  const rows = Math.min(drawn.length, Math.max(2, Math.floor((body.clientHeight * 0.36) / 15)));
  panel.legendRows = rows;
  const foot = panel.options.legend.displayMode === "table" ? 15 * (rows + 1) + 4 : 18;
  const [svg, width] = canvas(body, body.clientHeight - foot);
  const height = body.clientHeight - foot;
  const length = drawn[0]?.values.length || 0;
  // Where each point lies: on those below it where the panel is stacked.
  const floor = { 1: new Array(length).fill(0), "-1": new Array(length).fill(0) };
  for (const one of drawn) {
    one.low = one.values.map((value, index) => (custom.stacking.mode === "normal" && value !== null ? floor[one.sign][index] : 0));
    one.high = one.values.map((value, index) => (value === null ? null : one.low[index] + one.sign * value));
    if (custom.stacking.mode === "normal") {
      one.high.forEach((value, index) => { if (value !== null) floor[one.sign][index] = value; });
    }
  }
  const all = drawn.flatMap((one) => one.high.filter((value) => value !== null));
  let most = defaults.max ?? Math.max(...all);
  let least = defaults.min ?? Math.min(...all, below ? 0 : Infinity);
  if (most === least) { most += Math.abs(most) || 1; if (defaults.min === undefined) least -= Math.abs(least) * 0.1; }
  if (defaults.max === undefined) most += (most - least) * 0.06;
  if (below) least -= (most - least) * 0.04;
  const left = 62;
  const right = width - 8;
  const x = (index) => left + (index / (length - 1)) * (right - left);
  const y = (value) => 8 + (1 - (value - least) / (most - least)) * (height - FOOT - 8);
  timeAxis(svg, left, right, height);
  for (const tick of nice(least, most, Math.max(2, Math.floor(height / 42)), defaults.unit)) {
    shape(svg, "line", { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: tick === 0 ? "#3b3f48" : "#24272e" });
    shape(svg, "text", { x: left - 6, y: y(tick) + 3, "text-anchor": "end" }, formatted(Math.abs(tick), defaults.unit));
  }
  let marks = 0;
  for (const one of drawn) {
    if (custom.drawStyle === "bars") {
      const thick = Math.max(1.5, ((right - left) / length) * 0.8);
      one.high.forEach((value, index) => {
        if (!value) return;
        const top = Math.min(y(value), y(one.low[index]));
        shape(svg, "rect", { x: x(index) - thick / 2, y: top, width: thick, height: Math.max(1, Math.abs(y(value) - y(one.low[index]))), fill: one.color, "fill-opacity": 0.85 });
        marks += 1;
      });
      continue;
    }
    let piece = [];
    const finish = () => {
      if (!piece.length) return;
      const line = piece.map((index) => `${x(index).toFixed(1)},${y(one.high[index]).toFixed(1)}`);
      const base = [...piece].reverse().map((index) => `${x(index).toFixed(1)},${y(one.low[index]).toFixed(1)}`);
      shape(svg, "polygon", { points: [...line, ...base].join(" "), fill: one.color, "fill-opacity": custom.fillOpacity / 100 });
      if (piece.length === 1) shape(svg, "circle", { cx: x(piece[0]), cy: y(one.high[piece[0]]), r: 2, fill: one.color });
      else shape(svg, "polyline", { points: line.join(" "), fill: "none", stroke: one.color, "stroke-width": 1.2, "stroke-linejoin": "round" });
      marks += piece.length;
      piece = [];
    };
    one.high.forEach((value, index) => (value === null ? finish() : piece.push(index)));
    finish();
  }
  legend(body, drawn, panel, defaults.unit);
  return marks;
}

// Rows of cells over time: `paint` gives a cell's colour, equal neighbours are one.
function cells(body, drawn, foot, paint) {
  const height = body.clientHeight - foot;
  const [svg, width] = canvas(body, height);
  const longest = Math.max(...drawn.map((one) => one.name.length));
  const left = Math.min(width * 0.4, longest * 6.1 + 10);
  const right = width - 8;
  const most = Math.floor((height - FOOT - 4) / 11);
  const shown = drawn.slice(0, most);
  const tall = Math.min(30, (height - FOOT - 4) / shown.length);
  timeAxis(svg, left, right, height);
  let marks = 0;
  shown.forEach((one, row) => {
    const y = 4 + row * tall;
    const fits = Math.floor((left - 8) / 6);
    const text = one.name.length > fits ? `${one.name.slice(0, fits - 1)}…` : one.name;
    shape(svg, "text", { x: left - 6, y: y + tall / 2 + 3.5, "text-anchor": "end" }, text);
    const wide = (right - left) / one.values.length;
    let index = 0;
    while (index < one.values.length) {
      const fill = paint(one.values[index]);
      let end = index + 1;
      while (end < one.values.length && paint(one.values[end]) === fill) end += 1;
      if (fill) {
        shape(svg, "rect", { x: left + index * wide, y: y + 1, width: (end - index) * wide + 0.3, height: Math.max(1, tall - 2), fill, "fill-opacity": 0.9 });
        marks += 1;
      }
      index = end;
    }
  });
  if (shown.length < drawn.length) shape(svg, "text", { x: 0, y: height - 5 }, `and ${drawn.length - shown.length} more`);
  return marks;
}

function states(body, panel, answers) {
  const drawn = sampled(answers);
  if (!drawn.length) return 0;
  const mappings = panel.fieldConfig.defaults.mappings;
  const paint = (value) => (value === null ? null : color(mapped(value, mappings)?.color || "#6e7681"));
  const marks = cells(body, drawn, 18, paint);
  const seen = new Set(drawn.flatMap((one) => one.values.filter((value) => value !== null).map(String)));
  const list = element(body, "div", { class: "list" });
  for (const [value, hit] of Object.entries(mappings[0].options)) {
    if (!seen.has(value)) continue;
    const item = element(list, "span", { class: "item" });
    element(item, "span", { class: "key", style: `background:${color(hit.color)};height:9px` });
    item.append(hit.text);
  }
  return marks;
}

function heatmap(body, panel, answers) {
  const drawn = sampled(answers);
  if (!drawn.length) return 0;
  const most = Math.max(...drawn.flatMap((one) => one.values.filter((value) => value !== null))) || 1;
  const marks = cells(body, drawn, 20, (value) => (value === null ? null : turbo(value / most)));
  const unit = panel.options.cellValues.unit;
  const scale = element(body, "div", { class: "list", style: "text-align:right" });
  scale.append("0 ");
  const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => turbo(share)).join(",");
  element(scale, "span", { style: `display:inline-block;width:160px;height:8px;background:linear-gradient(90deg,${stops})` });
  scale.append(` ${formatted(most, unit)}`);
  return marks;
}
