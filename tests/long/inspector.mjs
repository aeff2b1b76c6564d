// The Memory Inspector in the real front end, as an artist uses it: run, hover, click, filter, pin, undo, run again, save, reload,
// run again; with a hostile film, and with the storyboard behind reroutes and in subgraphs. See `front_end.mjs`.
import { drawn, drive } from "./front_end.mjs";

const NODE = "LongReelMemoryInspector";
const FOLDER = "/extensions/longreel/js/inspector";
const HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>";
const PINNED = 4; // behind the sink, and soon older than the window
const VETOED = 1; // in the sink, which every chunk reads
const FREE = 7; // neither
const WINDOW_KIND = 0;
const BANK_KIND = 2;
const PAGES_KIND = 3;

class Artist {
  constructor(front, renderer) {
    Object.assign(this, { front, page: front.page, renderer, project: `pins ${renderer.replace(".", "")}` });
  }

  async works(workflow, theme) {
    const { front, page } = this;
    const said = {};
    await this.load(workflow);
    said.before = await this.storyboard();
    said.grown = await this.runs();
    const { chunks } = this.film;
    const last = chunks.at(-1);
    await page.mouse.move(5, 500);
    await drawn(page);
    said.film = await this.text(".longreel-lines");
    const kinds = [WINDOW_KIND, BANK_KIND, PAGES_KIND];
    const frames = [VETOED, ...kinds.map((wanted) => last.reads.find(([, kind]) => kind === wanted)[0])];
    said.hovered = {};
    for (const frame of frames) said.hovered[frame] = await this.hovers(last.index, frame);
    said.arcs = {};
    for (const { index, reads } of [chunks[1], chunks[4], last]) {
      await this.clicks(index);
      said.arcs[index] = await this.arcs();
      said.listed = await page.locator(".longreel-row").allInnerTexts();
      if (index === last.index) await front.screenshot(`inspector ${this.renderer} ${theme}`);
      await this.clicks(index);
      said.arcs[`${index} let go`] = reads.length ? await this.arcs() : [];
    }
    const pages = frames.at(-1);
    said.filtered = await this.filters(last.index, pages);
    const opposite = theme === "dark" ? "light" : "dark";
    await front.set("Comfy.ColorPalette", opposite);
    await front.settle();
    await front.screenshot(`inspector ${this.renderer} ${opposite}`);
    await front.set("Comfy.ColorPalette", theme);
    await front.settle();

    // The keyboard: the stage has the focus, ComfyUI must not take P for its own command.
    await page.locator(".longreel-stage").focus();
    await this.pointsAt(last.index, 0);
    for (const key of ["ArrowUp", "ArrowUp", "ArrowDown", "v"]) await page.keyboard.press(key);
    await front.settle();
    said.keyVetoed = await this.storyboard();
    said.spoken = await page.locator("[aria-live]").filter({ hasText: "frame" }).first().textContent();
    await page.keyboard.press("u");
    await front.settle();
    said.keyUndone = await this.storyboard();

    await this.marks(last.index, PINNED, /^Pin /);
    said.pinned = await this.storyboard();
    // Undo of the page itself, then again.
    for (const [act, name] of [["undo", "pageUndone"], ["redo", "pageRedone"]]) {
      await page.evaluate((what) => window.app.extensionManager.workflow.activeWorkflow.changeTracker[what](), act);
      await front.settle();
      said[name] = await this.storyboard();
    }
    await this.runs();
    said.pinnedThen = await this.hovers(last.index, PINNED);

    await this.marks(last.index, VETOED, /^Veto /);
    said.vetoed = await this.storyboard();
    await front.screenshot(`inspector ${this.renderer} pinned`);
    const saved = await page.evaluate(async () => {
      const made = JSON.stringify(window.app.graph.serialize());
      await window.app.api.storeUserData("workflows/pinned.json", made, { stringify: false, overwrite: true });
      return JSON.parse(made);
    });
    said.savedWidgets = saved.nodes.find((node) => node.type === NODE).widgets_values;
    await front.open();
    await this.load(await page.evaluate(async () => (await window.app.api.getUserData("workflows/pinned.json")).json()));
    said.reloaded = await this.storyboard();
    await this.runs();
    said.pinnedAgain = await this.hovers(last.index, PINNED);
    await this.clicks(last.index);
    said.arcsAgain = await this.arcs();
    await front.screenshot(`inspector ${this.renderer} again`);

    // Another workflow's tab and back: the picture is restored from what the page kept.
    const [mine, other] = await page.evaluate(() => {
      const { activeWorkflow, openWorkflows } = window.app.extensionManager.workflow;
      return [activeWorkflow.filename, openWorkflows.find((open) => open !== activeWorkflow).filename];
    });
    for (const tab of [other, mine]) {
      await page.locator(".workflow-tabs").getByText(tab, { exact: true }).first().click();
      await page.waitForFunction((name) => window.app.extensionManager.workflow.activeWorkflow.filename === name, tab);
      await front.settle();
    }
    said.restored = await this.text(".longreel-name");
    return said;
  }

