// The picture without what moves: film strip, shots, matrix, times and curves.

import { BANK, PAGES, RANK, SINK } from "./model.js";
import { cellSize, columnX, frameX, rowY } from "./layout.js";
import { drawCurves } from "./curves.js";
import { css } from "./palette.js";
import { filmTime } from "./words.js";

const SMALLEST_MARKED_CELL = 9;
const TIME_STEPS = [0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];

/**
 * Draw everything that only changes with the film, the filter, the size or the theme. `scene` has `inspection`, `filter`,
 * `layout`, `theme`, `ramp`, `matrix` (a canvas of the matrix's pixels), `marks` and `thumbnail(chunk)`, which gives an image
 * that is loaded or null.
 */
export function drawPicture(context, scene) {
  const { layout, theme } = scene;
  context.clearRect(0, 0, layout.width, layout.height);
  context.font = `11px ${theme.font}`;
  context.textBaseline = "middle";
  drawStrip(context, scene);
  drawShots(context, scene);
  drawMatrix(context, scene);
  drawTimes(context, scene);
  drawMarks(context, scene);
  drawCurves(context, scene);
}

function drawStrip(context, { inspection, layout, theme, thumbnail }) {
  const { strip } = layout;
  context.fillStyle = css(theme.dark ? [0, 0, 0] : [40, 40, 44], theme.dark ? 0.45 : 0.85);
  context.fillRect(strip.x, strip.y, strip.width, strip.height);
  for (const slot of stripSlots(inspection, layout)) {
    const image = thumbnail(slot.chunk);
    if (!image) continue;
    // A picture is never stretched nor cut: it stands in the middle of its slot.
    const scale = Math.min((strip.height - 8) / image.height, (slot.width - 2) / image.width);
    const [width, height] = [image.width * scale, image.height * scale];
    context.drawImage(image, slot.x + (slot.width - width) / 2, strip.y + (strip.height - height) / 2, width, height);
  }
}

/** Which chunks have a picture in the strip, and where: every chunk, or as many as fit, each over its own time. */
export function stripSlots(inspection, layout) {
  const widest = (layout.strip.height - 8) * 1.5;
  const slots = Math.max(1, Math.min(inspection.chunkCount, Math.floor(layout.strip.width / widest)));
  return Array.from({ length: slots }, (_, slot) => {
    const first = (slot * inspection.chunkCount) / slots;
    const end = ((slot + 1) * inspection.chunkCount) / slots;
    const x = columnX(layout, inspection, first);
    return { chunk: nearestPicture(inspection, first, end), x, width: columnX(layout, inspection, end) - x };
  });
}

/** The chunk nearest to the middle of a stretch that has a picture; the middle one when none has. */
function nearestPicture(inspection, first, end) {
  const middle = Math.floor((first + end) / 2);
  for (let far = 0; far <= end - first; far++) {
    for (const chunk of [middle - far, middle + far]) {
      if (chunk >= Math.floor(first) && chunk < end && inspection.thumbnails.has(chunk)) return chunk;
    }
  }
  return middle;
}

function drawShots(context, { inspection, layout, theme }) {
  const { shots, matrix } = layout;
  inspection.shots.forEach((shot, index) => {
    const x = frameX(layout, inspection, shot.frames[0]);
    const width = frameX(layout, inspection, shot.frames[1]) - x;
    context.globalAlpha = index % 2 ? 0.1 : 0.2;
    context.fillStyle = theme.text;
    context.fillRect(x, shots.y + 1, width, shots.height - 2);
    context.globalAlpha = 1;
    writeInside(context, `${index + 1} ${shot.prompt}`, x + 5, shots.y + shots.height / 2, width - 8, theme.text);
    if (index === 0) return;
    context.fillStyle = theme.line;
    context.globalAlpha = 0.7;
    context.fillRect(Math.round(x), matrix.y, 1, matrix.height);
    const y = Math.round(rowY(layout, inspection, shot.frames[0] - 1));
    context.fillRect(matrix.x, y, matrix.width, 1);
    context.globalAlpha = 1;
  });
}

