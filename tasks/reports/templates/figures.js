// Failed items are listed by reason.
const FAILED_PAGE = 50;
function startFailures() {
  if (!field("failed-list")) return;
  const all = [];
  for (let item = 0; item < numItems; item++) if (isFailed(item)) all.push(item);
  if (!all.length) return;
  field("failed-list").hidden = false;
  const select = field("failed-code");
  fillChoices(select, distinct("code"), title);
  let shown = FAILED_PAGE;
  const render = () => {
    const items = all.filter((item) => !select.value || text("code", item) === select.value);
    field("failed-rows").replaceChildren(...items.slice(0, shown).map(failedRow));
    field("failed-more").hidden = items.length <= shown;
    field("failed-more").textContent = `Show more (${whole.format(items.length - shown)} left)`;
  };
  select.addEventListener("change", () => { shown = FAILED_PAGE; render(); });
  field("failed-more").addEventListener("click", () => { shown += 4 * FAILED_PAGE; render(); });
  for (const button of document.querySelectorAll("[data-code]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      select.value = button.dataset.code;
      shown = FAILED_PAGE;
      render();
      field("failed-title").focus();
      field("failed-list").scrollIntoView();
    });
  }
  render();
}

function failedRow(item) {
  const cells = [
    ["Item", make("code", {}, make("bdi", { textContent: columns.id[item] }))],
    ["Reason", title(text("code", item))],
    ["Message", make("bdi", { textContent: columns.message[item] })],
    ["Attempts", String(columns.attempts[item])],
  ];
  const row = make("tr");
  for (const [label, content] of cells) {
    const cell = make("td", {}, content);
    cell.dataset.label = label;
    if (label === "Attempts") cell.className = "num";
    row.append(cell);
  }
  return row;
}

startGallery();
startViewer();
startCharts();
startFailures();