  async load(workflow) {
    await this.front.load(workflow);
    await this.front.nameFilm(this.project);
    await this.looks();
  }

  /** The inspector in the middle of the screen. */
  async looks() {
    await this.page.evaluate((type) => {
      const { canvas, graph } = window.app;
      const node = graph.nodes.find((other) => other.type === type);
      canvas.ds.scale = 0.95;
      canvas.ds.offset[0] = 420 - node.pos[0];
      canvas.ds.offset[1] = 90 - node.pos[1];
      canvas.setDirty(true, true);
    }, NODE);
    await this.page.locator(".longreel-stage").first().waitFor({ state: "visible" });
    await this.front.settle();
  }

  /** Run the workflow; the chunks of each live message, with what the picture said then. */
  async runs() {
    const { page } = this;
    await page.evaluate(() => {
      window.grown = [];
      window.noteGrowth = async ({ detail }) => {
        await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
        window.grown.push([detail.chunks.map((chunk) => chunk.index), document.querySelector(".longreel-lines").innerText]);
      };
      window.app.api.addEventListener("longreel.inspection", window.noteGrowth);
    });
    await this.front.run();
    this.film = await page.evaluate((type) => {
      window.app.api.removeEventListener("longreel.inspection", window.noteGrowth);
      return window.app.nodeOutputs[window.app.graph.nodes.find((node) => node.type === type).id].longreel[0];
    }, NODE);
    return page.evaluate(() => window.grown);
  }

  text(selector) {
    return this.page.locator(selector).first().innerText();
  }

  storyboard() {
    return this.page.evaluate(() => {
      const node = window.app.graph.nodes.find((other) => other.type === "LongReelStoryboard");
      return node.widgets.find((widget) => widget.name === "text").value;
    });
  }

  /** Where a chunk's cell of a frame is on the screen, from the picture's own modules and what the node gave. */
  cell(chunk, frame) {
    return this.page.evaluate(
      async ([folder, source, index, row]) => {
        const { columnX, layOut, rowY, cellSize } = await import(`${folder}/layout.js`);
        const { Inspection } = await import(`${folder}/model.js`);
        const film = new Inspection(source);
        const stage = document.querySelector(".longreel-stage");
        const layout = layOut(stage.clientWidth, stage.clientHeight);
        const box = stage.getBoundingClientRect();
        const size = cellSize(layout, film);
        const x = columnX(layout, film, index) + size.width / 2;
        const y = rowY(layout, film, row) + size.height / 2;
        const zoom = box.width / stage.clientWidth;
        return { x: box.left + x * zoom, y: box.top + y * zoom };
      },
      [FOLDER, this.film, chunk, frame],
    );
  }

