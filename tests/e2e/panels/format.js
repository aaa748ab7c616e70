// Numbers with units, colours, names: as Grafana writes them.
"use strict";

const COLORS = {
  green: "#73bf69", yellow: "#fade2a", orange: "#ff9830", red: "#f2495c", blue: "#5794f2",
};
const PALETTE = [
  "#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#1fa7a0", "#fade2a", "#447ebc",
  "#c15c17", "#e0b4f1", "#0a8f5b", "#ffa6b0", "#ca95e5", "#56a64b", "#3274d9", "#e02f44", "#fa6400", "#96d98d",
];
const color = (name) => COLORS[name] || name;

function scaled(value, base, names, digits) {
  let index = 0;
  let size = Math.abs(value);
  while (size >= base && index < names.length - 1) { size /= base; value /= base; index += 1; }
  const text = Number(value.toFixed(digits ?? (size >= 100 ? 0 : size >= 10 ? 1 : 2)));
  return `${text}${names[index]}`;
}

function formatted(value, unit, decimals) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  switch (unit) {
    case "bytes": return scaled(value, 1024, [" B", " KiB", " MiB", " GiB", " TiB", " PiB"], decimals);
    case "Bps": return scaled(value, 1000, [" B/s", " kB/s", " MB/s", " GB/s", " TB/s", " PB/s"], decimals);
    case "percentunit": return `${Number((value * 100).toFixed(decimals ?? (Math.abs(value) < 0.1 ? 2 : 1)))}%`;
    case "s": {
      const size = Math.abs(value);
      if (size === 0) return "0 s";
      if (size < 1e-3) return `${Number((value * 1e6).toPrecision(3))} µs`;
      if (size < 1) return `${Number((value * 1e3).toPrecision(3))} ms`;
      return `${Number(value.toPrecision(3))} s`;
    }
    case "watt": return scaled(value, 1000, [" W", " kW", " MW"], decimals);
    case "celsius": return `${Number(value.toFixed(decimals ?? 1))} °C`;
    case "cps": return scaled(value, 1000, [" /s", " K/s", " M/s", " G/s"], decimals);
    case "none": return Math.abs(value) > 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
    default: return scaled(value, 1000, ["", " K", " Mil", " Bil"], decimals);
  }
}

// {{label}} of a legend; __auto is all of the labels.
function named(answer, series) {
  const labels = { ...series.metric };
  delete labels.__name__;
  if (answer.legend === "__auto") return Object.values(labels).join(" ") || "value";
  return answer.legend.replace(/\{\{\s*([^}\s]+)\s*\}\}/g, (_, name) => labels[name] ?? "").trim();
}

function step(value, thresholds) {
  let found = color(thresholds.steps[0].color);
  for (const one of thresholds.steps) if (one.value !== null && value >= one.value) found = color(one.color);
  return found;
}

function mapped(value, mappings) {
  for (const one of mappings || []) {
    const hit = one.options[String(value)];
    if (hit) return hit;
  }
  return null;
}

function turbo(share) {
  const stops = ["#30123b", "#4662d7", "#36aaf9", "#1ae4b6", "#72fe5e", "#c7ef34", "#faba39", "#f66b19", "#ca2a04"];
  return blend(stops, share);
}

function purples(share) { return blend(["#1f2a44", "#2f4b8f", "#5a55c4", "#8f5fd6", "#c77fe8"], share); }

function blend(stops, share) {
  const at = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const part = (text, from) => parseInt(text.slice(from, from + 2), 16);
  const mix = [1, 3, 5].map((from) =>
    Math.round(part(stops[low], from) + (at - low) * (part(stops[low + 1], from) - part(stops[low], from))));
  return `rgb(${mix.join(",")})`;
}

function element(parent, tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== "") made.textContent = text;
  parent.append(made);
  return made;
}

function shape(parent, tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== "") made.textContent = text;
  parent.append(made);
  return made;
}
