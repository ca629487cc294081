/** Images come in: dropped, pasted or chosen, with the prompt they were made from or posted with. */

import { ApiError } from "./api.js";
import { announce, at, count, el, visible, words } from "./dom.js";
import { ask } from "./dialogs.js";
import { tell } from "./events.js";
import { add, addFolder, server } from "./queue.js";

let chosen = [];

export function start() {
  const input = at("files");
  for (const id of ["choose", "add-choose"]) at(id).addEventListener("click", () => input.click());
  for (const id of ["add", "another"]) at(id).addEventListener("click", () => open());
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = "";
    if (files.length) open(files);
  });
  at("folder-go").addEventListener("click", folder);
  at("add-prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (chosen.length) at("add-go").click();
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    open(files);
  });
  watchDrops();
}

function watchDrops() {
  let depth = 0;
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  const veil = (change) => {
    depth = Math.max(0, depth + change);
    at("drop-veil").hidden = depth === 0;
  };
  document.addEventListener("dragenter", (event) => carries(event) && veil(1));
  document.addEventListener("dragleave", (event) => carries(event) && veil(-1));
  document.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    veil(-depth);
    open([...event.dataTransfer.files]);
  });
}

/** Opens the dialog with these files, or adds them to those in the open one. */
export function open(files = []) {
  const dialog = at("add-dialog");
  if (!dialog.open && document.querySelector("dialog[open]")) return;
  // Without records there is no queue: one picture at a time.
  chosen = server.records ? [...(dialog.open ? chosen : []), ...files] : files.slice(0, 1);
  at("folder-part").hidden = !server.records;
  problem("");
  draw();
  if (!dialog.open) {
    at("add-prompt").value = "";
    ask(dialog, judgeChosen);
  }
  (chosen.length ? at("add-prompt") : at("add-choose")).focus();
}

function draw() {
  const lines = chosen.map((file, n) => {
    const drop = () => {
      chosen.splice(n, 1);
      draw();
      at("add-choose").focus();
    };
    const button = el("button", { type: "button", class: "quiet", "aria-label": `Leave out ${file.name.slice(0, 80)}`, text: "×", on: { click: drop } });
    return el("li", {}, words(file.name.slice(0, 300)), button);
  });
  at("add-list").replaceChildren(...lines);
  at("add-list").hidden = !lines.length;
  at("add-choose").textContent = lines.length ? "Choose more" : "Choose images";
  at("add-go").disabled = !lines.length;
  at("add-go").textContent = lines.length ? `Judge ${count(lines.length, "image")}` : "Judge";
}

function problem(text) {
  at("add-error").hidden = text === "";
  at("add-error").replaceChildren(...visible(text));
}

async function judgeChosen() {
  if (!chosen.length) return false;
  const files = chosen;
  at("add-go").disabled = true;
  problem("");
  try {
    const prompt = at("add-prompt").value.trim();
    await add(files, prompt || null, (done) => announce(`Uploading ${done + 1} of ${files.length}`));
    chosen = [];
    at("item").focus({ preventScroll: true });
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    problem(error.message);
    return false;
  } finally {
    at("add-go").disabled = !chosen.length;
  }
}

async function folder() {
  const path = at("folder").value.trim();
  if (!path) return at("folder").focus();
  problem("");
  try {
    const { added, known, refused } = await addFolder(path);
    const said = [`${count(added, "image")} added.`];
    if (known) said.push(`${count(known, "image")} in the queue already.`);
    said.push(...refused.slice(0, 5).map(({ name, message }) => `${name}: ${message}.`));
    if (refused.length > 5) said.push(`${refused.length - 5} more cannot be read.`);
    announce(said.join(" "));
    if (added && !refused.length) at("add-dialog").close("cancel");
    else problem(said.join(" "));
  } catch (error) {
    if (!(error instanceof ApiError)) return tell("problem", error);
    problem(error.message);
  }
}
