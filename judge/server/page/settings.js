/** What this browser remembers: how images are shown, the moderator's name, thresholds, where one was. */

const PREFIX = "arbiter.";
const DEFAULTS = { blur: true, grey: false, region: true, keys: true, name: "", taxonomy: "", thresholds: {} };

function stored(storage, name, otherwise) {
  try {
    return JSON.parse(storage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise; // storage is forbidden, or holds what another program wrote
  }
}

function store(storage, name, value) {
  try {
    storage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Full or forbidden: the page works without, it only forgets.
  }
}

const values = Object.fromEntries(
  Object.entries(DEFAULTS).map(([name, value]) => {
    const found = stored(localStorage, name, value);
    return [name, typeof found === typeof value ? found : value];
  }),
);
const listeners = [];

/** The value of a setting. */
export const setting = (name) => values[name];

/** Sets it, keeps it and tells those who asked to be told. */
export function set(name, value) {
  values[name] = value;
  store(localStorage, name, value);
  listeners.forEach((listener) => listener(name));
}

/** Calls `listener` with the name of every setting that changes. */
export const onSetting = (listener) => listeners.push(listener);

/** The API key, and where in the queue one was: kept as long as the tab. */
export const tab = {
  get: (name) => stored(sessionStorage, name, null),
  set: (name, value) => store(sessionStorage, name, value),
};
