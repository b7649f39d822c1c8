// Curves over training: bands, means, single seeds, the ends of unstable runs, and on KL the threshold and the target.
const curvePlaces = new Map();

function curvePlacesMade() {
  const room = document.getElementById("curve-charts");
  for (const panel of page.curves.panels) {
    const frame = document.createElement("figure");
    frame.className = "chart";
    const caption = document.createElement("figcaption");
    const title = document.createElement("h3");
    title.textContent = panel.title;
    const unit = document.createElement("span");
    unit.className = "unit";
    unit.textContent = panel.unit;
    title.append(" ", unit);
    const told = document.createElement("p");
    told.className = "small";
    told.textContent = panel.definition;
    caption.append(title, told);
    if (panel.thresholds) caption.append(lineKeys(panel));
    const place = document.createElement("div");
    place.className = "plot";
    place.dataset.name = panel.key.replace("/", "-");
    frame.append(caption, place);
    room.append(frame);
    curvePlaces.set(panel.key, place);
  }
  if (page.curves.missing.length) {
    const told = document.createElement("p");
    told.className = "small";
    told.textContent = `Not measured by any run: ${page.curves.missing.join(", ")}.`;
    room.after(told);
  }
}

function lineKeys(panel) {
  const keys = document.createElement("p");
  keys.className = "small";
  const having = page.arms.filter((arm) => panel.thresholds[arm]);
  keys.textContent = `Dotted: the target of ${page.curves.target}.` +
    (having.length ? ` Dashed: the threshold of ${having.join(", ")}.` : "");
  return keys;
}

function drawCurves() {
  page.curves.panels.forEach(drawCurve);
}

function drawCurve(panel) {
  return draw(curvePlaces.get(panel.key), curveTraces(panel), curveLook(panel));
}

function curveTraces(panel) {
  const traces = [], single = document.getElementById("seeds").checked, band = document.getElementById("band").value;
  const arms = page.arms.filter((arm) => shown.has(arm) && panel.arms[arm]);
  for (const arm of arms) if (band !== "none") traces.push(...bandTrace(panel, arm, band));
  for (const arm of arms) if (single) traces.push(...seedTraces(panel, arm));
  if (panel.thresholds) traces.push(...limitTraces(panel, arms));
  for (const arm of arms) traces.push(meanTrace(panel, arm, single));
  for (const arm of arms) traces.push(...endTrace(panel, arm));
  return traces;
}

function meanTrace(panel, arm, single) {
  const data = panel.arms[arm], steps = page.curves.grids[data.grid];
  const count = (at) => (typeof data.n === "number" ? data.n : data.n[at]);
  return {
    name: arm, meta: "mean", type: "scatter", mode: panel.points || steps.length === 1 ? "lines+markers" : "lines",
    x: steps, y: data.mean, line: { color: armColor(arm), width: 2.2, dash: armDash(arm) }, marker: { size: 6 },
    text: data.mean.map((value, at) => `${withMargin(value, data.margin[at])} ${panel.unit}, n ${count(at)}`),
    hovertemplate: `<b>${literal(arm)}</b> %{text}${single ? "<br>mean at step %{x}" : ""}<extra></extra>`,
  };
}

// One polygon per stretch of steps at which the band is defined.
function bandTrace(panel, arm, kind) {
  const data = panel.arms[arm], steps = page.curves.grids[data.grid], x = [], y = [];
  const edges = steps.map((_, at) => (kind === "range" ? rangeAt(data, at) : intervalAt(data, at)));
  for (let from = 0; from < steps.length; from++) {
    if (!edges[from]) continue;
    let to = from;
    while (to + 1 < steps.length && edges[to + 1]) to++;
    const stretch = Array.from({ length: to - from + 1 }, (_, k) => from + k);
    const back = [...stretch].reverse();
    x.push(...stretch.map((at) => steps[at]), ...back.map((at) => steps[at]), null);
    y.push(...stretch.map((at) => edges[at][1]), ...back.map((at) => edges[at][0]), null);
    from = to;
  }
  if (!x.length) return [];
  return [{
    name: arm, meta: "band", type: "scatter", mode: "lines", x, y, fill: "toself", hoverinfo: "skip",
    fillcolor: faded(armColor(arm), 0.17), line: { width: 0 }, connectgaps: false,
  }];
}

