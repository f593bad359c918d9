// A blind study: cases in an order of the rater's own, images in an order of the rater's and the case's own.
const study = JSON.parse(find("#data").textContent);
const SAVED = `ezigen-study/${study.study}`;
const NO_DIFFERENCE = "none";
const LETTERS = "ABCDEFGHI";
const session = { rater: "", answers: {}, order: [], place: 0, active: 0, since: 0 };
const answerKey = (name, question) => `${name}/${question}`;
const expected = study.cases.length * study.questions.length;

// Numbers in [0, 1) that depend on a text alone: FNV-1a starts mulberry32.
function randomOf(text) {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 16777619);
  return () => {
    state = state + 0x6d2b79f5 | 0;
    let mixed = Math.imul(state ^ state >>> 15, 1 | state);
    mixed = mixed + Math.imul(mixed ^ mixed >>> 7, 61 | mixed) ^ mixed;
    return ((mixed ^ mixed >>> 14) >>> 0) / 4294967296;
  };
}

function shuffled(values, text) {
  const order = [...values], random = randomOf(text);
  for (let last = order.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

const currentCase = () => study.cases[session.order[session.place]];
const labelsOf = (shown) => shuffled(shown.labels, `${study.study}/${session.rater}/${shown.name}`);
const answerOf = (shown, question) => session.answers[answerKey(shown.name, question.name)];
const isComplete = (shown) => study.questions.every((question) => answerOf(shown, question));
const numAnswers = () => Object.keys(session.answers).length;

// What is kept: the answers of every rater who used this browser.
function keptRaters() {
  const saved = kept(SAVED);
  return saved && typeof saved.raters === "object" && saved.raters ? saved.raters : {};
}

function store() {
  keep(SAVED, { raters: { ...keptRaters(), [session.rater]: { answers: session.answers, place: session.place } } });
  field("not-kept").hidden = keeping.works;
}

// Only what this study asks and offers, wherever it comes from.
function knownAnswers(answers) {
  const known = {};
  for (const shown of study.cases) {
    for (const question of study.questions) {
      const key = answerKey(shown.name, question.name), answer = answers?.[key];
      if (answer && (answer.choice === NO_DIFFERENCE || shown.labels.includes(answer.choice))) known[key] = answer;
    }
  }
  return known;
}

function begin(name, saved) {
  session.rater = name.replace(/\s+/g, " ").replace(/[^\P{C}]/gu, "").trim().slice(0, 80);
  if (!session.rater) return;
  const before = saved ?? (Object.hasOwn(keptRaters(), session.rater) ? keptRaters()[session.rater] : null);
  session.answers = knownAnswers(before?.answers);
  session.order = shuffled(study.cases.keys(), `${study.study}/${session.rater}`);
  session.place = Math.min(Math.max(0, before?.place | 0), study.cases.length - 1);
  store();
  if (numAnswers() === expected) showEnd();
  else showCase(session.place);
}

function show(section) {
  for (const name of ["start", "case", "end"]) field(name).hidden = name !== section;
  field("bar-export").hidden = section !== "case";
  field("progress").style.width = `${section === "start" ? 0 : 100 * numAnswers() / expected}%`;
}

function showCase(place) {
  session.place = place;
  session.since = performance.now();
  const shown = currentCase();
  session.active = Math.max(0, study.questions.findIndex((question) => !answerOf(shown, question)));
  field("place").textContent = `Case ${whole.format(place + 1)} of ${whole.format(study.cases.length)}`;
  field("subjects").replaceChildren(...Array.from({ length: shown.subjects }, (_, at) => make("img", { src: find(`#subject-${shown.name}-${at}`).textContent, alt: "Subject" })));
  field("prompt").textContent = shown.prompt;
  field("prompt").hidden = !shown.prompt;
  const labels = labelsOf(shown);
  field("choices").style.setProperty("--in-row", labels.length < 5 ? labels.length : Math.ceil(labels.length / 2));
  field("choices").replaceChildren(...labels.map(makeChoice));
  field("asks").replaceChildren(...study.questions.map((question, at) => makeAsk(question, at, labels)));
  show("case");
  refresh();
  store();
  window.scrollTo({ top: 0, behavior: "instant" });
  field("case").focus({ preventScroll: true });
}

function makeChoice(label, at) {
  const button = make("button", { type: "button", className: "picture-choice" },
    make("img", { src: find(`#image-${label}`).textContent, alt: "", draggable: false }), make("b", { textContent: LETTERS[at] }));
  button.setAttribute("aria-label", `Image ${LETTERS[at]}`);
  button.addEventListener("click", (event) => { choose(session.active, label); releaseFocus(event); });
  return button;
}

function makeAsk(question, at, labels) {
  const answers = make("div", { className: "answers" }, ...labels.map((label, place) => makeAnswer(at, label, LETTERS[place])), makeAnswer(at, NO_DIFFERENCE, "No difference"));
  answers.setAttribute("role", "group");
  answers.setAttribute("aria-label", question.text);
  const ask = make("div", { className: "ask" }, make("p", { textContent: question.text }), answers);
  ask.addEventListener("click", (event) => { if (!event.target.closest("button")) activate(at); });
  return ask;
}

function makeAnswer(at, choice, title) {
  const button = make("button", { type: "button", textContent: title, value: choice });
  button.addEventListener("click", (event) => { choose(at, choice); releaseFocus(event); });
  return button;
}

// After a press by pointer, Enter is for the case; a button that was reached by Tab keeps it.
function releaseFocus(event) {
  if (event.detail > 0) field("case").focus({ preventScroll: true });
}

function activate(at) {
  session.active = Math.min(Math.max(0, at), study.questions.length - 1);
  refresh();
}

function choose(at, choice) {
  const shown = currentCase();
  const seconds = Math.round((performance.now() - session.since) / 10) / 100;
  session.answers[answerKey(shown.name, study.questions[at].name)] = { choice, at: new Date().toISOString(), seconds };
  const later = study.questions.findIndex((question) => !answerOf(shown, question));
  session.active = later < 0 ? at : later;
  store();
  show("case");
  refresh();
}

function refresh() {
  const shown = currentCase();
  study.questions.forEach((question, at) => {
    const ask = field("asks").children[at], answer = answerOf(shown, question);
    ask.classList.toggle("is-active", at === session.active && !isComplete(shown));
    ask.classList.toggle("is-answered", Boolean(answer));
    for (const button of ask.querySelectorAll("button")) button.setAttribute("aria-pressed", button.value === answer?.choice);
  });
  const complete = isComplete(shown), last = session.place === study.cases.length - 1;
  field("back").disabled = session.place === 0;
  field("next").textContent = complete ? last ? "Finish ›" : "Next ›" : last ? "Skip and finish ›" : "Skip ›";
  field("next").classList.toggle("primary", complete);
}

function move(steps) {
  const place = session.place + steps;
  if (place >= study.cases.length) showEnd();
  else if (place >= 0) showCase(place);
}

function showEnd() {
  const missing = expected - numAnswers();
  field("place").textContent = missing ? "Not complete" : "Complete";
  field("end-title").textContent = missing ? "The end, with gaps" : "Thank you";
  field("end-said").textContent = missing
    ? `${whole.format(missing)} of ${whole.format(expected)} answers are missing. You can give them now, or export what there is.`
    : `All ${whole.format(expected)} answers are given. Export them, and send the file to whoever gave you this page.`;
  field("first-missing").hidden = missing === 0;
  field("copy").value = JSON.stringify(exported());
  show("end");
  field("end-title").focus();
}

function exported() {
  const answers = study.cases.flatMap((shown) => study.questions.flatMap((question) => {
    const answer = answerOf(shown, question);
    return answer ? [{ case: shown.name, question: question.name, choice: answer.choice, at: String(answer.at), seconds: Number(answer.seconds) || 0 }] : [];
  }));
  return { format: "ezigen-study-answers/1", study: study.study, rater: session.rater, exported_at: new Date().toISOString(), answers };
}

const exportAnswers = () => saveFile(`answers-${study.study.slice(0, 8)}-${fileWord(session.rater)}.json`, exported());

async function continueFile(file) {
  const said = field("continue-said");
  said.textContent = "";
  try {
    const given = JSON.parse(await file.text());
    if (given.study !== study.study) throw new Error("it belongs to another study");
    begin(String(given.rater), { answers: Object.fromEntries(given.answers.map((answer) => [answerKey(answer.case, answer.question), answer])) });
  } catch (error) {
    said.textContent = `That file cannot be continued: ${error.message}.`;
  }
}

function showStart() {
  field("place").textContent = "";
  const raters = Object.keys(keptRaters());
  field("resumes").hidden = raters.length === 0;
  field("resumes").replaceChildren(field("resumes").firstElementChild, ...raters.map((name) => {
    const count = Object.keys(knownAnswers(keptRaters()[name].answers)).length;
    const button = make("button", { type: "button" }, make("bdi", { textContent: name }), ` (${whole.format(count)} of ${whole.format(expected)})`);
    button.addEventListener("click", () => begin(name));
    return button;
  }));
  field("rater").value = raters.length ? "" : `rater-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  field("not-kept").hidden = keeping.works;
  show("start");
}

const keyActions = {
  ArrowUp: () => activate(session.active - 1),
  ArrowDown: () => activate(session.active + 1),
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  Enter: () => { if (isComplete(currentCase())) move(1); },
  0: () => choose(session.active, NO_DIFFERENCE),
};

function onKey(event) {
  if (field("case").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  // A button that was reached by Tab is pressed, as everywhere.
  if (event.key === "Enter" && event.target.closest("button")) return;
  const label = /^[1-9]$/.test(event.key) ? labelsOf(currentCase())[event.key - 1] : null;
  if (label) choose(session.active, label);
  else if (Object.hasOwn(keyActions, event.key)) keyActions[event.key]();
  else return;
  event.preventDefault();
}

function startStudy() {
  field("last-key").textContent = Math.max(...study.cases.map((shown) => shown.labels.length));
  field("begin").addEventListener("submit", (event) => { event.preventDefault(); begin(field("rater").value); });
  field("continue").addEventListener("change", (event) => { if (event.target.files[0]) continueFile(event.target.files[0]); });
  field("back").addEventListener("click", () => move(-1));
  field("next").addEventListener("click", () => move(1));
  field("again").addEventListener("click", () => showCase(0));
  field("another").addEventListener("click", showStart);
  field("first-missing").addEventListener("click", () => showCase(session.order.findIndex((at) => !isComplete(study.cases[at]))));
  for (const name of ["export", "bar-export"]) field(name).addEventListener("click", exportAnswers);
  document.addEventListener("keydown", onKey);
  startKeeping();
  showStart();
}
startStudy();
