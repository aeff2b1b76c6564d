// What the picture would write into storyboards: reads `[{text, kind, frame, film}]` and prints the new texts as JSON.
import { readFileSync } from "node:fs";
import { addMark, momentOfFrames } from "../../../web/js/inspector/storyboard_text.js";

const wanted = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(wanted.map(({ text, kind, frame, film }) => addMark(text, kind, momentOfFrames(frame, frame, film), film))));
