import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

const folder = new URL("../../../web/js/inspector/", import.meta.url);
const order = JSON.parse(readFileSync(new URL("order.json", folder), "utf8"));
const read = (name) => readFileSync(new URL(name, folder), "utf8");

test("the order names every module that the offline page needs", () => {
  const modules = readdirSync(folder).filter((name) => name.endsWith(".js"));
  assert.deepEqual([...order, "graph.js"].sort(), modules.sort());
});

test("put one behind the other, no two modules define the same name", () => {
  const names = order.flatMap((name) => [...read(name).matchAll(/^(?:export )?(?:const|let|class|function) (\w+)/gm)].map((m) => m[1]));
  assert.deepEqual(names.filter((name, at) => names.indexOf(name) !== at), []);
});

test("modules import only each other, and text never becomes markup or code", () => {
  for (const name of [...order, "graph.js", "../longreel_inspector.js"]) {
    const code = read(name);
    assert.doesNotMatch(code, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|<\/script|srcdoc/i, name);
    for (const [, from] of code.matchAll(/^(?:import|\}) [^;]*?from "([^"]+)";/gm)) {
      const known = name.startsWith("..") ? /^\.\/inspector\/|scripts\/(app|api)\.js$/ : /^\.\/\w+\.js$/;
      assert.match(from, known, `${name} imports ${from}`);
    }
  }
});