  async pointsAt(chunk, frame) {
    const { x, y } = await this.cell(chunk, frame);
    await this.page.mouse.move(x - 3, y);
    await this.page.mouse.move(x, y);
    await drawn(this.page);
    return { x, y };
  }

  /** What the panel says of a frame, with the picture in it once that is there. */
  async hovers(chunk, frame) {
    await this.pointsAt(chunk, frame);
    await this.page.waitForFunction(() => {
      const image = document.querySelector(".longreel-thumbnail");
      return image && !image.hidden && image.complete && image.naturalWidth > 0;
    });
    return this.page.evaluate(() => {
      const image = document.querySelector(".longreel-thumbnail");
      return {
        title: document.querySelector(".longreel-title").innerText,
        lines: document.querySelector(".longreel-lines").innerText.split("\n"),
        image: { address: image.src, width: image.naturalWidth, height: image.naturalHeight, shown: image.clientWidth },
      };
    });
  }

  /** Click a chunk's column; the pointer leaves the picture, so that only the choice is drawn. */
  async clicks(chunk) {
    const { x, y } = await this.pointsAt(chunk, 0);
    await this.page.mouse.click(x, y);
    await this.page.mouse.move(5, 500);
    await drawn(this.page);
  }

  /** The frames under which an arc ends, by the pixels there; all arcs begin under the middle of the chunk itself. */
  arcs() {
    return this.page.evaluate(
      async ([folder, source]) => {
        const { frameX, layOut } = await import(`${folder}/layout.js`);
        const { Inspection } = await import(`${folder}/model.js`);
        const film = new Inspection(source);
        const stage = document.querySelector(".longreel-stage");
        const layout = layOut(stage.clientWidth, stage.clientHeight);
        const overlay = stage.querySelectorAll("canvas")[1].getContext("2d");
        const isInk = (frame) =>
          overlay.getImageData(Math.floor(frameX(layout, film, frame + 0.5)), layout.arcs.y + 5, 1, 1).data[3] > 0;
        return Array.from({ length: film.frameCount }, (_, frame) => frame).filter(isInk);
      },
      [FOLDER, this.film],
    );
  }

  /** The picture, and what the panel says of a frame, with a group of layers, one of heads, both, and neither. */
  async filters(chunk, frame) {
    const found = {};
    for (const [name, layers, heads] of [["before", "", ""], ["layers", "2", ""], ["both", "2", "1"], ["heads", "", "1"], ["after", "", ""]]) {
      await this.page.locator(".longreel-choice").nth(0).selectOption(layers);
      await this.page.locator(".longreel-choice").nth(1).selectOption(heads);
      await this.pointsAt(chunk, frame);
      found[name] = await this.page.evaluate(() => ({
        picture: document.querySelector(".longreel-stage canvas").toDataURL(),
        lines: document.querySelector(".longreel-lines").innerText.split("\n"),
      }));
    }
    return found;
  }

  /** Choose from the menu of a frame. */
  async marks(chunk, frame, words) {
    const { x, y } = await this.pointsAt(chunk, frame);
    await this.page.mouse.click(x, y, { button: "right" });
    await this.page.locator(".longreel-menu-item", { hasText: words }).first().click();
    await this.front.settle();
  }

