/** What the parts of the page tell each other, so that none has to know another's elements. */

const listeners = new Map();

/** Calls `listener` whenever `name` is told: queue, shown, answer, taxonomy, thresholds, categories. */
export function on(name, listener) {
  listeners.set(name, [...(listeners.get(name) ?? []), listener]);
}

export function tell(name, ...given) {
  (listeners.get(name) ?? []).forEach((listener) => listener(...given));
}
