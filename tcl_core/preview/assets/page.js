"use strict";
(() => {
  const body = document.body;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";

  const hidden = document.head.appendChild(document.createElement("style"));
  const chips = all(".legend .chip");
  const refreshLabels = () => {
    hidden.textContent = chips
      .filter((chip) => !pressed(chip))
      .map((chip) => `svg .l${chip.dataset.label}{display:none!important}`)
      .join("");
  };
  chips.forEach((chip) => {
    chip.addEventListener("click", () => { press(chip, !pressed(chip)); refreshLabels(); });
    chip.addEventListener("dblclick", () => {
      chips.forEach((other) => press(other, other === chip));
      refreshLabels();
    });
  });

  // Vertices and tables are made from the outlines when they are asked for, so that they cost a page nothing before.
  const drawVertices = () => all("path.r:not(.dotted)").forEach((path) => {
    const dots = path.cloneNode(false);
    dots.setAttribute("class", `v ${path.classList[1]}`);
    dots.setAttribute("d", path.getAttribute("d").replace(/Z/g, "").replace(/[ML]([^ML]+)/g, "M$1h0"));
    path.classList.add("dotted");
    path.after(dots);
  });
  const columns = [["score", "score"], ["area", "area (px)"], ["vertices", "vertices"], ["box", "x, y, width, height"]];
  const fillTable = (details) => {
    if (details.querySelector("table")) return;
    const card = details.closest(".card");
    const paths = all("path.r", card);
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    ["label", ...columns.map(([, title]) => title)].forEach((title) => {
      head.append(Object.assign(document.createElement("th"), { textContent: title, scope: "col" }));
    });
    const rows = table.createTBody();
    paths.forEach((path) => {
      const row = rows.insertRow();
      const label = path.classList[1];
      const dot = Object.assign(document.createElement("i"), { className: `dot ${label}` });
      row.insertCell().append(dot, chips.find((chip) => `l${chip.dataset.label}` === label)?.querySelector("span").textContent ?? "");
      columns.forEach(([name]) => {
        const value = path.dataset[name] ?? "";
        const shown = name === "area" ? Number(value).toLocaleString("en") : value.replaceAll(" ", ", ");
        row.insertCell().textContent = shown;
      });
    });
    const holder = document.createElement("div");
    holder.append(table);
    const total = Number(details.dataset.total);
    if (total > paths.length) {
      holder.append(`The largest ${paths.length.toLocaleString("en")} of ${total.toLocaleString("en")} regions`);
    }
    details.append(holder);
  };
  // The table of an enlarged image is a copy: its rows find their outlines by their place.
  const pathOf = (target) => {
    const row = target.closest?.(".regions tbody tr");
    return row && all("path.r", row.closest(".card"))[row.sectionRowIndex];
  };
  addEventListener("pointerover", (event) => pathOf(event.target)?.classList.add("hot"));
  addEventListener("pointerout", (event) => pathOf(event.target)?.classList.remove("hot"));
  addEventListener("toggle", (event) => {
    if (!event.target.matches?.(".regions")) return;
    if (event.target.open) fillTable(event.target);
    fit();
  }, true);

  const layers = {
    masks: ["no-masks", false],
    edges: ["no-edges", false],
    vertices: ["show-vertices", true],
    original: ["original", true],
    unlabeled: ["show-unlabeled", true],
    groups: ["show-groups", true],
  };
  const showsUnlabeled = () => body.classList.contains("show-unlabeled");
  const toggleLayer = (button) => {
    const [name, whenPressed] = layers[button.dataset.layer];
    press(button, !pressed(button));
    body.classList.toggle(name, pressed(button) === whenPressed);
    if (name === "show-vertices") drawVertices();
    refreshCards();
    fit();
  };
  all("[data-layer]").forEach((button) => button.addEventListener("click", () => toggleLayer(button)));
  const opacity = document.getElementById("opacity");
  opacity.addEventListener("input", () => {
    body.style.setProperty("--mask", opacity.value / 100);
    // Dull colors need more of it to be told apart.
    body.style.setProperty("--overlay", Math.min(1, opacity.value / 100 * 1.5));
  });

  const cards = all("main .card");
  const search = document.getElementById("search");
  const filters = all("[data-show]");
  const refreshCards = () => {
    const show = filters.find(pressed).dataset.show;
    // What is not shown must not be found.
    const searched = `figcaption>:not(.regions${showsUnlabeled() ? "" : ",.unlabeled"}),.why`;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    cards.forEach((card) => {
      const text = all(searched, card).map((element) => element.textContent).join(" ").toLowerCase();
      const fits = (show === "all" || card.dataset.kind === show) && words.every((word) => text.includes(word));
      card.classList.toggle("hide", !fits);
    });
  };
  filters.forEach((button) => button.addEventListener("click", () => {
    filters.forEach((other) => press(other, other === button));
    refreshCards();
  }));
  search.addEventListener("input", refreshCards);

  const dialog = document.getElementById("view");
  const holder = document.getElementById("held");
  let shown = -1;
  const fit = () => {
    const shot = holder.querySelector(".shot");
    if (!shot) return;
    const image = shot.querySelector("img");
    const [width, height] = [Number(image.getAttribute("width")), Number(image.getAttribute("height"))];
    const table = holder.querySelector(".regions[open]") ? 210 : holder.querySelector(".regions") ? 25 : 0;
    const caption = table + (showsUnlabeled() && holder.querySelector(".unlabeled") ? 150 : 110);
    const scale = Math.min(innerWidth * 0.94 / width, (innerHeight * 0.94 - caption) / height);
    shot.style.width = `${Math.max(1, Math.floor(width * scale))}px`;
    holder.firstElementChild.style.width = `max(${shot.style.width}, min(340px, 94vw))`;
  };
  const open = (card) => {
    shown = cards.indexOf(card);
    holder.replaceChildren(card.cloneNode(true));
    fit();
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    for (let next = shown + by; next >= 0 && next < cards.length; next += by) {
      if (!cards[next].classList.contains("hide")) { open(cards[next]); return; }
    }
  };
  cards.forEach((card) => card.querySelector(".shot")?.addEventListener("click", () => open(card)));
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest(".shot")) dialog.close();
  });
  document.querySelector(".step.prev").addEventListener("click", () => step(-1));
  document.querySelector(".step.next").addEventListener("click", () => step(1));
  addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=search]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (dialog.open && event.key === "ArrowLeft") step(-1);
    if (dialog.open && event.key === "ArrowRight") step(1);
    const button = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (button) toggleLayer(button);
  });

  const tip = document.getElementById("tip");
  addEventListener("pointermove", (event) => {
    const path = event.target.closest?.("path.r");
    if (!path) { tip.hidden = true; return; }
    const title = path.querySelector("title");
    if (title) { path.dataset.tip = title.textContent; title.remove(); }
    // A modal dialog covers everything outside it, so the tip has to live where the pointer is.
    const home = dialog.open ? dialog : body;
    if (tip.parentNode !== home) home.append(tip);
    tip.textContent = path.dataset.tip;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
  });
})();
