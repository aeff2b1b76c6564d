// The panel beside the picture: what is under the cursor, what the chosen chunk read, and the buttons to pin and veto.

import { runs } from "./draw.js";
import { button, element } from "./elements.js";
import { KINDS, PAGES, RANK } from "./model.js";
import { LANES_SHOWN } from "./curves.js";
import {
  amountWords, byteSize, chunkWords, exclusion, filmTime, frameWords, number, percent, reason, sentence, shotWords,
} from "./words.js";

const MOST_ROWS = 60;
const LEAST_REST = 0.01; // frames
const ADVICE = "Right-click a moment to pin it for all later shots, or to veto it.";

export class Details {
  /** `acts` has `mark(kind, range)`, `point(frame)`. */
  constructor(acts) {
    this.acts = acts;
    this.root = element("div", "longreel-details");
    this.image = element("img", "longreel-thumbnail", "", { alt: "" });
    this.title = element("div", "longreel-title");
    this.lines = element("div", "longreel-lines");
    this.pin = button("longreel-button", "Pin", () => acts.mark("pin"), { title: "Every later shot reads it (P)" });
    this.veto = button("longreel-button", "Veto", () => acts.mark("veto"), { title: "No later shot reads it (V)" });
    this.buttons = element("div", "longreel-buttons");
    this.buttons.append(this.pin, this.veto);
    this.listTitle = element("div", "longreel-title");
    this.list = element("div", "longreel-list", "", { role: "list", "data-capture-wheel": "true", tabindex: "-1" });
    this.root.append(this.image, this.title, this.lines, this.buttons, this.listTitle, this.list);
  }

  /** What the cursor is on; the film as a whole where it is on nothing. */
  showCursor({ inspection, filter, cursor, marks, imageOf }) {
    const chunk = cursor ? inspection.chunk(cursor.chunk) : null;
    const onFrame = cursor !== null && cursor.frame !== null;
    const shownChunk = onFrame ? inspection.chunkOfFrame(cursor.frame) : cursor?.chunk;
    const image = cursor ? imageOf(shownChunk) : null;
    this.image.hidden = !image;
    if (!image) this.image.removeAttribute("src");
    else if (this.image.src !== image.src) this.image.src = image.src;
    this.buttons.hidden = !onFrame;
    if (!cursor) {
      this.title.textContent = inspection.project;
      this.say(filmLines(inspection));
    } else if (!onFrame) {
      this.title.textContent = sentence(chunkWords(inspection, cursor.chunk));
      this.say([shotWords(inspection, chunk?.shot ?? -1), ...(chunk ? numberLines(chunk) : [])]);
    } else {
      this.title.textContent = sentence(frameWords(inspection, cursor.frame));
      const pinned = marks.pin.has(cursor.frame);
      const vetoed = marks.veto.has(cursor.frame);
      this.pin.textContent = pinned ? "Unpin" : "Pin";
      this.veto.textContent = vetoed ? "Allow" : "Veto";
      this.pin.setAttribute("aria-pressed", String(pinned));
      this.veto.setAttribute("aria-pressed", String(vetoed));
      const own = chunk && cursor.frame >= chunk.frames[0];
      const reading = inspection.reading(cursor.chunk, cursor.frame, filter);
      const by = `by ${chunkWords(inspection, cursor.chunk)}`;
      const not = own ? "" : chunk ? `not read ${by}${exclusion(chunk, cursor.frame)}` : `${chunkWords(inspection, cursor.chunk)} is not made yet`;
      const read = reading && [`${by}: ${amountWords(reading)}`, `because ${reason(reading)}`, scoreWords(reading)];
      this.say([shotWords(inspection, inspection.shotOfFrame(cursor.frame)), ...(read ?? [not])]);
    }
  }

