// The matrix as pixels: a column a chunk, a row a remembered frame, the film's beginning at the bottom.

import { EVERYTHING, KINDS, RANK } from "./model.js";
import { colourOf, rampStep } from "./palette.js";

/**
 * Colours of the matrix, at most `most` pixels each way: `{width, height, data}`, RGBA, transparent where nothing was read.
 * Where the film is larger, chunks and frames share pixels and the reading that ranks highest is shown.
 */
export function matrixPixels(inspection, filter = EVERYTHING, { ramp, dark, striped }, most = { width: 4096, height: 4096 }) {
  const width = Math.max(1, Math.min(inspection.chunkCount, Math.floor(most.width)));
  const height = Math.max(1, Math.min(inspection.frameCount, Math.floor(most.height)));
  const pixels = new Uint32Array(width * height);
  const shown = new Float32Array(width * height).fill(-1);
  const plain = colourTable(ramp, dark, false);
  const other = striped ? colourTable(ramp, dark, true) : plain;
  for (const chunk of inspection.chunks) {
    const x = Math.floor((chunk.index * width) / inspection.chunkCount);
    for (const { frame, kind, amount } of inspection.readings(chunk.index, filter)) {
      if (frame >= inspection.frameCount) continue;
      const y = height - 1 - Math.floor((frame * height) / inspection.frameCount);
      const at = y * width + x;
      const rank = RANK[kind] * 2 + amount; // an amount is at most 1, so a kind always outranks it
      if (rank <= shown[at]) continue;
      shown[at] = rank;
      pixels[at] = ((x + y) % 2 ? other : plain)[kind][rampStep(amount)];
    }
  }
  return { width, height, data: new Uint8ClampedArray(pixels.buffer) };
}

/** Colours by kind and step of the ramp, as the four bytes of a pixel in one number. */
function colourTable(ramp, dark, stripe) {
  return KINDS.map((_, kind) => {
    const bytes = new Uint8ClampedArray(ramp.length * 4);
    ramp.forEach((_, step) => {
      const amount = (step / (ramp.length - 1)) ** 2;
      bytes.set([...colourOf(kind, amount, ramp, dark, stripe), 255], step * 4);
    });
    return new Uint32Array(bytes.buffer);
  });
}
