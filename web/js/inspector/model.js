// What one film remembered: an inspection as the trace tells it, checked once and made quick to ask. Nothing here draws.

import { framesOfMoments, splitMoments } from "./storyboard_text.js";

export const WINDOW = 0;
export const SINK = 1;
export const BANK = 2;
export const PAGES = 3;

/** What each kind of reading is called, and the mark that stands for it beside its colour. */
export const KINDS = [
  { name: "window", mark: "square", words: "the newest frames, always read" },
  { name: "sink", mark: "stripes", words: "the film's beginning, always read" },
  { name: "bank", mark: "diamond", words: "frames brought back whole" },
  { name: "pages", mark: "dot", words: "frames of which some pages were chosen" },
];

// Where several readings fall on one pixel: what was chosen is shown before what is always read.
export const RANK = [0, 1, 3, 2];

/** Which readings are shown: a layer group and a head group, or null for all of them, and the kinds. */
export const EVERYTHING = Object.freeze({ layers: null, heads: null, kinds: Object.freeze([true, true, true, true]) });

export class Inspection {
  constructor(source) {
    this.project = text(source.project);
    this.memory = text(source.memory);
    this.fps = source.fps > 0 && Number.isFinite(source.fps) ? source.fps : 16;
    this.shots = list(source.shots).filter((shot) => isRange(shot?.frames)).map(readShot);
    this.layerGroups = list(source.layer_groups).filter(isRange);
    this.headGroups = list(source.head_groups).filter(isRange);
    this.pins = text(source.pins);
    this.vetoes = text(source.vetoes);
    this.chunks = [];
    this.thumbnails = new Map();
    this.add(source.chunks, source.thumbnails);
    const last = this.chunks.at(-1);
    this.frameCount = Math.max(count(source.total_frames), last ? last.frames[1] : 0, 1);
    this.chunkCount = Math.max(count(source.chunk_count), last ? last.index + 1 : 0, 1);
  }

  /** Take in chunks, in any order; one that is there already is replaced. */
  add(chunks, thumbnails) {
    for (const chunk of list(chunks)) {
      if (Number.isInteger(chunk?.index) && chunk.index >= 0 && isRange(chunk.frames)) this.put(readChunk(chunk));
    }
    for (const thumbnail of list(thumbnails)) {
      if (Number.isInteger(thumbnail?.chunk) && typeof thumbnail.src === "string") {
        this.thumbnails.set(thumbnail.chunk, thumbnail.src);
      }
    }
    this.columns = new Map(this.chunks.map((chunk) => [chunk.index, chunk]));
  }

  put(chunk) {
    const at = this.chunks.findIndex((other) => other.index >= chunk.index);
    if (at < 0) this.chunks.push(chunk);
    else this.chunks.splice(at, this.chunks[at].index === chunk.index ? 1 : 0, chunk);
  }

  /** A finished chunk by its index, undefined when it is not there yet. */
  chunk(index) {
    return this.columns.get(index);
  }

  /** When a frame begins in the finished film, in seconds: frame 0 is picture 0, every other one is four pictures. */
  seconds(frame) {
    return frame <= 0 ? 0 : (4 * frame - 3) / this.fps;
  }

  /** The index of the shot a frame belongs to, -1 when the film does not say. A start image is in the first shot. */
  shotOfFrame(frame) {
    const at = this.shots.findIndex((shot) => frame < shot.frames[1]);
    return at >= 0 && (frame >= this.shots[at].frames[0] || at === 0) ? at : -1;
  }

  /** Frames of a chunk; only the last of a film may have fewer. */
  get framesPerChunk() {
    const first = this.chunks[0];
    return first ? first.frames[1] - first.frames[0] : Math.ceil(this.frameCount / this.chunkCount);
  }

  /** Where a frame begins along the film, counted in chunks; frames that were given before the film lie at 0. */
  chunkPlace(frame) {
    const first = this.chunks[0];
    const given = first ? first.frames[0] - first.index * this.framesPerChunk : 0;
    return Math.min(this.chunkCount, Math.max(0, (frame - given) / this.framesPerChunk));
  }

  /** The index of the chunk that made a frame; of a frame that was given before the film began, the first. */
  chunkOfFrame(frame) {
    return Math.min(this.chunkCount - 1, Math.floor(this.chunkPlace(frame)));
  }

