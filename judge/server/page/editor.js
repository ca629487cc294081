/** Writing categories of one's own: names and definitions, used at once or saved under a name. */

import { ApiError } from "./api.js";
import { at, el, visible } from "./dom.js";
import { ask, moderator } from "./dialogs.js";
import { on, tell } from "./events.js";
import { queue, server } from "./queue.js";
import * as taxonomy from "./taxonomy.js";

const GROUPS = { saved: "Yours", shipped: "Shipped", judge: "This judge's own" };

export function start() {
  at("edit").addEventListener("click", open);
  at("editor-add").addEventListener("click", () => {
    at("editor-rows").append(row());
    at("editor-rows").lastChild.querySelector("input").focus();
  });
  at("editor-use").addEventListener("click", useUnsaved);
  at("taxonomy").addEventListener("change", ({ target }) => {
    if (target.value) taxonomy.choose(target.value).catch((error) => tell("problem", error));
  });
  on("taxonomy", draw);
}

// --- choosing -----------------------------------------------------------------------------------------

function draw() {
  const { current, known } = taxonomy;
  const groups = Object.entries(GROUPS).map(([source, label]) => {
    const ours = known.filter((one) => one.source === source);
    const options = ours.map((one) => el("option", { value: one.name, text: one.name }));
    return ours.length ? el("optgroup", { label }, ...options) : null;
  });
  const edited = current.edited ? el("option", { value: "", text: `${current.name} (not saved)` }) : null;
  at("taxonomy").replaceChildren(...[edited, ...groups].filter(Boolean));
  at("taxonomy").value = current.edited ? "" : current.name;
  const hash = current.hash ? `, ${current.hash.slice(0, 12)}` : "";
  at("taxonomy-facts").textContent = current.edited ? "Used here, saved nowhere." : `Version ${current.version}${hash}`;
  const { cautions } = current;
  at("cautions").hidden = !cautions.length;
  at("cautions-title").textContent = cautions.length === 1 ? "One definition is read poorly" : `${cautions.length} definitions are read poorly`;
  at("cautions-list").replaceChildren(...cautions.map((text) => el("li", {}, ...visible(text))));
}

// --- writing ------------------------------------------------------------------------------------------

export function open() {
  const { current } = taxonomy;
  at("editor-rows").replaceChildren(...current.categories.filter((category) => category.on).map(row));
  at("editor-name").value = current.source === "saved" || current.edited ? current.name : `my-${current.name}`;
  at("editor-save").hidden = !server.records;
  problem("");
  ask(at("editor"), save);
  at("editor-rows").querySelector("input")?.focus();
}

function row(category = {}) {
  const name = el("input", { type: "text", "aria-label": "Name of the category", placeholder: "Name", autocomplete: "off" });
  const definition = el("textarea", { rows: 1, "aria-label": "What falls under it", placeholder: "What falls under it" });
  name.value = category.name ?? "";
  definition.value = category.definition ?? "";
  // A definition is one line: Enter goes on instead of breaking it.
  definition.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    at("editor-add").click();
  });
  const drop = el("button", { type: "button", class: "quiet", "aria-label": "Leave this category out", text: "×" });
  const line = el("li", { class: "editor-row" }, name, definition, drop);
  drop.addEventListener("click", () => {
    line.remove();
    at("editor-add").focus();
  });
  line.examples = category.examples ?? [];
  return line;
}

/** The categories as written; rows without a name and a definition are left out. */
function written() {
  return [...at("editor-rows").children]
    .map((line) => ({
      name: line.querySelector("input").value.trim(),
      definition: line.querySelector("textarea").value.trim().replace(/\s+/g, " "),
      examples: line.examples,
    }))
    .filter((category) => category.name || category.definition);
}

/** The categories and the name, or null after saying what is missing. */
function complete() {
  const categories = written();
  const name = at("editor-name").value.trim();
  const names = categories.map((category) => category.name.toLowerCase());
  const doubled = categories.find((category, n) => names.indexOf(names[n]) !== n);
  if (!categories.length) problem("Write at least one category.");
  else if (!categories.every((category) => category.name && category.definition)) problem("Every category needs a name and a definition.");
  else if (doubled) problem(`Two categories are called “${doubled.name}”.`);
  else if (!name) problem("Give the taxonomy a name.");
  else return { name, categories };
  return null;
}

function problem(text) {
  at("editor-error").hidden = text === "";
  at("editor-error").replaceChildren(...visible(text));
}

function useUnsaved() {
  const given = complete();
  if (!given) return;
  taxonomy.use(given.name, given.categories);
  at("editor").close("cancel");
}

async function save() {
  const given = complete();
  if (!given) return false;
  const who = queue.items.length || server.records ? await moderator() : null;
  try {
    await taxonomy.save(given.name, given.categories, who);
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    problem(error.message);
    return false;
  }
}
