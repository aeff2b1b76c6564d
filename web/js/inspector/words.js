// What the picture says in words and numbers.

import { BANK, PAGES } from "./model.js";

const REASONS = {
  window: "it is one of the newest frames",
  sink: "it is the film's beginning",
  prompt: "the prompt speaks of its shot",
  anchor: "it is an anchor",
  pin: "it is pinned",
  pages: "its pages fit what is drawn",
};
const EXCLUSIONS = { vetoed: "it is vetoed", cut: "a cut closed it" };
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Seconds of the film: `9.1 s`, from a minute on `1:05.3`. */
export function filmTime(seconds) {
  const tenths = Math.round(seconds * 10);
  if (tenths < 600) return `${(tenths / 10).toFixed(1)} s`;
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

/** A share of something: `34 %`, `2.5 %`, `0.08 %`. */
export function percent(share) {
  const value = share * 100;
  const digits = value >= 10 || value === 0 ? 0 : value >= 1 ? 1 : 2;
  return `${value.toFixed(digits)} %`;
}

/** `812 ms`, `1.24 s`. */
export function duration(milliseconds) {
  if (milliseconds < 10) return `${milliseconds.toFixed(1)} ms`;
  return milliseconds < 1000 ? `${milliseconds.toFixed(0)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}

/** `5.68 GiB`. */
export function byteSize(bytes) {
  const power = bytes < 1024 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${power === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(2)} ${UNITS[power]}`;
}

/** A plain number with three digits that count. */
export function number(value) {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(3)));
}

/** A frame of the film: `frame 37 at 9.1 s`. */
export function frameWords(inspection, frame) {
  return `frame ${frame} at ${filmTime(inspection.seconds(frame))}`;
}

/** A shot: `shot 2: ben walks right`; nothing for none. */
export function shotWords(inspection, shot) {
  return inspection.shots[shot] ? `shot ${shot + 1}: ${inspection.shots[shot].prompt}` : "";
}

/** A chunk: `chunk 21 at 15.8 s`. Chunks count from 1 for people. */
export function chunkWords(inspection, index) {
  const chunk = inspection.chunk(index);
  return chunk ? `chunk ${index + 1} at ${filmTime(inspection.seconds(chunk.frames[0]))}` : `chunk ${index + 1}`;
}

/** Why a frame was read. */
export function reason(reading) {
  return REASONS[reading.why] ?? reading.why;
}

/** Why a frame could not be read, ready to stand behind a sentence; nothing where it could have been. */
export function exclusion(chunk, frame) {
  const why = chunk?.excluded.get(frame);
  return why ? `: ${EXCLUSIONS[why] ?? why}` : "";
}

/** How much of a frame was read: `34 % of it, page by page`. */
export function amountWords(reading) {
  if (reading.kind === PAGES) return `${percent(reading.amount)} of it, page by page`;
  if (reading.amount >= 1) return reading.kind === BANK ? "all of it, brought back" : "all of it";
  return `all of it, in ${percent(reading.amount)} of the layers`;
}

/** One cell of the matrix in a sentence, as a screen reader says it. */
export function cellWords(inspection, cell, reading, mark) {
  const chunk = inspection.chunk(cell.chunk);
  const frame = frameWords(inspection, cell.frame) + (mark ? `, ${mark === "pin" ? "pinned" : "vetoed"}` : "");
  if (!chunk) return `${chunkWords(inspection, cell.chunk)} is not made yet. ${sentence(frame)}.`;
  const who = sentence(chunkWords(inspection, cell.chunk));
  if (!reading) {
    if (cell.frame >= chunk.frames[1]) return `${who} comes before ${frame}.`;
    if (cell.frame >= chunk.frames[0]) return `${who} made ${frame}.`;
    return `${who} did not read ${frame}${exclusion(chunk, cell.frame)}.`;
  }
  const score = reading.score === null ? "" : `, score ${number(reading.score)}`;
  return `${who} read ${frame}: ${amountWords(reading)}, because ${reason(reading)}${score}.`;
}

/** With a capital letter. */
export function sentence(words) {
  return words.charAt(0).toUpperCase() + words.slice(1);
}
