// Drives the real front end in headless Chromium: opens a workflow, checks that it survives the round trip, runs it and
// waits for the film. Arguments: playwright folder, Chromium, server address, workflow file, picture folder.
// Prints one JSON object with what was seen.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const [playwright, executablePath, server, workflowFile, pictures] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const workflow = JSON.parse(readFileSync(workflowFile, "utf8"));
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

const seen = { errors: [], renderers: {}, templates: await (await fetch(`${server}/api/workflow_templates`)).json() };
const browser = await chromium.launch({ executablePath, headless: true, args: flags });
try {
  const page = await browser.newPage({ viewport: { width: 1800, height: 900 } });
  await page.route("**/*", (route) => {
    const url = route.request().url();
    const local = [server, "data:", "blob:"].some((start) => url.startsWith(start));
    return local ? route.continue() : route.abort();
  });
  page.on("pageerror", (error) => seen.errors.push(String(error.stack ?? error)));
  page.on("console", (message) => {
    if (message.type() === "error") seen.errors.push(`${message.text()} (${message.location().url})`);
  });
  // Without this the first visit is covered by the template dialog.
  await fetch(`${server}/api/settings/Comfy.TutorialCompleted`, { method: "POST", body: "true" });
  await page.goto(server);
  await page.waitForFunction(() => window.app?.graph && window.app.extensionManager, null, { timeout: 180_000 });

  for (const [renderer, vue] of [["legacy", false], ["nodes 2.0", true]]) {
    await page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), vue);
    await page.evaluate((graph) => window.app.loadGraphData(graph), workflow);
    await page.waitForTimeout(2000);
    const made = await page.evaluate(() => window.app.graphToPrompt());
    await page.evaluate(() => {
      // Everything in view, as a person would see it after "fit view".
      const { canvas, graph } = window.app;
      const boxes = graph.nodes.map((node) => [...node.pos, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]);
      const [left, top] = [0, 1].map((side) => Math.min(...boxes.map((box) => box[side])) - 60);
      const [right, bottom] = [2, 3].map((side) => Math.max(...boxes.map((box) => box[side])) + 60);
      canvas.ds.scale = Math.min(1700 / (right - left), 780 / (bottom - top));
      canvas.ds.offset[0] = 90 / canvas.ds.scale - left;
      canvas.ds.offset[1] = 100 / canvas.ds.scale - top;
      canvas.setDirty(true, true);
    });
    await page.waitForTimeout(1000);
    await page.screenshot({ path: join(pictures, `${renderer} opened.png`) });
    // A film of its own, so that nothing comes from the cache.
    await page.evaluate(
      (name) => {
        const sampler = window.app.graph.nodes.find((node) => node.type === "LongReelChunkedARSampler");
        sampler.widgets.find((widget) => widget.name === "project").value = name;
      },
      `browser ${renderer.replace(".", "")}`,
    );
    const running = page.evaluate(
      () =>
        new Promise((resolve, reject) => {
          window.app.api.addEventListener("execution_success", () => resolve(true), { once: true });
          window.app.api.addEventListener("execution_error", (event) => reject(JSON.stringify(event.detail)), { once: true });
        }),
    );
    await page.evaluate(() => window.app.queuePrompt(0));
    await running;
    const film = page.locator("video").first();
    await film.waitFor({ state: "visible", timeout: 30_000 });
    await page.waitForFunction(() => document.querySelector("video")?.videoWidth > 0, null, { timeout: 30_000 });
    await page.waitForTimeout(1500);
    await page.screenshot({ path: join(pictures, `${renderer}.png`) });
    seen.renderers[renderer] = {
      prompt: made.output,
      film: await film.evaluate((video) => ({ width: video.videoWidth, height: video.videoHeight, seconds: video.duration })),
      nodes: await page.evaluate(() => window.app.graph.nodes.map(({ id, pos, size }) => ({ id, pos: [...pos], size: [...size] }))),
    };
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
