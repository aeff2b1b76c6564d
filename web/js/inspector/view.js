// The interactive picture: its elements, what the pointer and the keys do, and when it is drawn.

import { Details } from "./details.js";
import { drawPicture, hasMarks } from "./draw.js";
import { button, chooser, element } from "./elements.js";
import { moveCursor, toggled } from "./keys.js";
import { find, layOut } from "./layout.js";
import { openMenu } from "./menu.js";
import { EVERYTHING, Inspection, KINDS } from "./model.js";
import { drawOverlay } from "./overlay.js";
import { css, makeRamp, readTheme } from "./palette.js";
import { matrixPixels } from "./raster.js";
import { MarkError, addMark, momentOfFrames, readMarks, removeMarks } from "./storyboard_text.js";
import { STYLE } from "./style.js";
import { cellWords, chunkWords, filmTime, sentence } from "./words.js";

const NARROW = 620;
const EMBEDDED_IMAGE = /^data:image\/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+$/;
const WAITING = "No film yet.\nConnect the trace of a Chunked AR Sampler and run.";

/** The address of a thumbnail that lies in the page itself, null for any other. */
export function embeddedImage(source) {
  return EMBEDDED_IMAGE.test(source) ? source : null;
}

export class InspectorView {
  /**
   * Build the picture in an empty element. `imageAddress` turns a thumbnail's source into an address to load, or null;
   * `storyboard` has `read()` (the text, or null when there is none to write to) and `write(text)`.
   */
  constructor(root, { imageAddress = embeddedImage, storyboard = { read: () => null, write: () => {} } } = {}) {
    this.root = root;
    this.imageAddress = imageAddress;
    this.storyboard = storyboard;
    this.inspection = null;
    this.filter = { ...EVERYTHING, kinds: [...EVERYTHING.kinds] };
    this.cursor = null;
    this.chosen = null;
    this.images = new Map();
    this.undone = [];
    this.drawn = { picture: 0, overlay: 0 };
    this.stale = { theme: true, picture: true, list: true };
    this.build();
    this.sizes = new ResizeObserver(() => this.refresh());
    this.sizes.observe(this.stage);
    this.themes = new MutationObserver(() => this.refresh({ theme: true }));
    for (const watched of [document.documentElement, document.body]) {
      this.themes.observe(watched, { attributes: true, attributeFilter: ["class", "style"] });
    }
  }

  /** Show another film; cursor, choice and filter stay where it is the same one again. */
  show(source) {
    const known = this.inspection;
    this.inspection = new Inspection(source);
    this.images.clear();
    if (!known || !isSameFilm(known, this.inspection)) {
      this.closeMenu?.();
      this.cursor = this.chosen = null;
      this.filter = { ...EVERYTHING, kinds: [...this.filter.kinds] };
      this.fillFilters();
    }
    this.refresh({ list: true });
  }

  /** Take in a live message: chunks that are finished now. A film that begins, or another film, starts anew. */
  grow({ inspection, chunks, thumbnails }) {
    const known = this.inspection;
    if (!known || !chunks?.length || chunks[0].index === 0 || !isSameFilm(known, new Inspection(inspection))) {
      this.show({ ...inspection, chunks, thumbnails });
      return;
    }
    known.add(chunks, thumbnails);
    this.refresh({ list: true });
  }

  /** Stop watching; the elements go with the node. */
  destroy() {
    this.closeMenu?.();
    this.sizes.disconnect();
    this.themes.disconnect();
    cancelAnimationFrame(this.waiting);
  }

