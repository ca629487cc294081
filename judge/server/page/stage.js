/** The image: the pixels as judged, blurred until held, and the region that drove the verdict drawn over them. */

import { send } from "./api.js";
import { at, count, number, visible } from "./dom.js";
import { on } from "./events.js";
import { answerOf, judge, server, shown } from "./queue.js";
import { onSetting, set, setting } from "./settings.js";

const LARGEST = 6; // times; a small picture is not blown up further than that

let item = null;
let frame = 0;
let frames = 1;
let address = null;
let held = false;

export function start() {
  const stage = at("stage");
  stage.addEventListener("pointerdown", (event) => {
    if (event.button === 0) hold(true);
  });
  for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => hold(false));
  window.addEventListener("blur", () => hold(false));
  document.addEventListener("visibilitychange", () => hold(false));
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  const button = at("hold");
  for (const [event, value] of [["keydown", true], ["keyup", false]]) {
    button.addEventListener(event, ({ key }) => [" ", "Enter"].includes(key) && hold(value));
  }
  button.addEventListener("blur", () => hold(false));
  for (const name of ["blur", "grey", "region"]) at(`tool-${name}`).addEventListener("click", () => set(name, !setting(name)));
  at("frame-back").addEventListener("click", () => turn(-1));
  at("frame-on").addEventListener("click", () => turn(1));
  at("pixels").addEventListener("load", fit);
  new ResizeObserver(fit).observe(stage);
  onSetting(dress);
  on("shown", open);
  on("answer", drawRegion);
  on("thresholds", drawRegion);
  dress();
}

/** Shows the pixels as long as they are held. */
export function hold(value) {
  held = value;
  dress();
}

/** Another frame of an animation. */
export function turn(step) {
  const wanted = Math.min(Math.max(frame + step, 0), frames - 1);
  if (item && wanted !== frame) load(wanted);
}

function dress() {
  const stage = at("stage");
  stage.classList.toggle("blurred", setting("blur") && !held);
  stage.classList.toggle("revealed", held);
  stage.classList.toggle("grey", setting("grey"));
  at("hold").hidden = !setting("blur") || at("pixels").hidden;
  for (const name of ["blur", "grey", "region"]) at(`tool-${name}`).setAttribute("aria-pressed", String(setting(name)));
  at("tool-region").hidden = !server.explains;
  drawRegion();
}

function open() {
  if (item === shown) return;
  item = shown;
  hold(false);
  at("empty").hidden = item !== null;
  at("shown").hidden = item === null;
  if (!item) return clear("");
  at("item-name-text").replaceChildren(...visible(item.name || "Image without a name"));
  at("item-name").title = item.name || "";
  at("prompt-shown").hidden = !item.prompt;
  at("prompt-text").replaceChildren(...visible(item.prompt ?? ""));
  frames = 1;
  load(0);
}

async function load(wanted) {
  const wantedBy = item;
  clear("Loading the image …");
  try {
    const source = item.file ? { blob: item.file, frames: 1 } : await fetchFrame(item.id, wanted);
    if (wantedBy !== item) return;
    frame = wanted;
    frames = source.frames;
    address = URL.createObjectURL(source.blob);
    const image = at("pixels");
    image.src = address;
    image.alt = "The image under review";
    await image.decode();
    if (wantedBy !== item) return;
    image.hidden = false;
    at("picture-note").hidden = true;
  } catch (error) {
    if (wantedBy !== item) return;
    const why = error.status === undefined ? "it is not in a form that this browser can show." : error.message;
    clear(`This image cannot be shown: ${why}`);
  }
  at("frames").hidden = frames < 2;
  at("frame-text").textContent = `${frame + 1} of ${count(frames, "frame")}`;
  at("frame-back").disabled = frame === 0;
  at("frame-on").disabled = frame === frames - 1;
  fit();
  dress();
}

async function fetchFrame(id, wanted) {
  const response = await send("GET", `/v1/queue/${id}/image?frame=${wanted}`);
  return { blob: await response.blob(), frames: Number.parseInt(response.headers.get("x-frames") ?? "1", 10) || 1 };
}

function clear(note) {
  const image = at("pixels");
  image.hidden = true;
  image.removeAttribute("src");
  if (address) URL.revokeObjectURL(address);
  address = null;
  at("picture-note").hidden = note === "";
  at("picture-note").textContent = note;
  dress();
}

/** Gives the picture the largest size that fits, so that what is drawn over it lies where it belongs. */
function fit() {
  const image = at("pixels");
  const { clientWidth, clientHeight } = at("stage");
  if (image.hidden || !image.naturalWidth) return;
  const scale = Math.min(clientWidth / image.naturalWidth, clientHeight / image.naturalHeight, LARGEST);
  at("picture").style.width = `${Math.floor(image.naturalWidth * scale)}px`;
  at("picture").style.height = `${Math.floor(image.naturalHeight * scale)}px`;
}

// --- the region ---------------------------------------------------------------------------------------

function drawRegion() {
  const answer = answerOf(item);
  const found = answer?.explanation;
  const wanted = setting("region") && server.explains && item && !at("pixels").hidden;
  if (wanted && answer && !answer.explained && answer.row.status === "unsafe") {
    answer.explained = "asked";
    judge(item, { explain: true, again: true });
  }
  const drawn = Boolean(wanted && found && frame === frameOf(answer.row));
  at("region").hidden = !drawn || !found.grid?.length;
  at("box").hidden = !drawn || !found.box;
  at("hint").hidden = !drawn && !(wanted && answer?.explained === "done" && !found);
  if (!drawn) {
    at("hint").textContent = "No region of the image can be named for this verdict.";
    return;
  }
  if (found.grid?.length) paint(found.grid);
  if (found.box) place(found.box);
  at("hint").replaceChildren(...visible(hintOf(found)));
}

function hintOf({ category, method, by, box, alone, score, note }) {
  const about = category ? `“${category}”` : "the verdict";
  // Of a cascade, it may be another stage than the one that decided.
  const found = by ? `${method} (${by})` : method;
  const place = box ? `What drove ${about}, by ${found}` : `By ${found}, no single part of the image drove ${about}`;
  const prompt = typeof alone === "number" && alone !== score ? ` Without the prompt the score is ${number(alone)}.` : "";
  const more = note && !note.startsWith("a hint, not proof") ? ` ${note}.` : "";
  return `${place}. A hint, not proof.${more}${prompt}`;
}

/** "frame 3 of 4, the worst of 4 judged" -> 2: which frame an explanation is about. */
function frameOf(row) {
  const said = /^frame (\d+) of/.exec(row.image?.frame ?? "");
  return said ? Number(said[1]) - 1 : 0;
}

/** One pixel a cell of the grid; the browser smooths between them. */
function paint(grid) {
  const canvas = at("region");
  canvas.width = grid[0].length;
  canvas.height = grid.length;
  const pen = canvas.getContext("2d");
  const cells = pen.createImageData(canvas.width, canvas.height);
  grid.flat().forEach((value, n) => cells.data.set([255, 60, 172, Math.round(160 * value)], 4 * n));
  pen.putImageData(cells, 0, 0);
}

function place([left, top, right, bottom]) {
  const { style } = at("box");
  const share = (value) => `${100 * value}%`;
  Object.assign(style, { left: share(left), top: share(top), width: share(right - left), height: share(bottom - top) });
}
