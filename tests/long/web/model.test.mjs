import assert from "node:assert/strict";
import { test } from "node:test";
import { laneLines } from "../../../web/js/inspector/curves.js";
import { readingRows } from "../../../web/js/inspector/details.js";
import { moveCursor } from "../../../web/js/inspector/keys.js";
import { columnX, find, layOut, rowY } from "../../../web/js/inspector/layout.js";
import { EVERYTHING, Inspection } from "../../../web/js/inspector/model.js";
import { colourOf, makeRamp } from "../../../web/js/inspector/palette.js";
import { matrixPixels } from "../../../web/js/inspector/raster.js";
import { byteSize, cellWords, duration, filmTime, number, percent } from "../../../web/js/inspector/words.js";

const source = {
  project: "film", fps: 16, total_frames: 12, chunk_count: 4, layer_groups: [[0, 2], [3, 3]], head_groups: [[0, 0], [1, 1]],
  shots: [{ prompt: "anna", frames: [0, 6], transition: "keep" }, { prompt: "ben", frames: [6, 12], transition: "cut" }],
  chunks: [
    { index: 0, shot: 0, frames: [0, 3], reads: [], milliseconds: { denoise: 10 }, bytes: { card: 5 }, drift: { std: 1 } },
    { index: 1, shot: 0, frames: [3, 6], reads: [[0, 1, 1, null, "sink"], [1, 0, 1, null, "window"], [2, 0, 1, null, "window"]],
      milliseconds: { denoise: 20, commit: 4 } },
    { index: 2, shot: 1, frames: [6, 9],
      reads: [[0, 1, 1, null, "sink"], [2, 3, 0.25, null, "pages"], [3, 2, 1, 0.75, "prompt"], [4, 0, 1, null, "window"]],
      selected: [[0, 0, 2, 0.5], [0, 1, 2, 0.125], [1, 0, 2, 0.25]], excluded: { vetoed: [1] } },
  ],
  pins: "shot 1", vetoes: "0.5s",
};
const film = () => new Inspection(source);
const ramp = makeRamp(true);

test("the matrix is exactly what the trace says", () => {
  const { width, height, data } = matrixPixels(film(), EVERYTHING, { ramp, dark: true, striped: false });
  assert.deepEqual([width, height], [4, 12]);
  const expected = new Map();
  for (const chunk of source.chunks) {
    for (const [frame, kind, amount] of chunk.reads) expected.set(`${chunk.index} ${frame}`, colourOf(kind, amount, ramp, true));
  }
  for (let chunk = 0; chunk < width; chunk++) {
    for (let frame = 0; frame < height; frame++) {
      const at = ((height - 1 - frame) * width + chunk) * 4;
      const colour = expected.get(`${chunk} ${frame}`);
      assert.deepEqual([...data.slice(at, at + 4)], colour ? [...colour, 255] : [0, 0, 0, 0], `chunk ${chunk}, frame ${frame}`);
    }
  }
});

test("where pixels are fewer than frames, nothing that was chosen disappears", () => {
  const { width, height, data } = matrixPixels(film(), EVERYTHING, { ramp, dark: true, striped: true }, { width: 2, height: 3 });
  assert.deepEqual([width, height], [2, 3]);
  const at = (1 * width + 1) * 4; // chunks 2 and 3, frames 4 to 7; below are frames 0 to 3
  assert.deepEqual([...data.slice(at, at + 3)], colourOf(0, 1, ramp, true));
  const low = (2 * width + 1) * 4;
  assert.deepEqual([...data.slice(low, low + 3)], colourOf(2, 1, ramp, true));
});

test("filters show a kind, a layer group, a head group and where both meet", () => {
  const kinds = [false, false, true, true];
  assert.deepEqual(film().readings(2, { ...EVERYTHING, kinds }).map(({ frame }) => frame), [2, 3]);
  const amount = (layers, heads) => film().reading(2, 2, { ...EVERYTHING, layers, heads })?.amount;
  assert.equal(amount(0, 0), 0.5);
  assert.equal(amount(0, null), (0.5 + 0.125) / 2);
  assert.equal(amount(null, 0), (3 * 0.5 + 0.25) / 4); // three layers against one
  assert.equal(amount(1, 1), undefined);
  assert.equal(film().reading(2, 3, { ...EVERYTHING, layers: 1 }).amount, 1); // a whole frame is whole everywhere
});

test("frames know their time, shot and chunk, and those given before the film the first", () => {
  const started = new Inspection({ fps: 16, total_frames: 7, chunk_count: 2, chunks: [{ index: 0, frames: [1, 4] }] });
  assert.deepEqual([0, 1, 3, 4, 6].map((frame) => started.chunkOfFrame(frame)), [0, 0, 0, 1, 1]);
  assert.deepEqual([0, 1, 2, 9].map((frame) => film().seconds(frame)), [0, 1 / 16, 5 / 16, 33 / 16]);
  assert.deepEqual([0, 5, 6, 11, 12].map((frame) => film().shotOfFrame(frame)), [0, 0, 1, 1, -1]);
});

test("pins and vetoes of the run are marked, the present ones of the storyboard instead where they are known", () => {
  assert.deepEqual([...film().markedFrames(null).pin], [0, 1, 2, 3, 4, 5]);
  assert.deepEqual([...film().markedFrames(null).veto], [2]);
  assert.deepEqual([...film().markedFrames({ pin: ["0s"], veto: [] }).pin], [0]);
});