function writeInside(context, text, x, y, width, colour) {
  if (width < 7) return;
  context.save();
  context.beginPath();
  context.rect(x - 2, y - 9, width + 2, 18);
  context.clip();
  context.fillStyle = colour;
  context.textAlign = "left";
  context.fillText(text, x, y);
  context.restore();
}

function drawMatrix(context, scene) {
  const { inspection, layout, theme, matrix: pixels } = scene;
  const { matrix } = layout;
  context.imageSmoothingEnabled = false;
  context.drawImage(pixels, matrix.x, matrix.y, matrix.width, matrix.height);
  context.imageSmoothingEnabled = true;
  context.strokeStyle = theme.line;
  context.strokeRect(matrix.x - 0.5, matrix.y - 0.5, matrix.width + 1, matrix.height + 1);
  if (hasMarks(layout, inspection)) drawCellMarks(context, scene, cellSize(layout, inspection));
  const made = inspection.chunks.at(-1)?.index ?? -1;
  if (made + 1 >= inspection.chunkCount) return;
  const x = columnX(layout, inspection, made + 1);
  context.fillStyle = theme.line;
  context.globalAlpha = 0.18; // what is still to come
  context.fillRect(x, matrix.y, matrix.x + matrix.width - x, matrix.height);
  context.globalAlpha = 1;
}

/** Whether cells are large enough to carry the mark of their kind. */
export function hasMarks(layout, inspection) {
  const cell = cellSize(layout, inspection);
  return Math.min(cell.width, cell.height) >= SMALLEST_MARKED_CELL;
}

/** The mark of each kind on its cells, so that no kind is told by colour alone. */
function drawCellMarks(context, { inspection, filter, layout, theme }, cell) {
  const size = Math.min(7, Math.min(cell.width, cell.height) * 0.4);
  for (const chunk of inspection.chunks) {
    const shown = new Map();
    for (const reading of inspection.readings(chunk.index, filter)) {
      const other = shown.get(reading.frame);
      if (!other || RANK[other.kind] < RANK[reading.kind]) shown.set(reading.frame, reading);
    }
    for (const { frame, kind, amount } of shown.values()) {
      const x = columnX(layout, inspection, chunk.index) + cell.width / 2;
      const y = rowY(layout, inspection, frame) + cell.height / 2;
      const light = kind >= BANK ? theme.dark === amount < 0.3 : false;
      drawMark(context, kind, x, y, size, light ? "rgba(255,255,255,.85)" : "rgba(0,0,0,.7)");
    }
  }
}

/** The mark of a kind around a point: a square, stripes, a diamond or a dot. */
export function drawMark(context, kind, x, y, size, colour) {
  context.fillStyle = colour;
  context.beginPath();
  if (kind === BANK) {
    context.moveTo(x, y - size);
    context.lineTo(x + size, y);
    context.lineTo(x, y + size);
    context.lineTo(x - size, y);
  } else if (kind === PAGES) {
    context.arc(x, y, size * 0.62, 0, 2 * Math.PI);
  } else if (kind === SINK) {
    for (const line of [-0.75, 0, 0.75]) context.rect(x - size * 0.8, y + line * size - 0.75, size * 1.6, 1.5);
  } else {
    context.rect(x - size * 0.3, y - size * 0.3, size * 0.6, size * 0.6);
  }
  context.fill();
}

