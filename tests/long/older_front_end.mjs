// The tiny workflow in a front end from before Nodes 2.0, with the inspector's image and JSON shown. See `front_end.mjs`.
import { drive } from "./front_end.mjs";

await drive({ width: 1800, height: 1050 }, async (front, workflow, seen) => {
  const { page } = front;
  seen.version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__);
  await front.load(workflow);
  await front.run();
  Object.assign(
    seen,
    await page.evaluate(() => {
      const { graph, nodeOutputs } = window.app;
      const { canvas } = window.app;
      const output = (type) => nodeOutputs[graph.nodes.find((node) => node.type === type).id];
      const node = graph.nodes.find(({ type }) => type === "LongReelMemoryInspector");
      canvas.ds.scale = 0.95;
      canvas.ds.offset[0] = 420 - node.pos[0];
      canvas.ds.offset[1] = 90 - node.pos[1];
      canvas.setDirty(true, true);
      return {
        nodes: graph.nodes.filter(({ type }) => type.startsWith("LongReel")).map(({ type, inputs }) => [type, inputs.length]),
        image: output("PreviewImage").images[0],
        text: output("PreviewAny").text[0],
        inspection: output("LongReelMemoryInspector").longreel[0],
        picture: document.querySelector(".longreel-name")?.textContent ?? null,
      };
    }),
  );
  await front.settle();
  await front.screenshot("older front end");
});
