// The curves under the matrix: what each chunk cost, the bytes of each tier, and how far the latents drifted.

import { columnX } from "./layout.js";
import { byteSize, duration, number } from "./words.js";

// Lines are told apart by their dashes and by their names at the right end, not by colour.
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3], [1, 5]];

/** The lanes by name: title, how a value is said, and which of a chunk's numbers are drawn (null for the largest few). */
export const LANES_SHOWN = {
  milliseconds: { title: "cost", say: duration, withSum: true },
  bytes: { title: "memory", say: byteSize, withSum: false },
  drift: { title: "drift", say: number, withSum: false },
};
const MOST_LINES = 4;
const NAMES = 16; // pixels above the lines for their names

/** Lines of a lane: `[{name, values}]`, one value a finished chunk (null where it has none), the largest first. */
export function laneLines(inspection, lane) {
  const rows = inspection.chunks.map((chunk) => chunk[lane]);
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = names.map((name) => ({ name: name.replaceAll("_", " "), values: rows.map((row) => row[name] ?? null) }));
  const most = ({ values }) => values.reduce((best, value) => Math.max(best, Math.abs(value ?? 0)), 0);
  const shown = lines.filter((line) => most(line) > 0).sort((a, b) => most(b) - most(a));
  if (LANES_SHOWN[lane].withSum && shown.length > 1) {
    const sums = rows.map((row) => Object.values(row).reduce((sum, value) => sum + value, 0));
    shown.unshift({ name: "total", values: sums });
  }
  return shown.slice(0, MOST_LINES);
}

/** Draw all lanes that the layout has room for. */
export function drawCurves(context, scene) {
  for (const lane of scene.layout.lanes) drawLane(context, scene, lane);
}

function drawLane(context, { inspection, layout, theme }, lane) {
  const { title, say } = LANES_SHOWN[lane.name];
  const lines = laneLines(inspection, lane.name);
  const values = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const top = values.reduce((most, value) => Math.max(most, value), 0);
  const bottom = values.reduce((least, value) => Math.min(least, value), 0);
  const room = lane.height - NAMES - 2;
  const y = (value) => lane.y + lane.height - 2 - ((value - bottom) / (top - bottom || 1)) * room;
  context.fillStyle = theme.line;
  context.globalAlpha = 0.22;
  context.fillRect(lane.x, lane.y, lane.width, lane.height);
  context.globalAlpha = 1;
  context.textAlign = "right";
  context.fillStyle = theme.text;
  context.fillText(title, lane.x - 9, lane.y + 10);
  context.fillStyle = theme.quiet;
  context.fillText(values.length ? say(top) : "no data", lane.x - 9, lane.y + 26, lane.x - 12);
  lines.forEach((line, at) => {
    context.strokeStyle = at === 0 ? theme.text : theme.quiet;
    context.lineWidth = at === 0 ? 1.6 : 1.2;
    context.setLineDash(DASHES[at]);
    drawLine(context, inspection, layout, line.values, y);
    context.setLineDash([]);
  });
  nameLines(context, lines, lane, theme);
  context.lineWidth = 1;
}

function drawLine(context, inspection, layout, values, y) {
  context.beginPath();
  let isDrawing = false;
  values.forEach((value, at) => {
    if (value === null) {
      isDrawing = false;
      return;
    }
    const chunk = inspection.chunks[at].index;
    const left = columnX(layout, inspection, chunk);
    const right = columnX(layout, inspection, chunk + 1);
    // Steps where a chunk is wide, so that a film of three chunks shows three numbers and no slope between them.
    if (isDrawing) context.lineTo(left, y(value));
    else context.moveTo(left, y(value));
    context.lineTo(right, y(value));
    isDrawing = true;
  });
  context.stroke();
}

/** Names with a piece of their line, in a row over the right end of the lines. */
function nameLines(context, lines, lane, theme) {
  let x = lane.x + lane.width - 6;
  context.textAlign = "right";
  for (const [at, { name }] of [...lines.entries()].reverse()) {
    const width = context.measureText(name).width;
    if (x - width - 26 < lane.x) return;
    context.fillStyle = at === 0 ? theme.text : theme.quiet;
    context.fillText(name, x, lane.y + 9);
    context.strokeStyle = context.fillStyle;
    context.setLineDash(DASHES[at]);
    context.beginPath();
    context.moveTo(x - width - 21, lane.y + 9);
    context.lineTo(x - width - 4, lane.y + 9);
    context.stroke();
    context.setLineDash([]);
    x -= width + 34;
  }
}
