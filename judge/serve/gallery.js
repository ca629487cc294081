"use strict";
const form = document.querySelector("form");
const list = document.querySelector("main");
const cards = [...list.children];

const orders = {
  place: (a, b) => a.dataset.place - b.dataset.place,
  // What was not judged has no score and comes first: somebody has to look at it.
  score: (a, b) => (b.dataset.score === "" ? 2 : +b.dataset.score) - (a.dataset.score === "" ? 2 : +a.dataset.score),
  category: (a, b) =>
    (a.dataset.category === "") - (b.dataset.category === "") ||
    a.dataset.category.localeCompare(b.dataset.category) || orders.score(a, b),
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
};

function update(sorted) {
  const { status, category, sort, name, grey } = form.elements;
  let shown = 0;
  for (const card of cards) {
    const data = card.dataset;
    card.hidden = !(
      (!status.value || data.status === status.value) &&
      (!category.value || data.category === category.value) &&
      data.name.toLowerCase().includes(name.value.toLowerCase())
    );
    shown += !card.hidden;
  }
  if (sorted) list.append(...cards.sort(orders[sort.value]));
  document.body.classList.toggle("grey", grey.checked);
  form.querySelector("output").textContent = `${shown} of ${cards.length} shown`;
}

form.addEventListener("input", (event) => update(event.target.name === "sort"));
form.addEventListener("submit", (event) => event.preventDefault());

// A pointer shows a picture while it is held (`:active` in the style); keys switch it on and off.
list.addEventListener("keydown", (event) => {
  const button = event.target.closest("button");
  if (!button || (event.key !== "Enter" && event.key !== " ")) return;
  event.preventDefault();
  if (!event.repeat) button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
});
list.addEventListener("focusout", (event) => event.target.closest("button")?.setAttribute("aria-pressed", "false"));
list.addEventListener("contextmenu", (event) => event.target.closest("button") && event.preventDefault());
update(true);
