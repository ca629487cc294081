/** The decision log as a table, and the two files it is exported as. */

import { download, get } from "./api.js";
import { at, count, el, number, words } from "./dom.js";
import { on, tell } from "./events.js";
import { WORDS } from "./rule.js";

const PAGE = 50;

let oldest = Number.MAX_SAFE_INTEGER; // id of the oldest decision that is listed
let stale = true;
let listed = 0;

export function start() {
  on("decided", () => {
    stale = true;
  });
  at("log-more").addEventListener("click", () => load().catch((error) => tell("problem", error)));
  for (const [id, path, name] of [["csv", "/v1/decisions.csv", "decisions.csv"], ["training", "/v1/decisions/training.zip", "training.zip"]]) {
    at(id).addEventListener("click", (event) => {
      event.preventDefault();
      download(path, name).catch((error) => tell("problem", error));
    });
  }
}

/** Called whenever the log is looked at. */
export async function open() {
  if (!stale) return;
  stale = false;
  oldest = Number.MAX_SAFE_INTEGER;
  listed = 0;
  at("log-rows").replaceChildren();
  try {
    await load();
  } catch (error) {
    stale = true;
    tell("problem", error);
  }
}

async function load() {
  const { decisions } = await get(`/v1/decisions?limit=${PAGE}&before=${oldest}`);
  oldest = decisions.at(-1)?.id ?? oldest;
  listed += decisions.length;
  at("log-rows").append(...decisions.map(line));
  at("log-empty").hidden = listed > 0;
  at("log").hidden = listed === 0;
  at("log-more").hidden = decisions.length < PAGE;
  at("decisions-count").textContent = listed ? `${count(listed, "decision")} shown` : "";
}

function line(decision) {
  const { verdict } = decision;
  const said = el("span", { class: `chip ${verdict.status}`, text: WORDS[verdict.status] });
  return el(
    "tr",
    { role: "row" },
    cell("Time", el("time", { datetime: decision.time, text: readable(decision.time) })),
    cell("Image", clamped(decision.name)),
    cell("Verdict", said, verdict.category ? clamped(verdict.category) : null),
    cell("Score", number(verdict.unsafe)),
    cell("Decision", clamped(ruling(decision)), decision.note ? clamped(decision.note, "muted small") : null),
    cell("Moderator", clamped(decision.moderator)),
    cell("Taxonomy", clamped(verdict.taxonomy.name), hash(verdict.taxonomy.hash)),
    cell("Model", clamped(verdict.model.name), hash(verdict.model.sha256)),
  );
}

/** "overrule: unsafe, Weapons" */
function ruling({ action, status, categories }) {
  return action === "overrule" ? `overrule: ${[status, ...categories].join(", ")}` : action;
}

const cell = (label, ...parts) => el("td", { role: "cell", data: { label } }, el("div", {}, ...parts));
const clamped = (text, looks = "") => el("span", { class: `clamp ${looks}`, title: text.slice(0, 500) }, words(text.slice(0, 500)));
const hash = (text) => (text ? el("span", { class: "mono muted", title: text, text: text.slice(0, 12) }) : null);

/** The time in this reader's zone and habits; as it was given where it is none. */
function readable(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? time : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
