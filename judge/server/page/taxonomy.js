/** The taxonomy in use: which categories are asked, with which thresholds, and how a request says so. */

import { get, put } from "./api.js";
import { tell } from "./events.js";
import { set, setting } from "./settings.js";

const START = 0.5; // of a category that neither the user nor the server gave another threshold

/** What may be chosen: [{name, version, hash, categories, source}]. */
export let known = [];
/** name, version, hash, source, `edited` (not as any saved one), cautions, categories: [{name, definition, examples, on, limit}]. */
export let current = { name: "", version: "", hash: "", source: "", edited: false, cautions: [], categories: [] };

/** Asks the server for its taxonomies and chooses the one used last, or the server's own. */
export async function load() {
  const listed = await get("/v1/taxonomies");
  known = listed.taxonomies;
  const last = setting("taxonomy");
  const wanted = known.some((one) => one.name === last) ? last : listed.default;
  await choose(wanted);
}

/** Uses a taxonomy of the server. */
export async function choose(name) {
  const found = await get(`/v1/taxonomies/${encodeURIComponent(name)}`);
  take({ ...found, edited: false });
  set("taxonomy", found.name);
}

/** Uses categories that are saved nowhere: [{name, definition, examples}]; those that stay keep their thresholds. */
export function use(name, categories) {
  const thresholds = Object.fromEntries(current.categories.map((category) => [category.name, category.limit]));
  take({ thresholds, name, version: "", hash: "", source: "edited", edited: true, cautions: [], categories });
}

/** Saves categories under a name, as a new version where the name exists, and uses them. */
export async function save(name, categories, moderator) {
  const body = { categories: categories.map(({ name, definition, examples }) => ({ name, definition, examples })) };
  if (moderator) body.moderator = moderator;
  await put(`/v1/taxonomies/${encodeURIComponent(name)}`, body);
  known = (await get("/v1/taxonomies")).taxonomies;
  await choose(name);
}

function take(found) {
  const kept = new Map(Object.entries(setting("thresholds")[found.name] ?? {}));
  const starts = new Map(Object.entries(found.thresholds ?? {}));
  const categories = found.categories.map((category) => {
    const start = starts.get(category.name) ?? START;
    const limit = kept.get(category.name);
    return { ...category, on: true, start, limit: typeof limit === "number" ? limit : start };
  });
  current = { ...found, cautions: found.cautions ?? [], categories };
  tell("taxonomy");
}

/** Asks only the categories whose names are given. */
export function tick(names) {
  for (const category of current.categories) category.on = names.has(category.name);
  tell("categories");
}

/** Moves thresholds: category name -> number in [0, 1]. */
export function limit(moved) {
  for (const category of current.categories) category.limit = moved.get(category.name) ?? category.limit;
  const changed = current.categories.filter((category) => category.limit !== category.start);
  const kept = Object.fromEntries(changed.map((category) => [category.name, category.limit]));
  set("thresholds", Object.fromEntries([...Object.entries(setting("thresholds")), [current.name, kept]]));
  tell("thresholds");
}

const ticked = () => current.categories.filter((category) => category.on);

/** Category name -> threshold, of those that are asked. */
export const limits = () => Object.fromEntries(ticked().map((category) => [category.name, category.limit]));

/** What a request says of the taxonomy; null where no category is ticked. */
export function question() {
  const asked = ticked();
  if (!asked.length) return null;
  const body = { thresholds: limits() };
  if (current.edited) {
    const categories = asked.map(({ name, definition, examples }) => ({ name, definition, ...(examples?.length ? { examples } : {}) }));
    return { taxonomy: { name: current.name, categories }, ...body };
  }
  body.taxonomy = current.source === "saved" ? `${current.name}@${current.version}` : current.name;
  if (asked.length < current.categories.length) body.categories = asked.map((category) => category.name);
  return body;
}

/** Hash of the taxonomy as the server holds it, where all of it is asked. */
export const wholeHash = () => (!current.edited && ticked().length === current.categories.length ? current.hash : null);

/** Equal for two questions whose scores are equal: the categories asked, whatever their thresholds. */
export function questionKey() {
  const { thresholds, ...rest } = question() ?? {};
  return JSON.stringify(rest);
}
