// One item enlarged, with everything known about it.
const viewer = { place: -1, panel: 0, opener: null };
const dialog = find("#viewer");

function openViewer(item) {
  viewer.opener = document.activeElement;
  const place = list.shown.indexOf(item);
  if (place < 0) list.shown = [item];
  if (!dialog.open) dialog.showModal();
  showItem(Math.max(0, place));
}

function showItem(place) {
  if (place < 0 || place >= list.shown.length) return;
  viewer.place = place;
  const item = list.shown[place];
  field("viewer-title").textContent = columns.id[item];
  field("viewer-place").textContent = `${whole.format(place + 1)} of ${whole.format(list.shown.length)}`;
  field("viewer-prompt").textContent = text("prompt", item);
  field("viewer-previous").disabled = place === 0;
  field("viewer-next").disabled = place === list.shown.length - 1;
  field("viewer-facts").replaceChildren(...allFacts(item));
  field("viewer-failure").replaceChildren(...failureWords(item));
  showSpark(columns.similarities[item]);
  showFilm(item);
  showPanel(columns.picture[item] ? columns.panels[item] - 1 : 0);
  if (!dialog.contains(document.activeElement)) dialog.focus();
  find(".about").scrollTop = 0;
  find(".viewer-body").scrollTop = 0;
  history.replaceState(null, "", `#item=${columns.key[item]}`);
}

function showFilm(item) {
  const labels = columns.picture[item] ? panelLabels(item) : [];
  const buttons = labels.map((label, panel) => {
    const button = make("button", { type: "button" }, makePanel(item, panel, label));
    find("figcaption", button).replaceChildren(label);
    button.addEventListener("click", () => showPanel(panel));
    return button;
  });
  field("viewer-film").replaceChildren(...buttons);
  drawAll(field("viewer-film"), item);
}

// A small picture is enlarged six times at most: beyond that smoothness turns into fog.
const MAX_ENLARGED = 6;
async function showPanel(panel) {
  viewer.panel = panel;
  const item = list.shown[viewer.place];
  const box = field("viewer-picture");
  const isResult = !columns.picture[item] || panel === columns.panels[item] - 1;
  field("viewer-film").childNodes.forEach((button, index) => button.setAttribute("aria-pressed", index === panel));
  field("viewer-film").children[panel]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  box.replaceChildren();
  field("viewer-caption").textContent = isFailed(item) ? "There is no image." : panelCaption(item, panel, isResult);
  const full = isResult && columns.width[item] ? fullPicture(item) : null;
  const native = columns.width[item] || 96;
  const side = Math.floor(Math.min(box.clientWidth, box.clientHeight, Math.max(native * MAX_ENLARGED, 256)));
  if (columns.picture[item]) {
    const canvas = make("canvas");
    canvas.style.width = canvas.style.height = `${side}px`;
    box.append(canvas);
    drawPanel(canvas, item, panel).catch(() => canvas.replaceWith(noPreview()));
  }
  if (full) showFullPicture(box, full, side, item);
}

function showFullPicture(box, source, side, item) {
  const image = new Image();
  image.addEventListener("load", () => {
    if (list.shown[viewer.place] !== item || !box.isConnected || viewer.panel !== Math.max(0, columns.panels[item] - 1) && columns.picture[item]) return;
    const canvas = make("canvas");
    const scale = side / Math.max(image.naturalWidth, image.naturalHeight);
    canvas.width = Math.round(image.naturalWidth * scale * window.devicePixelRatio);
    canvas.height = Math.round(image.naturalHeight * scale * window.devicePixelRatio);
    canvas.style.width = `${Math.round(image.naturalWidth * scale)}px`;
    canvas.style.height = `${Math.round(image.naturalHeight * scale)}px`;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Result in full size");
    box.replaceChildren(canvas);
  });
  image.src = source;
}

function panelCaption(item, panel, isResult) {
  if (isResult) return [`Result`, columns.width[item] ? `${columns.width[item]} × ${columns.height[item]} px` : ""].filter(Boolean).join(", ");
  const meanings = { Subject: "the product as given", Sketch: "drawn from the prompt alone", Source: "the picture that is edited, what changes marked", Transfer: "the product's looks transferred for the first time" };
  const label = panelLabels(item)[panel];
  return `${label}: ${meanings[label] ?? "looks transferred again"}`;
}