function drawTimes(context, { inspection, layout, theme }) {
  const { matrix, times } = layout;
  const whole = inspection.seconds(inspection.frameCount);
  const step = (room) => TIME_STEPS.find((seconds) => (whole / seconds) * room.need <= room.length) ?? whole;
  const frameOf = (seconds) => (seconds * inspection.fps + 3) / 4;
  context.fillStyle = theme.quiet;
  context.strokeStyle = theme.line;
  context.textAlign = "center";
  const across = step({ need: 58, length: matrix.width });
  for (let seconds = 0; seconds < whole; seconds += across) {
    const x = frameX(layout, inspection, seconds && frameOf(seconds));
    context.fillRect(Math.round(x), times.y, 1, 4);
    if (x < matrix.x + matrix.width - 16) context.fillText(shortTime(seconds), Math.max(x, matrix.x + 8), times.y + 11);
  }
  context.textAlign = "right";
  const up = step({ need: 26, length: matrix.height });
  for (let seconds = 0; seconds < whole; seconds += up) {
    const y = rowY(layout, inspection, (seconds && frameOf(seconds)) - 1);
    context.fillRect(matrix.x - 5, Math.round(y) - 1, 4, 1);
    if (y > matrix.y + 4) context.fillText(shortTime(seconds), matrix.x - 9, Math.min(y, matrix.y + matrix.height - 6));
  }
  drawAxisName(context, "remembered", layout, theme);
}

function drawAxisName(context, name, { matrix }, theme) {
  context.save();
  context.translate(9, matrix.y + matrix.height / 2);
  context.rotate(-Math.PI / 2);
  context.fillStyle = theme.quiet;
  context.textAlign = "center";
  if (matrix.height > 90) context.fillText(name, 0, 0);
  context.restore();
}

function shortTime(seconds) {
  return seconds < 60 ? `${Number(seconds.toFixed(2))} s` : filmTime(seconds).replace(".0", "");
}

/** Pinned and vetoed frames: a pin or a cross over the strip and beside the matrix, and their rows. */
function drawMarks(context, { inspection, layout, theme, marks }) {
  const { matrix, strip } = layout;
  for (const [kind, colour] of [["pin", theme.accent], ["veto", theme.veto]]) {
    for (const [first, last] of runs(marks[kind])) {
      const top = rowY(layout, inspection, last);
      const bottom = rowY(layout, inspection, first - 1);
      context.globalAlpha = 0.28;
      context.fillStyle = colour;
      context.fillRect(matrix.x, top, matrix.width, Math.max(1, bottom - top));
      context.globalAlpha = 1;
      context.fillRect(matrix.x + matrix.width + 1, top, 3, Math.max(2, bottom - top));
      const from = frameX(layout, inspection, first);
      const to = frameX(layout, inspection, last + 1);
      context.fillRect(from - 1, strip.y, Math.max(2, to - from), 4);
      drawSign(context, kind, (from + to) / 2, strip.y + 8, colour, theme);
      drawSign(context, kind, matrix.x + matrix.width + 9, (top + bottom) / 2, colour, theme);
    }
  }
}

/** Whole stretches `[first, last]` of a set of frames. */
export function runs(frames) {
  const found = [];
  for (const frame of [...frames].sort((a, b) => a - b)) {
    if (found.at(-1)?.[1] === frame - 1) found.at(-1)[1] = frame;
    else found.push([frame, frame]);
  }
  return found;
}

/** A pin (a head on a needle) or a cross. */
export function drawSign(context, kind, x, y, colour, theme) {
  context.save();
  context.lineCap = "round";
  for (const [stroke, width] of [[theme.ground, 5], [colour, 2]]) {
    context.strokeStyle = context.fillStyle = stroke;
    context.lineWidth = width;
    context.beginPath();
    if (kind === "pin") {
      context.moveTo(x, y);
      context.lineTo(x, y + 6);
    } else {
      context.moveTo(x - 4, y - 4);
      context.lineTo(x + 4, y + 4);
      context.moveTo(x + 4, y - 4);
      context.lineTo(x - 4, y + 4);
    }
    context.stroke();
    if (kind !== "pin") continue;
    context.beginPath();
    context.arc(x, y - 1, width === 5 ? 5 : 3.5, 0, 2 * Math.PI);
    context.fill();
  }
  context.restore();
}
