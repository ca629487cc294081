/** The moderator's decision about the shown image: agree, overrule, skip, and on to the next. */

import { announce, at, el, number, words } from "./dom.js";
import { ask, confirm, moderator } from "./dialogs.js";
import { on, tell } from "./events.js";
import { answerOf, decide, moved, remove, shown, walk } from "./queue.js";
import { WORDS } from "./rule.js";
import { current } from "./taxonomy.js";

let busy = false;

export function start() {
  at("agree").addEventListener("click", agree);
  at("overrule").addEventListener("click", overrule);
  at("skip").addEventListener("click", () => settle("skip"));
  at("next").addEventListener("click", () => go(1));
  at("remove").addEventListener("click", take);
  for (const radio of at("overrule-dialog").querySelectorAll("[name=status]")) radio.addEventListener("change", showCategories);
  for (const event of ["shown", "answer", "thresholds", "categories", "taxonomy"]) on(event, draw);
}

function draw() {
  const answer = answerOf(shown);
  const unjudged = answer?.row.status === "unjudged";
  // With moved thresholds, the verdict is not the one that is agreed with.
  at("agree").disabled = !answer || unjudged || moved(shown);
  at("agree").title = unjudged ? "There is no verdict to agree with: overrule says what it is." : "";
  at("agree-text").textContent = answer && !unjudged ? `Agree: ${WORDS[answer.row.status].toLowerCase()}` : "Agree";
  at("overrule").disabled = !answer;
  at("skip").disabled = !answer;
  const decision = shown?.state === "open" ? null : (shown?.decision ?? null);
  at("decided").hidden = decision === null;
  if (decision) at("decided").replaceChildren(`Decided: ${decision.action}`, ...(decision.moderator ? [" by ", words(decision.moderator)] : []), ".");
}

async function settle(action, said = {}) {
  if (busy || !answerOf(shown)) return;
  busy = true;
  try {
    const who = await moderator();
    if (!who) return;
    await decide(action, who, said);
    announce({ agree: "Agreed.", overrule: "Overruled.", skip: "Skipped." }[action]);
    tell("decided");
  } catch (error) {
    tell("problem", error);
  } finally {
    busy = false;
  }
}

export const agree = () => !at("agree").disabled && settle("agree");
export const skip = () => !at("skip").disabled && settle("skip");

/** Shows the image `step` places on. */
export async function go(step) {
  try {
    if (!(await walk(step))) announce(step > 0 ? "That was the last image of the list." : "That was the first image of the list.");
  } catch (error) {
    tell("problem", error);
  }
}

async function take() {
  const one = shown;
  const sure = await confirm("Remove this image?", "The image and its verdicts leave the server's queue. Decisions stay in the log.");
  if (sure) await remove(one).catch((error) => tell("problem", error));
}

// --- overrule -----------------------------------------------------------------------------------------

export async function overrule() {
  const answer = answerOf(shown);
  if (!answer || at("overrule").disabled) return;
  const { row } = answer;
  const dialog = at("overrule-dialog");
  at("overrule-said").textContent = `The verdict was: ${WORDS[row.status].toLowerCase()}${row.unsafe === null ? "" : `, score ${number(row.unsafe)}`}.`;
  const opposite = row.status === "unsafe" ? "safe" : "unsafe";
  for (const radio of dialog.querySelectorAll("[name=status]")) radio.checked = radio.value === opposite;
  const lines = Object.keys(row.thresholds).map((name) => el("label", {}, el("input", { type: "checkbox", value: name }), words(name)));
  at("overrule-list").replaceChildren(...lines);
  at("overrule-note").value = "";
  showCategories();
  const confirmed = ask(dialog);
  dialog.querySelector("[name=status]:checked").focus();
  if (!(await confirmed)) return;
  const status = chosenStatus();
  const ticked = [...at("overrule-list").querySelectorAll("input:checked")].map((box) => box.value);
  const said = { status, note: at("overrule-note").value.trim() || null };
  await settle("overrule", status === "unsafe" ? { ...said, categories: ticked } : said);
}

const chosenStatus = () => at("overrule-dialog").querySelector("[name=status]:checked")?.value ?? "unsafe";

function showCategories() {
  at("overrule-categories").hidden = chosenStatus() !== "unsafe" || current.categories.length === 0;
}