function intervalAt(data, at) {
  return data.margin[at] === null ? null : [data.mean[at] - data.margin[at], data.mean[at] + data.margin[at]];
}

function rangeAt(data, at) {
  const values = Object.values(data.seeds).map((seed) => seed[at]).filter((value) => value !== null);
  return values.length > 1 ? [Math.min(...values), Math.max(...values)] : null;
}

function seedTraces(panel, arm) {
  const data = panel.arms[arm], steps = page.curves.grids[data.grid];
  return Object.entries(data.seeds).map(([seed, values]) => ({
    name: `${arm} seed ${seed}`, meta: "seed", type: "scatter", mode: "lines", x: steps, y: values,
    line: { color: faded(armColor(arm), 0.55), width: 1 }, connectgaps: true,
    text: values.map((value) => figure(value)),
    hovertemplate: `${literal(arm)} seed ${seed}: %{text} ${panel.unit}<br>step %{x}<extra></extra>`,
  }));
}

function limitTraces(panel, arms) {
  const traces = [], ends = arms.flatMap((arm) => page.curves.grids[panel.arms[arm].grid]);
  for (const arm of arms) {
    const data = panel.thresholds[arm];
    if (!data) continue;
    traces.push({
      name: `threshold of ${arm}`, meta: "threshold", type: "scatter", mode: "lines",
      x: page.curves.grids[data.grid], y: data.mean, line: { color: armColor(arm), width: 1.4, dash: "dash" },
      text: data.mean.map((value) => figure(value)), hovertemplate: `threshold of ${literal(arm)}: %{text} ${panel.unit}<extra></extra>`,
    });
  }
  if (ends.length) {
    const span = [ends.reduce((a, b) => Math.min(a, b)), ends.reduce((a, b) => Math.max(a, b))];
    traces.push({
      name: "target", meta: "target", type: "scatter", mode: "lines", x: span, y: span.map(() => page.curves.target),
      line: { color: styled("--quiet"), width: 1.4, dash: "dot" }, hoverinfo: "skip",
    });
  }
  return traces;
}

// The last measured value of every run that ended unstable.
function endTrace(panel, arm) {
  const data = panel.arms[arm], steps = page.curves.grids[data.grid], x = [], y = [], text = [];
  for (const [seed, values] of Object.entries(data.seeds)) {
    if (page.runs[arm][seed].status !== "unstable") continue;
    const last = values.findLastIndex((value) => value !== null);
    if (last < 0) continue;
    x.push(steps[last]);
    y.push(values[last]);
    text.push(`${literal(arm)} seed ${seed} ended unstable at step ${page.runs[arm][seed].last}`);
  }
  if (!x.length) return [];
  return [{
    name: `${arm} unstable`, meta: "end", type: "scatter", mode: "markers", x, y, text,
    marker: { symbol: "x", size: 11, color: armColor(arm), line: { color: styled("--card"), width: 1.5 } },
    hovertemplate: "%{text}<extra></extra>",
  }];
}

// The axis holds every seed's value, whichever arms and bands are drawn.
function curveLook(panel) {
  const values = Object.values(panel.arms).filter(Boolean).flatMap((data) => Object.values(data.seeds).flat());
  const range = rangeOf(values, { ...panel, least: panel.thresholds ? [page.curves.target] : [] });
  const single = document.getElementById("seeds").checked;
  return layout({
    height: 285, hovermode: single ? "closest" : "x unified",
    xaxis: axis("step", { unifiedhovertitle: { text: "step %{x}" } }), yaxis: axis("", { range }),
  });
}
