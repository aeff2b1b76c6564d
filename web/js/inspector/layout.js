// Where everything lies in the picture, and which chunk and frame lie under a point.

const LEFT = 62;
const RIGHT = 18;
const STRIP = 54;
const SHOTS = 17;
const ARCS = 46;
const TIMES = 18;
const LANE = 48;
const LANE_GAP = 6;
const LANES = ["milliseconds", "bytes", "drift"];
const SMALLEST_MATRIX = 60;

/**
 * Rectangles `{x, y, width, height}` of the film strip, its shots, the arcs under it, the matrix and the curves, for a
 * picture of `width` by `height` CSS pixels. Where it is low, the arcs and then the curves give way to the matrix.
 */
export function layOut(width, height) {
  const across = { x: LEFT, width: Math.max(1, width - LEFT - RIGHT) };
  const strip = { ...across, y: 4, height: STRIP };
  const shots = { ...across, y: strip.y + STRIP, height: SHOTS };
  const lanesHeight = LANES.length * (LANE + LANE_GAP);
  const free = height - shots.y - SHOTS - TIMES - SMALLEST_MATRIX;
  const arcs = { ...across, y: shots.y + SHOTS, height: free >= lanesHeight + ARCS ? ARCS : free >= ARCS ? 24 : 8 };
  const below = free - arcs.height >= lanesHeight ? lanesHeight : 0;
  const top = arcs.y + arcs.height;
  const matrix = { ...across, y: top, height: Math.max(SMALLEST_MATRIX, height - top - TIMES - below - 4) };
  const times = { ...across, y: matrix.y + matrix.height, height: TIMES };
  const lane = (name, at) => ({
    ...across,
    name,
    y: times.y + TIMES + at * (LANE + LANE_GAP) + LANE_GAP,
    height: LANE,
  });
  return { width, height, strip, shots, arcs, matrix, times, lanes: below ? LANES.map(lane) : [] };
}

/** Left edge of a chunk's column. */
export function columnX(layout, inspection, chunk) {
  return layout.matrix.x + (chunk * layout.matrix.width) / inspection.chunkCount;
}

/** Upper edge of a frame's row; the film's beginning is at the bottom. */
export function rowY(layout, inspection, frame) {
  return layout.matrix.y + layout.matrix.height - ((frame + 1) * layout.matrix.height) / inspection.frameCount;
}

/** Where a frame begins along the film strip. */
export function frameX(layout, inspection, frame) {
  return columnX(layout, inspection, inspection.chunkPlace(frame));
}

/** Width of a column and height of a row. */
export function cellSize(layout, inspection) {
  return { width: layout.matrix.width / inspection.chunkCount, height: layout.matrix.height / inspection.frameCount };
}

/**
 * What lies under a point: `{part, chunk, frame}`, null for nothing. In the strip the frame is one of the chunk's own; in
 * the curves there is none. Where several frames share a pixel, one that was read is meant rather than one that was not.
 */
export function find(layout, inspection, filter, x, y) {
  const { matrix, strip, lanes } = layout;
  if (x < matrix.x || x >= matrix.x + matrix.width) return null;
  const place = ((x - matrix.x) / matrix.width) * inspection.chunkCount;
  const chunk = Math.min(inspection.chunkCount - 1, Math.floor(place));
  if (isInside(matrix, y)) {
    const rows = inspection.frameCount / matrix.height;
    const upper = (matrix.y + matrix.height - y) * rows;
    const frame = Math.min(inspection.frameCount - 1, Math.max(0, Math.ceil(upper) - 1));
    return { part: "matrix", ...nearestRead(inspection, filter, chunk, frame, matrix, rows) };
  }
  if (isInside(strip, y) || isInside(layout.shots, y)) {
    const frames = inspection.chunk(chunk)?.frames;
    if (!frames) return null;
    const frame = Math.min(frames[1] - 1, frames[0] + Math.floor((place - chunk) * (frames[1] - frames[0])));
    return { part: "strip", chunk, frame };
  }
  return lanes.some((lane) => isInside(lane, y)) ? { part: "curves", chunk, frame: null } : null;
}

function nearestRead(inspection, filter, chunk, frame, matrix, rows) {
  const columns = inspection.chunkCount / matrix.width;
  if (rows <= 1 && columns <= 1) return { chunk, frame };
  let best = null;
  for (let other = chunk; other < Math.min(inspection.chunkCount, chunk + Math.max(1, columns)); other++) {
    for (const reading of inspection.readings(other, filter)) {
      const far = Math.abs(reading.frame - frame);
      if (far < Math.max(1, rows) && (!best || far < best.far)) best = { far, chunk: other, frame: reading.frame };
    }
  }
  return best ? { chunk: best.chunk, frame: best.frame } : { chunk, frame };
}

function isInside(rectangle, y) {
  return y >= rectangle.y && y < rectangle.y + rectangle.height;
}
