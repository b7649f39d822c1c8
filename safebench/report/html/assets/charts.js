// What all charts share: the look, the way they are drawn, and the legend of arms above them.
const shown = new Set(page.arms);
const TOUCH = matchMedia("(pointer: coarse)");

// The range of an axis that holds all these values with some room; bands and bars may leave it.
function rangeOf(values, { floor = null, ceiling = null, least = [] } = {}) {
  let low = Infinity, high = -Infinity;
  for (const value of [values, least].flat()) {
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (floor !== null) low = Math.min(low, floor);
  const room = 0.1 * (high - low || Math.abs(high) || 1);
  return [floor === null ? low - room : low - 0.2 * room, ceiling === null ? high + room : ceiling + 0.03];
}

function axis(title, more) {
  return {
    title: { text: title, font: { size: 12, color: styled("--quiet") }, standoff: 8 },
    gridcolor: styled("--grid"), linecolor: styled("--line"), tickcolor: styled("--line"),
    zeroline: false, ticks: "outside", ticklen: 4, automargin: true, ...more,
  };
}

function layout(more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: styled("--sans"), size: 12, color: styled("--ink") },
    margin: { l: 48, r: 14, t: TOUCH.matches ? 10 : 30, b: 44 }, showlegend: false,
    hoverlabel: {
      bgcolor: styled("--card"), bordercolor: styled("--line"), namelength: -1, align: "left",
      font: { family: styled("--sans"), size: 12, color: styled("--ink") },
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: styled("--quiet"), activecolor: styled("--ink") },
    dragmode: TOUCH.matches ? false : "zoom", ...more,
  };
}

// The buttons are listed: by itself plotly would offer one that sends the figures to a server of its maker.
const BUTTONS = [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]];

function draw(place, traces, look) {
  return Plotly.react(place, traces, look, {
    responsive: true, displaylogo: false, modeBarButtons: BUTTONS, displayModeBar: TOUCH.matches ? false : "hover",
    showSendToCloud: false, plotlyServerURL: "",
    toImageButtonOptions: { format: "svg", filename: `safebench-${place.dataset.name}` },
  });
}

function swatches() {
  for (const swatch of document.querySelectorAll(".swatch[data-arm]")) {
    const arm = page.arms[Number(swatch.dataset.arm)];
    swatch.style.borderTopColor = armColor(arm);
    swatch.style.borderTopStyle = { solid: "solid", dash: "dashed", dashdot: "dashed", dot: "dotted" }[armDash(arm)];
  }
}

// One button per arm above the curves and above the frontier; both act on all charts.
function legends(changed) {
  for (const legend of document.querySelectorAll(".legend")) {
    page.arms.forEach((arm, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.name = arm;
      button.setAttribute("aria-pressed", "true");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.dataset.arm = index;
      button.append(swatch, `${arm} (n=${Object.keys(page.runs[arm]).length})`);
      button.addEventListener("click", () => {
        shown.has(arm) ? shown.delete(arm) : shown.add(arm);
        for (const other of document.querySelectorAll(".legend button")) {
          other.setAttribute("aria-pressed", String(shown.has(other.dataset.name)));
        }
        changed();
      });
      legend.append(button);
    });
  }
}
