// A row per run and, in every row, a lane per kind of crash, the same lane everywhere.
const ROW = 22, LANE = 6, HEADING = 24;

function drawTimeline() {
  const data = page.timeline, scale = document.getElementById("scale").value;
  const place = document.getElementById("timeline-chart");
  place.dataset.name = "timeline";
  const height = Math.max(ROW, LANE * data.kinds.length + 8);
  const { rows, headings, total } = placed(data.rows, height);
  const traces = [extents(rows, height)];
  for (const kind of data.kinds) traces.push(...episodes(data, rows, kind, scale, height));
  traces.push(...stillOpen(data, rows, scale, height), ...unstableEnds(rows));
  const faint = { color: styled("--quiet"), size: 12 };
  draw(place, traces, layout({
    height: total + (TOUCH.matches ? 56 : 80), hovermode: "closest", barmode: "overlay", bargap: 0, margin: { l: 58, r: 16, t: TOUCH.matches ? 6 : 30, b: 48 },
    xaxis: axis("step", { range: [0, data.last * 1.02 || 1] }),
    yaxis: axis("", {
      range: [total, 0], tickvals: rows.map((row) => row.middle), ticktext: rows.map((row) => `seed ${row.seed}`),
      showgrid: false, ticks: "", fixedrange: true, automargin: false,
    }),
    annotations: headings.map(({ arm, y }) => ({
      text: `<b>${literal(short(arm))}</b>`, x: 0, xref: "paper", xanchor: "left", y, yanchor: "middle", showarrow: false,
      font: { ...faint, color: armColor(arm) },
    })),
  }));
  kindKeys(data, scale);
}

const short = (name) => (name.length > 60 ? `${name.slice(0, 59)}…` : name);

function placed(all, height) {
  const rows = [], headings = [];
  let y = 0, arm = null;
  for (const row of all) {
    if (row.arm !== arm) {
      headings.push({ arm: row.arm, y: y + HEADING / 2 });
      y += HEADING;
      arm = row.arm;
    }
    rows.push({ ...row, top: y, middle: y + height / 2 });
    y += height + 4;
  }
  return { rows, headings, total: y };
}

function bar(more) {
  return { type: "bar", orientation: "h", hovertemplate: "%{text}<extra></extra>", textposition: "none", ...more };
}

const named = (row) => `<b>${literal(row.arm)} seed ${row.seed}</b>`;

function extents(rows, height) {
  return bar({
    name: "runs", meta: "run", base: rows.map(() => 0), x: rows.map((row) => row.last), y: rows.map((row) => row.middle),
    width: height, marker: { color: styled("--track") },
    text: rows.map((row) => `${named(row)}<br>${row.status}, ${row.last} of ${row.planned} steps${blind(row)}`),
  });
}

const blind = (row) => (row.unwatched.length ? `<br>not watched: ${row.unwatched.join(",<br>")}` : "");
const lane = (data, row, kind, height) => row.top + 4 + ((data.kinds.indexOf(kind) + 0.5) * (height - 8)) / data.kinds.length;

function episodes(data, rows, kind, scale, height) {
  const found = rows.flatMap((row) => row.episodes[scale].filter((one) => one[0] === kind).map((one) => [row, one]));
  if (!found.length) return [];
  return [bar({
    name: kind, meta: "episodes", base: found.map(([, one]) => one[1] - 0.5), x: found.map(([, one]) => one[2] - one[1] + 1),
    y: found.map(([row]) => lane(data, row, kind, height)), width: Math.max(LANE - 1, (height - 8) / data.kinds.length - 1),
    // The outline keeps an episode of one step visible among thousands.
    marker: { color: kindColor(kind), line: { color: kindColor(kind), width: 1.5 } },
    text: found.map(([row, one]) => told(data, row, one)),
  })];
}

function told(data, row, [kind, start, end, open, peak, depth]) {
  const unit = data.units[kind];
  const when = open ? `from step ${start}, still open at the end` : start === end ? `step ${start}` : `steps ${start} to ${end}`;
  return `${named(row)}<br>${kind}: ${when}<br>peak ${figure(peak)} ${unit}, ${figure(depth)} beyond the limit`;
}

function stillOpen(data, rows, scale, height) {
  const found = rows.flatMap((row) => row.episodes[scale].filter((one) => one[3]).map((one) => [row, one]));
  if (!found.length) return [];
  return [{
    name: "still open", meta: "open", type: "scatter", mode: "markers", cliponaxis: false,
    x: found.map(([, one]) => one[2] + 0.5), y: found.map(([row, one]) => lane(data, row, one[0], height)),
    marker: { symbol: "triangle-right", size: 10, color: found.map(([, one]) => kindColor(one[0])) },
    text: found.map(([row, one]) => told(data, row, one)), hovertemplate: "%{text}<extra></extra>",
  }];
}

function unstableEnds(rows) {
  const found = rows.filter((row) => row.status === "unstable");
  if (!found.length) return [];
  return [{
    name: "ended unstable", meta: "end", type: "scatter", mode: "markers", cliponaxis: false,
    x: found.map((row) => row.last), y: found.map((row) => row.middle),
    marker: { symbol: "x", size: 12, color: styled("--ink"), line: { color: styled("--card"), width: 1.5 } },
    text: found.map((row) => `${named(row)}<br>ended unstable at step ${row.last}`), hovertemplate: "%{text}<extra></extra>",
  }];
}

function kindKeys(data, scale) {
  const keys = document.getElementById("kinds");
  keys.replaceChildren();
  for (const kind of data.kinds) {
    const hit = data.rows.filter((row) => row.episodes[scale].some((one) => one[0] === kind)).length;
    const item = document.createElement("li"), mark = document.createElement("span");
    mark.className = "mark";
    mark.style.background = kindColor(kind);
    const watched = data.rows.filter((row) => !row.unwatched.includes(kind)).length;
    item.append(mark, `${kind} (${hit} of ${Math.max(hit, watched)} runs)`);
    keys.append(item);
  }
  if (!data.kinds.length) {
    const item = document.createElement("li");
    item.textContent = "No run has any episode at any of these thresholds.";
    keys.append(item);
  }
}
