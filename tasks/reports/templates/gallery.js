const data = JSON.parse(find("#data").textContent);
const columns = data.columns;
const numItems = columns.id.length;
const text = (name, item) => data.strings[columns[name][item]] ?? "";
const isFailed = (item) => columns.failed[item] === 1;
const title = (code) => data.words.codes[code] ?? code;
const decimals = (value, digits) => value == null ? "–" : value.toFixed(digits);
const seconds = (value) => value == null ? "–" : value < 0.1 ? `${Math.round(value * 1000)} ms` : `${value.toPrecision(3)} s`;
const scoreName = (name) => data.words.scores[name]?.[0] ?? name;

// Strips: each is text in a script element of its own, read and decoded when its item is shown, and forgotten after a while.
const strips = new Map();
const MAX_DECODED = 240;
function decodeStrip(item) {
  if (!strips.has(item)) {
    const image = new Image();
    image.src = find(`#strip-${item}`).textContent;
    strips.set(item, image.decode().then(() => image));
    if (strips.size > MAX_DECODED) strips.delete(strips.keys().next().value);
  }
  return strips.get(item);
}

// A panel is drawn at the size it is shown: smooth (bicubic), because enlarged pixels hide what a small picture shows.
async function drawPanel(canvas, item, panel) {
  const strip = await decodeStrip(item);
  const width = strip.naturalWidth / columns.panels[item];
  const side = Math.round((canvas.clientWidth || 96) * Math.min(window.devicePixelRatio, 3));
  canvas.width = side;
  canvas.height = Math.round(side * strip.naturalHeight / width);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  // Lossy compression lets neighbours shine through at the seams of a strip: leave out its outermost line.
  const seam = width >= 48 ? 1 : 0;
  context.drawImage(strip, panel * width + seam, seam, width - 2 * seam, strip.naturalHeight - 2 * seam, 0, 0, canvas.width, canvas.height);
}

function panelLabels(item) {
  const count = columns.panels[item];
  const inner = Array.from({ length: Math.max(0, count - 2) }, (_, i) => i === 0 ? (columns.source[item] == null ? "Sketch" : "Source") : i === 1 ? "Transfer" : `Loop ${i - 1}`);
  return count > 1 ? ["Subject", ...inner, "Result"] : ["Result"];
}

// similarities[k] compares loop k + 1 with the image before it.
function panelSimilarity(item, panel) {
  const similarities = columns.similarities[item], count = columns.panels[item];
  if (panel === count - 1) return similarities.at(-1);
  return panel >= 3 ? similarities[panel - 3] : undefined;
}

