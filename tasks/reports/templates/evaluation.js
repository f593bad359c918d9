// One measure at a time; without this script all of them stand below each other.
function startMeasures() {
  const select = find("#measure");
  if (!select) return;
  const show = () => {
    for (const part of document.querySelectorAll("[data-measure]")) part.hidden = part.dataset.measure !== select.value;
  };
  select.closest(".tools").hidden = false;
  select.addEventListener("change", show);
  show();
}

function startEnlarging() {
  const dialog = field("enlarged"), picture = field("enlarged-picture");
  for (const button of document.querySelectorAll(".enlarge")) {
    button.addEventListener("click", () => {
      const shown = find("img", button);
      picture.src = shown.src;
      picture.alt = shown.alt;
      field("enlarged-title").textContent = button.dataset.title;
      dialog.showModal();
    });
  }
  field("enlarged-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => picture.removeAttribute("src"));
}
startMeasures();
startEnlarging();