  /**
   * What a chunk read under a filter, as the trace lists it: `{frame, kind, amount, score, why}`.
   * For a layer or head group the amounts of pages are those of the group; whole frames are whole in each of them.
   */
  readings(index, filter = EVERYTHING) {
    const chunk = this.chunk(index);
    if (!chunk) return [];
    const shown = filter.kinds.every(Boolean) ? chunk.reads : chunk.reads.filter((read) => filter.kinds[read.kind]);
    if (filter.layers === null && filter.heads === null) return shown;
    const amounts = this.groupAmounts(chunk, filter);
    return shown
      .map((read) => (read.kind === PAGES ? { ...read, amount: amounts.get(read.frame) ?? 0 } : read))
      .filter((read) => read.amount > 0);
  }

  /** Amount by frame in a layer group, a head group or where both meet; groups count by their size. */
  groupAmounts(chunk, filter) {
    const layers = this.layerGroups.map(size);
    const heads = this.headGroups.map(size);
    const isIn = (chosen, group) => chosen === null || chosen === group;
    const sum = (sizes, chosen) => sizes.reduce((total, one, group) => total + (isIn(chosen, group) ? one : 0), 0);
    const whole = sum(layers, filter.layers) * sum(heads, filter.heads);
    const amounts = new Map();
    for (const [layerGroup, headGroup, frame, amount] of chunk.selected) {
      if (!isIn(filter.layers, layerGroup) || !isIn(filter.heads, headGroup)) continue;
      const share = (amount * layers[layerGroup] * heads[headGroup]) / whole;
      if (share > 0) amounts.set(frame, (amounts.get(frame) ?? 0) + share);
    }
    return amounts;
  }

  /** What one chunk read of one frame, undefined for nothing. */
  reading(index, frame, filter = EVERYTHING) {
    const found = this.readings(index, filter).filter((read) => read.frame === frame);
    return found.sort(strongestFirst)[0];
  }

  /** How far the film reached back to something that was chosen, in seconds, with the chunk that did; null for never. */
  get longestReach() {
    return this.chunks.reduce((best, chunk) => {
      if (chunk.oldest === null) return best;
      const seconds = this.seconds(chunk.frames[0]) - this.seconds(chunk.oldest);
      return seconds > (best?.seconds ?? 0) ? { seconds, chunk: chunk.index, frame: chunk.oldest } : best;
    }, null);
  }

  /** Pinned and vetoed frames as two Sets, of the storyboard's present marks or else of those the film was made with. */
  markedFrames(marks) {
    const { pin, veto } = marks ?? { pin: splitMoments(this.pins), veto: splitMoments(this.vetoes) };
    return { pin: framesOfMoments(pin, this), veto: framesOfMoments(veto, this) };
  }
}

/** Readings of one frame or pixel in the order in which they are shown. */
export function strongestFirst(a, b) {
  return RANK[b.kind] - RANK[a.kind] || b.amount - a.amount;
}

function readChunk(chunk) {
  const made = {
    index: chunk.index,
    shot: count(chunk.shot),
    frames: [chunk.frames[0], chunk.frames[1]],
    reads: [],
    rest: Number.isFinite(chunk.reads_rest) ? chunk.reads_rest : 0, // pages that the trace left out, in frames' worth
    oldest: null, // the oldest frame that was chosen, not merely always read
    selected: list(chunk.selected).filter((row) => Array.isArray(row) && row.length >= 4 && row.every(Number.isFinite)),
    milliseconds: numbers(chunk.milliseconds),
    bytes: numbers(chunk.bytes),
    drift: numbers(chunk.drift),
    excluded: new Map(Object.entries(chunk.excluded ?? {}).flatMap(([why, frames]) => list(frames).map((f) => [f, why]))),
  };
  for (const row of list(chunk.reads)) {
    const [frame, kind, amount, score, why] = list(row);
    if (!Number.isInteger(frame) || frame < 0 || !KINDS[kind] || !Number.isFinite(amount)) continue;
    const known = Number.isFinite(score) ? score : null;
    made.reads.push({ frame, kind, amount: Math.min(1, Math.max(0, amount)), score: known, why: text(why) });
    if (kind >= BANK) made.oldest = Math.min(made.oldest ?? frame, frame);
  }
  return made;
}

function readShot(shot) {
  return { prompt: text(shot.prompt), frames: [shot.frames[0], shot.frames[1]], transition: text(shot.transition) };
}

function isRange(value) {
  return Array.isArray(value) && value.length === 2 && value.every(Number.isInteger) && value[0] >= 0;
}

function size([first, last]) {
  return last - first + 1;
}

function numbers(source) {
  return Object.fromEntries(Object.entries(source ?? {}).filter(([, value]) => Number.isFinite(value)));
}

function count(value) {
  return Number.isInteger(value) && value > 0 ? value : 0;
}

function text(value) {
  return typeof value === "string" ? value : "";
}

function list(value) {
  return Array.isArray(value) ? value : [];
}