  /** What the chosen chunk read, the chosen before the always read, the most first. */
  showChosen({ inspection, filter, chosen }) {
    this.list.replaceChildren();
    const chunk = chosen === null ? undefined : inspection.chunk(chosen);
    const words = chunk ? "read" : "is not made yet"; // the film may be made anew while one of its chunks is chosen
    this.listTitle.textContent = chosen === null ? "" : sentence(`${chunkWords(inspection, chosen)} ${words}`);
    if (!chunk) return;
    const rows = readingRows(inspection.readings(chosen, filter));
    for (const row of rows.slice(0, MOST_ROWS)) this.list.append(this.row(inspection, row));
    const more = rows.length - MOST_ROWS;
    if (more > 0) this.list.append(element("div", "longreel-row", `and ${more} more`));
    const rest = `and little of others, ${number(chunk.rest)} frames' worth`;
    if (chunk.rest >= LEAST_REST) this.list.append(element("div", "longreel-row", rest));
    if (!rows.length) this.list.append(element("div", "longreel-row", "nothing that the filter shows"));
  }

  row(inspection, { kind, amount, first, last, score, why }) {
    const from = filmTime(inspection.seconds(first));
    const when = first === last ? from : `${from} to ${filmTime(inspection.seconds(last + 1))}`;
    const row = element("div", "longreel-row", "", { role: "listitem", title: `${KINDS[kind].words}: ${why}` });
    const press = button("longreel-row-button", "", () => this.acts.point(first));
    const bar = element("span", "longreel-bar");
    bar.style.setProperty("--amount", String(amount));
    press.append(
      element("span", `longreel-mark longreel-${KINDS[kind].mark}`),
      element("span", "longreel-when", when),
      bar,
      element("span", "longreel-share", percent(amount)),
      element("span", "longreel-share", score === null ? "" : number(score)),
    );
    row.append(press);
    return row;
  }

  say(lines) {
    this.lines.replaceChildren(...lines.filter(Boolean).map((line) => element("div", "", line, { title: line })));
  }
}

/** Readings as rows of the list: neighbouring whole frames of a kind and reason are one row. */
export function readingRows(readings) {
  const rows = [];
  const whole = new Map();
  for (const { frame, kind, amount, score, why } of readings) {
    if (kind === PAGES || amount < 1) rows.push({ kind, amount, first: frame, last: frame, score, why });
    else {
      const key = `${kind} ${score} ${why}`;
      whole.set(key, [...(whole.get(key) ?? []), frame]);
    }
  }
  for (const [key, frames] of whole) {
    const { kind, score, why } = readings.find((r) => r.amount >= 1 && `${r.kind} ${r.score} ${r.why}` === key);
    for (const [first, last] of runs(frames)) rows.push({ kind, amount: 1, first, last, score, why });
  }
  return rows.sort((a, b) => RANK[b.kind] - RANK[a.kind] || b.amount - a.amount || a.first - b.first);
}

function scoreWords(reading) {
  return reading.score === null ? "" : `score ${number(reading.score)}`;
}

function filmLines(inspection) {
  const made = inspection.chunks.length;
  const reach = inspection.longestReach;
  const chosen = inspection.chunks.some((chunk) => chunk.oldest !== null);
  return [
    inspection.memory,
    `${made} of ${inspection.chunkCount} chunks, ${inspection.frameCount} latent frames`,
    reach && `longest reach back ${filmTime(reach.seconds)}, by ${chunkWords(inspection, reach.chunk)}`,
    made > 0 && !chosen && "nothing was chosen from further back",
    peakWords(inspection),
    ADVICE,
  ];
}

function peakWords(inspection) {
  const peak = inspection.chunks.reduce((most, chunk) => Math.max(most, chunk.bytes.card ?? 0), 0);
  return peak ? `at most ${byteSize(peak)} on the card` : "";
}

function numberLines(chunk) {
  return Object.entries(LANES_SHOWN).flatMap(([lane, { say }]) =>
    Object.entries(chunk[lane]).map(([name, value]) => `${name.replaceAll("_", " ")}: ${say(value)}`),
  );
}