  /** A film whose names and prompts are markup. */
  async meetsAHostileFilm() {
    const { page } = this;
    await page.evaluate(
      ([type, markup]) => {
        const node = window.app.graph.nodes.find((other) => other.type === type);
        const chunks = [0, 1].map((index) => ({
          index, shot: 0, frames: [3 * index, 3 * index + 3], excluded: { [markup]: [2] },
          reads: index ? [[0, 2, 1, 0.5, markup], [1, 3, 0.2, null, "pages"]] : [],
          milliseconds: { [markup]: 5 }, bytes: { [markup]: 7 }, drift: { [markup]: 0.5 },
        }));
        const film = {
          longreel_inspection: 1, project: markup, memory: markup, fps: 16, total_frames: 6, chunk_count: 2, chunks,
          shots: [{ prompt: markup, frames: [0, 6], transition: markup }], pins: markup, vetoes: markup,
          thumbnails: [{ chunk: 0, src: "javascript:window.hacked=1" }, { chunk: 1, src: "https://example.com/x.png" }],
        };
        node.onExecuted({ longreel: [film] });
      },
      [NODE, HOSTILE],
    );
    await drawn(page);
    const stage = await page.locator(".longreel-stage").first().boundingBox();
    for (let at = 1; at < 12; at++) await page.mouse.move(stage.x + (stage.width * at) / 12, stage.y + (stage.height * at) / 12);
    await page.mouse.click(stage.x + stage.width * 0.75, stage.y + stage.height * 0.5);
    await this.front.settle();
    await this.front.screenshot(`inspector hostile ${this.renderer}`);
    return page.evaluate(() => ({
      name: document.querySelector(".longreel-name").textContent,
      hacked: window.hacked ?? null,
      elements: document.querySelectorAll(".longreel-inspector :is(script, iframe, [onerror])").length,
      images: [...document.querySelectorAll(".longreel-inspector img")].map((image) => image.getAttribute("src")),
    }));
  }

  /**
   * Pin a frame with the mouse, however the storyboard's text comes to the sampler: what the picture says then, and what it
   * reaches.
   */
  async pinsInEveryLayout(workflow) {
    const { front, page } = this;
    const found = {};
    for (const name of Object.keys(LAYOUTS)) {
      await front.load(workflow);
      await page.evaluate(`Promise.resolve((${LAYOUTS[name]})(window.app.graph, ${TOOLS})).then(() => null)`);
      await this.looks();
      await page.evaluate(
        ([type, film]) => window.app.graph.nodes.find((node) => node.type === type).onExecuted({ longreel: [film] }),
        [NODE, this.film],
      );
      await drawn(page);
      await this.marks(this.film.chunks.length - 1, FREE, /^Pin /);
      if (name === "promoted") await front.screenshot(`inspector ${this.renderer} subgraph`);
      found[name] = { ...(await this.reaches()), said: await this.text(".longreel-status") };
    }
    return found;
  }

  /** The same where the inspector itself stands in a subgraph: what it reaches, without the mouse. */
  async standsInsideASubgraph(workflow) {
    const found = {};
    for (const types of [["MemoryInspector"], ["Storyboard", "SparseKVMemory", "PromptBank", "ChunkedARSampler", "MemoryInspector"]]) {
      await this.front.load(workflow);
      await this.page.evaluate(`void (${TOOLS}).inside(window.app.graph, ...${JSON.stringify(types)})`);
      found[types.length] = await this.reaches();
    }
    return found;
  }

  /** The sampler whose messages the inspector takes and the text it would write to, and both as the server gets them. */
  reaches() {
    return this.page.evaluate(
      async ([folder, type]) => {
        const { executionId, inspectedSampler, nodesOfType, storyboardText } = await import(`${folder}/graph.js`);
        const places = nodesOfType(window.app.rootGraph ?? window.app.graph, type);
        const sampler = inspectedSampler(places[0]);
        const { output } = await window.app.graphToPrompt();
        const sent = (kind) => Object.entries(output).find(([, node]) => node.class_type === `LongReel${kind}`);
        const [, { inputs }] = sent("Storyboard");
        const text = Array.isArray(inputs.text) ? Object.values(output[inputs.text[0]].inputs).join("") : inputs.text;
        return {
          inspectors: places.map(({ owners }) => owners.length),
          sampler: [executionId(sampler), sent("ChunkedARSampler")[0]],
          text: [storyboardText(sampler)?.widget.value ?? null, text],
        };
      },
      [FOLDER, NODE],
    );
  }
}

