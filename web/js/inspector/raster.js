// The matrix as pixels: a column a chunk, a row a remembered frame, the film's beginning at the bottom.

import { EVERYTHING, KINDS, RANK } from "./model.js";
import { colourOf, rampStep } from "./palette.js";

const STEP_BITS = 8;
const KIND_BITS = 2;
const LOOK_BITS = STEP_BITS + KIND_BITS;
const STEP_MASK = 0xff;
const LOOK_MASK = 0x3ff; // kind and step
const MOST_FRAMES = 2 ** (32 - LOOK_BITS);
const packedReads = new WeakMap(); // by a chunk's list of readings, which never changes
const tables = new WeakMap(); // of colours, by the ramp of a theme

/**
 * Colours of the matrix, at most `most` pixels each way: `{width, height, data}`, RGBA, transparent where nothing was read.
 * Where the film is larger, chunks and frames share pixels and the reading that ranks highest is shown.
 */
export function matrixPixels(inspection, filter = EVERYTHING, { ramp, dark, striped }, most = { width: 4096, height: 4096 }) {
  const frames = Math.min(inspection.frameCount, MOST_FRAMES);
  const width = Math.max(1, Math.min(inspection.chunkCount, Math.floor(most.width)));
  const height = Math.max(1, Math.min(frames, Math.floor(most.height)));
  const pixels = new Uint32Array(width * height);
  const shown = new Uint16Array(width * height); // 0 for nothing, else one more than the rank
  const [plain, other] = colourTables(ramp, dark, striped);
  const rowOf = Int32Array.from({ length: frames }, (_, frame) => height - 1 - Math.floor((frame * height) / frames));
  const ranks = RANK.map((rank) => (rank << STEP_BITS) + 1);
  for (const chunk of inspection.chunks) {
    const x = Math.floor((chunk.index * width) / inspection.chunkCount);
    const packed = pack(inspection.readings(chunk.index, filter));
    for (let at = 0; at < packed.length; at++) {
      const frame = packed[at] >>> LOOK_BITS;
      if (frame >= frames) continue;
      const look = packed[at] & LOOK_MASK;
      const rank = ranks[look >>> STEP_BITS] + (look & STEP_MASK);
      const y = rowOf[frame];
      const pixel = y * width + x;
      if (rank <= shown[pixel]) continue;
      shown[pixel] = rank;
      pixels[pixel] = ((x + y) % 2 ? other : plain)[look];
    }
  }
  return { width, height, data: new Uint8ClampedArray(pixels.buffer) };
}

/** Readings as one number each, frame, kind and step of the ramp: half a million of them are gone through at each draw. */
function pack(readings) {
  let packed = packedReads.get(readings);
  if (!packed) {
    packed = Uint32Array.from(readings, ({ frame, kind, amount }) => {
      return ((Math.min(frame, MOST_FRAMES - 1) << LOOK_BITS) | (kind << STEP_BITS) | rampStep(amount)) >>> 0;
    });
    packedReads.set(readings, packed);
  }
  return packed;
}

/** Colours of every second pixel and of the others, by kind and step of the ramp, a pixel's four bytes as one number. */
function colourTables(ramp, dark, striped) {
  if (!tables.has(ramp)) tables.set(ramp, [false, true].map((stripe) => colourTable(ramp, dark, stripe)));
  const [plain, stripes] = tables.get(ramp);
  return [plain, striped ? stripes : plain];
}

function colourTable(ramp, dark, stripe) {
  const bytes = new Uint8ClampedArray(KINDS.length * ramp.length * 4).fill(255);
  KINDS.forEach((_, kind) => {
    ramp.forEach((_, step) => {
      const amount = (step / (ramp.length - 1)) ** 2;
      bytes.set(colourOf(kind, amount, ramp, dark, stripe), (kind * ramp.length + step) * 4);
    });
  });
  return new Uint32Array(bytes.buffer);
}
