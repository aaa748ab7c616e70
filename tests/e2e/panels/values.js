// What shows values as they are now: numbers, bars, tables, matrices. Each returns how many marks it drew.
"use strict";

function stat(body, panel, answers) {
  const defaults = panel.fieldConfig.defaults;
  const found = answers.flatMap((answer) => answer.series.map((series) => [answer, series]));
  const holder = element(body, "div", { class: "stat" });
  found.forEach(([answer, series], index) => {
    const values = series.values.map(([, text]) => Number(text)).filter((value) => !Number.isNaN(value));
    const last = values[values.length - 1];
    const paint = step(last, defaults.thresholds);
    if (panel.options.graphMode === "area" && index === 0) sparkline(holder, values, paint, body.clientHeight);
    const one = element(holder, "div", { class: "one" });
    const size = Math.min(body.clientHeight * 0.45, 34, (body.clientWidth / found.length) * 0.2);
    element(one, "b", { style: `color:${paint};font-size:${size}px` }, formatted(last, defaults.unit, defaults.decimals));
    if (panel.options.textMode === "value_and_name") element(one, "small", {}, named(answer, series));
  });
  return found.length;
}

function sparkline(holder, values, paint, height) {
  const tall = height * 0.5;
  const svg = shape(holder, "svg", { height: tall, viewBox: `0 0 100 ${tall}`, preserveAspectRatio: "none" });
  const most = Math.max(...values) || 1;
  const points = values.map((value, index) => `${((index / (values.length - 1)) * 100).toFixed(2)},${(tall - (value / most) * (tall - 3)).toFixed(1)}`);
  shape(svg, "polygon", { points: `0,${tall} ${points.join(" ")} 100,${tall}`, fill: paint, "fill-opacity": 0.13 });
  shape(svg, "polyline", { points: points.join(" "), fill: "none", stroke: paint, "stroke-width": 1, "stroke-opacity": 0.7, "vector-effect": "non-scaling-stroke" });
}

function bargauge(body, panel, answers) {
  const defaults = panel.fieldConfig.defaults;
  const found = answers.flatMap((answer) => answer.series.map((series) => ({ name: named(answer, series), value: Number(series.value[1]) })));
  found.sort((a, b) => b.value - a.value);
  const most = defaults.max ?? Math.max(...found.map((one) => one.value));
  const tall = Math.min(26, body.clientHeight / found.length - 6);
  const shown = tall < 11 ? found.slice(0, Math.floor(body.clientHeight / 17)) : found;
  for (const one of shown) {
    const line = element(body, "div", { class: "bar", style: `height:${Math.max(11, tall)}px` });
    element(line, "div", { class: "name" }, one.name);
    const track = element(line, "div", { class: "track" });
    const paint = step(one.value, defaults.thresholds);
    element(track, "div", { style: `width:${Math.min(100, (one.value / most) * 100)}%;background:${paint}` });
    element(line, "div", { class: "value", style: `color:${paint}` }, formatted(one.value, defaults.unit));
  }
  return found.length;
}

// Rows of labels with a value for each query: Grafana's transformation "merge".
function merged(answers) {
  const rows = new Map();
  answers.forEach((answer, index) => {
    const title = answers.length === 1 ? "Value" : `Value #${String.fromCharCode(65 + index)}`;
    for (const series of answer.series) {
      const labels = { ...series.metric };
      delete labels.__name__;
      const key = JSON.stringify(Object.entries(labels).sort());
      if (!rows.has(key)) rows.set(key, { ...labels });
    }
    for (const series of answer.series) {
      const labels = { ...series.metric };
      delete labels.__name__;
      rows.get(JSON.stringify(Object.entries(labels).sort()))[title] = Number(series.value[1]);
    }
  });
  // Lines whose labels say less join those that have the same and more.
  const found = [...rows.values()];
  const isLabel = (name) => !name.startsWith("Value");
  return found.filter((row) => {
    const labels = Object.keys(row).filter(isLabel);
    const wider = found.filter((other) => other !== row && Object.keys(other).filter(isLabel).length > labels.length
      && labels.every((name) => other[name] === row[name]));
    for (const other of wider) Object.assign(other, Object.fromEntries(Object.entries(row).filter(([name]) => !isLabel(name))));
    return !wider.length;
  });
}

function table(body, panel, answers) {
  const matrix = panel.transformations.find((one) => one.id === "groupingToMatrix");
  if (matrix) return grid(body, panel, answers, matrix.options);
  const order = panel.transformations.find((one) => one.id === "organize").options;
  const rows = merged(answers);
  const columns = Object.keys(order.indexByName).filter((name) => rows.some((row) => row[name] !== undefined));
  const settings = (title) => Object.fromEntries((panel.fieldConfig.overrides.find((one) => one.matcher.options === title)?.properties || []).map((one) => [one.id, one.value]));
  const title = (name) => order.renameByName[name];
  const sort = Object.keys(order.renameByName).find((name) => title(name) === panel.options.sortBy[0]?.displayName);
  if (sort) rows.sort((a, b) => (b[sort] ?? -1) - (a[sort] ?? -1));
  else rows.sort((a, b) => (String(a[columns[0]]) < String(b[columns[0]]) ? -1 : 1));
  const made = element(body, "table", { class: "data" });
  const head = element(made, "tr");
  const numeric = (name) => name.startsWith("Value") && !settings(title(name)).mappings;
  for (const name of columns) element(head, "th", numeric(name) ? { class: "number" } : {}, title(name));
  for (const row of rows.slice(0, Math.floor(body.clientHeight / 22) - 1)) {
    const line = element(made, "tr");
    for (const name of columns) {
      const set = settings(title(name));
      const value = row[name];
      const hit = mapped(value, set.mappings);
      const cell = element(line, "td", numeric(name) ? { class: "number" } : {});
      const text = hit ? hit.text : typeof value === "number" ? formatted(value, set.unit) : value ?? "";
      if (set.links && text !== "") element(cell, "a", { href: "#" }, text);
      else cell.textContent = text;
      if (hit) cell.style.color = color(hit.color);
      else if (set.thresholds && typeof value === "number") cell.style.color = step(value, set.thresholds);
    }
  }
  return rows.length;
}

function grid(body, panel, answers, options) {
  const series = answers[0].series;
  const order = (a, b) => a.localeCompare(b, "en", { numeric: true });
  const rows = [...new Set(series.map((one) => one.metric[options.rowField] ?? ""))].sort(order);
  const columns = [...new Set(series.map((one) => one.metric[options.columnField] ?? ""))].sort(order);
  const value = new Map(series.map((one) => [`${one.metric[options.rowField] ?? ""}|${one.metric[options.columnField] ?? ""}`, Number(one.value[1])]));
  const most = Math.max(...value.values()) || 1;
  const made = element(body, "table", { class: "data matrix" });
  const head = element(made, "tr");
  element(head, "th", {}, `${options.rowField} \\ ${options.columnField}`);
  for (const name of columns) element(head, "th", {}, name);
  const tall = Math.min(26, (body.clientHeight - 24) / rows.length - 0.5);
  for (const row of rows.slice(0, Math.floor((body.clientHeight - 24) / Math.max(15, tall)))) {
    const line = element(made, "tr", { style: `height:${tall}px` });
    element(line, "td", {}, row);
    for (const name of columns) {
      const found = value.get(`${row}|${name}`);
      const cell = element(line, "td", {}, found === undefined ? "" : formatted(found, panel.fieldConfig.defaults.unit));
      if (found !== undefined) { cell.style.background = purples(found / most); cell.style.color = "#f0f0fa"; }
    }
  }
  return value.size;
}
