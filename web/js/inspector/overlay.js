// What moves over the picture: the cell under the cursor, the chosen chunk, and the arcs to what it read.

import { BANK, PAGES, RANK, SINK, WINDOW } from "./model.js";
import { drawMark } from "./draw.js";
import { cellSize, columnX, frameX, rowY } from "./layout.js";
import { css, rampPlace, rampStep } from "./palette.js";

const HINT = "Each column is a chunk of the film, each lit row a frame it looked back at. Click one.";
const ARC_GAP = 3;

/** Draw cursor, choice and arcs. `scene` is that of the picture, with `cursor` and `chosen` (a chunk's index or null). */
export function drawOverlay(context, scene) {
  const { layout, theme, cursor, chosen } = scene;
  context.clearRect(0, 0, layout.width, layout.height);
  context.font = `11px ${theme.font}`;
  if (chosen !== null) drawColumn(context, scene, chosen, theme.accent, 2);
  if (cursor) drawCursor(context, scene);
  const shown = chosen ?? cursor?.chunk ?? null;
  if (shown !== null) drawArcs(context, scene, shown, chosen === null ? 0.45 : 1);
  else drawHint(context, layout, theme);
}

function drawHint(context, { arcs }, theme) {
  if (arcs.height < 24) return;
  context.fillStyle = theme.quiet;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.globalAlpha = 0.8;
  context.fillText(HINT, arcs.x + arcs.width / 2, arcs.y + arcs.height / 2);
  context.globalAlpha = 1;
}

function drawColumn(context, { inspection, layout }, chunk, colour, line) {
  const { matrix, strip, lanes } = layout;
  const x = columnX(layout, inspection, chunk);
  const width = cellSize(layout, inspection).width;
  context.strokeStyle = colour;
  context.lineWidth = line;
  context.strokeRect(x, strip.y, width, strip.height);
  context.strokeRect(x, matrix.y, width, matrix.height);
  context.fillStyle = colour;
  context.globalAlpha = 0.16;
  for (const lane of lanes) context.fillRect(x, lane.y, Math.max(1, width), lane.height);
  context.globalAlpha = 1;
}

function drawCursor(context, scene) {
  const { inspection, layout, theme, cursor } = scene;
  const { matrix, strip } = layout;
  const cell = cellSize(layout, inspection);
  const x = columnX(layout, inspection, cursor.chunk);
  context.fillStyle = theme.text;
  context.globalAlpha = 0.12;
  context.fillRect(x, matrix.y, Math.max(1, cell.width), matrix.height);
  for (const lane of layout.lanes) context.fillRect(x, lane.y, Math.max(1, cell.width), lane.height);
  if (cursor.frame === null) {
    context.globalAlpha = 1;
    return;
  }
  const y = rowY(layout, inspection, cursor.frame);
  context.fillRect(matrix.x, y, matrix.width, Math.max(1, cell.height));
  context.globalAlpha = 1;
  const [width, height] = [Math.max(7, cell.width), Math.max(7, cell.height)];
  const left = x + (cell.width - width) / 2;
  const top = y + (cell.height - height) / 2;
  for (const [colour, line] of [[theme.ground, 4], [theme.text, 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(left, top, width, height);
  }
  const at = frameX(layout, inspection, cursor.frame + 0.5);
  context.fillStyle = theme.text;
  context.beginPath(); // the remembered frame in the strip
  context.moveTo(at - 5, strip.y + strip.height + 1);
  context.lineTo(at + 5, strip.y + strip.height + 1);
  context.lineTo(at, strip.y + strip.height - 6);
  context.fill();
}

/** Arcs from a chunk to the frames it read, under the strip: the wider, the more; the mark at the end says of which kind. */
function drawArcs(context, scene, index, strength) {
  const { inspection, filter, layout, theme, ramp } = scene;
  const { arcs } = layout;
  const readings = inspection.readings(index, filter);
  const chunk = inspection.chunk(index);
  if (!chunk || arcs.height < 16) return;
  const from = frameX(layout, inspection, (chunk.frames[0] + chunk.frames[1]) / 2);
  const colours = { [WINDOW]: theme.quiet, [SINK]: theme.quiet };
  context.save();
  context.beginPath();
  context.rect(arcs.x - 8, arcs.y, arcs.width + 16, arcs.height);
  context.clip();
  for (const { to, kind, amount } of arcsOf(readings, (frame) => frameX(layout, inspection, frame + 0.5))) {
    const deep = (arcs.height - 6) * Math.min(1, 0.25 + Math.sqrt(Math.abs(from - to) / arcs.width));
    context.globalAlpha = strength * (kind >= BANK ? 0.2 + 0.8 * rampPlace(amount) : 0.5);
    context.strokeStyle = colours[kind] ?? css(ramp[rampStep(Math.max(0.12, amount))]);
    context.lineWidth = kind >= BANK ? 1 + 2.5 * amount : 1;
    context.setLineDash(kind === SINK ? [3, 3] : kind === PAGES ? [6, 2] : []);
    context.beginPath();
    context.moveTo(from, arcs.y);
    context.bezierCurveTo(from, arcs.y + deep * 1.3, to, arcs.y + deep * 1.3, to, arcs.y + 5);
    context.stroke();
    context.setLineDash([]);
    drawMark(context, kind, to, arcs.y + 5, kind >= BANK ? 4.5 : 3.5, context.strokeStyle);
  }
  context.restore();
}

/** Where arcs end, the strongest last and on top; of those that would lie on one another only the strongest. */
function arcsOf(readings, place) {
  const arcs = new Map();
  for (const { frame, kind, amount } of readings) {
    const to = place(frame);
    const key = `${kind} ${Math.round(to / ARC_GAP)}`;
    if (!(arcs.get(key)?.amount > amount)) arcs.set(key, { to, kind, amount });
  }
  return [...arcs.values()].sort((a, b) => RANK[a.kind] - RANK[b.kind] || a.amount - b.amount);
}
