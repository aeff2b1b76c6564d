// What the drivers share: headless Chromium, what goes wrong in a page, and ComfyUI's own front end. Arguments of every driver
// are the Playwright folder and Chromium; the front end's are also the server's address, a workflow file and a picture folder.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const PATIENCE = 240_000; // milliseconds: the machine may be busy with other things

export function startChromium(playwright, executablePath) {
  const { chromium } = createRequire(import.meta.url)(playwright);
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"];
  return chromium.launch({ executablePath, headless: true, args, timeout: PATIENCE });
}

/** An empty page, and every error that will be seen in it: `{words, files}`, the files being those that it passed through. */
export async function newPage(browser, options) {
  const page = await browser.newPage(options);
  page.setDefaultTimeout(PATIENCE);
  page.setDefaultNavigationTimeout(PATIENCE);
  const errors = [];
  const note = (words, ...files) => errors.push({ words, files: files.filter(Boolean) });
  const filesOf = (stack) => (stack ? [...stack.callFrames.map(({ url }) => url), ...filesOf(stack.parent)] : []);
  const session = await page.context().newCDPSession(page);
  session.on("Runtime.exceptionThrown", ({ exceptionDetails: { text, exception, url, stackTrace } }) =>
    note(`${text} ${exception?.description ?? exception?.value ?? ""}`, url, ...filesOf(stackTrace)),
  );
  session.on("Runtime.consoleAPICalled", ({ type, args, stackTrace }) => {
    const words = args.map(({ description, value }) => description ?? String(value)).join(" ");
    if (type === "error" || type === "assert") note(words, ...filesOf(stackTrace));
  });
  session.on("Log.entryAdded", ({ entry: { level, text, url, stackTrace } }) => {
    if (level === "error") note(text, url, ...filesOf(stackTrace));
  });
  await session.send("Runtime.enable");
  await session.send("Runtime.setAsyncCallStackDepth", { maxDepth: 16 });
  await session.send("Log.enable");
  return { page, errors };
}

/** Until the page has drawn what it was told by now. */
export function drawn(page) {
  return page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))));
}

/** The front end in a browser of its own; `act` drives it, and what it left in `seen` is printed as JSON with all errors. */
export async function drive(viewport, act) {
  const [playwright, executablePath, server, workflowFile, pictures] = process.argv.slice(2);
  const browser = await startChromium(playwright, executablePath);
  const seen = {};
  try {
    const { page, errors } = await newPage(browser, { viewport });
    await page.route("**/*", (route) => {
      const url = route.request().url();
      const local = [server, "data:", "blob:"].some((start) => url.startsWith(start));
      return local ? route.continue() : route.abort();
    });
    // Without this the first visit is covered by the template dialog.
    await fetch(`${server}/api/settings/Comfy.TutorialCompleted`, { method: "POST", body: "true" });
    const front = new FrontEnd(page, server, pictures);
    await front.open();
    await act(front, JSON.parse(readFileSync(workflowFile, "utf8")), seen);
    seen.errors = errors;
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(seen));
}

class FrontEnd {
  constructor(page, server, pictures) {
    Object.assign(this, { page, server, pictures });
  }

  async open() {
    await this.page.goto(this.server);
    await this.page.waitForFunction(() => window.app?.graph && window.app.extensionManager);
  }

  set(setting, value) {
    return this.page.evaluate(([name, to]) => window.app.extensionManager.setting.set(name, to), [setting, value]);
  }

  async load(workflow) {
    await this.page.evaluate((data) => window.app.loadGraphData(data), workflow);
    await this.settle();
  }

  /** Give the film a name of its own, so that nothing comes from the cache. */
  nameFilm(project) {
    return this.page.evaluate((name) => {
      const sampler = window.app.graph.nodes.find(({ type }) => type === "LongReelChunkedARSampler");
      sampler.widgets.find((widget) => widget.name === "project").value = name;
    }, project);
  }

  /** Run the workflow that is open, to its end. */
  async run() {
    const ended = this.page.evaluate(
      () =>
        new Promise((resolve, reject) => {
          const { api } = window.app;
          api.addEventListener("execution_success", () => resolve(true), { once: true });
          api.addEventListener("execution_error", ({ detail }) => reject(new Error(JSON.stringify(detail))), { once: true });
        }),
    );
    await this.page.evaluate(() => window.app.queuePrompt(0));
    await ended;
    await this.settle();
  }

  /** Until the page had time for what follows from the last act: both renderers put some of it off. */
  async settle() {
    await this.page.waitForTimeout(1200);
    await drawn(this.page);
  }

  async screenshot(name) {
    await this.page.screenshot({ path: join(this.pictures, `${name}.png`) });
  }
}
