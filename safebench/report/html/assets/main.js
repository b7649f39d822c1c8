// Draws everything once, and again when a control or the colour scheme changes.
function drawAll() {
  swatches();
  drawCurves();
  drawFrontier();
  drawTimeline();
}

// At first one chart at a time, so that the page can be read and scrolled while it fills.
function drawFirst() {
  const waiting = [...page.curves.panels.map((panel) => () => drawCurve(panel)), drawFrontier, drawTimeline];
  const next = () => {
    const work = waiting.shift();
    if (work) {
      work();
      setTimeout(next);
    } else {
      document.documentElement.dataset.drawn = "true";
    }
  };
  swatches();
  setTimeout(next);
}

legends(() => { drawCurves(); drawFrontier(); });
curvePlacesMade();
samplesMade();
for (const id of ["seeds", "band"]) document.getElementById(id).addEventListener("change", drawCurves);
document.getElementById("frontier-seeds").addEventListener("change", drawFrontier);
document.getElementById("scale").addEventListener("change", drawTimeline);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawFirst();
