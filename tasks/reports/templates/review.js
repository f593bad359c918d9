// Images of a run, approved or rejected one by one. What was decided earlier is shown; what is decided here is exported.
const review = JSON.parse(find("#data").textContent);
const SAVED = `ezigen-review/${review.place}`;
const PAGE_SIZE = 24;
const STATES = { approved: "Approved", rejected: "Rejected" };
const list = { shown: [], page: 0, current: 0 };
const undoable = [];
// By item key: { sha256, decision, note, decided_at }.
const decided = new Map();

const stateOf = (item) => decided.get(item.key)?.decision ?? item.decision ?? "unreviewed";
const noteOf = (item) => decided.get(item.key)?.note ?? item.note ?? "";
const pageItems = () => list.shown.slice(list.page * PAGE_SIZE, (list.page + 1) * PAGE_SIZE);
const currentItem = () => list.shown[list.current];

function store() {
  // Other pages of this output may have kept decisions about images that are not on this one.
  const before = kept(SAVED)?.decided ?? {};
  for (const item of review.items) delete before[item.key];
  keep(SAVED, { reviewer: field("reviewer").value, decided: { ...before, ...Object.fromEntries(decided) } });
  field("not-kept").hidden = keeping.works;
}

function restore() {
  const saved = kept(SAVED);
  field("reviewer").value = typeof saved?.reviewer === "string" ? saved.reviewer : "";
  for (const item of review.items) {
    const entry = saved?.decided && Object.hasOwn(saved.decided, item.key) ? saved.decided[item.key] : null;
    if (entry?.sha256 === item.sha256 && (entry.decision == null || Object.hasOwn(STATES, entry.decision))) decided.set(item.key, entry);
  }
}

// null takes back what was decided here.
function set(item, entry) {
  if (entry) decided.set(item.key, entry);
  else decided.delete(item.key);
  store();
  drawCounts();
  const card = field("cards").children[list.shown.indexOf(item) - list.page * PAGE_SIZE];
  if (card) drawState(card, item);
}

function decide(item, decision) {
  undoable.push({ item, before: decided.get(item.key) ?? null });
  set(item, { sha256: item.sha256, decision, note: noteOf(item), decided_at: new Date().toISOString() });
}

function annotate(item, note) {
  if (note === noteOf(item)) return;
  undoable.push({ item, before: decided.get(item.key) ?? null });
  const decision = stateOf(item);
  set(item, { sha256: item.sha256, decision: Object.hasOwn(STATES, decision) ? decision : null, note, decided_at: new Date().toISOString() });
}

function undo() {
  const last = undoable.pop();
  if (!last) return;
  set(last.item, last.before);
  const place = list.shown.indexOf(last.item);
  if (place >= 0) goTo(place);
}

function exported() {
  const decisions = review.items.filter((item) => decided.get(item.key)?.decision).map((item) => {
    const entry = decided.get(item.key);
    return { item_key: item.key, item_id: item.id, image_sha256: item.sha256, decision: entry.decision, decided_at: entry.decided_at, note: entry.note };
  });
  return { format: "ezigen-review/1", output: review.name, reviewer: field("reviewer").value.trim(), exported_at: new Date().toISOString(), decisions };
}

function exportDecisions() {
  field("reviewer").value = field("reviewer").value.trim();
  if (field("reviewer").reportValidity()) saveFile(`review-${fileWord(review.name)}-${fileWord(field("reviewer").value)}.json`, exported());
}

// The list: filter, sort, page. A decided image stays where it is until the filters change.
function chosenItems() {
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = field("state").value, score = field("score").value, below = field("below").value;
  return review.items.filter((item) => {
    const haystack = `${item.id}\n${item.prompt}\n${noteOf(item)}`.toLowerCase();
    if (state && stateOf(item) !== state) return false;
    if (below !== "" && !(item.scores[score] < Number(below))) return false;
    return words.every((word) => haystack.includes(word));
  });
}

// The items stand in the page in the order of their rank.
function sorted(items) {
  const by = field("sort").value;
  if (by === "rank") return items;
  if (by === "catalog") return items.sort((a, b) => a.index - b.index);
  const value = (item) => item.scores[by] ?? Infinity;
  return items.sort((a, b) => value(a) - value(b) || a.index - b.index);
}

function refresh() {
  list.shown = sorted(chosenItems());
  list.current = 0;
  showPage(0);
}

function showPage(page) {
  const last = Math.max(0, Math.ceil(list.shown.length / PAGE_SIZE) - 1);
  list.page = Math.min(Math.max(0, page), last);
  const items = pageItems();
  if (Math.floor(list.current / PAGE_SIZE) !== list.page) list.current = list.page * PAGE_SIZE;
  field("cards").replaceChildren(...items.map(makeCard));
  field("nothing").hidden = items.length > 0;
  field("pages").hidden = last === 0;
  field("page").textContent = whole.format(list.page + 1);
  field("last-page").textContent = whole.format(last + 1);
  field("previous").disabled = list.page === 0;
  field("next").disabled = list.page === last;
  const all = review.items.length === list.shown.length ? "" : ` of ${whole.format(review.items.length)}`;
  field("count").textContent = `${whole.format(list.shown.length)}${all} image${review.items.length === 1 ? "" : "s"}`;
  drawCounts();
  mark();
}

