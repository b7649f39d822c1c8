"use strict";
// Colours, dashes and numbers. Colours are read from the style sheet each time, so that light and dark have one source.
const page = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["solid", "dash", "dashdot", "dot"];
const PALETTE = 7;

const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const armColor = (arm) => styled(`--arm-${page.arms.indexOf(arm) % PALETTE}`);
const armDash = (arm) => DASHES[Math.floor(page.arms.indexOf(arm) / PALETTE) % DASHES.length];
const kindColor = (kind) => styled(`--kind-${kind}`);

function faded(color, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

// Plotly reads a little HTML and %{...} in its texts: names are shown as they are written.
function literal(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%&#123;");
}

function figure(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

const withMargin = (value, margin) => figure(value) + (margin === null ? "" : ` ± ${figure(margin, 2)}`);