// What the functions below are given beside the graph; both are sent to the page as text.
const TOOLS = `{
  node: (graph, type) => graph.nodes.find((node) => node.type === "LongReel" + type),
  add: (graph, type) => { const node = LiteGraph.createNode(type); graph.add(node); return node; },
  input: (node, name) => node.inputs.findIndex((slot) => slot.name === name),
  inside: (graph, ...types) =>
    graph.convertToSubgraph(new Set(graph.nodes.filter((node) => types.some((type) => node.type === "LongReel" + type)))),
  promote: (subgraph, board, slot) => subgraph.addInput("text", "STRING").connect(board.inputs[slot], board),
}`;

const LAYOUTS = {
  plain: () => {},
  reroutes: (graph, { node, add, input }) => {
    const [board, sampler, inspector] = ["Storyboard", "ChunkedARSampler", "MemoryInspector"].map((type) => node(graph, type));
    const [before, behind] = [add(graph, "Reroute"), add(graph, "Reroute")];
    board.connect(0, before, 0);
    before.connect(0, sampler, input(sampler, "storyboard"));
    sampler.connect(sampler.outputs.findIndex(({ name }) => name === "trace"), behind, 0);
    behind.connect(0, inspector, 0);
  },
  subgraph: (graph, { inside }) => inside(graph, "Storyboard"),
  "film in a subgraph": (graph, { inside }) => inside(graph, "Storyboard", "SparseKVMemory", "PromptBank", "ChunkedARSampler"),
  promoted: (graph, { inside, node, input, promote }) => {
    const { subgraph } = inside(graph, "Storyboard");
    const board = node(subgraph, "Storyboard");
    promote(subgraph, board, input(board, "text"));
  },
  "promoted, renamed, in two subgraphs": (graph, { inside, node, input, promote }) => {
    const { subgraph, node: outer } = inside(graph, "Storyboard");
    const board = node(subgraph, "Storyboard");
    promote(subgraph, board, input(board, "text"));
    subgraph.renameInput(subgraph.inputs.find(({ name }) => name === "text"), "what happens");
    graph.convertToSubgraph(new Set([outer]));
  },
  "promoted by an earlier front end": (graph, { inside, node }) => {
    const { subgraph, node: outer } = inside(graph, "Storyboard");
    outer.properties.proxyWidgets = [[String(node(subgraph, "Storyboard").id), "text"]];
    return window.app.loadGraphData(graph.serialize());
  },
  "text of another node": (graph, { add, node, input }) => {
    const [board, text] = [node(graph, "Storyboard"), add(graph, "PrimitiveStringMultiline")];
    text.widgets[0].value = board.widgets.find(({ name }) => name === "text").value;
    text.connect(0, board, input(board, "text"));
  },
  "text put together": (graph, { add, node, input }) => {
    const [board, text] = [node(graph, "Storyboard"), add(graph, "StringConcatenate")];
    text.widgets[0].value = board.widgets.find(({ name }) => name === "text").value;
    text.connect(0, board, input(board, "text"));
  },
  "text that passes through": (graph, { add, node, input }) => {
    const [board, text, trimmed] = [node(graph, "Storyboard"), add(graph, "PrimitiveStringMultiline"), add(graph, "StringTrim")];
    text.widgets[0].value = board.widgets.find(({ name }) => name === "text").value;
    text.connect(0, trimmed, input(trimmed, "string"));
    trimmed.connect(0, board, input(board, "text"));
  },
};

await drive({ width: 1800, height: 1050 }, async (front, workflow, seen) => {
  seen.renderers = {};
  for (const [renderer, vue, theme] of [["legacy", false, "dark"], ["nodes 2.0", true, "light"]]) {
    await front.set("Comfy.VueNodes.Enabled", vue);
    await front.set("Comfy.ColorPalette", theme);
    const artist = new Artist(front, renderer);
    const said = (seen.renderers[renderer] = await artist.works(workflow, theme));
    said.hostile = await artist.meetsAHostileFilm();
    said.layouts = await artist.pinsInEveryLayout(workflow);
    said.inside = await artist.standsInsideASubgraph(workflow);
  }
});