function makePanel(item, panel, label) {
  const figure = find("#panel-template").content.cloneNode(true).firstElementChild;
  const canvas = make("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  find(".picture", figure).append(canvas);
  const similarity = panelSimilarity(item, panel);
  find("figcaption", figure).append(make("span", { textContent: label }));
  if (similarity !== undefined) find("figcaption", figure).append(make("span", { textContent: similarity.toFixed(3), title: "Similarity to the image before" }));
  return figure;
}

function makeStrip(item) {
  const labels = panelLabels(item);
  const panels = labels.map((label, panel) => makePanel(item, panel, label));
  panels[0].classList.add("end", "subject");
  panels.at(-1).classList.add("end", "result");
  const middle = make("div", { className: "middle" }, ...panels.slice(1, -1));
  return panels.length > 1 ? [panels[0], ...(panels.length > 2 ? [middle] : []), panels.at(-1)] : panels;
}

function drawAll(root, item) {
  root.querySelectorAll("canvas").forEach((canvas, panel) => {
    drawPanel(canvas, item, panel).catch(() => canvas.replaceWith(noPreview()));
  });
}

function noPreview() {
  return make("span", { className: "no-preview", textContent: "No preview" });
}

function fullPicture(item) {
  const key = columns.key[item];
  const suffix = text("image", item);
  return suffix ? `images/${key.slice(0, 2)}/${key}${suffix}` : null;
}

function facts(pairs) {
  return pairs.filter(([, value]) => value !== "" && value != null).map(([name, value, note]) => {
    const dd = make("dd", {}, value);
    if (note) dd.append(make("small", { textContent: note }));
    return make("div", {}, make("dt", { textContent: name }), dd);
  });
}

function loopWords(item) {
  if (columns.loops[item] == null) return "";
  const stop = data.words.stops[text("stop", item)]?.[0] ?? text("stop", item);
  return [String(columns.loops[item]), stop.toLowerCase()].filter(Boolean).join(", ");
}

function briefFacts(item) {
  const scores = Object.keys(columns.scores).filter((name) => columns.scores[name][item] != null);
  return facts([
    ["Loops", loopWords(item)],
    ...scores.map((name) => [scoreName(name), decimals(columns.scores[name][item], 3)]),
    ["Time", seconds(columns.seconds[item])],
  ]);
}

function makeItem(item) {
  const template = find(isFailed(item) ? "#failed-template" : "#item-template");
  const element = template.content.cloneNode(true).firstElementChild;
  element.dataset.item = item;
  find(".prompt", element).textContent = text("prompt", item);
  find(".name", element).textContent = columns.id[item];
  find(".name", element).title = columns.id[item];
  const button = find("button", element);
  button.setAttribute("aria-label", `Enlarge ${columns.id[item]}`);
  button.addEventListener("click", () => openViewer(item));
  if (isFailed(item)) {
    find(".failed-title", element).textContent = title(text("code", item));
    find(".message", element).textContent = columns.message[item];
    return element;
  }
  find(".facts", element).append(...briefFacts(item));
  element.classList.toggle("item-bare", !columns.picture[item]);
  button.append(...(columns.picture[item] ? makeStrip(item) : makeBare(item)));
  return element;
}

// An item without a strip shows its full picture where the page lies beside the images.
function makeBare(item) {
  const figure = find("#panel-template").content.cloneNode(true).firstElementChild;
  figure.classList.add("end", "result");
  find("figcaption", figure).textContent = "Result";
  const source = fullPicture(item);
  if (!source) find(".picture", figure).append(noPreview());
  else {
    const image = make("img", { loading: "lazy", alt: "Result" });
    image.addEventListener("error", () => image.replaceWith(noPreview()));
    image.src = source;
    find(".picture", figure).append(image);
  }
  return [figure];
}

// The list: filter, sort, page.
const PAGE_SIZE = 24;
const list = { shown: [], page: 0 };
const haystacks = new Array(numItems);
function haystack(item) {
  haystacks[item] ??= [columns.id[item], text("prompt", item), text("class", item), columns.message[item], text("code", item), columns.key[item]].join("\n").toLowerCase();
  return haystacks[item];
}

const collator = new Intl.Collator("en", { numeric: true });
const lastSimilarity = (item) => columns.similarities[item].at(-1);
const orders = {
  catalog: { label: "Catalog order", value: (item) => columns.index[item] },
  id: { label: "Item", value: (item) => columns.id[item] },
  ...Object.fromEntries(Object.keys(columns.scores).map((name) => [
    `score-${name}`, { label: scoreName(name), value: (item) => columns.scores[name][item], descending: true }])),
  similarity: { label: "Similarity of last loop", value: lastSimilarity, descending: true },
  loops: { label: "Loops", value: (item) => columns.loops[item], descending: true },
  seconds: { label: "Time", value: (item) => isFailed(item) ? null : columns.seconds[item], descending: true },
};

function compareBy(order, reversed) {
  const sign = Boolean(order.descending) === reversed ? 1 : -1;
  return (a, b) => {
    const left = order.value(a), right = order.value(b);
    if (left == null || right == null) return (left == null) - (right == null) || a - b;
    const difference = typeof left === "string" ? collator.compare(left, right) : left - right;
    return sign * difference || a - b;
  };
}

function hasStatus(item, status) {
  if (status === "pictured") return columns.picture[item] === 1;
  return !status || isFailed(item) === (status === "failed");
}

function chosenItems() {
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = field("status").value, code = field("code").value, run = field("run").value;
  const items = [];
  for (let item = 0; item < numItems; item++) {
    if (!hasStatus(item, status)) continue;
    if (code && text("code", item) !== code) continue;
    if (run && text("run", item) !== run) continue;
    if (words.every((word) => haystack(item).includes(word))) items.push(item);
  }
  const order = orders[field("sort").value];
  return items.sort(compareBy(order, field("direction").getAttribute("aria-pressed") === "true"));
}

function refresh() {
  list.shown = chosenItems();
  showPage(0);
}

function showPage(page) {
  const last = Math.max(0, Math.ceil(list.shown.length / PAGE_SIZE) - 1);
  list.page = Math.min(Math.max(0, page), last);
  const start = list.page * PAGE_SIZE;
  const items = list.shown.slice(start, start + PAGE_SIZE);
  field("items").replaceChildren(...items.map(makeItem));
  drawShown();
  const total = list.shown.length === numItems ? `${whole.format(numItems)} items` : `${whole.format(list.shown.length)} of ${whole.format(numItems)} items`;
  field("count").textContent = last ? `${whole.format(start + 1)}–${whole.format(start + items.length)} of ${total}` : total;
  field("nothing").hidden = items.length > 0;
  field("pages").hidden = last === 0;
  field("page").value = list.page + 1;
  field("page").max = last + 1;
  field("last-page").textContent = whole.format(last + 1);
  for (const button of field("pages").querySelectorAll("button")) {
    button.disabled = /first|previous/.test(button.dataset.go) ? list.page === 0 : list.page === last;
  }
}

function drawShown() {
  for (const element of field("items").children) {
    const item = Number(element.dataset.item);
    if (columns.picture[item]) drawAll(element, item);
  }
}

function turnTo(page) {
  showPage(page);
  field("gallery").scrollIntoView({ behavior: "instant" });
  field("gallery-title").focus({ preventScroll: true });
}

function fillChoices(select, values, label) {
  select.append(...values.map((value) => make("option", { value, textContent: label(value) })));
  select.closest("label").hidden = values.length < (select.id === "run" ? 2 : 1);
}

function distinct(name) {
  return [...new Set(columns[name])].filter((ref) => ref != null && data.strings[ref]).map((ref) => data.strings[ref]).sort();
}

function startGallery() {
  fillChoices(field("code"), distinct("code"), title);
  fillChoices(field("run"), distinct("run").reverse(), (run) => run === data.run ? `${run} (this one)` : run);
  const hasBare = columns.picture.some((picture, item) => !picture && !isFailed(item));
  if (!hasBare) find("[value=pictured]").remove();
  else if (columns.picture.includes(1)) field("status").value = "pictured";
  const usable = Object.entries(orders).filter(([, order]) => { for (let item = 0; item < numItems; item++) if (order.value(item) != null) return true; return false; });
  field("sort").append(...usable.map(([value, order]) => make("option", { value, textContent: order.label })));
  if (!usable.length) field("sort").append(make("option", { value: "catalog", textContent: orders.catalog.label }));
  let timer;
  field("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(refresh, 120); });
  // A reason belongs to failures only: one choice takes back a contradicting other one.
  field("code").addEventListener("change", () => { if (field("code").value && field("status").value) field("status").value = "failed"; });
  field("status").addEventListener("change", () => { if (field("status").value && field("status").value !== "failed") field("code").value = ""; });
  for (const name of ["status", "code", "run", "sort"]) field(name).addEventListener("change", refresh);
  field("direction").addEventListener("click", () => {
    field("direction").setAttribute("aria-pressed", field("direction").getAttribute("aria-pressed") !== "true");
    refresh();
  });
  for (const radio of document.querySelectorAll("[name=view]")) {
    radio.addEventListener("change", () => { field("items").dataset.view = radio.value; drawShown(); });
  }
  const targets = { first: () => 0, previous: () => list.page - 1, next: () => list.page + 1, last: () => Infinity };
  for (const button of field("pages").querySelectorAll("button")) button.addEventListener("click", () => turnTo(targets[button.dataset.go]()));
  field("page").addEventListener("change", () => turnTo((Number(field("page").value) || 1) - 1));
  find(".tools").addEventListener("submit", (event) => event.preventDefault());
  field("clear").addEventListener("click", () => { find(".tools").reset(); field("items").dataset.view = find("[name=view]:checked").value; refresh(); field("search").focus(); });
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; clearTimeout(timer); timer = setTimeout(drawShown, 150); } });
  refresh();
}
