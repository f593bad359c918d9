// What people do in a page: kept by the browser where it allows that, and saved as a file.
const keeping = { works: true, unsaved: false };

function kept(key) {
  try { return JSON.parse(localStorage.getItem(key)); }
  catch (error) {
    // A text that is no JSON is as good as none; a browser that refuses to look keeps nothing.
    if (!(error instanceof SyntaxError)) keeping.works = false;
    return null;
  }
}

function keep(key, value) {
  keeping.unsaved = true;
  try { localStorage.setItem(key, JSON.stringify(value)); }
  catch { keeping.works = false; }
}

function saveFile(name, value) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1) + "\n"], { type: "application/json" }));
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  keeping.unsaved = false;
}

// A name as part of a file's name.
const fileWord = (text) => text.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 40) || "x";

function startKeeping() {
  window.addEventListener("beforeunload", (event) => { if (!keeping.works && keeping.unsaved) event.preventDefault(); });
}
