import assert from "node:assert/strict";
import { test } from "node:test";
import {
  MarkError, addMark, framesOfMoment, framesOfMoments, momentOfFrames, readMarks, removeMarks, timeOfFrame,
} from "../../../web/js/inspector/storyboard_text.js";

const film = { fps: 16, frameCount: 30, shots: [{ frames: [0, 15] }, { frames: [15, 30] }] };
const board = "style: watercolour\n\n[0s-3.75s] anna walks\n[3.75s-7.5s] ben waves\n";

test("a frame's time is the shortest that means exactly this frame", () => {
  assert.equal(timeOfFrame(0, 16), "0s");
  assert.equal(timeOfFrame(1, 16), "0.1s"); // pictures 1 to 4: 0.0625 s up to 0.3125 s
  assert.equal(timeOfFrame(4, 16), "1s");
  assert.equal(timeOfFrame(5, 16), "1.1s");
  assert.equal(timeOfFrame(50, 16), "12.4s");
  for (const fps of [1, 7.5, 12, 15, 16, 23.98, 24, 25, 29.97, 30, 60, 119.88, 120]) {
    for (let frame = 0; frame < 700; frame++) {
      const moment = timeOfFrame(frame, fps);
      assert.deepEqual(framesOfMoment(moment, { fps, shots: [] }), [frame, frame], `${moment} at ${fps} fps`);
    }
  }
});

test("moments are times, stretches and shots, in every way a storyboard writes them", () => {
  assert.deepEqual(framesOfMoment("shot 2", film), [15, 29]);
  assert.deepEqual(framesOfMoment("Shot  1", film), [0, 14]);
  assert.deepEqual(framesOfMoment("1s-2s", film), [4, 8]);
  assert.deepEqual(framesOfMoment("1 sec – 0:02", film), [4, 8]);
  assert.deepEqual(framesOfMoment("1:05", film), framesOfMoment("65 seconds", film));
  for (const wrong of ["shot 3", "shot 0", "2s-1s", "1s-2s-3s", "soon", "", "1:75"]) {
    assert.equal(framesOfMoment(wrong, film), null, wrong);
  }
});

test("a shot is all of its frames, and the first one has the start image", () => {
  const started = { fps: 16, shots: [{ frames: [1, 16] }] };
  assert.deepEqual(framesOfMoment("shot 1", started), [0, 15]);
});

test("moments end where the film does, however late a time somebody wrote", () => {
  assert.deepEqual([...framesOfMoments(["7s-99999s", "500s", "0s"], film)], [28, 29, 0]);
});

test("what is marked already is written nowhere", () => {
  const pinned = "pin: shot 2, 0.9s\n[5s] anna\n";
  assert.equal(addMark(pinned, "pin", "shot 2", film), pinned);
  assert.equal(addMark(pinned, "pin", timeOfFrame(17, film.fps), film), pinned);
  assert.equal(addMark("pin: 0s-1.9s\npin: 2s-3.6s\n", "pin", "shot 1", film), "pin: 0s-1.9s\npin: 2s-3.6s\n");
  const json = '{"longreel_storyboard":1,"shots":[],"pins":"shot 2"}';
  assert.equal(addMark(json, "pin", "shot 2", film), json);
  assert.notEqual(addMark(pinned, "veto", "shot 2", film), pinned);
});

test("the first pin makes a line at the top and the next one joins it", () => {
  const once = addMark(board, "pin", "0.9s", film);
  assert.equal(once, `pin: 0.9s\n${board}`);
  assert.equal(addMark(once, "pin", "shot 2", film), `pin: 0.9s, shot 2\n${board}`);
});

test("lines that do not change keep every character", () => {
  const odd = "\ufeff# note\r\n  Pin :  1s ,shot 2\r\n\r\n[5s] anna\r\nVETO: 0s";
  assert.equal(addMark(odd, "veto", "0.3s", film), odd.replace("VETO: 0s", "veto: 0s, 0.3s\r\n"));
});

test("several lines of a kind become one, and an empty one goes", () => {
  const two = "pin: 1s\n[5s] anna\npin: 2s\n";
  assert.equal(addMark(two, "pin", "0s", film), "pin: 1s, 2s, 0s\n[5s] anna\n");
  assert.equal(removeMarks("pin: 1s\n[5s] anna\n", [4, 4], film), "[5s] anna\n");
});

test("a frame is never pinned and vetoed: stretches and shots are cut around it", () => {
  const vetoed = "veto: 1s-2s, shot 2\n[5s] anna\n";
  const text = addMark(vetoed, "pin", timeOfFrame(6, 16), film);
  const { pin, veto } = readMarks(text);
  assert.deepEqual([...framesOfMoments(pin, film)], [6]);
  assert.deepEqual([...framesOfMoments(veto, film)], [4, 5, 7, 8, ...Array.from({ length: 15 }, (_, i) => 15 + i)]);
  assert.ok(veto.includes("shot 2"));
});

test("a mark inside of a shot is taken off alone", () => {
  const { pin } = readMarks(removeMarks("pin: shot 1\n[5s] anna\n", [7, 7], film));
  assert.deepEqual([...framesOfMoments(pin, film)], [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14]);
});

test("pinning and taking it off again gives the text as it was", () => {
  for (let frame = 0; frame < 30; frame++) {
    const pinned = addMark(board, "pin", momentOfFrames(frame, frame, film), film);
    assert.equal(removeMarks(pinned, [frame, frame], film), board);
  }
});

test("what cannot be read stays", () => {
  assert.equal(addMark("pin: soon\n[5s] anna\n", "pin", "0s", film), "pin: soon, 0s\n[5s] anna\n");
});

test("a storyboard in JSON gets pins of its own, a list of prompts refuses in words", () => {
  const json = JSON.stringify({ longreel_storyboard: 1, shots: [{ text: "anna" }], vetoes: "0.9s" });
  const written = JSON.parse(addMark(json, "pin", "0.9s", film));
  assert.deepEqual(written, { longreel_storyboard: 1, shots: [{ text: "anna" }], vetoes: "", pins: "0.9s" });
  assert.throws(() => addMark('["anna", "ben"]', "pin", "0.9s", film), MarkError);
  assert.throws(() => addMark('{"longreel_storyboard": 1', "pin", "0.9s", film), MarkError);
});
