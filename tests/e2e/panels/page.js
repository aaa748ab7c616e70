// Lays the panels of PAGE out and draws them; data-drawn says how many marks each got.
"use strict";

const UNIT = 30;
const DRAW = { timeseries, stat, bargauge, table, heatmap, "state-timeline": states };

// No Loki is asked: these are the log events of the recording.
function logs(body) {
  const shown = PAGE.told.slice(0, Math.floor(body.clientHeight / 16));
  const paint = { INFO: "#6ed0e0", WARN: "#ff9830", ERROR: "#f2495c" };
  for (const [at, severity, text] of shown) {
    const line = element(body, "div", { class: "told", style: `border-color:${paint[severity] || "#6ed0e0"}` });
    element(line, "time", {}, new Date(at * 1000).toISOString().slice(11, 19));
    line.append(text);
  }
  return shown.length;
}

function draw() {
  const heading = document.querySelector("h1");
  heading.textContent = PAGE.title;
  element(heading, "small", {}, PAGE.subtitle);
  const grid = document.getElementById("grid");
  const column = grid.clientWidth / 24;
  let bottom = 0;
  for (const { panel, answers } of PAGE.panels) {
    const { x, y, w, h } = panel.gridPos;
    bottom = Math.max(bottom, (y + h) * UNIT);
    if (panel.type === "row") {
      element(grid, "div", { class: "row", style: `top:${y * UNIT}px` }, panel.title);
      continue;
    }
    const place = `left:${x * column}px;top:${y * UNIT}px;width:${w * column - 6}px;height:${h * UNIT - 6}px`;
    const box = element(grid, "section", { class: "panel", style: place, "data-title": panel.title });
    element(box, "header", {}, panel.title);
    const body = element(box, "div", { class: "body" });
    const drawn = panel.type === "logs" ? logs(body) : DRAW[panel.type](body, panel, answers);
    box.setAttribute("data-drawn", drawn);
    if (!drawn) {
      body.textContent = "";
      element(body, "div", { class: "note" }, "No data");
    }
  }
  element(grid, "footer", { style: `top:${bottom}px` }, PAGE.footer);
  grid.style.height = `${bottom + 26}px`;
}

window.onerror = (message) => document.body.setAttribute("data-error", message);
draw();
document.body.setAttribute("data-done", "yes");
