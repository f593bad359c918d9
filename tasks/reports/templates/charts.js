// Charts read aloud their columns, by pointer and by keyboard.
function startCharts() {
  for (const chart of document.querySelectorAll(".chart")) {
    const note = chart.querySelector("[data-note]");
    const bars = [...chart.querySelectorAll(".column")];
    if (!note || !bars.length) continue;
    const usual = note.textContent;
    let place = -1;
    const read = (next) => {
      bars[place]?.classList.remove("is-read");
      place = next;
      bars[place]?.classList.add("is-read");
      note.textContent = bars[place]?.dataset.readout ?? usual;
    };
    const svg = chart.querySelector(".plot-bars");
    svg.addEventListener("pointerover", (event) => { const bar = event.target.closest(".column"); if (bar) read(bars.indexOf(bar)); });
    svg.addEventListener("pointerleave", () => read(-1));
    svg.addEventListener("blur", () => { note.removeAttribute("aria-live"); read(-1); });
    svg.addEventListener("focus", () => note.setAttribute("aria-live", "polite"));
    svg.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1 };
      if (!(event.key in steps)) return;
      read(Math.min(Math.max(0, place + steps[event.key]), bars.length - 1));
      event.preventDefault();
    });
  }
}
