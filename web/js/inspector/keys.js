// What the arrow keys mean, and what pinning twice means.

const FAR = 10;

/** Where a key moves the cursor, null for a key that does not. Left and right are chunks, up and down frames. */
export function moveCursor(inspection, cursor, key, isFar) {
  const step = isFar ? FAR : 1;
  const moves = {
    ArrowLeft: [-step, 0],
    ArrowRight: [step, 0],
    ArrowUp: [0, step],
    ArrowDown: [0, -step],
    Home: [-inspection.chunkCount, 0],
    End: [inspection.chunkCount, 0],
    PageUp: [0, FAR],
    PageDown: [0, -FAR],
  };
  if (!(key in moves)) return null;
  const last = inspection.chunks.at(-1)?.index ?? 0;
  if (!cursor) return { part: "matrix", chunk: last, frame: 0 };
  const [chunks, frames] = moves[key];
  const within = (value, most) => Math.min(most, Math.max(0, value));
  return {
    part: "matrix",
    chunk: within(cursor.chunk + chunks, inspection.chunkCount - 1),
    frame: within((cursor.frame ?? 0) + frames, inspection.frameCount - 1),
  };
}

/** The mark a frame gets when `kind` is asked for: `kind`, or null when it has that mark already. */
export function toggled(marks, kind, frame) {
  return marks[kind].has(frame) ? null : kind;
}
