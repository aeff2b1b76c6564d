// Pins and vetoes as they stand in a storyboard: `pin: 12.5s, shot 2` and `veto: 30s-34s` on lines of their own, or the
// `pins` and `vetoes` of a storyboard in JSON. Pure functions from text to text; times are those of the finished film.

const PICTURES_PER_FRAME = 4n;
const MARK_LINE = /^\s*(pin|veto)\s*:(.*)$/i;
const JSON_START = /^\s*(?:\{|\[\s*["{])/;
const SHOT = /^shot\s+([0-9]{1,6})$/i;
const TIME = /^(?:([0-9]{1,4}):)?([0-9]{1,6})(?:\.([0-9]{1,6}))?\s*(?:s|sec|seconds?)?$/i;
const BYTE_ORDER_MARK = "\ufeff";
const JSON_KEYS = { pin: "pins", veto: "vetoes" };
const OTHER = { pin: "veto", veto: "pin" };

/** A change that a storyboard's text cannot take; the message says why. */
export class MarkError extends Error {}

/** An exact number of seconds or frames a second, `top / bottom`, from decimal text. */
function fraction(text) {
  const [whole, part = ""] = String(text).split(".");
  return { top: BigInt(whole + part), bottom: 10n ** BigInt(part.length) };
}

/** The frame that is seen at a time, as the film reads it: picture 0 is frame 0, pictures 1 to 4 are frame 1. */
function frameAt(time, fps) {
  const rate = fraction(fps);
  const picture = (time.top * rate.top) / (time.bottom * rate.bottom);
  return Number((picture + PICTURES_PER_FRAME - 1n) / PICTURES_PER_FRAME);
}

function readTime(text) {
  const match = TIME.exec(text.trim());
  if (!match) return null;
  const { top, bottom } = fraction(match[3] ? `${match[2]}.${match[3]}` : match[2]);
  if (match[1] === undefined) return { top, bottom };
  return top < 60n * bottom ? { top: top + 60n * BigInt(match[1]) * bottom, bottom } : null;
}

/** The shortest time in seconds, such as `12.5s`, at which exactly this frame is seen. */
export function timeOfFrame(frame, fps) {
  if (frame <= 0) return "0s";
  const rate = fraction(fps);
  const first = PICTURES_PER_FRAME * BigInt(frame) - 3n;
  for (let digits = 0n; ; digits++) {
    const scale = 10n ** digits;
    const top = first * rate.bottom * scale;
    const ticks = (top + rate.top - 1n) / rate.top; // the first time of so many digits that is not before the frame
    if (frameAt({ top: ticks, bottom: scale }, fps) !== frame) continue;
    const text = String(ticks).padStart(Number(digits) + 1, "0");
    return digits ? `${text.slice(0, -Number(digits))}.${text.slice(-Number(digits))}s` : `${text}s`;
  }
}

/** Frames `[first, last]` that one moment means, null where it cannot be read. `film` has `fps` and `shots`. */
export function framesOfMoment(moment, film) {
  const shot = SHOT.exec(moment);
  if (shot) {
    const found = film.shots[Number(shot[1]) - 1];
    if (!found) return null;
    return [Number(shot[1]) === 1 ? 0 : found.frames[0], found.frames[1] - 1]; // a start image is in shot 1
  }
  const times = moment.split(/[-–—]/).map(readTime);
  if (times.length > 2 || times.includes(null)) return null;
  const frames = times.map((time) => frameAt(time, film.fps));
  return frames[0] <= frames.at(-1) ? [frames[0], frames.at(-1)] : null;
}

/** The moments of a list such as `12.5s, shot 2`, as they are written. */
export function splitMoments(text) {
  return text.split(/[,;\n]/).map((moment) => moment.trim()).filter(Boolean);
}

/** The moments in a storyboard: `{pin: [...], veto: [...]}`. */
export function readMarks(text) {
  const marks = { pin: [], veto: [] };
  if (isJson(text)) {
    const board = parsedBoard(text);
    for (const kind of ["pin", "veto"]) marks[kind] = splitMoments(String(board?.[JSON_KEYS[kind]] ?? ""));
    return marks;
  }
  for (const line of splitLines(text)) {
    const match = MARK_LINE.exec(line);
    if (match) marks[match[1].toLowerCase()].push(...splitMoments(match[2]));
  }
  return marks;
}

/** The frames of the film that the moments of a list mean, as a Set; what lies behind its `frameCount` frames is none. */
export function framesOfMoments(moments, film) {
  const frames = new Set();
  for (const moment of moments) {
    const [first, last] = framesOfMoment(moment, film) ?? [0, -1];
    const end = Math.min(last + 1, film.frameCount);
    for (let frame = first; frame < end; frame++) frames.add(frame);
  }
  return frames;
}

/** Frames `[first, last]` as a moment: `12.5s`, or `12.5s-14s` for several. */
export function momentOfFrames(first, last, film) {
  const from = timeOfFrame(first, film.fps);
  return first === last ? from : `${from}-${timeOfFrame(last, film.fps)}`;
}

/**
 * The storyboard with one moment more under `kind` ("pin" or "veto") and its frames taken out of the other list, which
 * may not hold them too; unchanged where it says so already. Throws MarkError where the storyboard's form has no place for it.
 */
export function addMark(text, kind, moment, film) {
  const range = framesOfMoment(moment, film);
  if (!range) throw new MarkError(`'${moment}' is no moment of this film.`);
  const marks = readMarks(text);
  const kept = { [kind]: marks[kind], [OTHER[kind]]: without(marks[OTHER[kind]], range, film) };
  if (!isMarked(marks[kind], range, film)) kept[kind] = [...without(marks[kind], range, film), moment];
  return write(text, kept);
}

/** Whether the moments of a list hold every frame of a range. */
function isMarked(moments, [first, last], film) {
  const ranges = moments.map((moment) => framesOfMoment(moment, film)).filter(Boolean);
  for (let frame = first; frame <= last; frame++) {
    if (!ranges.some(([from, to]) => from <= frame && frame <= to)) return false;
  }
  return true;
}

/** The storyboard with the frames `[first, last]` taken out of both lists. */
export function removeMarks(text, range, film) {
  const marks = readMarks(text);
  return write(text, { pin: without(marks.pin, range, film), veto: without(marks.veto, range, film) });
}

/** The moments without the frames of a range; stretches and shots are cut around it, what cannot be read stays. */
function without(moments, [first, last], film) {
  return moments.flatMap((moment) => {
    const range = framesOfMoment(moment, film);
    if (!range || range[1] < first || last < range[0]) return [moment];
    const left = range[0] < first ? [momentOfFrames(range[0], first - 1, film)] : [];
    const right = last < range[1] ? [momentOfFrames(last + 1, range[1], film)] : [];
    return [...left, ...right];
  });
}

function write(text, marks) {
  return isJson(text) ? writeJson(text, marks) : writeLines(text, marks);
}

/** Only the lines of a kind that changed are written anew: into the first of them, or as the first of the storyboard. */
function writeLines(text, marks) {
  const before = readMarks(text);
  const end = /\r\n|\r|\n/.exec(text)?.[0] ?? "\n";
  const start = text.startsWith(BYTE_ORDER_MARK) ? BYTE_ORDER_MARK : "";
  const lines = text.slice(start.length).split(/(?<=\n|\r(?!\n))/);
  for (const kind of ["veto", "pin"]) {
    if (before[kind].join() === marks[kind].join()) continue;
    const mine = lines.flatMap((line, at) => (MARK_LINE.exec(bare(line))?.[1].toLowerCase() === kind ? [at] : []));
    for (const at of mine.slice(1).reverse()) lines.splice(at, 1);
    const written = marks[kind].length ? [`${kind}: ${marks[kind].join(", ")}${end}`] : [];
    lines.splice(mine[0] ?? 0, Math.min(1, mine.length), ...written);
  }
  return start + lines.join("");
}

function writeJson(text, marks) {
  const board = parsedBoard(text);
  if (!board) throw new MarkError("This form of JSON has no place for pins. Write the storyboard as text to pin and veto.");
  const before = readMarks(text);
  if (["pin", "veto"].every((kind) => before[kind].join() === marks[kind].join())) return text;
  for (const kind of ["pin", "veto"]) {
    if (marks[kind].length || board[JSON_KEYS[kind]] !== undefined) board[JSON_KEYS[kind]] = marks[kind].join(", ");
  }
  return JSON.stringify(board, null, 2);
}

/** A storyboard in the JSON form that holds pins, null for the shorter forms and for what is no JSON. */
function parsedBoard(text) {
  try {
    const board = JSON.parse(text.replace(BYTE_ORDER_MARK, ""));
    return board?.longreel_storyboard === 1 ? board : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

function isJson(text) {
  return JSON_START.test(text.replace(BYTE_ORDER_MARK, ""));
}

function splitLines(text) {
  return text.replace(BYTE_ORDER_MARK, "").split(/\r\n|\r|\n/);
}

function bare(line) {
  return line.replace(/[\r\n]+$/, "");
}
