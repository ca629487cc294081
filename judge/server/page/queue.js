/** The images under review: what the server holds of them, their verdicts, and which one is shown. No elements here. */

import { ApiError, base64, get, post, send } from "./api.js";
import { tell } from "./events.js";
import { tab } from "./settings.js";
import { limits, question, questionKey, wholeHash } from "./taxonomy.js";

const PAGE = 100;
const AT_ONCE = 2; // images judged at a time without being looked at
const UPLOAD = 8; // files a request

/** `filter`: which state is listed; `items` in order of the server; `ended`: whether there are no more of them. */
export const queue = { filter: "open", items: [], counts: { open: 0, decided: 0, skipped: 0 }, ended: true };
/** The item that is shown, or null. */
export let shown = null;
/** What GET /v1/server said. */
export let server = { records: true, explains: false, limits: {}, model: { name: "" } };

export async function loadServer() {
  server = await get("/v1/server");
}

/**
 * An item of the server, with the answers that this page has had about it: questionKey -> {verdictId, row, explanation,
 * explained: null, "asked" or "done", limits: the thresholds it was asked with, turn}.
 */
function item(given) {
  const known = queue.items.find((one) => one.id === given.id) ?? (shown?.id === given.id ? shown : null);
  return Object.assign(known ?? { answers: new Map(), failure: null, file: null }, given);
}

let listing = Promise.resolve();
let lists = 0;

/** Lists the items of a state from the beginning, and shows the one that was shown last. */
export function list(filter = queue.filter) {
  listing = fetchList(filter, (lists += 1));
  return listing;
}

async function fetchList(filter, turn) {
  const found = await get(`/v1/queue?state=${filter}&limit=${PAGE}`);
  if (turn !== lists) return; // another list was asked for meanwhile
  Object.assign(queue, { filter, items: found.items.map(item), counts: found.counts });
  queue.ended = found.items.length < PAGE;
  const last = tab.get("item");
  // Ids rise, so a later item is on a later page.
  while (!queue.ended && queue.items.at(-1).id < last) await more();
  show(queue.items.find((one) => one.id === last) ?? queue.items[0] ?? null);
}

/** Lists the next ones. */
export async function more() {
  const after = queue.items.at(-1)?.id;
  const found = await get(`/v1/queue?state=${queue.filter}&limit=${PAGE}${after === undefined ? "" : `&after=${after}`}`);
  queue.counts = found.counts;
  queue.items.push(...found.items.map(item).filter((one) => !queue.items.includes(one)));
  queue.ended = found.items.length < PAGE;
  tell("queue");
}

/** Shows an item and has it judged, and the one after it. */
export function show(chosen) {
  shown = chosen;
  if (chosen) tab.set("item", chosen.id);
  tell("queue");
  tell("shown");
  if (chosen) judge(chosen, { again: moved(chosen) });
  const place = queue.items.indexOf(chosen);
  if (place >= 0 && queue.items[place + 1]) later([queue.items[place + 1]]);
}

/** Whether thresholds were moved since an item was judged. */
export function moved(one) {
  const answer = answerOf(one);
  const now = Object.entries(limits());
  return answer !== undefined && now.some(([name, limit]) => answer.limits[name] !== limit);
}

/** Shows the item `step` places on. False at the end. */
export async function walk(step) {
  const place = queue.items.indexOf(shown) + step;
  if (place >= queue.items.length && !queue.ended) await more();
  const target = queue.items[place];
  if (target) show(target);
  return Boolean(target);
}

/** Posts files with one prompt, shows the first and has all of them judged. */
export async function add(files, prompt, progress = () => {}) {
  if (!server.records) return show(item({ id: `here-${Date.now()}`, name: files[0].name, prompt, state: "open", file: files[0] }));
  await listing.catch(() => null); // a list that is under way may not know what is added now
  if (queue.filter !== "open") await list("open");
  const added = [];
  for (let start = 0; start < files.length; start += UPLOAD) {
    progress(start);
    const form = new FormData();
    for (const file of files.slice(start, start + UPLOAD)) form.append("files", file, file.name);
    if (prompt) form.append("prompt", prompt);
    const answered = await (await send("POST", "/v1/queue", { form })).json();
    added.push(...answered.items.map(item));
  }
  enter(added);
}

/** Adds the images of a folder of the server. Returns how many, how many were there before, and names that were refused. */
export async function addFolder(path) {
  await listing.catch(() => null);
  if (queue.filter !== "open") await list("open");
  const answered = await post("/v1/queue/folder", { path });
  const added = answered.items.map(item);
  enter(added);
  return { added: added.length, known: answered.known, refused: answered.refused };
}

function enter(added) {
  const fresh = added.filter((one) => !queue.items.includes(one) && one.state === "open");
  queue.items.push(...fresh);
  queue.counts.open += fresh.length;
  if (added.length) show(added[0]);
  later(added);
}

// questionKey -> hash of the taxonomy that the server judged by
const hashes = new Map();

