// The judge's reward against KL: each arm's mean path, its seeds on demand, and best of n of the initial policy.
function drawFrontier() {
  const place = document.getElementById("frontier-chart");
  const data = page.frontier;
  place.dataset.name = "frontier";
  if (!data.judged) {
    place.className = "empty";
    place.textContent = "No run has measured both the judge's reward and KL on held-out prompts.";
    return;
  }
  const arms = page.arms.filter((arm) => shown.has(arm) && data.arms[arm]);
  const single = document.getElementById("frontier-seeds").checked;
  const traces = [];
  if (data.reference.length) traces.push(referenceTrace(data.reference));
  for (const arm of arms) if (single) traces.push(...pathTraces(arm, data.arms[arm]));
  for (const arm of arms) traces.push(meanPath(arm, data.arms[arm]));
  for (const arm of arms) traces.push(lastPoints(arm, data.arms[arm]));
  const line = { color: styled("--line"), width: 1, dash: "dot" };
  draw(place, traces, layout({
    height: 430, hovermode: "closest",
    xaxis: axis("KL to the initial policy [nats per reply]", { rangemode: "tozero" }),
    yaxis: axis("judge reward", { range: rangeOf(frontierValues(data)) }),
    shapes: data.levels.map((level) => (
      { type: "line", x0: level, x1: level, yref: "paper", y0: 0, y1: 1, line, layer: "below" }
    )),
  }));
}

function frontierValues(data) {
  const seeds = Object.values(data.arms).flatMap((arm) => Object.values(arm.seeds).flat());
  return [...seeds, ...data.reference].map((point) => point[2]);
}

function meanPath(arm, data) {
  const points = data.mean;
  return {
    name: arm, meta: "mean", type: "scatter", cliponaxis: false, mode: "lines+markers",
    x: points.map((point) => point[1]), y: points.map((point) => point[2]),
    error_y: { type: "data", array: points.map((point) => point[3] ?? 0), color: faded(armColor(arm), 0.5), thickness: 1.2, width: 3 },
    line: { color: armColor(arm), width: 2.2, dash: armDash(arm) }, marker: { size: 8, color: armColor(arm) },
    text: points.map(([step, kl, judge, margin, n]) =>
      `step ${step}, n ${n}<br>judge ${withMargin(judge, margin)}<br>KL ${figure(kl)} nats per reply`),
    hovertemplate: `<b>${literal(arm)}</b> %{text}<extra></extra>`,
  };
}

function pathTraces(arm, data) {
  return Object.entries(data.seeds).filter(([, points]) => points.length).map(([seed, points]) => ({
    name: `${arm} seed ${seed}`, meta: "seed", type: "scatter", mode: "lines+markers",
    x: points.map((point) => point[1]), y: points.map((point) => point[2]),
    line: { color: faded(armColor(arm), 0.5), width: 1 }, marker: { size: 4, color: faded(armColor(arm), 0.6) },
    text: points.map(([step, kl, judge]) => `step ${step}<br>judge ${figure(judge)}<br>KL ${figure(kl)} nats per reply`),
    hovertemplate: `${literal(arm)} seed ${seed}, %{text}<extra></extra>`,
  }));
}

// Where every seed ended: what the mean's last point is made of.
function lastPoints(arm, data) {
  const ends = Object.entries(data.seeds).filter(([, points]) => points.length)
    .map(([seed, points]) => [seed, points[points.length - 1]]);
  return {
    name: `${arm}, ends`, meta: "ends", type: "scatter", mode: "markers",
    x: ends.map(([, point]) => point[1]), y: ends.map(([, point]) => point[2]),
    marker: { symbol: "diamond-open", size: 9, color: armColor(arm), line: { width: 1.6 } },
    text: ends.map(([seed, [step, kl, judge]]) =>
      `seed ${seed} at its last evaluation, step ${step}<br>judge ${figure(judge)}<br>KL ${figure(kl)} nats per reply`),
    hovertemplate: `${literal(arm)} %{text}<extra></extra>`,
  };
}

function referenceTrace(points) {
  return {
    name: "best of n", meta: "reference", type: "scatter", cliponaxis: false, mode: "lines+markers+text",
    x: points.map((point) => point[1]), y: points.map((point) => point[2]),
    error_y: { type: "data", array: points.map((point) => point[3] ?? 0), color: faded(styled("--quiet"), 0.5), thickness: 1, width: 2 },
    line: { color: styled("--quiet"), width: 1.6, dash: "dot" }, marker: { size: 6, color: styled("--quiet"), symbol: "square" },
    text: points.map((point) => String(point[0])), textposition: "top left", textfont: { color: styled("--quiet"), size: 11 },
    customdata: points.map(([n, kl, judge, margin]) =>
      `best of ${n} by the proxy<br>judge ${withMargin(judge, margin)} (over prompts)<br>KL at most ${figure(kl)} nats per reply`),
    hovertemplate: "%{customdata}<extra></extra>",
  };
}
