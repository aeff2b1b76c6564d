// Pages that go wrong in a known way each. Arguments: playwright folder, Chromium, page files. Prints the errors of each by its
// file's name.
import { basename } from "node:path";
import { pathToFileURL } from "node:url";
import { drawn, newPage, startChromium } from "./front_end.mjs";

const [playwright, executablePath, ...files] = process.argv.slice(2);
const browser = await startChromium(playwright, executablePath);
const seen = {};
try {
  for (const file of files) {
    const { page, errors } = await newPage(browser);
    await page.goto(pathToFileURL(file).href);
    await page.waitForFunction(() => window.done);
    await drawn(page);
    seen[basename(file, ".html")] = errors;
    await page.close();
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
