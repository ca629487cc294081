/** One table of keys: what acts is what the help shows. */

import { at } from "./dom.js";
import { agree, go, overrule, skip } from "./decide.js";
import { openHelp } from "./dialogs.js";
import { open as edit } from "./editor.js";
import { open as add } from "./intake.js";
import { server, shown } from "./queue.js";
import { set, setting } from "./settings.js";
import { hold, turn } from "./stage.js";

const flip = (name) => () => set(name, !setting(name));
const view = (name) => () => {
  if (server.records) location.hash = name;
};

/** `keys`: what `event.key` has to be; `shown` and `does`: what the help says. */
export const KEYS = [
  { keys: ["u"], shown: ["u"], does: "Add images", act: () => add() },
  { keys: ["b"], shown: ["b"], does: "Show the image, as long as it is held", act: () => hold(true) },
  { keys: ["a"], shown: ["a"], does: "Agree with the verdict", act: agree },
  { keys: ["o"], shown: ["o"], does: "Overrule it", act: overrule },
  { keys: ["s"], shown: ["s"], does: "Skip the image", act: skip },
  { keys: ["n", "j"], shown: ["n", "j"], does: "Next image", act: () => shown && go(1) },
  { keys: ["p", "k"], shown: ["p", "k"], does: "Image before", act: () => shown && go(-1) },
  { keys: ["g"], shown: ["g"], does: "Grey, or in colour", act: flip("grey") },
  { keys: ["e"], shown: ["e"], does: "The region that drove the verdict", act: flip("region") },
  { keys: ["["], shown: ["["], does: "Frame before, of an animation", act: () => turn(-1) },
  { keys: ["]"], shown: ["]"], does: "Next frame", act: () => turn(1) },
  { keys: ["t"], shown: ["t"], does: "Choose a taxonomy", act: () => at("taxonomy").focus() },
  { keys: ["c"], shown: ["c"], does: "Write categories", act: edit },
  { keys: ["r"], shown: ["r"], does: "Review", act: view("review") },
  { keys: ["l"], shown: ["l"], does: "Log of decisions", act: view("decisions") },
  { keys: ["?"], shown: ["?"], does: "These keys", act: openHelp },
];

const EVERYWHERE = new Set(["r", "l", "?"]);
const TEXT = "textarea, select, input:not([type=checkbox]):not([type=radio]):not([type=range])";

// A field of a dialog that was just closed keeps the focus until the next frame; nobody types there.
const types = (target) => Boolean(target.matches?.(TEXT)) && target.checkVisibility();

export function start() {
  document.addEventListener("keydown", (event) => {
    if (!setting("keys") || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (document.querySelector("dialog[open]") || types(event.target)) return;
    const entry = KEYS.find(({ keys }) => keys.includes(event.key));
    if (!entry || (at("review").hidden && !EVERYWHERE.has(event.key))) return;
    event.preventDefault();
    if (!event.repeat) entry.act();
  });
  document.addEventListener("keyup", ({ key }) => {
    if (key.toLowerCase() === "b") hold(false);
  });
}
