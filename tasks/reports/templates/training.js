// One sample sheet at a time, chosen by its step; without this script all of them stand below each other.
function startSheets() {
  const sheets = [...document.querySelectorAll("[data-sheet]")];
  const range = document.querySelector("#sheet-step");
  if (!range || sheets.length < 2) return;
  const said = document.querySelector("#sheet-said");
  const show = () => {
    const chosen = Number(range.value);
    sheets.forEach((sheet, place) => { sheet.hidden = place !== chosen; });
    said.textContent = `step ${sheets[chosen].dataset.sheet}`;
    range.setAttribute("aria-valuetext", said.textContent);
  };
  range.closest(".steps").hidden = false;
  range.addEventListener("input", show);
  show();
}
startCharts();
startSheets();
