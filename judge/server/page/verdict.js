/** The verdict in words: what was decided, by which clause, by whom and why. Not judged never looks like safe. */

import { announce, at, el, icon, number, visible, words } from "./dom.js";
import { on } from "./events.js";
import { answerOf, judge, shown } from "./queue.js";
import { WORDS, conclude } from "./rule.js";
import { current, limits, question } from "./taxonomy.js";

const STAGES = { filter: "the filters, the first stage", student: "the student, the fast stage", judge: "the judge", door: "the door: the image could not be opened" };

let said = null;

export function start() {
  for (const event of ["shown", "answer", "taxonomy", "categories", "thresholds"]) on(event, draw);
}

function draw() {
  const card = at("verdict");
  const answer = answerOf(shown);
  card.hidden = shown === null;
  at("facts").hidden = !answer;
  if (!shown) return;
  const [kind, parts] = answer ? judged(answer) : withoutAnswer();
  card.className = `verdict ${kind}`;
  card.replaceChildren(...parts.filter(Boolean));
  if (!answer) return speak(shown.failure, () => `No answer: ${shown.failure.message}`);
  at("facts-list").replaceChildren(...record(answer.row));
  speak(answer, () => `${shown.name}: ${spoken(answer.row)}`);
}

/** Once for each answer, however often its card is drawn. */
function speak(about, text) {
  if (about && about !== said) announce(text());
  said = about ?? said;
}

const spoken = ({ status, category, unsafe, reason }) =>
  ({ safe: "safe", unsafe: `flagged${category ? `, ${category}` : ""}, score ${number(unsafe)}`, unjudged: `could not be judged: ${reason}` })[status];

function withoutAnswer() {
  if (shown.failure) {
    const { message, retryAfter } = shown.failure;
    const when = retryAfter ? ` It asks to wait ${Math.ceil(retryAfter)} s.` : "";
    const again = el("button", { type: "button", id: "retry", text: "Try again", on: { click: () => judge(shown) } });
    return ["failed", [headline("failed"), el("p", { class: "why" }, ...visible(message + when)), el("div", {}, again)]];
  }
  if (!question()) return ["failed", [el("p", { text: "Tick at least one category to get a verdict." })]];
  return ["open", [el("p", { class: "busy", text: "Judging …" })]];
}

function headline(kind, value) {
  const score = value === undefined || value === null ? null : el("span", { class: "number", title: "Highest score", text: number(value) });
  return el("p", { class: "verdict-word" }, icon(kind), WORDS[kind], score);
}

function judged({ row }) {
  const now = conclude(row, limits());
  return [row.status, [headline(row.status, row.unsafe), clause(row), why(row), preview(row, now)]];
}

/** The violated clause, as its author wrote it. */
function clause(row) {
  if (row.status !== "unsafe") return null;
  if (!row.category) return el("p", { class: "clause", text: "The classifier does not say which category." });
  const definition = current.categories.find((category) => category.name === row.category)?.definition;
  const name = words(row.category);
  return el("p", { class: "clause" }, el("b", {}, name), ...(definition ? [": ", words(definition)] : []));
}

function why(row) {
  const lines = [];
  const line = (...parts) => lines.push(el("p", {}, ...parts));
  if (row.category && row.status === "unsafe") {
    line(`Score ${number(row.scores[row.category])} reaches the threshold ${number(row.thresholds[row.category])}.`);
  }
  if (row.reason) line(...(row.status === "unjudged" ? [] : ["Not all was judged: "]), words(row.reason));
  if (row.status === "unjudged") line("It is not safe by default: a person has to say.");
  if (row.status === "safe") line("Every category was scored below its threshold.");
  if (row.status !== "unjudged" || row.because) line(`Decided by ${STAGES[row.decided_by] ?? row.decided_by}${row.because ? ": " : "."}`, row.because ? words(row.because) : null);
  if (row.note) line("Note: ", words(row.note));
  return el("div", { class: "why" }, ...lines);
}

/** What the thresholds of this moment make of it, where that is something else. */
function preview(row, now) {
  if (now.status === row.status && (now.status !== "unsafe" || now.category === row.category)) return null;
  const by = now.category ? [" for ", words(now.category)] : [];
  return el("p", { class: "preview" }, "With these thresholds: ", WORDS[now.status].toLowerCase(), ...by);
}

// --- the record ---------------------------------------------------------------------------------------

function evidence(text) {
  if (text === null || text === undefined) return "not known for this model";
  if (text === "trained") return "every category was part of the training";
  if (text === "none") return "none: nobody trained or measured at least one of these categories";
  const f1 = /^measured (\S+)$/.exec(text);
  return f1 ? `measured; the weakest category has F1 ${f1[1]}` : text;
}

function record(row) {
  const { taxonomy, model, image } = row;
  const entries = [
    ["Evidence", evidence(row.evidence)],
    ["Promise", row.promise ?? "none was calibrated"],
    ["Model", model.name],
    ["Weights", model.sha256],
    ["Taxonomy", `${taxonomy.name}, version ${taxonomy.version}`],
    ["Its hash", taxonomy.hash],
    ["Image", image.sha256],
    ["Frame", image.frame],
    ["Time", row.time],
    ["Arbiter", row.arbiter],
  ];
  const hashes = new Set(["Weights", "Its hash", "Image"]);
  return entries
    .filter(([, value]) => value)
    .flatMap(([term, value]) => [el("dt", { text: term }), el("dd", hashes.has(term) ? { class: "mono" } : {}, words(value))]);
}