/** The answer about an item under the present question; undefined where there is none yet. */
export function answerOf(one) {
  if (!one) return undefined;
  const key = questionKey();
  const { verdict: row, verdict_id: verdictId } = one;
  // What the server kept counts where the same model was asked about the same categories.
  if (row && !one.answers.has(key) && row.taxonomy.hash === (hashes.get(key) ?? wholeHash()) && row.model.sha256 === server.model.sha256) {
    one.answers.set(key, { verdictId, row, explanation: null, explained: null, limits: row.thresholds });
  }
  return one.answers.get(key);
}

/** What the list says of an item: its latest verdict under any question. */
export const rowOf = (one) => answerOf(one)?.row ?? [...one.answers.values()].at(-1)?.row ?? one.verdict ?? null;

/**
 * Asks for a verdict on an item, unless there is one already.
 * @param {object} one item
 * @param {{explain?: boolean, again?: boolean}} [how] `again`: with thresholds that were moved since
 */
export async function judge(one, { explain = false, again = false } = {}) {
  const asked = question();
  const key = questionKey();
  const had = answerOf(one);
  if (!asked || (had && !again && (!explain || had.explanation))) return;
  const running = `${key} ${explain} ${JSON.stringify(asked.thresholds)}`;
  if (one.running === running) return;
  const turn = (turns += 1);
  Object.assign(one, { running, failure: null });
  if (one === shown) tell("answer");
  try {
    const answer = await (one.file ? ask : record)(one, { ...asked, explain });
    hashes.set(key, answer.row.taxonomy.hash);
    keep(one, key, { ...answer, explained: explain ? "done" : null, limits: asked.thresholds, turn });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    one.failure = error;
    // The card of an item without an answer says so itself.
    if (had && one === shown) tell("problem", error, () => judge(one, { explain, again }));
  } finally {
    if (one.running === running) one.running = null;
  }
  tell("queue");
  if (one === shown) tell("answer");
}

let turns = 0;

/** Keeps an answer; of two, the one that was asked for later, with the explanation of either. */
function keep(one, key, answer) {
  const other = one.answers.get(key);
  const [newer, older] = (other?.turn ?? 0) > answer.turn ? [other, answer] : [answer, other];
  if (newer.explained !== "done" && older?.explained) {
    const same = older.row.category === newer.row.category;
    Object.assign(newer, same ? { explanation: older.explanation, explained: older.explained } : { explained: null });
  }
  one.answers.set(key, newer);
}

async function record(one, body) {
  const found = await post(`/v1/queue/${one.id}/verdict`, body);
  return { verdictId: found.verdict_id, row: found.verdict, explanation: found.explanation ?? null };
}

/** Without records: the picture goes along with the question. */
async function ask(one, body) {
  const picture = { data: await base64(one.file), name: one.name.slice(0, 200) };
  if (one.prompt) picture.prompt = one.prompt;
  const [{ explanation, ...row }] = (await post("/v1/verdicts", { ...body, images: [picture] })).verdicts;
  return { verdictId: null, row, explanation: explanation ?? null };
}

const waiting = [];
let working = 0;

/** Has items judged while others are looked at; those that the server refuses for now are tried again. */
export function later(items) {
  waiting.push(...items.filter((one) => !waiting.includes(one)));
  while (working < AT_ONCE && waiting.length) work();
}

async function work() {
  working += 1;
  while (waiting.length) {
    const one = waiting.shift();
    for (let turn = 0; turn < 4 && !answerOf(one); turn += 1) {
      await judge(one);
      if (!one.failure?.passing) break;
      await new Promise((resolve) => setTimeout(resolve, 1000 * (one.failure.retryAfter ?? 2 ** turn)));
    }
  }
  working -= 1;
}

/** Open items on the list whose last verdict answers another question. */
export const stale = () => queue.items.filter((one) => one.state === "open" && !answerOf(one) && (one.verdict || one.answers.size));

/**
 * Writes a decision and shows the next item.
 * @param {"agree"|"overrule"|"skip"} action
 * @param {{status?: string, categories?: string[], note?: string}} said
 */
export async function decide(action, moderator, said = {}) {
  const one = shown;
  const body = { verdict_id: answerOf(one)?.verdictId ?? one.verdict_id ?? null, action, moderator, ...said };
  one.decision = await post(`/v1/queue/${one.id}/decision`, body);
  const state = action === "skip" ? "skipped" : "decided";
  queue.counts[one.state] -= 1;
  queue.counts[state] += 1;
  leave(one, state);
}

/** Takes an item and its image from the server. */
export async function remove(one) {
  await send("DELETE", `/v1/queue/${one.id}`);
  queue.counts[one.state] -= 1;
  leave(one, "removed");
}

/** The next item takes the place of one that has left the list. */
function leave(one, state) {
  one.state = state;
  const place = queue.items.indexOf(one);
  if (state !== queue.filter) queue.items.splice(place, 1);
  const step = state === queue.filter ? 1 : 0;
  const next = queue.items[place + step] ?? queue.items.at(-1) ?? null;
  if (!next && !queue.ended) return list();
  show(next);
}
