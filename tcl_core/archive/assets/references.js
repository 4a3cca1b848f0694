"use strict";
(() => {
  // What earlier runs struck out is no longer on the page, and stays in the list.
  const struck = new Map(Object.entries(JSON.parse(document.body.dataset.struck)).map(([word, names]) => [word, new Set(names)]));
  const save = document.getElementById("save");
  const count = document.getElementById("count");
  const show = () => {
    const list = {};
    let total = 0;
    for (const [word, names] of struck) {
      if (names.size) { list[word] = [...names].sort(); total += names.size; }
    }
    save.href = "data:application/json;charset=utf-8," + encodeURIComponent(JSON.stringify(list, null, 1) + "\n");
    count.textContent = total === 1 ? "1 image struck out" : total + " images struck out";
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-image]");
    if (!button) return;
    const word = button.closest("section").dataset.word;
    if (!struck.has(word)) struck.set(word, new Set());
    const names = struck.get(word);
    const on = !names.has(button.dataset.image);
    if (on) names.add(button.dataset.image); else names.delete(button.dataset.image);
    button.setAttribute("aria-pressed", String(on));
    show();
  });
  show();
})();
