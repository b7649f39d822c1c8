// Replies as the arms gave them, set as plain text: whatever they contain is shown, never read as markup.
function samplesMade() {
  const data = page.samples;
  fill("step", data.steps);
  fill("seed", data.seeds);
  const step = document.getElementById("step");
  step.value = data.steps[data.steps.length - 1];
  for (const id of ["step", "seed"]) document.getElementById(id).addEventListener("change", showSamples);
  for (const [id, by] of [["before", -1], ["after", 1]]) {
    document.getElementById(id).addEventListener("click", () => {
      step.selectedIndex = Math.min(Math.max(step.selectedIndex + by, 0), data.steps.length - 1);
      showSamples();
    });
  }
  showSamples();
}

function fill(id, values) {
  document.getElementById(id).append(...values.map((value) => new Option(value, value)));
}

function element(tag, text, more) {
  const made = document.createElement(tag);
  made.textContent = text;
  Object.assign(made, more);
  return made;
}

function showSamples() {
  const data = page.samples, table = document.getElementById("replies");
  const step = document.getElementById("step"), seed = document.getElementById("seed").value;
  document.getElementById("before").disabled = step.selectedIndex <= 0;
  document.getElementById("after").disabled = step.selectedIndex >= data.steps.length - 1;
  const header = document.createElement("tr");
  header.append(element("th", "prompt", { scope: "col" }), ...page.arms.map((arm) => element("th", arm, { scope: "col" })));
  table.tHead.replaceChildren(header);
  table.tBodies[0].replaceChildren(...data.prompts.map((prompt, at) => row(prompt, at, step.value, seed)));
  table.hidden = !data.prompts.length;
  document.getElementById("samples-note").textContent =
    data.prompts.length ? data.note : "No run has kept replies to held-out prompts that all arms were given.";
}

function row(prompt, at, step, seed) {
  const made = document.createElement("tr");
  made.append(element("th", prompt, { scope: "row", dir: "auto" }));
  for (const arm of page.arms) {
    const cell = document.createElement("td"), found = page.samples.replies[seed]?.[arm]?.[step]?.[at];
    cell.append(element("span", arm, { className: "whose" }));
    cell.append(...(found ? reply(found) : [element("p", "not kept", { className: "absent" })]));
    made.append(cell);
  }
  return made;
}

function reply([text, proxy, judge]) {
  const said = text.trim() ? element("p", text, { className: "reply", dir: "auto" })
    : element("p", "empty reply", { className: "absent" });
  return [said, element("p", `proxy ${figure(proxy)} · judge ${judge === null ? "not measured" : figure(judge)}`, { className: "scores" })];
}
