/** The page of a moderator: starts its parts, in the order in which they need each other. */

import { ApiError } from "./api.js";
import * as categories from "./categories.js";
import * as decide from "./decide.js";
import * as decisions from "./decisions.js";
import * as dialogs from "./dialogs.js";
import { at } from "./dom.js";
import * as editor from "./editor.js";
import { on, tell } from "./events.js";
import * as intake from "./intake.js";
import * as keys from "./keys.js";
import * as queueList from "./list.js";
import * as queue from "./queue.js";
import * as stage from "./stage.js";
import * as taxonomy from "./taxonomy.js";
import * as verdict from "./verdict.js";

let retry = null;

/** What went wrong, and a way to go on. Verdicts say so themselves, in their own place. */
function problem(error, again = null) {
  if (!(error instanceof ApiError)) throw error;
  retry = again;
  at("banner-text").textContent = error.message;
  at("banner-retry").hidden = again === null;
  at("banner").hidden = false;
}

function closeBanner() {
  at("banner").hidden = true;
}

/** Asks the server for everything the page begins with; may be tried again. */
async function load() {
  try {
    await queue.loadServer();
    document.body.classList.toggle("no-records", !queue.server.records);
    at("model").textContent = queue.server.model.name;
    at("model").title = queue.server.model.sha256 ?? "";
    await taxonomy.load();
    if (queue.server.records) await queue.list();
    tell("shown");
    view();
    closeBanner();
  } catch (error) {
    problem(error, load);
    if (error.status !== 503) return;
    // The classifier is still being loaded, or the server restarts.
    at("banner-text").append(" It is asked again on its own.");
    setTimeout(load, 1000 * (error.retryAfter ?? 2));
  }
}

/** The view that the address names. */
function view() {
  const log = location.hash === "#decisions" && queue.server.records;
  at("review").hidden = log;
  at("decisions").hidden = !log;
  for (const [id, here] of [["to-review", !log], ["to-decisions", log]]) {
    if (here) at(id).setAttribute("aria-current", "page");
    else at(id).removeAttribute("aria-current");
  }
  if (log) decisions.open();
}

for (const part of [stage, verdict, categories, queueList, decide, editor, intake, decisions, keys]) part.start();
dialogs.start(keys.KEYS);
on("problem", problem);
at("banner-close").addEventListener("click", closeBanner);
at("banner-retry").addEventListener("click", () => {
  closeBanner();
  retry?.();
});
window.addEventListener("hashchange", view);
load();
