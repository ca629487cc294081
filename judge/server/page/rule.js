/**
 * The rule of prompts/verdict.py: scores against thresholds. The server decides; this shows at once what a moved
 * threshold will make of the image that is shown. What is unknown is never safe.
 */

/**
 * @param {object} row of the server: status, unsafe, scores
 * @param {Object<string, number>} thresholds of every category that was asked
 * @returns {{status: "safe"|"unsafe"|"unjudged", category: string|null}}
 */
export function conclude(row, thresholds) {
  const names = Object.keys(thresholds);
  const over = names.filter((name) => row.scores[name] >= thresholds[name]);
  if (over.length) {
    return { status: "unsafe", category: over.reduce((a, b) => (row.scores[b] > row.scores[a] ? b : a)) };
  }
  if (row.unsafe === null) return { status: "unjudged", category: null };
  const missing = names.filter((name) => !Object.hasOwn(row.scores, name));
  if (missing.length === 0) return { status: "safe", category: null };
  const reached = missing.filter((name) => row.unsafe >= thresholds[name]);
  // Without any category's score, the whole may be that of any of them: it decides only if all agree.
  if (missing.length < names.length || ![0, names.length].includes(reached.length)) {
    return { status: "unjudged", category: null };
  }
  return { status: reached.length ? "unsafe" : "safe", category: null };
}

export const WORDS = { safe: "Safe", unsafe: "Flagged", unjudged: "Could not be judged", failed: "No answer" };
