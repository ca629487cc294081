/**
 * Building the page. Text of the server or of a user becomes text nodes and attributes here, never markup:
 * nothing in this folder assigns innerHTML, and the Content-Security-Policy forbids what could run.
 */

/** The element with this id. */
export const at = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {object} [given] `class`, `text`, `data` (dataset), `on` ({event: listener}); all else are attributes,
 *   of which false, null and undefined are left out and true is written empty.
 * @param {...(Node|string|null)} children
 */
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name === "data") Object.assign(made.dataset, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A user's own words, isolated so that marks for right-to-left text do not reach their surroundings. */
export const words = (text, given = {}) => el("bdi", { dir: "auto", ...given }, ...visible(text));

// Zero-width joiners stay: emoji and several scripts need them.
const HIDDEN = /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\u{e0000}-\u{e007f}])/u;

/** Text as nodes in which characters that nobody sees are written out, such as U+202E, which turns text around. */
export function visible(text) {
  return String(text)
    .split(HIDDEN)
    .filter((part) => part !== "")
    .map((part) => {
      if (!HIDDEN.test(part)) return part;
      const code = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      return el("span", { class: "hidden-character", text: `U+${code}` });
    });
}

const SHAPES = {
  safe: "M5 13l4 4 10-11",
  unsafe: "M12 4v10M12 19v.5",
  unjudged: "M8 8.500a4 4 0 1 1 5.500 4c-1.200.6-1.500 1.200-1.500 2.500M12 19v.5",
  failed: "M6 6l12 12M18 6L6 18",
  open: "M12 12v.5",
};

/** A small sign that stands beside the word it repeats: safe, unsafe, unjudged, failed, open. */
export function icon(shape) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const strokes = { d: SHAPES[shape] ?? SHAPES.open, fill: "none", stroke: "currentColor" };
  const pen = { "stroke-width": 3, "stroke-linecap": "round", "stroke-linejoin": "round" };
  for (const [name, value] of Object.entries({ ...strokes, ...pen })) path.setAttribute(name, value);
  svg.append(path);
  return svg;
}

/** Says something to those who hear the page. */
export function announce(text) {
  at("announcer").textContent = text;
}

/** `call` with its last arguments, once nobody called for `wait` milliseconds. */
export function calm(wait, call) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), wait);
  };
}

/** 0.973 -> "0.97"; never rounded to 1.00 or to 0.00 from beside it. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value > 0.995 && value < 1) return ">0.99";
  if (value > 0 && value < 0.005) return "<0.01";
  return value.toFixed(2);
}

/** `3 images`, `1 image`. */
export const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
