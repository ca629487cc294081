/** Dialogs that ask for one thing: a name, a key, a yes; and settings and help. The browser keeps the focus inside. */

import { onKeyNeeded } from "./api.js";
import { at, el } from "./dom.js";
import { onSetting, set, setting, tab } from "./settings.js";

/** Opens a dialog and resolves to true when it was confirmed. `check` may keep it open by returning false. */
export function ask(dialog, check = () => true) {
  const form = dialog.querySelector("form");
  return new Promise((resolve) => {
    const confirmed = async (event) => {
      event.preventDefault();
      if (await check()) dialog.close("ok");
    };
    form.addEventListener("submit", confirmed);
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", confirmed);
        resolve(dialog.returnValue === "ok");
      },
      { once: true },
    );
    dialog.showModal();
  });
}

/** The moderator's name, asked for once; null when none was given. */
export async function moderator() {
  if (setting("name")) return setting("name");
  const confirmed = await ask(at("name-dialog"), () => at("name").value.trim() !== "");
  if (!confirmed) return null;
  set("name", at("name").value.trim());
  return setting("name");
}

/** Whether the user means it. */
export function confirm(title, text) {
  at("confirm-title").textContent = title;
  at("confirm-text").textContent = text;
  return ask(at("confirm-dialog"));
}

async function newKey(refused) {
  at("key-said").textContent = refused
    ? "The server refused this key. Another one?"
    : "This server asks for a key. It is kept until this tab is closed.";
  at("key").value = "";
  if (!(await ask(at("key-dialog"), () => at("key").value.trim() !== ""))) return null;
  tab.set("key", at("key").value.trim());
  at("key").value = "";
  return tab.get("key");
}

/** The keys of the page: what `keys.js` acts on and what the help lists. */
export function start(keys) {
  onKeyNeeded(newKey);
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close("cancel"));
  }
  at("open-settings").addEventListener("click", openSettings);
  at("open-help").addEventListener("click", openHelp);
  at("forget-key").addEventListener("click", () => {
    tab.set("key", null);
    at("forget-key").disabled = true;
  });
  for (const name of ["blur", "grey", "region", "keys"]) {
    at(`set-${name}`).addEventListener("change", ({ target }) => set(name, target.checked));
  }
  at("set-name").addEventListener("change", ({ target }) => set("name", target.value.trim()));
  onSetting(fill);
  const entries = keys.flatMap(({ shown, does }) => [
    el("dt", {}, ...shown.map((key) => el("kbd", { text: key }))),
    el("dd", { text: does }),
  ]);
  at("help-keys").replaceChildren(...entries);
}

function fill() {
  for (const name of ["blur", "grey", "region", "keys"]) at(`set-${name}`).checked = setting(name);
  at("set-name").value = setting("name");
  at("forget-key").disabled = !tab.get("key");
}

export function openSettings() {
  fill();
  ask(at("settings"));
}

export function openHelp() {
  ask(at("help"));
}