function drawCounts() {
  const count = (state) => review.items.filter((item) => stateOf(item) === state).length;
  const approved = count("approved"), rejected = count("rejected");
  const left = review.items.length - approved - rejected;
  field("counts").replaceChildren(
    make("span", { className: "long", textContent: `${whole.format(approved)} approved · ${whole.format(rejected)} rejected · ${whole.format(left)} left` }),
    make("span", { className: "short", textContent: `${whole.format(left)} left` }));
  field("progress").style.width = `${100 * (approved + rejected) / review.items.length}%`;
}

function makeCard(item) {
  const card = find("#card-template").content.cloneNode(true).firstElementChild;
  const number = review.items.indexOf(item);
  find(".card-image", card).src = find(`#image-${number}`).textContent;
  find(".card-subjects", card).append(...Array.from({ length: item.subjects }, (_, at) => make("img", { src: find(`#subject-${number}-${at}`).textContent, alt: "Subject" })));
  find(".prompt", card).textContent = item.prompt;
  find(".name", card).textContent = find(".name", card).title = item.id;
  find(".facts", card).append(...Object.keys(review.scores).filter((name) => item.scores[name] != null).map((name) =>
    make("div", {}, make("dt", { textContent: review.scores[name] }), make("dd", { textContent: item.scores[name].toFixed(3) }))));
  for (const button of card.querySelectorAll("[data-decision]")) {
    button.addEventListener("click", () => {
      list.current = list.shown.indexOf(item);
      mark();
      decide(item, button.dataset.decision);
    });
  }
  find(".card-note", card).addEventListener("change", (event) => annotate(item, event.target.value.trim()));
  card.addEventListener("focusin", () => { list.current = list.shown.indexOf(item); mark(); });
  card.addEventListener("click", () => { list.current = list.shown.indexOf(item); mark(); });
  drawState(card, item);
  return card;
}

function drawState(card, item) {
  const state = stateOf(item);
  for (const name of Object.keys(STATES)) card.classList.toggle(`is-${name}`, state === name);
  find(".card-state", card).textContent = STATES[state] ?? "";
  find(".card-reviewer", card).textContent = item.decision && !decided.get(item.key)?.decision ? `${STATES[item.decision]} by ${item.reviewer}` : "";
  for (const button of card.querySelectorAll("[data-decision]")) button.setAttribute("aria-pressed", button.dataset.decision === state);
  find(".card-note", card).value = noteOf(item);
}

function mark() {
  [...field("cards").children].forEach((card, at) => card.classList.toggle("is-current", at === list.current - list.page * PAGE_SIZE));
}

function goTo(place) {
  if (!list.shown.length) return;
  list.current = Math.min(Math.max(0, place), list.shown.length - 1);
  const page = Math.floor(list.current / PAGE_SIZE);
  if (page !== list.page) showPage(page);
  mark();
  const card = field("cards").children[list.current - list.page * PAGE_SIZE];
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest", behavior: "instant" });
}

// How many cards stand in a row.
function numColumns() {
  const cards = [...field("cards").children];
  const second = cards.findIndex((card) => card.offsetTop > cards[0].offsetTop);
  return second < 0 ? cards.length : second;
}

function decideByKey(decision) {
  if (!currentItem()) return;
  decide(currentItem(), decision);
  goTo(list.current + 1);
}

const keyActions = {
  a: () => decideByKey("approved"),
  r: () => decideByKey("rejected"),
  u: undo,
  n: () => { goTo(list.current); find(".is-current .card-note")?.focus(); },
  ArrowLeft: () => goTo(list.current - 1),
  ArrowRight: () => goTo(list.current + 1),
  ArrowUp: () => goTo(list.current - numColumns()),
  ArrowDown: () => goTo(list.current + numColumns()),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select")) {
    if (event.target.matches(".card-note") && (event.key === "Enter" || event.key === "Escape")) { event.target.blur(); goTo(list.current); event.preventDefault(); }
    return;
  }
  const action = Object.hasOwn(keyActions, event.key) ? keyActions[event.key] : null;
  if (!action) return;
  action();
  event.preventDefault();
}

function turnTo(page) {
  showPage(page);
  goTo(list.page * PAGE_SIZE);
  window.scrollTo({ top: 0, behavior: "instant" });
}

function startReview() {
  const scores = Object.entries(review.scores);
  field("score").append(...scores.map(([value, textContent]) => make("option", { value, textContent })));
  field("sort").append(...scores.map(([value, name]) => make("option", { value, textContent: `${name}, lowest first` })));
  field("by-score").hidden = scores.length === 0;
  restore();
  for (const name of ["state", "sort", "score"]) field(name).addEventListener("change", refresh);
  for (const name of ["search", "below"]) field(name).addEventListener("input", refresh);
  field("reviewer").addEventListener("change", store);
  find(".tools").addEventListener("submit", (event) => event.preventDefault());
  field("clear").addEventListener("click", () => {
    const reviewer = field("reviewer").value;
    find(".tools").reset();
    field("reviewer").value = reviewer;
    refresh();
  });
  field("previous").addEventListener("click", () => turnTo(list.page - 1));
  field("next").addEventListener("click", () => turnTo(list.page + 1));
  field("export").addEventListener("click", exportDecisions);
  document.addEventListener("keydown", onKey);
  startKeeping();
  refresh();
  field("not-kept").hidden = keeping.works;
}
startReview();