function allFacts(item) {
  const stop = data.words.stops[text("stop", item)];
  const full = fullPicture(item);
  const link = full ? make("a", { href: full, target: "_blank", rel: "noopener", textContent: full }) : "";
  const finished = columns.finished[item] == null ? "" : `${new Date(columns.finished[item] * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
  return facts([
    ["Product", text("class", item)],
    ["Loops", columns.loops[item] == null ? "" : String(columns.loops[item])],
    ["Stop", stop?.[0] ?? text("stop", item), stop?.[1]],
    ...Object.keys(columns.scores).filter((name) => columns.scores[name][item] != null)
      .map((name) => [scoreName(name), decimals(columns.scores[name][item], 4), data.words.scores[name]?.[1]]),
    ["Time", columns.seconds[item] ? seconds(columns.seconds[item]) : ""],
    ["UNet calls", columns.calls[item] ? whole.format(columns.calls[item]) : ""],
    ["Seed", columns.seed[item] ?? ""],
    ["Attempts", columns.attempts[item] > 1 ? String(columns.attempts[item]) : ""],
    ["Subject", columns.subject[item]],
    ["Source", text("source", item) ?? ""],
    ["Picture", link],
    ["Finished", finished],
    ["Worker", text("worker", item)],
    ["Run", text("run", item)],
    ["Key", columns.key[item]],
  ]);
}

function failureWords(item) {
  if (!isFailed(item)) return [];
  const code = text("code", item);
  return [make("div", { className: "viewer-failure" },
    make("b", { className: "failed-title", textContent: title(code) }),
    make("span", { textContent: columns.message[item] }),
    make("span", {}, make("b", { textContent: "What to do: " }), data.words.remedies[code] ?? ""))];
}

const SVG = "http://www.w3.org/2000/svg";
function shape(name, attributes, content = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = content;
  return element;
}

function showSpark(similarities) {
  const figure = field("viewer-spark");
  figure.hidden = similarities.length < 2;
  find("svg", figure)?.remove();
  if (figure.hidden) return;
  const low = Math.min(...similarities, data.threshold ?? 1), high = Math.max(1, ...similarities);
  const y = (value) => 8 + 50 * (1 - (value - low) / (high - low || 1));
  const x = (place) => `${6 + 84 * place / (similarities.length - 1)}%`;
  const svg = shape("svg", { role: "img", "aria-label": similarities.map((value, i) => `loop ${i + 1}: ${value.toFixed(3)}`).join(", ") });
  if (data.threshold != null) {
    svg.append(shape("line", { x1: 0, x2: "100%", y1: y(data.threshold), y2: y(data.threshold) }), shape("text", { x: 0, y: y(data.threshold) - 5 }, `settled above ${data.threshold}`));
  }
  similarities.forEach((value, i) => {
    if (i) svg.append(shape("line", { class: "segment", x1: x(i - 1), y1: y(similarities[i - 1]), x2: x(i), y2: y(value) }));
    svg.append(shape("circle", { cx: x(i), cy: y(value), r: 3.5 }), shape("text", { x: x(i), y: 74, "text-anchor": "middle" }, `${value.toFixed(3)}`));
  });
  figure.append(svg);
}

function startViewer() {
  field("viewer-previous").addEventListener("click", () => showItem(viewer.place - 1));
  field("viewer-next").addEventListener("click", () => showItem(viewer.place + 1));
  field("viewer-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", closeViewer);
  // On the document: the focus leaves the dialog when the button that has it is switched off.
  document.addEventListener("keydown", (event) => {
    if (!dialog.open) return;
    if (event.key === "ArrowLeft") showItem(viewer.place - 1);
    else if (event.key === "ArrowRight") showItem(viewer.place + 1);
    else return;
    event.preventDefault();
  });
  const openLinked = () => {
    const item = columns.key.indexOf(location.hash.replace(/^#item=/, ""));
    if (location.hash.startsWith("#item=") && item >= 0) openViewer(item);
  };
  window.addEventListener("hashchange", openLinked);
  openLinked();
}

// Back where the reader was: on the page of the list that holds the item last shown.
function closeViewer() {
  history.replaceState(null, "", location.pathname + location.search);
  const page = Math.floor(viewer.place / PAGE_SIZE);
  if (page !== list.page && field("items").children.length) showPage(page);
  const item = list.shown[viewer.place];
  (find(`[data-item="${item}"] button`, field("items")) ?? viewer.opener)?.focus();
}
