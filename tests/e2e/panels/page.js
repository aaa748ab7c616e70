// Lays the panels of PAGE out and draws them; data-drawn says how many marks each got.
"use strict";

const UNIT = 30;
const DRAW = { timeseries, stat, bargauge, table, heatmap, "state-timeline": states };

function logs(body) {
  element(body, "div", { class: "note" }, "Log events of findings: Loki is not part of this drawing.");
  return 1;
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