  build() {
    this.root.classList.add("longreel-inspector");
    const style = element("style", "", STYLE);
    this.name = element("span", "longreel-name");
    this.filters = element("span", "longreel-filters");
    const kinds = KINDS.map(({ name, mark, words }, kind) => {
      const act = () => this.toggleKind(kind, made);
      const made = button("longreel-kind", "", act, { title: words, "aria-pressed": "true" });
      made.append(element("span", `longreel-mark longreel-${mark}`), element("span", "", name));
      return made;
    });
    const scale = element("span", "longreel-scale", "", { title: "How much of a frame was read" });
    scale.append(element("span", "", "0"), element("i", ""), element("span", "", "100 %"));
    const top = element("div", "longreel-bar-top");
    top.append(this.name, this.filters, element("span", "longreel-push"), ...kinds, scale);
    this.stage = element("div", "longreel-stage", "", {
      tabindex: "0",
      role: "application",
      "aria-label":
        "What the film remembers. Arrow keys move, Enter chooses a chunk, P pins, V vetoes, U takes the last change back, Escape clears.",
    });
    this.picture = element("canvas", "");
    this.overlay = element("canvas", "");
    this.empty = element("div", "longreel-empty", WAITING);
    this.stage.append(this.picture, this.overlay, this.empty);
    this.details = new Details({ mark: (kind) => this.toggleMark(kind), point: (frame) => this.pointAt(frame) });
    const body = element("div", "longreel-body");
    body.append(this.stage, this.details.root);
    this.status = element("div", "longreel-status", "", { role: "status" });
    this.spoken = element("div", "longreel-hidden", "", { "aria-live": "polite" });
    this.root.append(style, top, body, this.status, this.spoken);
    this.listen();
  }

  listen() {
    const on = (name, act) => this.stage.addEventListener(name, act);
    on("pointermove", (event) => !this.closeMenu && this.moveTo(this.under(event)));
    on("pointerleave", () => !this.closeMenu && this.moveTo(null));
    on("pointerenter", () => this.noticeStoryboard());
    on("pointerdown", (event) => event.button === 0 && this.stage.focus({ preventScroll: true }));
    on("click", (event) => this.choose(this.under(event)?.chunk ?? null));
    on("contextmenu", (event) => this.offer(event));
    on("keydown", (event) => this.pressed(event));
    on("focus", () => this.noticeStoryboard());
  }

  fillFilters() {
    const film = this.inspection;
    const words = (name, [first, last]) => (first === last ? `${name} ${first}` : `${name}s ${first}-${last}`);
    const choices = (name, groups) => [["", `all ${name}s`], ...groups.map((group, at) => [at, words(name, group)])];
    const choose = (key) => (value) => {
      this.filter[key] = value === "" ? null : Number(value);
      this.refresh({ list: true });
    };
    this.filters.replaceChildren();
    for (const [key, name, groups] of [["layers", "layer", film?.layerGroups], ["heads", "head", film?.headGroups]]) {
      if (groups?.length > 1) this.filters.append(chooser(`Show one ${name} group`, choices(name, groups), choose(key)));
    }
  }

  toggleKind(kind, pressed) {
    this.filter.kinds[kind] = !this.filter.kinds[kind];
    pressed.setAttribute("aria-pressed", String(this.filter.kinds[kind]));
    this.refresh({ list: true });
  }

  /** Draw with the next animation frame what moves, and with it the picture, the list of readings, the theme's colours. */
  refresh({ theme = false, picture = true, list = false } = {}) {
    this.stale.theme ||= theme;
    this.stale.picture ||= picture;
    this.stale.list ||= list;
    this.waiting ??= requestAnimationFrame(() => this.draw());
  }

