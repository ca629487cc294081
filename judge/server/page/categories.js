/** The categories: ticked or not, their scores as bars, their thresholds as marks that can be moved. */

import { post } from "./api.js";
import { at, calm, count, el, number, visible, words } from "./dom.js";
import { on, tell } from "./events.js";
import { answerOf, judge, moved, queue, server, show, shown } from "./queue.js";
import { WORDS } from "./rule.js";
import * as taxonomy from "./taxonomy.js";

const LOOK = 120; // milliseconds of rest before the queue is counted again
const ASK = 500; // and before the shown image is asked again with the moved thresholds

let rows = new Map();

export function start() {
  on("taxonomy", build);
  on("taxonomy", () => asked());
  on("categories", () => asked());
  for (const event of ["shown", "answer", "categories", "thresholds"]) on(event, update);
  on("thresholds", calm(LOOK, countChanges));
  on("answer", calm(LOOK, countChanges));
  at("tick-all").addEventListener("click", () => taxonomy.tick(new Set(taxonomy.current.categories.map(({ name }) => name))));
  at("tick-none").addEventListener("click", () => taxonomy.tick(new Set()));
  at("threshold-all").addEventListener("change", ({ target }) => {
    const value = read(target);
    if (value !== null) move(new Map(taxonomy.current.categories.map(({ name }) => [name, value])));
  });
}

/** The shown image under the question as it is now. */
const asked = calm(250, () => shown && judge(shown));
const askedAgain = calm(ASK, () => {
  if (shown && moved(shown)) judge(shown, { again: true });
});

function build() {
  rows = new Map(taxonomy.current.categories.map((category, n) => [category.name, rowOf(category, n)]));
  at("categories").replaceChildren(...[...rows.values()].map((row) => row.line));
  update();
}

function rowOf(category, n) {
  const ids = { id: `category-${n}`, name: `category-name-${n}` };
  const tick = el("input", { type: "checkbox", id: ids.id, on: { change: () => ticked() } });
  const name = el("label", { class: "category-name", for: ids.id, id: ids.name }, tick, words(category.name));
  const score = el("span", { class: "category-score" });
  const slider = el("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": `Threshold of ${category.name}` });
  const exact = el("input", { class: "limit", type: "number", min: 0, max: 1, step: 0.01, inputmode: "decimal", "aria-label": `Threshold of ${category.name} as a number` });
  slider.addEventListener("input", () => move(new Map([[category.name, Number(slider.value)]])));
  exact.addEventListener("change", () => {
    const value = read(exact) ?? category.limit;
    exact.value = value.toFixed(2);
    move(new Map([[category.name, value]]));
  });
  const fill = el("div", { class: "fill" });
  const track = el("div", { class: "track" }, fill, slider);
  const definition = el("p", { class: "category-definition", title: category.definition }, words(category.definition));
  const line = el("li", { class: "category" }, name, track, score, exact, definition);
  return { line, tick, score, slider, exact, fill };
}

const ticked = () => taxonomy.tick(new Set([...rows].filter(([, row]) => row.tick.checked).map(([name]) => name)));

/** A number in [0, 1] from a field; null where something else stands in it. */
function read(field) {
  const value = Number.parseFloat(field.value);
  return field.value !== "" && value >= 0 && value <= 1 ? value : null;
}

function move(moved) {
  taxonomy.limit(moved);
  askedAgain();
}

function update() {
  const scores = answerOf(shown)?.row.scores ?? {};
  const { categories } = taxonomy.current;
  for (const category of categories) {
    const row = rows.get(category.name);
    if (row) dress(row, category, Object.hasOwn(scores, category.name) ? scores[category.name] : null);
  }
  const on = categories.filter((category) => category.on).length;
  at("ticked").textContent = `${on} of ${count(categories.length, "category").replace("categorys", "categories")} asked`;
  const limits = new Set(categories.map((category) => category.limit));
  at("threshold-all").value = limits.size === 1 ? [...limits][0].toFixed(2) : "";
  at("threshold-all").placeholder = limits.size > 1 ? "–" : "";
}

function dress(row, category, score) {
  const reached = category.on && score !== null && score >= category.limit;
  row.line.classList.toggle("reached", reached);
  row.line.classList.toggle("off", !category.on);
  row.tick.checked = category.on;
  row.score.textContent = category.on ? number(score) : "";
  row.fill.style.setProperty("--score", String(category.on ? (score ?? 0) : 0));
  row.slider.value = category.limit;
  const spoken = score === null ? "no score" : `score ${number(score)}, ${reached ? "flagged" : "not flagged"}`;
  row.slider.setAttribute("aria-valuetext", `${category.limit.toFixed(2)}; ${spoken}`);
  if (document.activeElement !== row.exact) row.exact.value = category.limit.toFixed(2);
  for (const field of [row.slider, row.exact]) field.disabled = !category.on;
}

// --- what would change in the queue -------------------------------------------------------------------

let counting = 0;

async function countChanges() {
  const hash = answerOf(shown)?.row.taxonomy.hash;
  if (!server.records || !hash) return void (at("what-if").hidden = true);
  const turn = (counting += 1);
  try {
    const found = await post("/v1/what-if", { taxonomy_hash: hash, thresholds: taxonomy.limits() });
    if (turn === counting) drawChanges(found);
  } catch (error) {
    if (turn === counting) tell("problem", error);
  }
}

function drawChanges({ verdicts, flagged_before: before, flagged_after: after, changed }) {
  at("what-if").hidden = verdicts === 0;
  const now = before === after ? `${after} of ${count(verdicts, "judged image")} flagged.` : `${before} of ${count(verdicts, "judged image")} flagged, ${after} with these thresholds.`;
  const text = changed.length ? `${now} ${changed.length} would change:` : now;
  const list = changed.slice(0, 6).map(({ item_id: id, name, to }) => {
    const target = queue.items.find((one) => one.id === id);
    const parts = [...visible(String(name ?? id).slice(0, 60)), ` → ${WORDS[to].toLowerCase()}`];
    return el("li", {}, target ? el("button", { type: "button", on: { click: () => show(target) } }, ...parts) : el("span", {}, ...parts));
  });
  at("what-if").replaceChildren(text, ...(list.length ? [el("ul", {}, ...list)] : []));
}
