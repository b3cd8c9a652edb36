"use strict";
(() => {
  // Light or dark: the reader's system decides, until the button does.
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  const store = (value) => {
    try {
      if (value) localStorage.setItem("curate-theme", value);
      return localStorage.getItem("curate-theme");
    } catch { return null; }  // a page from a file may have no storage
  };
  const before = store();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  button.hidden = false;
  button.addEventListener("click", () => {
    const wanted = dark() ? "light" : "dark";
    store(wanted);
    root.dataset.theme = wanted;
    name();
  });
  system.addEventListener("change", name);
  name();

  // What a mark is, on pointing at it.
  const tip = document.getElementById("tip");
  document.addEventListener("pointermove", (event) => {
    const text = event.target.closest?.(".plot [data-tip]")?.dataset.tip;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 8))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 8 : event.clientY + 18}px`;
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // Rows: every word of the search must occur, every filter must agree.
  for (const form of document.querySelectorAll("form.filter")) {
    const list = document.getElementById(form.dataset.rows);
    const rows = [...list.children].map((row) => ({ row, text: row.textContent.toLowerCase() }));
    const filters = ["decision", "stage", "source", "kind"];
    const nothing = list.nextElementSibling;
    const more = nothing.nextElementSibling;
    const page = 25;
    let limit = page;
    const apply = () => {
      const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      for (const { row, text } of rows) {
        const fits = filters.every((f) => !form.elements[f].value || row.dataset[f] === form.elements[f].value)
          && words.every((word) => text.includes(word));
        row.hidden = !fits || found >= limit;
        if (fits) found += 1;
      }
      form.querySelector("output").textContent = `${found} of ${rows.length} rows`;
      nothing.hidden = found > 0;
      more.hidden = found <= limit;
      more.textContent = `Show ${Math.min(page, found - limit)} more`;
    };
    const afresh = () => { limit = page; apply(); };
    form.addEventListener("input", afresh);
    form.addEventListener("reset", () => setTimeout(afresh));
    more.addEventListener("click", () => {
      const next = rows.filter(({ row }) => !row.hidden).length;
      limit += page;
      apply();
      const first = rows.filter(({ row }) => !row.hidden)[next].row;
      first.tabIndex = -1;
      first.focus();  // reading goes on where the new rows begin
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();  // a browser may have kept what was typed before the page was loaded again
  }
})();
