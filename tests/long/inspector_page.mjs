// The offline page, opened as a file in headless Chromium. Arguments: playwright folder, Chromium, picture folder, page files.
// Prints what was seen of each page as one JSON object by file name.
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";
import { drawn, newPage, startChromium } from "./front_end.mjs";

const [playwright, executablePath, pictures, ...files] = process.argv.slice(2);
const DRAWS = 25;

/** The colours of the matrix behind the picture, row by row from the top, -1 where nothing was read. */
function cells(page) {
  return page.evaluate(() => {
    const { matrix, inspection } = window.longreelView;
    const { data } = matrix.getContext("2d").getImageData(0, 0, matrix.width, matrix.height);
    const colours = [];
    for (let at = 0; at < data.length; at += 4) colours.push(data[at + 3] ? (data[at] << 16) | (data[at + 1] << 8) | data[at + 2] : -1);
    return { width: matrix.width, height: matrix.height, colours: inspection.chunkCount <= 80 ? colours : colours.length };
  });
}

/** The cells with one group of layers, one of heads, one of both, and with all of them again. */
async function filtered(page) {
  const found = {};
  for (const [name, layers, heads] of [["layers", "3", ""], ["both", "3", "5"], ["heads", "", "5"], ["all", "", ""]]) {
    await page.locator(".longreel-choice").nth(0).selectOption(layers);
    await page.locator(".longreel-choice").nth(1).selectOption(heads);
    await drawn(page);
    found[name] = await cells(page);
  }
  return found;
}

const browser = await startChromium(playwright, executablePath);
const seen = {};
try {
  for (const file of files) {
    const name = basename(file, ".html");
    const { page, errors } = await newPage(browser, {
      viewport: { width: 1100, height: 760 },
      colorScheme: name.endsWith("light") ? "light" : "dark",
    });
    const said = (seen[name] = { errors, requests: [] });
    page.on("request", (request) => said.requests.push(request.url().slice(0, 60)));
    await page.goto(pathToFileURL(file).href);
    await page.waitForFunction(() => window.longreelView?.drawn.picture);
    await drawn(page);
    said.cells = await cells(page);
    // What is on the screen, a little inside of each cell's upper left corner: marks are in the middle.
    said.screen = await page.evaluate(() => {
      const view = window.longreelView;
      const { matrix } = view.layout;
      const context = view.picture.getContext("2d");
      const scale = window.devicePixelRatio || 1;
      const { chunkCount, frameCount } = view.inspection;
      if (chunkCount > 3) return null;
      const rows = [];
      for (let row = 0; row < frameCount; row++) {
        for (let chunk = 0; chunk < chunkCount; chunk++) {
          const x = matrix.x + ((chunk + 0.15) * matrix.width) / chunkCount;
          const y = matrix.y + ((row + 0.2) * matrix.height) / frameCount;
          const [red, green, blue, alpha] = context.getImageData(Math.round(x * scale), Math.round(y * scale), 1, 1).data;
          rows.push(alpha ? (red << 16) | (green << 8) | blue : -1);
        }
      }
      return rows;
    });
    const idle = () => page.evaluate(() => ({ ...window.longreelView.drawn }));
    const before = await idle();
    await page.waitForTimeout(700);
    said.drawnWhileIdle = await page.evaluate((old) => window.longreelView.drawn.picture + window.longreelView.drawn.overlay - old, before.picture + before.overlay);
    await page.mouse.move(700, 400);
    await page.mouse.move(640, 420);
    await drawn(page);
    said.picturesDrawnByHover = await page.evaluate((old) => window.longreelView.drawn.picture - old, before.picture);
    await page.mouse.click(640, 420);
    await drawn(page);
    if (name === "80 chunks") said.filtered = await filtered(page);
    // One draw at a time with a rest between, as when somebody changes a filter now and then.
    said.milliseconds = await page.evaluate(async (draws) => {
      const view = window.longreelView;
      const last = view.inspection.chunks.at(-1).index;
      view.choose(last);
      const spent = async (flush) => {
        const all = [];
        while (all.length < draws) {
          await new Promise((rested) => setTimeout(rested, 100));
          view.stale = { theme: true, picture: true, list: true };
          const start = performance.now();
          view.draw();
          if (flush) for (const canvas of [view.picture, view.overlay]) canvas.getContext("2d").getImageData(0, 0, 1, 1);
          all.push(performance.now() - start);
        }
        return all.sort((a, b) => a - b)[Math.floor(draws / 2)];
      };
      return { all: await spent(false), withPixels: await spent(true) };
    }, DRAWS);
    said.groups = await page.evaluate(() => [...document.querySelectorAll(".longreel-choice")].map((choice) => choice.options.length));
    said.dark = await page.evaluate(() => window.longreelView.theme.dark);
    said.title = await page.title();
    said.hacked = await page.evaluate(() => window.hacked ?? null);
    said.scripts = await page.evaluate(() => document.querySelectorAll("#film :is(script, iframe, [onerror])").length);
    said.name = await page.locator(".longreel-name").textContent();
    await page.screenshot({ path: join(pictures, `page ${name}.png`) });
    // A menu is of the frame it was opened on, wherever the pointer goes before it chooses.
    const stage = await page.locator(".longreel-stage").boundingBox();
    await page.mouse.click(stage.x + stage.width * 0.7, stage.y + stage.height * 0.45, { button: "right" });
    const offered = await page.locator(".longreel-menu-item").first().textContent();
    await page.mouse.move(stage.x + stage.width * 0.3, stage.y + stage.height * 0.35);
    await page.locator(".longreel-menu-item").first().click();
    const advised = await page.locator(".longreel-status").textContent();
    const meant = await page.evaluate(() => window.longreelView.cursor.frame);
    said.menu = { offered: Number(/frame (\d+)/.exec(offered)[1]), meant, advised };
    said.unpinned = await page.evaluate(() => {
      window.longreelView.toggleMark("pin", 1);
      return document.querySelector(".longreel-status").textContent;
    });
    // The film is made anew while a chunk is chosen that is not there yet.
    said.regrown = await page.evaluate(() => {
      const view = window.longreelView;
      const source = JSON.parse(document.getElementById("inspection").textContent);
      view.chosen = source.chunks.at(-1).index;
      view.grow({ inspection: { ...source, chunks: [] }, chunks: source.chunks.slice(0, 1), thumbnails: [] });
      const { overlay } = view.drawn;
      view.draw();
      return { overlays: view.drawn.overlay - overlay, list: document.querySelectorAll(".longreel-title")[1].textContent };
    });
    await page.close();
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