  /** Draw what is stale, now. */
  draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = null;
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    if (!width || !height) return;
    this.root.classList.toggle("longreel-narrow", this.root.clientWidth < NARROW);
    this.empty.hidden = this.inspection !== null;
    if (this.stale.theme) this.readTheme();
    if (this.stale.picture) this.drawPicture(width, height);
    if (this.stale.list && this.inspection) this.details.showChosen(this.scene());
    this.stale = { theme: false, picture: false, list: false };
    if (!this.inspection) return;
    this.drawn.overlay += 1;
    drawOverlay(this.overlay.getContext("2d"), this.scene());
    this.details.showCursor(this.scene());
  }

  readTheme() {
    this.theme = readTheme(this.root.parentElement ?? this.root);
    this.ramp = makeRamp(this.theme.dark);
    const stops = [0, 0.05, 0.2, 0.45, 0.7, 1].map((at) => `${css(this.ramp[Math.round(Math.sqrt(at) * 255)])} ${at * 100}%`);
    const named = { ...this.theme, middle: css(this.ramp[110]), ramp: `linear-gradient(90deg, ${stops.join(", ")})` };
    for (const name of ["ground", "text", "quiet", "line", "accent", "middle", "ramp"]) {
      this.root.style.setProperty(`--longreel-${name}`, named[name]);
    }
  }

  drawPicture(width, height) {
    this.drawn.picture += 1;
    const scale = window.devicePixelRatio || 1;
    for (const canvas of [this.picture, this.overlay]) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.getContext("2d").scale(scale, scale);
    }
    this.name.textContent = this.inspection?.project ?? "";
    this.name.title = this.inspection?.memory ?? "";
    this.details.root.hidden = !this.inspection;
    if (!this.inspection) return;
    this.layout = layOut(width, height);
    const { matrix } = this.layout;
    const most = { width: matrix.width * scale, height: matrix.height * scale };
    const colours = { ramp: this.ramp, dark: this.theme.dark, striped: !hasMarks(this.layout, this.inspection) };
    const pixels = matrixPixels(this.inspection, this.filter, colours, most);
    this.matrix = element("canvas", "", "", { width: pixels.width, height: pixels.height });
    this.matrix.getContext("2d").putImageData(new ImageData(pixels.data, pixels.width, pixels.height), 0, 0);
    this.marks = this.inspection.markedFrames(this.storyboardMarks());
    drawPicture(this.picture.getContext("2d"), this.scene());
  }

  scene() {
    const { inspection, filter, layout, theme, ramp, matrix, marks, cursor, chosen } = this;
    const imageOf = (chunk) => this.image(chunk);
    return { inspection, filter, layout, theme, ramp, matrix, marks, cursor, chosen, imageOf, thumbnail: imageOf };
  }

  /** The picture of a chunk, null as long as it is not loaded. */
  image(chunk) {
    if (!this.images.has(chunk)) {
      const address = this.imageAddress(this.inspection.thumbnails.get(chunk) ?? "");
      if (address === null) return null;
      const image = new Image();
      image.addEventListener("load", () => this.refresh());
      image.src = address;
      this.images.set(chunk, image);
    }
    const image = this.images.get(chunk);
    return image.complete && image.naturalWidth ? image : null;
  }

  /** What lies under the pointer. The node may be zoomed, so the page's pixels are not the picture's. */
  under(event) {
    if (!this.inspection || !this.layout) return null;
    const box = this.stage.getBoundingClientRect();
    const x = ((event.clientX - box.left) * this.stage.clientWidth) / box.width;
    const y = ((event.clientY - box.top) * this.stage.clientHeight) / box.height;
    return find(this.layout, this.inspection, this.filter, x, y);
  }

  moveTo(cursor) {
    if (cursor?.chunk === this.cursor?.chunk && cursor?.frame === this.cursor?.frame) return;
    this.cursor = cursor;
    this.refresh({ picture: false });
  }

  choose(chunk) {
    this.chosen = chunk === this.chosen || !this.inspection?.chunk(chunk) ? null : chunk;
    if (this.chosen !== null) {
      const read = this.inspection.readings(chunk, this.filter).length;
      this.say(`${sentence(chunkWords(this.inspection, chunk))} read ${read} frames.`);
    }
    this.refresh({ picture: false, list: true });
  }

  pointAt(frame) {
    this.moveTo({ part: "matrix", chunk: this.chosen ?? this.inspection.chunkOfFrame(frame), frame });
    this.sayCursor();
  }

  pressed(event) {
    if (!this.inspection || event.ctrlKey || event.metaKey || event.altKey) return;
    const acts = {
      Enter: () => this.choose(this.cursor?.chunk ?? null),
      " ": () => this.choose(this.cursor?.chunk ?? null),
      p: () => this.toggleMark("pin"),
      v: () => this.toggleMark("veto"),
      u: () => this.undo(),
      Escape: () => {
        this.choose(null);
        this.moveTo(null);
        this.say("");
      },
    };
    const moved = moveCursor(this.inspection, this.cursor, event.key, event.shiftKey);
    const act = acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!moved && !act) return;
    event.preventDefault();
    event.stopPropagation(); // ComfyUI has its own ideas about P and the arrows
    if (moved) {
      this.moveTo(moved);
      this.sayCursor();
    } else act();
  }

  sayCursor() {
    const { inspection, cursor, filter, marks } = this;
    const mark = marks.pin.has(cursor.frame) ? "pin" : marks.veto.has(cursor.frame) ? "veto" : null;
    this.spoken.textContent = cellWords(inspection, cursor, inspection.reading(cursor.chunk, cursor.frame, filter), mark);
  }

  say(words) {
    this.status.textContent = words;
  }

  /** The menu of the frame under the pointer. */
  offer(event) {
    event.preventDefault();
    event.stopPropagation();
    const under = this.under(event);
    if (!under || under.frame === null) return;
    this.moveTo(under);
    const { frame } = under;
    const film = this.inspection;
    const when = `${filmTime(film.seconds(frame))} (frame ${frame})`;
    const items = [
      [this.marks.pin.has(frame) ? `Unpin ${when}` : `Pin ${when}`, () => this.toggleMark("pin", frame)],
      [this.marks.veto.has(frame) ? `Allow ${when} again` : `Veto ${when}`, () => this.toggleMark("veto", frame)],
    ];
    const shot = film.shotOfFrame(frame);
    if (shot >= 0) {
      for (const kind of ["pin", "veto"]) {
        items.push([`${sentence(kind)} all of shot ${shot + 1}`, () => this.edit(kind, `shot ${shot + 1}`)]);
      }
    }
    if (this.undone.length) items.push([`Undo: ${this.undone.at(-1).what}`, () => this.undo()]);
    const box = this.root.getBoundingClientRect();
    const zoom = box.width / this.root.clientWidth || 1;
    const at = [(event.clientX - box.left) / zoom, (event.clientY - box.top) / zoom];
    this.closeMenu?.();
    this.closeMenu = openMenu(this.root, ...at, `Frame ${frame}`, items, () => {
      this.closeMenu = null;
      this.stage.focus({ preventScroll: true });
    });
  }

  /** Draw again when somebody wrote into the storyboard. */
  noticeStoryboard() {
    if (this.storyboard.read() !== this.written) this.refresh();
  }

  storyboardMarks() {
    this.written = this.storyboard.read();
    return this.written === null ? null : readMarks(this.written);
  }

  /** Pin or veto a frame, that under the cursor unless one is named, or take that back. */
  toggleMark(kind, frame = this.cursor?.frame) {
    if (frame === undefined || frame === null) return;
    this.edit(toggled(this.marks, kind, frame), momentOfFrames(frame, frame, this.inspection), [frame, frame]);
  }

  /** Write a moment into the storyboard; `kind` null takes its frames out of both lists. */
  edit(kind, moment, range) {
    const before = this.storyboard.read();
    const what = kind ? `${kind}: ${moment}` : `${moment} without a mark`;
    if (before === null) {
      const line = kind ? `Write '${what}' on a line of its own in your storyboard.` : `Take ${moment} out of your 'pin:' and 'veto:' lines.`;
      this.say(`No storyboard can be written from here. ${line}`);
      return;
    }
    try {
      const after = kind ? addMark(before, kind, moment, this.inspection) : removeMarks(before, range, this.inspection);
      if (after === before) {
        this.say(`The storyboard says so already: ${what}. Nothing was changed.`);
        return;
      }
      this.storyboard.write(after);
      this.undone.push({ before, after, what });
      this.say(`Written into the storyboard: ${what}. Run again to see what it changes.`);
    } catch (error) {
      if (!(error instanceof MarkError)) throw error;
      this.say(error.message);
    }
    this.refresh();
  }

  /** Take the last change back, unless somebody wrote into the storyboard since. */
  undo() {
    const last = this.undone.pop();
    if (!last) return;
    if (this.storyboard.read() !== last.after) {
      this.say("The storyboard was changed since; nothing was undone.");
      return;
    }
    this.storyboard.write(last.before);
    this.say(`Taken back: ${last.what}.`);
    this.refresh();
  }
}

function isSameFilm(one, other) {
  return ["project", "chunkCount", "frameCount"].every((name) => one[name] === other[name]);
}
