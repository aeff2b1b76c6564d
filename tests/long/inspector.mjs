// The Memory Inspector in the real front end, as an artist uses it: run, hover, click, pin, undo, save, reload, run again; and
// inside of subgraphs, with a hostile film, and in a page that has no DOM widgets. Arguments: playwright folder, Chromium,
// server address, workflow file, picture folder. Prints one JSON object with what was seen.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const [playwright, executablePath, server, workflowFile, pictures] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const workflow = JSON.parse(readFileSync(workflowFile, "utf8"));
const NODE = "LongReelMemoryInspector";
const HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>";
const PINNED = 4; // behind the sink, and soon older than the window
const VETOED = 1; // in the sink, which every chunk reads

const seen = { errors: [], renderers: {} };
const browser = await chromium.launch({ executablePath, headless: true, args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage({ viewport: { width: 1800, height: 1050 } });

async function open() {
  await page.goto(server);
  await page.waitForFunction(() => window.app?.graph && window.app.extensionManager, null, { timeout: 180_000 });
}

async function setting(name, value) {
  await page.evaluate(([key, to]) => window.app.extensionManager.setting.set(key, to), [name, value]);
}

async function load(graph, name) {
  await page.evaluate((data) => window.app.loadGraphData(data), graph);
  await page.waitForTimeout(1500);
  await page.evaluate(
    ([type, project]) => {
      const { canvas, graph } = window.app;
      const node = graph.nodes.find((other) => other.type === type);
      canvas.ds.scale = 0.95;
      canvas.ds.offset[0] = 420 - node.pos[0];
      canvas.ds.offset[1] = 90 - node.pos[1];
      canvas.setDirty(true, true);
      const sampler = graph.nodes.find((other) => other.type === "LongReelChunkedARSampler");
      sampler.widgets.find((widget) => widget.name === "project").value = project;
    },
    [NODE, name],
  );
  await page.locator(".longreel-stage").first().waitFor({ state: "visible", timeout: 30_000 });
}

/** Run the workflow; the chunks that the picture had after each live message. */
async function run() {
  const grown = page.evaluate(
    () =>
      new Promise((resolve, reject) => {
        const { api } = window.app;
        const names = [];
        const live = async (event) => {
          await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
          names.push([event.detail.chunks.map((chunk) => chunk.index), document.querySelector(".longreel-lines").innerText]);
        };
        api.addEventListener("longreel.inspection", live);
        const end = (then) => (event) => {
          api.removeEventListener("longreel.inspection", live);
          then(event);
        };
        api.addEventListener("execution_success", end(() => setTimeout(() => resolve(names), 500)), { once: true });
        api.addEventListener("execution_error", end((event) => reject(JSON.stringify(event.detail))), { once: true });
      }),
  );
  await page.evaluate(() => window.app.queuePrompt(0));
  const names = await grown;
  await page.waitForFunction(() => document.querySelector(".longreel-name")?.textContent, null, { timeout: 30_000 });
  await page.waitForTimeout(1500);
  return names;
}

/** Where a chunk's cell of a frame is on the screen, from the picture's own modules and what the node gave. */
function cell(chunk, frame) {
  return page.evaluate(
    async ([type, index, row]) => {
      const folder = "/extensions/longreel/js/inspector";
      const { columnX, layOut, rowY, cellSize } = await import(`${folder}/layout.js`);
      const { Inspection } = await import(`${folder}/model.js`);
      const id = window.app.graph.nodes.find((node) => node.type === type).id;
      const film = new Inspection(window.app.nodeOutputs[id].longreel[0]);
      const stage = document.querySelector(".longreel-stage");
      const layout = layOut(stage.clientWidth, stage.clientHeight);
      const box = stage.getBoundingClientRect();
      const size = cellSize(layout, film);
      const x = columnX(layout, film, index) + size.width / 2;
      const y = rowY(layout, film, row) + size.height / 2;
      const zoom = box.width / stage.clientWidth;
      return { x: box.left + x * zoom, y: box.top + y * zoom };
    },
    [NODE, chunk, frame],
  );
}

const text = (selector) => page.locator(selector).first().innerText();
const storyboard = () =>
  page.evaluate(() => {
    const node = window.app.graph.nodes.find((other) => other.type === "LongReelStoryboard");
    return node.widgets.find((widget) => widget.name === "text").value;
  });

async function hover(chunk, frame) {
  const { x, y } = await cell(chunk, frame);
  await page.mouse.move(x - 3, y);
  await page.mouse.move(x, y);
  await page.waitForTimeout(400);
  return { x, y };
}

async function menu(chunk, frame, words) {
  const { x, y } = await hover(chunk, frame);
  await page.mouse.click(x, y, { button: "right" });
  await page.locator(".longreel-menu-item", { hasText: words }).first().click();
  await page.waitForTimeout(400);
  return storyboard();
}

async function asAnArtist(renderer, theme) {
  const said = {};
  await load(workflow, `pins ${renderer.replace(".", "")}`);
  said.before = await storyboard();
  said.grown = await run();
  said.chunks = await page.evaluate(
    (type) => {
      const id = window.app.graph.nodes.find((node) => node.type === type).id;
      return window.app.nodeOutputs[id].longreel[0].chunks.length;
    },
    NODE,
  );
  const last = said.chunks - 1;
  await page.mouse.move(5, 500);
  await page.waitForTimeout(300);
  said.film = await text(".longreel-lines");
  const place = await hover(last, VETOED);
  said.hovered = [await text(".longreel-title"), await text(".longreel-lines")];
  await page.mouse.click(place.x, place.y);
  await page.waitForTimeout(500);
  said.listed = await page.locator(".longreel-row").allInnerTexts();
  await page.screenshot({ path: join(pictures, `inspector ${renderer} ${theme}.png`) });
  const opposite = theme === "dark" ? "light" : "dark";
  await setting("Comfy.ColorPalette", opposite);
  await page.waitForTimeout(700);
  await page.screenshot({ path: join(pictures, `inspector ${renderer} ${opposite}.png`) });
  await setting("Comfy.ColorPalette", theme);

  // The keyboard: the stage has the focus, ComfyUI must not take P for its own command.
  await page.locator(".longreel-stage").focus();
  await hover(last, 0);
  for (const key of ["ArrowUp", "ArrowUp", "ArrowDown", "v"]) await page.keyboard.press(key);
  await page.waitForTimeout(400);
  said.keyVetoed = await storyboard();
  said.spoken = await page.locator("[aria-live]").filter({ hasText: "frame" }).first().textContent();
  await page.keyboard.press("u");
  await page.waitForTimeout(300);
  said.keyUndone = await storyboard();

  said.pinned = await menu(last, PINNED, "Pin ");
  // Undo of the page itself, then again.
  await page.evaluate(() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo());
  await page.waitForTimeout(1500);
  said.pageUndone = await storyboard();
  await page.evaluate(() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.redo());
  await page.waitForTimeout(1500);
  said.pageRedone = await storyboard();
  said.vetoed = await menu(last, VETOED, "Veto ");
  await page.screenshot({ path: join(pictures, `inspector ${renderer} pinned.png`) });

  const saved = await page.evaluate(async () => {
    const made = JSON.stringify(window.app.graph.serialize());
    await window.app.api.storeUserData("workflows/pinned.json", made, { stringify: false, overwrite: true });
    return JSON.parse(made);
  });
  said.savedWidgets = saved.nodes.find((node) => node.type === NODE).widgets_values;
  await open();
  const reloaded = await page.evaluate(async () => (await window.app.api.getUserData("workflows/pinned.json")).json());
  await load(reloaded, `pins ${renderer.replace(".", "")}`);
  said.reloaded = await storyboard();
  await run();
  await hover(last, PINNED);
  said.again = [await text(".longreel-title"), await text(".longreel-lines")];
  await page.screenshot({ path: join(pictures, `inspector ${renderer} again.png`) });

  // Another workflow's tab and back: the picture is restored from what the page kept.
  const [mine, other] = await page.evaluate(() => {
    const { activeWorkflow, openWorkflows } = window.app.extensionManager.workflow;
    return [activeWorkflow.filename, openWorkflows.find((open) => open !== activeWorkflow).filename];
  });
  for (const tab of [other, mine]) {
    await page.locator(".workflow-tabs").getByText(tab, { exact: true }).first().click();
    await page.waitForTimeout(2500);
  }
  said.restored = await text(".longreel-name");
  return said;
}

/** A film whose names and prompts are markup, and one whose node stands in a subgraph. */
async function hostile(name) {
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
  await page.waitForTimeout(600);
  const stage = await page.locator(".longreel-stage").first().boundingBox();
  for (let at = 1; at < 12; at++) await page.mouse.move(stage.x + (stage.width * at) / 12, stage.y + (stage.height * at) / 12);
  await page.mouse.click(stage.x + stage.width * 0.75, stage.y + stage.height * 0.5);
  await page.waitForTimeout(400);
  await page.screenshot({ path: join(pictures, `inspector hostile ${name}.png`) });
  return page.evaluate(() => ({
    name: document.querySelector(".longreel-name").textContent,
    hacked: window.hacked ?? null,
    elements: document.querySelectorAll(".longreel-inspector :is(script, iframe, [onerror])").length,
    images: [...document.querySelectorAll(".longreel-inspector img")].map((image) => image.getAttribute("src")),
  }));
}

/** Which sampler and storyboard are found when nodes are moved into subgraphs. */
function throughSubgraphs(graph) {
  return page.evaluate(
    async ([data, type]) => {
      const { executionId, inspectedSampler, nodesOfType, storyboardText } = await import(
        "/extensions/longreel/js/inspector/graph.js"
      );
      const found = {};
      const all = { none: [], storyboard: ["LongReelStoryboard"], inspector: [type], sampler: ["LongReelChunkedARSampler"],
        film: ["LongReelStoryboard", "LongReelChunkedARSampler", type] };
      for (const [name, types] of Object.entries(all)) {
        await window.app.loadGraphData(data);
        const { graph } = window.app;
        const moved = graph.nodes.filter((node) => types.includes(node.type));
        if (moved.length) graph.convertToSubgraph(new Set(moved));
        const places = nodesOfType(window.app.rootGraph ?? graph, type);
        const sampler = inspectedSampler(places[0]);
        const text = storyboardText(sampler);
        found[name] = { inspectors: places.length, depth: sampler && executionId(sampler).split(":").length, text: text?.widget.value ?? null };
      }
      return found;
    },
    [graph, NODE],
  );
}

try {
  await page.route("**/*", (route) => {
    const url = route.request().url();
    const local = [server, "data:", "blob:"].some((start) => url.startsWith(start));
    return local ? route.continue() : route.abort();
  });
  page.on("pageerror", (error) => seen.errors.push(String(error.stack ?? error)));
  page.on("console", (message) => {
    if (message.type() === "error") seen.errors.push(`${message.text()} (${message.location().url})`);
  });
  await fetch(`${server}/api/settings/Comfy.TutorialCompleted`, { method: "POST", body: "true" });
  await open();
  for (const [renderer, vue, theme] of [["legacy", false, "dark"], ["nodes 2.0", true, "light"]]) {
    await setting("Comfy.VueNodes.Enabled", vue);
    await setting("Comfy.ColorPalette", theme);
    seen.renderers[renderer] = await asAnArtist(renderer, theme);
    seen.renderers[renderer].hostile = await hostile(renderer);
  }
  seen.subgraphs = await throughSubgraphs(workflow);
  // A page from before DOM widgets: the node is there, without a picture, and nothing throws.
  const before = seen.errors.length;
  seen.older = await page.evaluate(
    async ([data, type]) => {
      const prototype = window.LiteGraph.LGraphNode?.prototype ?? window.LGraphNode.prototype;
      const kept = prototype.addDOMWidget;
      const widgets = document.querySelectorAll(".longreel-inspector").length;
      delete prototype.addDOMWidget;
      const node = window.LiteGraph.createNode(type);
      window.app.graph.add(node);
      prototype.addDOMWidget = kept;
      return { kept: typeof kept, added: document.querySelectorAll(".longreel-inspector").length - widgets, inputs: node.inputs.length };
    },
    [workflow, NODE],
  );
  seen.older.errors = seen.errors.slice(before);
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
