/** The one way to the server: keys, errors in one shape, files behind a key. */

import { tab } from "./settings.js";

const LONGEST = 180_000; // milliseconds; a judge on one core takes seconds an image

/** An answer that is none. `status` 0: the server could not be reached. */
export class ApiError extends Error {
  constructor(status, message, { code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let askForKey = async () => null;
let asked = null;

/** `ask(refused)` resolves to a key, or to null when the user gives none. */
export const onKeyNeeded = (ask) => {
  askForKey = ask;
};

/** Many requests may be refused at once; the user is asked once. */
function newKey(refused) {
  asked ??= askForKey(refused).finally(() => {
    asked = null;
  });
  return asked;
}

/**
 * Sends a request and returns its Response.
 * @param {string} method
 * @param {string} path of this server
 * @param {{json?: unknown, form?: FormData}} [body]
 * @throws {ApiError}
 */
export async function send(method, path, { json, form } = {}) {
  const key = tab.get("key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const body = json === undefined ? form : JSON.stringify(json);
    const signal = AbortSignal.timeout(LONGEST);
    response = await fetch(path, { method, headers, body, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(0, late ? "The server took too long to answer." : "The server cannot be reached.");
  }
  if (response.status === 401) {
    // Another request may have brought a new key while this one was under way.
    const fresh = tab.get("key") === key ? await newKey(Boolean(key)) : tab.get("key");
    if (fresh) return send(method, path, { json, form });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const said = body?.error ?? {};
  const seconds = Number.parseFloat(response.headers.get("retry-after"));
  const retryAfter = Number.isFinite(seconds) ? seconds : null;
  const message = typeof said.message === "string" ? said.message : `The server answered ${response.status}.`;
  return new ApiError(response.status, message, { code: said.code, param: said.param, retryAfter });
}

export const get = async (path) => (await send("GET", path)).json();
export const post = async (path, json) => (await send("POST", path, { json })).json();
export const put = async (path, json) => (await send("PUT", path, { json })).json();

/** Saves what a path answers as a file; a plain link would not carry the key. */
export async function download(path, name) {
  const address = URL.createObjectURL(await (await send("GET", path)).blob());
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** A file as base64, without the data URL's beginning. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).split(",", 2)[1] ?? "");
    reader.onerror = () => reject(new ApiError(400, `${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