test("a film grows by chunks that come, and one that comes again replaces the first", () => {
  const growing = new Inspection({ ...source, chunks: [] });
  growing.add([source.chunks[2], source.chunks[0]], [{ chunk: 2, src: "data:image/png;base64,AA==" }]);
  growing.add([{ ...source.chunks[2], reads: [] }], []);
  assert.deepEqual(growing.chunks.map(({ index, reads }) => [index, reads.length]), [[0, 0], [2, 0]]);
  assert.equal(growing.thumbnails.size, 1);
});

test("what is no inspection makes no error", () => {
  for (const wrong of [{}, { chunks: 3, shots: "x", fps: "fast", layer_groups: [[1]] }, { chunks: [null, {}, { index: -1 }] },
    { chunks: [{ index: 0, frames: [0, 3], reads: [[0, 9, 1], [null], 4, [-1, 0, 1], [0, 0, "x"]], bytes: { card: null } }] }]) {
    const read = new Inspection(wrong);
    assert.equal(read.chunks.flatMap(({ reads }) => reads).length, 0);
    assert.ok(read.frameCount >= 1);
    matrixPixels(read, EVERYTHING, { ramp, dark: false, striped: true });
  }
});

test("the cell under a point is the one that is drawn there", () => {
  const layout = layOut(900, 700);
  for (const [chunk, frame] of [[0, 0], [2, 3], [3, 11]]) {
    const [x, y] = [columnX(layout, film(), chunk) + 2, rowY(layout, film(), frame) + 2];
    assert.deepEqual(find(layout, film(), EVERYTHING, x, y), { part: "matrix", chunk, frame });
  }
  const { strip, lanes, matrix } = layout;
  assert.deepEqual(find(layout, film(), EVERYTHING, matrix.x + 2, strip.y + 9), { part: "strip", chunk: 0, frame: 0 });
  assert.deepEqual(find(layout, film(), EVERYTHING, matrix.x + 2, lanes[0].y + 9), { part: "curves", chunk: 0, frame: null });
  assert.equal(find(layout, film(), EVERYTHING, 3, matrix.y + 9), null);
});

test("everything fits into every height", () => {
  for (let height = 240; height < 1400; height += 7) {
    const { matrix, times, lanes } = layOut(700, height);
    assert.ok(matrix.height >= 60 && times.y + times.height <= height, `${height}`);
    for (const lane of lanes) assert.ok(lane.y + lane.height <= height, `${lane.name} at ${height}`);
  }
});

test("numbers shown equal the trace", () => {
  const [total, denoise, commit] = laneLines(film(), "milliseconds");
  assert.deepEqual([total.name, total.values], ["total", [10, 24, 0]]);
  assert.deepEqual([denoise.name, denoise.values, commit.values], ["denoise", [10, 20, null], [null, 4, null]]);
  assert.deepEqual(laneLines(film(), "bytes"), [{ name: "card", values: [5, null, null] }]);
  const words = (frame) => cellWords(film(), { chunk: 2, frame }, film().reading(2, frame));
  assert.equal(words(3), "Chunk 3 at 1.3 s read frame 3 at 0.6 s: all of it, brought back, because the prompt speaks of its shot, score 0.75.");
  assert.equal(words(2), "Chunk 3 at 1.3 s read frame 2 at 0.3 s: 25 % of it, page by page, because its pages fit what is drawn.");
  assert.equal(words(1), "Chunk 3 at 1.3 s did not read frame 1 at 0.1 s: it is vetoed.");
  assert.equal(words(7), "Chunk 3 at 1.3 s made frame 7 at 1.6 s.");
  assert.deepEqual([filmTime(9.06), filmTime(65.3), percent(0.025), percent(0.34), percent(0.0008)], ["9.1 s", "1:05.3", "2.5 %", "34 %", "0.08 %"]);
  assert.deepEqual([byteSize(6.1e9), byteSize(0), duration(812.4), duration(1240), number(0.01234)], ["5.68 GiB", "0 B", "812 ms", "1.24 s", "0.0123"]);
});

test("the list puts what was chosen first and neighbours together", () => {
  const rows = readingRows(film().readings(1)).map(({ kind, first, last }) => [kind, first, last]);
  assert.deepEqual(rows, [[1, 0, 0], [0, 1, 2]]);
  assert.deepEqual(readingRows(film().readings(2)).map(({ kind }) => kind), [2, 3, 1, 0]);
});

test("arrow keys stay inside of the film", () => {
  const start = moveCursor(film(), null, "ArrowUp", false);
  assert.deepEqual(start, { part: "matrix", chunk: 2, frame: 0 });
  assert.equal(moveCursor(film(), start, "ArrowRight", true).chunk, 3);
  assert.equal(moveCursor(film(), start, "ArrowDown", false).frame, 0);
  assert.equal(moveCursor(film(), start, "PageUp", false).frame, 10);
  assert.equal(moveCursor(film(), start, "q", false), null);
});

test("more is always further from the ground, and kinds keep apart in lightness or hue for the colour blind", () => {
  for (const dark of [true, false]) {
    const lightness = makeRamp(dark).map(([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b);
    for (let step = 8; step < 256; step += 8) {
      assert.ok(dark ? lightness[step] > lightness[step - 8] : lightness[step] < lightness[step - 8], `${dark} ${step}`);
    }
  }
});
