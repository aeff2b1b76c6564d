import assert from "node:assert/strict";
import { test } from "node:test";
import { laneLines } from "../../../web/js/inspector/curves.js";
import { Inspection } from "../../../web/js/inspector/model.js";

const film = (...chunks) =>
  new Inspection({ chunks: chunks.map((chunk, index) => ({ index, frames: [3 * index, 3 * index + 3], ...chunk })) });

test("cost begins with the sum of all its parts, also of those that have no line", () => {
  const parts = { decode: 1, copy: 2, select: 3, commit: 4, denoise: 5 };
  const lines = laneLines(film({ milliseconds: parts }, { milliseconds: { denoise: 7 } }), "milliseconds");
  assert.deepEqual(lines, [
    { name: "total", values: [15, 7] },
    { name: "denoise", values: [5, 7] },
    { name: "commit", values: [4, null] },
    { name: "select", values: [3, null] },
  ]);
});

test("one part is no sum, and memory and drift are never added up", () => {
  assert.deepEqual(laneLines(film({ milliseconds: { denoise: 5 } }), "milliseconds"), [{ name: "denoise", values: [5] }]);
  assert.deepEqual(laneLines(film({ bytes: { card: 5, ram: 9 } }), "bytes").map(({ name }) => name), ["ram", "card"]);
});

test("the furthest from nothing comes first, below nothing too, and what is always nothing has no line", () => {
  const lines = laneLines(film({ drift: { mean: -3, std: 1, since_start: 0 } }, { drift: { mean: 0, std: 2, since_start: 0 } }), "drift");
  assert.deepEqual(lines, [{ name: "mean", values: [-3, 0] }, { name: "std", values: [1, 2] }]);
});

test("a name is said in words, and a chunk without its number is a gap", () => {
  const lines = laneLines(film({}, { drift: { since_start: 0.5 } }, { drift: { since_start: "x" } }), "drift");
  assert.deepEqual(lines, [{ name: "since start", values: [null, 0.5, null] }]);
});

test("a film without chunks has no lines", () => {
  for (const lane of ["milliseconds", "bytes", "drift"]) assert.deepEqual(laneLines(film(), lane), []);
});
