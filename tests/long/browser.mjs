// The tiny workflow in the real front end: it survives the round trip, runs, and its film is in the page. See `front_end.mjs`.
import { drive } from "./front_end.mjs";

await drive({ width: 1800, height: 900 }, async (front, workflow, seen) => {
  const { page } = front;
  seen.templates = await (await fetch(`${front.server}/api/workflow_templates`)).json();
  seen.renderers = {};
  for (const [renderer, vue] of [["legacy", false], ["nodes 2.0", true]]) {
    await front.set("Comfy.VueNodes.Enabled", vue);
    await front.load(workflow);
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
    await front.settle();
    await front.screenshot(`${renderer} opened`);
    await front.nameFilm(`browser ${renderer.replace(".", "")}`);
    await front.run();
    const film = page.locator("video").first();
    await film.waitFor({ state: "visible" });
    await page.waitForFunction(() => document.querySelector("video")?.videoWidth > 0);
    await front.settle();
    await front.screenshot(renderer);
    seen.renderers[renderer] = {
      prompt: made.output,
      film: await film.evaluate((video) => ({ width: video.videoWidth, height: video.videoHeight, seconds: video.duration })),
      nodes: await page.evaluate(() => window.app.graph.nodes.map(({ id, pos, size }) => ({ id, pos: [...pos], size: [...size] }))),
    };
  }
});
