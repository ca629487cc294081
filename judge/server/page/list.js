/** The list of the queue: state and verdict of each image, how many there are, which verdicts are out of date. */

import { at, count, el, icon, number, visible, words } from "./dom.js";
import { on, tell } from "./events.js";
import { answerOf, later, list, more, queue, rowOf, show, shown, stale } from "./queue.js";

const NAMES = { open: "Open", decided: "Decided", skipped: "Skipped" };
const EMPTY = {
  open: "Nothing is waiting. Add images, or look at what was decided.",
  decided: "Nothing is decided yet.",
  skipped: "Nothing was skipped.",
};
const SAID = { safe: "safe", unsafe: "flagged", unjudged: "could not be judged" };

const filters = new Map();

export function start() {
  for (const state of Object.keys(NAMES)) {
    const number = el("b", { text: "0" });
    const button = el("button", { type: "button", "aria-pressed": "false" }, NAMES[state], number);
    button.addEventListener("click", () => list(state).catch((error) => tell("problem", error)));
    filters.set(state, { button, number });
    at("filters").append(button);
  }
  at("queue-more").addEventListener("click", () => more().catch((error) => tell("problem", error)));
  at("queue-toggle").addEventListener("click", () => fold(!at("queue").classList.contains("open")));
  at("stale-judge").addEventListener("click", () => later(stale()));
  for (const event of ["queue", "shown", "taxonomy", "categories"]) on(event, draw);
}

/** On a narrow screen the list is folded until it is asked for, and again when an image was chosen from it. */
function fold(open) {
  at("queue").classList.toggle("open", open);
  at("queue-toggle").setAttribute("aria-expanded", String(open));
}

function choose(one) {
  fold(false);
  show(one);
}

function draw() {
  for (const [state, { button, number: n }] of filters) {
    button.setAttribute("aria-pressed", String(state === queue.filter));
    n.textContent = String(queue.counts[state] ?? 0);
  }
  reuse();
  at("queue-empty").hidden = queue.items.length > 0;
  at("queue-empty").textContent = EMPTY[queue.filter];
  at("queue-more").hidden = queue.ended;
  const old = stale().length;
  at("stale").hidden = old === 0;
  at("stale-text").textContent = `${count(old, "image")} judged under another taxonomy.`;
  at("queue-toggle").textContent = `${queue.counts[queue.filter]} ${queue.filter}`;
  const place = queue.items.indexOf(shown);
  at("position").textContent = place < 0 ? "" : `${place + 1} of ${queue.counts[queue.filter]} ${queue.filter}`;
}

/** Draws the entries again, and leaves the focus where it is. */
function reuse() {
  const focused = document.activeElement?.closest?.("#queue-list [data-id]")?.dataset.id;
  at("queue-list").replaceChildren(...queue.items.map(entry));
  at("queue-list").hidden = queue.items.length === 0;
  const current = at("queue-list").querySelector('[aria-current="true"]');
  current?.scrollIntoView({ block: "nearest" });
  if (focused === undefined) return;
  const same = [...at("queue-list").querySelectorAll("[data-id]")].find(({ dataset }) => dataset.id === focused);
  (same ?? current)?.focus({ preventScroll: true });
}

function entry(one) {
  const row = rowOf(one);
  const old = row !== null && !answerOf(one);
  const state = one.failure && !row ? "failed" : (row?.status ?? "open");
  const name = el("span", { class: "entry-name" }, words(one.name.slice(0, 300) || "Image without a name"));
  const text = el("span", {}, name, el("span", { class: "entry-said" }, ...visible(saidOf(one, row, old))));
  const mark = el("span", { class: `mark ${state}` }, icon(state));
  const score = el("span", { class: "entry-score", text: row ? number(row.unsafe) : "" });
  const given = { class: "entry", type: "button", "aria-current": one === shown ? "true" : null, data: { id: one.id } };
  return el("li", {}, el("button", { ...given, on: { click: () => choose(one) } }, mark, text, score));
}

function saidOf(one, row, old) {
  if (one.running && !row) return "judging …";
  if (one.failure && !row) return "no answer yet";
  if (!row) return "not asked yet";
  const verdict = row.status === "unsafe" && row.category ? row.category.slice(0, 100) : SAID[row.status];
  return old ? `${verdict} (other taxonomy)` : verdict;
}
